"""Fine-tune; with no config, data or init, the embedded default."""

from __future__ import annotations

import os
from argparse import Namespace

from gptft.commands.parser import Parser
from gptft.config import Config, fields_by_heading, resolve

USAGE = "python train.py [--config FILE.toml] [--FIELD VALUE ...]"


def add_arguments(parser: Parser) -> None:
    """--config, and every field of Config under its heading."""
    parser.usage = USAGE
    parser.add_argument("--config", default="", help="a TOML file with any of these settings; the command line wins")
    for heading, names in fields_by_heading().items():
        parser.add_fields(heading, *names)


def run(options: Namespace) -> None:
    """Train as the flags, the file and the defaults say, in this order."""
    given = options.settings
    config_path, config = settle(options.config, given)  # before torch is imported: what is misspelt is said at once
    from gptft.commands.default import embedded_default
    from gptft.finetuning import finetune
    from gptft.parallel.launch import folder_begun, restarted

    if restarted() and "resume" not in given and (out_dir := folder_begun()):  # not in a folder that is another's
        given.update(resume=True, out_dir=out_dir)
        config_path, config = settle(options.config, given)
    if config_path or given.get("data") or given.get("init"):
        finetune(config)
    else:
        embedded_default(given)


def settle(config_path: str, given: dict) -> tuple[str, Config]:
    """The file that holds beside what was given, if any, and the settings. A run that is gone on with has one."""
    if given.get("resume") and not config_path and given.get("out_dir"):
        earlier = os.path.join(given["out_dir"], "config.toml")
        is_default = os.path.isdir(os.path.join(given["out_dir"], "pretrain"))  # two stages, gone on with as two
        if os.path.exists(earlier) and not is_default:
            config_path = earlier  # the run's own settings; flags still win
    return config_path, resolve(config_path, given)
