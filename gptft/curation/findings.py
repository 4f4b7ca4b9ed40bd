"""What is found in data: kinds, places, and what `--fix` does about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

LEAVE_OUT, MEND, KEEP = "left out", "mended", "kept"


class Kind(NamedTuple):
    """What a finding of this kind says, and what becomes of the record under `--fix`."""

    what: str
    fix: str


KINDS = {
    "broken": Kind("cannot be read: broken JSON, no UTF-8, a row of another length", LEAVE_OUT),
    "shape": Kind("no record that can be used: a key is missing, or holds what it must not", LEAVE_OUT),
    "key": Kind("a key that few records have, and that plays no part", KEEP),
    "type": Kind("another type than the same key has in the other records", LEAVE_OUT),
    "empty": Kind("an empty response, or an empty prompt", LEAVE_OUT),
    "echo": Kind("the response repeats the prompt", LEAVE_OUT),
    "duplicate": Kind("prompt and response of an earlier record, but for case and white space", LEAVE_OUT),
    "near-duplicate": Kind("nearly an earlier record's prompt and response", LEAVE_OUT),
    "conflict": Kind("the prompt of an earlier record with another response", KEEP),
    "leak": Kind("a prompt of the validation or test data in the training data", LEAVE_OUT),
    "near-leak": Kind("nearly a prompt of the validation or test data in the training data", LEAVE_OUT),
    "special": Kind("a special token or a template spelled out", LEAVE_OUT),
    "mojibake": Kind("text that was decoded wrongly", MEND),
    "lost": Kind("characters that a decoder could not read, and wrote as U+FFFD", LEAVE_OUT),
    "control": Kind("control characters, or ones that cannot be seen", MEND),
    "refusal": Kind("a refusal, or boilerplate of a language model", LEAVE_OUT),
    "cut": Kind("an answer that ends in mid-sentence", LEAVE_OUT),
    "length": Kind("far longer or shorter than the others", KEEP),
    "too-long": Kind("does not fit into max_length, and is cut or dropped", KEEP),
    "personal": Kind("what looks like an e-mail address, a key or a card number", KEEP),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found: its kind, where, and what it is. `other` is the record that it is compared with;
    `number` counts the file's records from 0, for several may stand on one line; -1: it is about the whole file."""

    kind: str
    file: str
    line: int
    message: str
    other: tuple[str, int] | None = None
    number: int = 0

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"

    def to_dict(self) -> dict:
        values = asdict(self)
        if self.other:
            values["other"] = {"file": self.other[0], "line": self.other[1]}
        else:
            del values["other"]
        return values


def count_kinds(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings of each kind there are, in the order of KINDS, those without left out."""
    counts = Counter(finding.kind for finding in findings)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}
