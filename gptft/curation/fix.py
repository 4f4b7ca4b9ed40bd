"""A cleaned file, and beside it what was left out of it and why: every record is in one of the two."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from gptft.curation.checks import mend_encoding, remove_control
from gptft.curation.findings import KINDS, LEAVE_OUT, MEND
from gptft.curation.lint import Report
from gptft.data.compressed import kind_of
from gptft.errors import UserError
from gptft.files import atomic_write, json_line

MENDS = {"mojibake": mend_encoding, "control": remove_control}


def left_out_path(out: Path) -> Path:
    """Where the records go that are not in `out`: `clean.jsonl` -> `clean.left-out.jsonl`."""
    return out.with_name(f"{out.stem}.left-out.jsonl")


def check_out(out: Path, files: Collection[str]) -> None:
    """Raise UserError where the cleaned file cannot be written, or would overwrite one that is read or there."""
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"--fix {out}: name a .json or .jsonl file")
    for path in (out, left_out_path(out)):
        if path.exists():
            raise UserError(f"--fix {out}: {path} exists already: name another file")
    for name in files:
        if kind_of(Path(name)) == ".txt":
            raise UserError(f"--fix works on records; {name} is one text")


def write_fixed(report: Report, out: Path) -> dict[str, int]:
    """Write the training records without those that a finding leaves out, the others mended; -> how many were written,
    mended, and left out. Both files are written, or none."""
    reasons: dict[tuple[str, int], list[str]] = {}
    mends: dict[tuple[str, int], set[str]] = {}
    if report.unread:
        raise UserError(f"--fix {out}: {report.unread[0]} could not be read to its end; nothing was written")
    for finding in report.findings:
        place = finding.file, finding.number
        if KINDS[finding.kind].fix == LEAVE_OUT:
            reasons.setdefault(place, []).append(f"{finding.kind}: {finding.message}")
        elif KINDS[finding.kind].fix == MEND:
            mends.setdefault(place, set()).add(finding.kind)
    entries = report.entries["data"]
    written, mended, left = [], 0, []
    for entry in entries:
        place = entry.file, entry.number
        if place in reasons:
            left.append((*place, entry.line, reasons[place], entry.record))
            continue
        record = entry.record
        for kind in MENDS:  # wrongly decoded text first: some of its bytes would be taken for control characters
            record = apply(MENDS[kind], record) if kind in mends.get(place, ()) else record
        mended += record != entry.record
        written.append(record)
    files = set(report.groups["data"])
    left += [(file, number, line, [why], record) for file, line, number, why, record in report.lost if file in files]
    left.sort(key=lambda each: (report.files.index(each[0]), each[1]))
    if not written:
        raise UserError(f"--fix {out}: no record is left; nothing was written")
    with atomic_write(out) as file, atomic_write(left_out_path(out)) as others:
        as_array = out.suffix == ".json"
        for number, record in enumerate(written):
            line = json_line(plain(record))
            file.write(("[\n" if not number else ",\n") + line.rstrip("\n") if as_array else line)
        file.write("\n]\n" if as_array else "")
        for name, _, line, why, record in left:
            others.write(json_line({"file": name, "line": line, "why": why, "record": plain(record)}))
    return {"written": len(written), "mended": mended, "left out": len(left)}


def plain(value):
    """The same value as JSON can hold it: dates and the like, which Parquet has, as text."""
    return json.loads(json.dumps(value, default=str))


def apply(mend, value):
    """The same value with every text in it mended."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, list):
        return [apply(mend, each) for each in value]
    if isinstance(value, dict):
        return {key: apply(mend, each) for key, each in value.items()}
    return value
