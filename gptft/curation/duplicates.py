"""Records that are the same, or nearly: within the training data, and between it and what it is measured on.

Exact is exact but for case and white space. Near is a Jaccard similarity of at least 0.8 between the sets of three
words in a row: candidates come from MinHash with locality-sensitive hashing (datasketch; Broder 1997), and for each the
similarity itself is computed, so that none is only probable.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

from gptft.curation.checks import normalise, shorten
from gptft.curation.entries import Entry
from gptft.curation.findings import Finding
from gptft.errors import need_extra

NEAR = 0.8  # Jaccard similarity from which two texts are nearly the same
WORDS = 3  # in a row, which make a member of the set
LEAST = 10  # words that a text must have to be compared: a short one is another with one word changed
PERMUTATIONS = 128
WORD = re.compile(r"\w+")


def find_exact(train: Sequence[Entry], held_out: Sequence[Entry]) -> Iterator[Finding]:
    """Duplicates and conflicts within each, and leaks between them; both in the order of the files."""
    for entries in (train, held_out):
        whole: dict[tuple[str, ...], Entry] = {}
        asked: dict[tuple[str, ...], Entry] = {}
        for entry in entries:
            prompt, response = _asked(entry), normalise(entry.response)
            first = whole.setdefault((*prompt, response), entry)
            if first is not entry:
                yield entry.finding("duplicate", f"prompt and response are those of {_place(first, entry)}", first)
                continue
            first = asked.setdefault(prompt, entry) if entry.prompt else entry
            if first is not entry:
                answers = f"{shorten(entry.response)}, there {shorten(first.response)}"
                message = f"the prompt is that of {_place(first, entry)}; the response is {answers}"
                yield entry.finding("conflict", message, first)
    known = {_asked(entry): entry for entry in reversed(held_out)}
    for entry in train:
        if other := known.get(_asked(entry)):
            yield entry.finding("leak", f"its prompt is in the held-out data, {_place(other, entry)}", other)


def _asked(entry: Entry) -> tuple[str, str]:
    """What makes two prompts the same; a plain text is its own."""
    return normalise(entry.context), normalise(entry.prompt or entry.response)


def find_near(train: Sequence[Entry], held_out: Sequence[Entry]) -> Iterator[Finding]:
    """Near duplicates in the training data, and near leaks; of entries for which nothing else was found.

    Raises UserError where datasketch is not installed.
    """
    index = _Index()
    for entry, text in _texts(train, whole=True):
        if found := index.nearest(entry, text):
            other, similarity = found
            message = f"{similarity:.0%} of {WORDS} words in a row as in {_place(other, entry)}"
            yield entry.finding("near-duplicate", message, other)
    if held_out:
        index = _Index()
        for entry, text in _texts(held_out, whole=False):
            index.nearest(entry, text)
        for entry, text in _texts(train, whole=False):
            if found := index.nearest(entry, text, keep=False):
                other, similarity = found
                message = f"{similarity:.0%} of its prompt's words in a row as in {_place(other, entry)}"
                yield entry.finding("near-leak", message, other)


def _texts(entries: Sequence[Entry], whole: bool) -> Iterator[tuple[Entry, frozenset[bytes]]]:
    """What is compared of each entry: all of it, or what is asked; those that are too short are left out."""
    for entry in entries:
        text = f"{entry.context}\n{entry.prompt}"
        text += f"\n{entry.response}" if whole or not entry.prompt else ""
        if shingles := shingles_of(text):
            yield entry, shingles


def shingles_of(text: str) -> frozenset[bytes]:
    """The set of `WORDS` words in a row; empty for a short text."""
    words = WORD.findall(text.casefold())
    if len(words) < LEAST:
        return frozenset()
    return frozenset(" ".join(words[n : n + WORDS]).encode() for n in range(len(words) - WORDS + 1))


class _Index:
    """Texts seen so far, of which the nearest to another is found."""

    def __init__(self) -> None:
        try:
            import datasketch
        except ImportError:
            raise need_extra("datasketch", "lint", "to find near duplicates: gptft") from None
        self.sketch = datasketch
        # candidates from a lower threshold on, since a sketch is only probable; the similarity itself decides
        self.lsh = datasketch.MinHashLSH(threshold=0.6, num_perm=PERMUTATIONS)
        self.seen: list[tuple[Entry, frozenset[bytes]]] = []

    def nearest(self, entry: Entry, shingles: frozenset[bytes], keep: bool = True) -> tuple[Entry, float] | None:
        """The most similar entry that was kept before, with the similarity; None where none is near. One that is near
        to none is kept, so that others are compared with the first of its kind."""
        sketch = self.sketch.MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
        sketch.update_batch(list(shingles))
        best: tuple[Entry, float] | None = None
        for number in self.lsh.query(sketch):
            other, theirs = self.seen[number]
            similarity = len(shingles & theirs) / len(shingles | theirs)
            if similarity >= NEAR and (best is None or similarity > best[1]):
                best = other, similarity
        if keep and best is None:
            self.lsh.insert(len(self.seen), sketch)
            self.seen.append((entry, shingles))
        return best


def _place(other: Entry, entry: Entry) -> str:
    """Where another entry is, as seen from this one."""
    return f"line {other.line}" if other.file == entry.file else f"{other.file}, line {other.line}"
