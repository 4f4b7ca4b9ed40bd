"""Look through data: what is broken, double, leaked, cut, badly decoded or out of shape, by file and line.

The exit status is 0 where nothing is found, 1 where something is, and 2 for misuse. With --init also lengths in tokens,
truncation and padding.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from gptft.commands.common import add_base
from gptft.commands.parser import Parser, whole_number
from gptft.config import resolve
from gptft.curation.findings import KINDS
from gptft.errors import UserError, nearest
from gptft.files import atomic_write


def add_arguments(parser: Parser) -> None:
    """The data as for training, what is looked for, and what is written."""
    names = ("data", "val_data", "test_data", "fields", "template", "max_length", "truncation", "batch_size")
    docs = {"data": "files, as for training", "val_data": "validation files", "test_data": "test files"}
    parser.add_fields("data", *names, required=("data",), **docs)
    parser.add_fields("the model", "init", unset=("init",), init="whose tokens are counted; none: no lengths in tokens")
    add_base(parser)
    group = parser.group("findings")
    group.add_argument("--ignore", nargs="+", default=[], help=f"kinds that are not looked for: {', '.join(KINDS)}")
    group.add_argument("--show", type=whole_number(at_least=0), default=3, help="findings of each kind; 0: all [3]")
    group = parser.group("output")
    group.add_argument("--json", action="store_true", help="print everything as JSON, for machines")
    group.add_argument("--html", default="", help="also write a page to this file")
    group.add_argument(
        "--fix",
        default="",
        help="write the records that are left to this .json or .jsonl file, some of them mended, and what was left "
        "out, with the reasons, beside it; a kind under --ignore changes nothing",
    )


def run(options: Namespace) -> None:
    """Print what was found; exits with status 1 where that is anything."""
    for kind in options.ignore:
        if kind not in KINDS:
            raise UserError(f"--ignore {kind}: no such kind{nearest(kind, KINDS)}; one of {', '.join(KINDS)}")
    settings = {"val_fraction": 0.0, "test_fraction": 0.0, **options.settings}
    config = resolve("", {"init": "tiny", **settings})
    from gptft.curation.fix import check_out, left_out_path, write_fixed
    from gptft.curation.lint import lint, measure, measure_words, sort
    from gptft.data.sources import find
    from gptft.report.findings import as_html, as_text

    groups = {name: find(words, name) for name in ("data", "val_data", "test_data") if (words := getattr(config, name))}
    if options.html and Path(options.html).suffix not in (".html", ".htm"):
        raise UserError(f"--html {options.html}: name an .html file")
    every = [path.resolve() for files in groups.values() for path in files]
    if twice := next((path for path in every if every.count(path) > 1), None):
        raise UserError(f"{twice} is named twice")
    if options.fix:
        check_out(Path(options.fix), [str(path) for path in groups["data"]])
    tokenizer, block_size = None, 0
    if "init" in options.settings:
        from gptft.finetuning import load_start

        model, tokenizer = load_start(config, options.base)
        block_size = model.config.block_size
        del model
    trained_with = tokenizer.template if tokenizer else None
    report, template = lint(groups, config.fields, config.template, trained_with)
    if tokenizer and template:
        tokenizer.template = template.for_training(config.thinking)
        max_length = config.max_length or min(block_size, 1024)
        measure(report, tokenizer, max_length, config.truncation, config.batch_size)
    else:
        measure_words(report)
    sort(report, options.ignore)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=1) if options.json else as_text(report, options.show))
    if options.html:
        with atomic_write(options.html) as file:
            file.write(as_html(report))
    if options.fix:
        counts = write_fixed(report, Path(options.fix))
        print(
            f"{counts['written']:,} records in {options.fix}, {counts['mended']:,} of them mended; "
            f"{counts['left out']:,} left out, in {left_out_path(Path(options.fix))}",
            file=sys.stderr if options.json else sys.stdout,
        )
    if report.findings:
        raise SystemExit(1)
