"""Looking through data files: everything that is found in them, by file and line.

The templates of prompts are taken out before (`### Question:` and the like, where all prompts hold them), so that they
are not reported record by record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptft.curation.checks import look_at, look_at_text
from gptft.curation.duplicates import find_exact, find_near
from gptft.curation.entries import CHARACTERS, Entry, Reader
from gptft.curation.findings import KINDS, LEAVE_OUT, Finding, count_kinds
from gptft.curation.lengths import Measured, find_outliers
from gptft.data.readings import choose_template
from gptft.data.sources import TextFile
from gptft.errors import UserError
from gptft.text.progress import progress
from gptft.tokenizer import Tokenizer


@dataclass
class Report:
    """What was found in some files, by group: "data", "val_data", "test_data". `entries` are the records of each
    group that can be used; `lost` those that cannot: (file, line, number, why, what it is). `lengths` is None where no
    model was named, `notes` say what was not looked for. `unread` are files that could not be read to their end, and
    `stopped` says that a limit kept from it."""

    groups: dict[str, list[str]]
    records: int = 0
    findings: list[Finding] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    lost: list[tuple] = field(default_factory=list)
    template: str = ""
    lengths: dict | None = None
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def files(self) -> list[str]:
        """Every file, in the order in which they were named."""
        return [name for names in self.groups.values() for name in names]

    @property
    def train(self) -> list[Entry]:
        return self.entries.get("data", [])

    @property
    def held_out(self) -> list[Entry]:
        return [entry for group, entries in self.entries.items() if group != "data" for entry in entries]

    def to_dict(self) -> dict:
        """For machines."""
        return {
            "files": self.files,
            "records": self.records,
            "counts": count_kinds(self.findings),
            "template": self.template,
            "lengths": self.lengths,
            "notes": self.notes,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def lint(
    groups: dict[str, Sequence[Path]],
    fields: dict[str, str] | None = None,
    template: str = "auto",
    trained_with=None,
) -> tuple[Report, object]:
    """Look through files: {"data": [...], "val_data": [...], "test_data": [...]}; -> the report, and the template that
    a run would take, None where the records do not agree on one.
    """
    paths = [path for files in groups.values() for path in files]
    report = Report({group: [str(path) for path in files] for group, files in groups.items()})
    try:
        chosen, choice = choose_template(template, fields or {}, trained_with, paths)
        report.template = choice["template"]
    except UserError as error:
        chosen = None
        first, *rest = str(error).split("\n")
        message = " ".join([first, *map(str.strip, rest)])
        report.findings.append(Finding("shape", str(paths[0]), 1, message, number=-1))
    look_through(report, fields or {}, chosen.unwraps if chosen else ())
    _find_near(report)
    return report, chosen


def look_through(report: Report, fields: dict[str, str], unwraps: Sequence[str], limit: int = 0) -> None:
    """Add what each record shows by itself, and what is found where they are compared word by word. `limit`: at most so
    many records of each group; 0: all."""
    for group, files in report.groups.items():
        reader = Reader(fields, unwraps)
        report.entries[group] = []
        for name in files:
            try:
                _read(Path(name), reader, limit, report, group)
            except UserError as error:  # nothing can be found behind it
                line = re.search(r", (?:line|behind row) (\d+): ", str(error))
                why = str(error).removeprefix(name).lstrip(",: ")
                report.findings.append(Finding("broken", name, int(line[1]) if line else 1, why, number=-1))
                report.unread.append(name)
        report.findings += [*reader.findings, *reader.drift()]
        report.lost += reader.lost
        report.records += reader.records
        report.stopped |= reader.stopped
    report.findings += find_exact(*_good(report))


def _good(report: Report) -> tuple[list[Entry], list[Entry]]:
    """The training and the held-out entries that nothing leaves out: of two records that are alike, one must stay."""
    bad = {(found.file, found.number) for found in report.findings if KINDS[found.kind].fix == LEAVE_OUT}
    parts = (report.train, report.held_out)
    return tuple([entry for entry in part if (entry.file, entry.number) not in bad] for part in parts)


def _find_near(report: Report) -> None:
    try:
        report.findings += find_near(*_good(report))
    except UserError as error:
        report.notes.append(str(error))
    try:
        import ftfy  # noqa: F401
    except ImportError:
        report.notes.append("wrongly decoded text was not looked for: pip install 'gptft[lint]'")


def _read(path: Path, reader: Reader, limit: int, report: Report, group: str) -> None:
    """Read one file, and look at each record by itself."""
    with progress(desc=f"reading {path.name}", unit="records") as bar:
        for entry in reader.entries(path, limit):
            bar.update()
            if isinstance(entry, Entry):
                report.entries[group].append(entry)
                seen = set()
                for kind, message in look_at(entry.prompt, entry.answers, entry.texts()):
                    if kind not in seen:  # once a record
                        seen.add(kind)
                        report.findings.append(entry.finding(kind, message))
            else:
                report.findings += _look_at_file(*entry, reader, limit)


def _look_at_file(file: TextFile, name: str, reader: Reader, limit: int) -> list[Finding]:
    """What is found in a text file, line by line; a line that goes over a piece's end is looked at in two."""
    findings, line = [], 1
    for piece in file.pieces():
        if limit and reader.characters > CHARACTERS:
            reader.stopped = True
            break
        reader.characters += len(piece)
        for number, text in enumerate(piece.split("\n")):
            findings += [Finding(kind, name, line + number, message) for kind, message in look_at_text(text)]
        line += piece.count("\n")
    return findings


def measure(report: Report, tokenizer: Tokenizer, max_length: int, rule: str, batch_size: int) -> None:
    """Add what needs a vocabulary: lengths in tokens, truncation, padding. Sets `report.lengths`."""
    measured = Measured(report.train, tokenizer)
    report.findings += measured.refused
    report.findings += measured.too_long(max_length, rule)
    prompts = (measured.totals - measured.targets).tolist()
    lengths = {"prompt": prompts, "response": measured.targets.tolist()}
    report.findings += find_outliers(measured.entries, lengths, "tokens")
    report.lengths = measured.summary(max_length, batch_size)


def measure_words(report: Report) -> None:
    """Where there is no vocabulary: what stands out by its number of words."""
    lengths = {
        "prompt": [len(entry.prompt.split()) for entry in report.train],
        "response": [len(entry.response.split()) for entry in report.train],
    }
    report.findings += find_outliers(report.train, lengths, "words")


def sort(report: Report, ignored: Sequence[str] = ()) -> None:
    """Put the findings in the order of kinds and places, without those of ignored kinds."""
    order, files = list(KINDS), report.files
    kept = [finding for finding in report.findings if finding.kind not in ignored]
    report.findings = sorted(kept, key=lambda f: (order.index(f.kind), files.index(f.file), f.number))
