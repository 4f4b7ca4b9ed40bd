"""Make records with a model: questions and answers from documents, or new instructions from examples.

The model is one that `load` opens, or whatever answers at an OpenAI-compatible endpoint, whose key is taken from the
environment. Each record is checked as the linter does, and written with its source and the prompts that made it; what
is left out is written beside it, with the reason. A run that was interrupted goes on where it was.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from gptft.commands.common import MODEL
from gptft.commands.parser import Parser, number, whole_number
from gptft.errors import UserError


def add_arguments(parser: Parser) -> None:
    """What is made of what, by whom, and where it goes."""
    group = parser.group("what is made")
    group.add_argument("--from", nargs="+", default=[], dest="sources", help="documents: Markdown or plain text")
    group.add_argument("--seeds", default="", help="a data file whose instructions are examples for new ones")
    group.add_argument(
        "--template",
        default="qa",
        help="prompts that ask for a question about a passage and for its answer: qa, or a .toml file with the texts "
        "question and answer, in which {file}, {text} and {question} are filled in [qa]",
    )
    group.add_argument(
        "--each", type=whole_number(at_least=1), default=1, help="questions about each passage of a document [1]"
    )
    group.add_argument("--count", type=whole_number(at_least=1), default=100, help="records to make from --seeds [100]")
    group.add_argument("--out", required=True, help="the .jsonl file to write; one that is there is gone on with")
    group = parser.group("the model")
    group.add_argument("--model", required=True, help=f"{MODEL}; with --endpoint, its name there")
    group.add_argument("--endpoint", default="", help="the URL of a server that speaks OpenAI's protocol")
    group.add_argument(
        "--budget", type=whole_number(at_least=0), default=0, help="tokens that the endpoint may use; 0: no end [0]"
    )
    group.add_argument("--temperature", type=number, default=0.8, help="of all but a passage's first question [0.8]")
    group.add_argument("--seed", type=whole_number(at_least=0), default=0, help="seed of the draws [0]")


def run(options: Namespace) -> None:
    """Make what is missing, and say what was made and what was left out."""
    if bool(options.sources) == bool(options.seeds):
        raise UserError("name what to make data of: documents with --from, or examples with --seeds")
    out = Path(options.out)
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: name a .jsonl file")
    from gptft.curation.asking import PROMPTS, read_prompts
    from gptft.curation.making import Book, Local, jobs_from_documents, make_from_documents, make_from_seeds
    from gptft.files import sha256_file
    from gptft.text.endpoint import Endpoint
    from gptft.text.progress import progress

    prompts = read_prompts(options.template)
    paths = [Path(name) for name in options.sources or [options.seeds]]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    settings = {"files": {str(path): sha256_file(path) for path in paths}, "template": options.template}
    if options.template not in PROMPTS:
        settings["prompts"] = prompts._asdict()
    settings |= {name: getattr(options, name) for name in ("model", "endpoint", "temperature", "seed")}
    jobs = list(jobs_from_documents(paths, options.each)) if options.sources else []
    if options.sources and not jobs:
        raise UserError(f"{', '.join(options.sources)}: there is no passage long enough to ask about")
    seeds = read_seeds(paths[0]) if options.seeds else []
    book = Book(out, settings)
    model = Endpoint(options.endpoint, options.model, options.budget) if options.endpoint else Local(options.model)
    total = len(jobs) if jobs else options.count
    with progress(total=total, initial=min(total, len(book.done)), unit="records") as bar:
        if jobs:
            made = make_from_documents(model, jobs, book, options.temperature, prompts)
        else:
            made = make_from_seeds(model, seeds, options.count, book, options.temperature, options.seed)
        for _ in made:
            bar.update()
    left = f"{len(book.refused):,} left out, in {book.left}" if book.refused else "none left out"
    print(f"{len(book.made):,} records in {book.out}; {left}")


def read_seeds(path: Path) -> list[str]:
    """The instructions of a data file."""
    from gptft.data.shapes import recognise
    from gptft.data.sources import find, parse, raw_records
    from gptft.errors import BadRecord, Unreadable

    seeds = []
    for line, raw in raw_records(find([str(path)], "seeds")[0]):
        try:
            parts = recognise(parse(raw))
        except (BadRecord, Unreadable) as error:
            raise UserError(f"--seeds {path}, line {line}: {error}") from None
        if "instruction" not in parts:
            raise UserError(f"--seeds {path}, line {line}: it has no instruction")
        seeds.append(parts["instruction"])
    if not seeds:
        raise UserError(f"--seeds {path}: there is no record")
    return seeds
