"""Write the records with their prompts hydrated, as {"input": prompt, "output": response} or {"text": text}.

Trained on with `--template plain`, the file gives what `--template T` gives on single-turn records, in a vocabulary
without special tokens of the template's.
"""

from __future__ import annotations

import os
from argparse import Namespace

from gptft.commands.parser import Parser
from gptft.config import resolve
from gptft.errors import BadRecord, Unreadable, UserError
from gptft.files import atomic_write, json_line


def add_arguments(parser: Parser) -> None:
    """The data, the template, and the file to write."""
    parser.add_fields(
        "data",
        "data",
        "template",
        "fields",
        required=("data", "template"),
        data="files, as for training",
        template="alpaca, qa, phi3, llama2, chatml, plain or a TOML file",
    )
    parser.group("output").add_argument("--out", required=True, help="the .jsonl file to write")


def run(options: Namespace) -> None:
    """Write the file whole, or nothing."""
    config = resolve("", options.settings)
    from gptft.data.readings import choose_template
    from gptft.data.shapes import recognise
    from gptft.data.sources import find, parse, raw_records
    from gptft.prompts import hydrate

    paths = find(config.data)
    template, _ = choose_template(config.template, config.fields, None, paths)
    if any(os.path.exists(options.out) and os.path.samefile(path, options.out) for path in paths):
        raise UserError(f"--out {options.out} is one of the files to read")
    count = 0
    with atomic_write(options.out) as out:
        for path in paths:
            for line, raw in raw_records(path):
                try:
                    record = hydrate(template, recognise(parse(raw), config.fields))
                except (BadRecord, Unreadable) as error:
                    raise UserError(f"{path}, line {line}: {error}; nothing was written") from None
                out.write(json_line(record))
                count += 1
        if not count:
            raise UserError(f"{', '.join(map(str, paths))}: there is no record; nothing was written")
    print(f"{count:,} records in {options.out}")
