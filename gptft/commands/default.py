"""The embedded default: what `python train.py` runs when it is given nothing to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptft.config import resolve, shipped, to_toml
from gptft.errors import UserError
from gptft.files import atomic_write

if TYPE_CHECKING:
    from gptft.parallel.ranks import Ranks

NAMES = ("pretrain.toml", "instruct.toml")


def embedded_default(given: dict):
    """The course's story in miniature: pretrain on plain text, then tune on instructions. Two ordinary runs -> the Run
    of the second.

    With `resume` in `given`, whatever was finished is kept and the rest is gone on with.
    """
    from gptft.parallel.launch import together

    stages = [resolve(shipped(name), settings) for name, settings in zip(NAMES, of_stages(given), strict=True)]
    with together(stages[0]) as ranks:
        return both_stages(given, ranks)


def both_stages(given: dict, ranks: Ranks):
    """`embedded_default`, as one of `ranks`: the first chooses the folder, holds it, and writes in it."""
    from gptft.finetuning import finetune
    from gptft.parallel.launch import note_folder
    from gptft.run.console import say
    from gptft.run.lock import claim_first
    from gptft.run.signals import Interruption

    resumed = given.get("resume", False)
    out_dir = ranks.tell(ranks.first and choose_folder(given.pop("out_dir", ""), resumed))
    first = out_dir / "pretrain"
    # both stages' settings are fixed at the start, so that whatever goes on later goes on with them
    saved = first / "config.toml", out_dir / "instruct.toml"
    sources = [
        str(path) if resumed and path.exists() else shipped(name) for path, name in zip(saved, NAMES, strict=True)
    ]
    of_first, of_second = of_stages(given)
    pretraining = resolve(sources[0], {**of_first, "out_dir": str(first)})
    tuning = resolve(sources[1], {**of_second, "init": str(first / "best"), "out_dir": str(out_dir)})
    with claim_first(out_dir, ranks, ".stages.lock"):  # beside the lock that each stage takes of its own folder
        done = ranks.tell(ranks.first and (first / "summary.json").exists())
        if ranks.first:
            note_folder(out_dir)
            with atomic_write(saved[1]) as file:
                file.write(to_toml(tuning))
        try:
            say(f"1. pretraining from scratch on plain text, in {first}\n")
            if done:
                say("already done")
            else:
                finetune(pretraining)
            say(f"\n2. tuning on instructions, in {out_dir}\n")
            return finetune(tuning)
        except Interruption as stopped:  # both stages go on by one command
            raise Interruption(stopped.what, stopped.number, out_dir, stopped.at_once) from None


def of_stages(given: dict) -> tuple[dict, dict]:
    """What was given, as it holds for each stage: adapters need a model to stand beside."""
    return {name: value for name, value in given.items() if not name.startswith("lora_")}, given


def choose_folder(name: str, resumed: bool) -> Path:
    """Where both stages go. Raises UserError where a run is that is not gone on with."""
    from gptft.run.folder import holds_run, numbered

    out_dir = Path(name or numbered(Path("checkpoints/default")))
    if (holds_run(out_dir) or holds_run(out_dir / "pretrain")) and not resumed:
        raise UserError(f"--out_dir {out_dir} already holds a run: choose another, or go on with it by --resume")
    return out_dir
