"""Long texts: read, tokenised and cut into examples piece by piece, so that memory does not grow with the file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from gptft.prompts import Template
from gptft.text.chat import ChatTemplate
from gptft.text.engines import TiktokenEngine
from gptft.tokenizer import Tokenizer

# The alternatives of the patterns by which the vocabularies that we know split a text before merging.
ALTERNATIVES = {
    r"'(?:[sdmt]|ll|ve|re)",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r" ?\p{L}++",
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r" ?\p{N}++",
    r"\p{N}",
    r"\p{N}{1,2}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]++",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s++$",
    r"\s+(?!\S)",
    r"\s",
    r"\s+",
}
CUT = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\S)")
NEAR = 1000  # characters before the end that are searched for a cut first


def chunks(ids: Iterable[int], max_length: int) -> Iterator[list[int]]:
    """Ids of a text -> chunks of `max_length`. Neighbours share one token, so that all but the first are targets."""
    ids = iter(ids)
    chunk = list(itertools.islice(ids, max_length))
    while chunk:
        yield chunk
        further = list(itertools.islice(ids, max_length - 1))
        chunk = chunk[-1:] + further if further else []


def can_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether texts tokenised in `cut_pieces` have the ids of the whole text: shown for patterns of ALTERNATIVES."""
    if not isinstance(tokenizer.engine, TiktokenEngine):
        return False
    found = re.findall(r"(?:\([^()]*\)|\[[^\]]*\]|[^|()\[\]])+", tokenizer.pattern)
    return "|".join(found) == tokenizer.pattern and set(found) <= ALTERNATIVES


def cut_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in other pieces: they end where a pattern of ALTERNATIVES ends a match in the whole text too.

    That is before a space that follows a character which is no white space, and between a single line feed and such
    characters on both sides of it. Merging never leaves a match, so it is enough that the matches are the same:

    - No alternative matches a space behind anything but white space, or anything but white space behind a line feed;
      so a match of the whole text ends at the cut, and what is right of it is matched alike, for nothing looks back.
    - The left piece's last match is the same although the text now ends there: only white space looks at what follows
      (`$` and `(?!\\S)`), and there is none before a space's cut. Before the other cut it is the one line feed, which
      is a match of its own, or the end of the punctuation before it, whichever alternative comes first.

    A text without such a place is one piece: memory is then that of the whole.
    """
    rest, searched = "", 0
    for piece in pieces:
        rest += piece
        if cut := _last_cut(rest, searched):
            yield rest[:cut]
            rest = rest[cut:]
        searched = max(0, len(rest) - 2)  # a cut is told by two characters before it and one behind
    if rest:
        yield rest


def _last_cut(text: str, start: int) -> int:
    """The last place after `start` where the text may be cut; 0: there is none."""
    for begin in (max(start, len(text) - NEAR), start):
        if places := [match.start() for match in CUT.finditer(text, begin)]:
            return places[-1]
    return 0


def text_ids(tokenizer: Tokenizer, template: Template | ChatTemplate, pieces: Iterable[str]) -> Iterator[int]:
    """The ids of a text that comes in pieces, with the beginning-of-text and the stop around it that the template
    gives to a text, as `encode_segments` has them for the whole. Only for tokenizers that `can_be_cut`."""
    *before, stop = tokenizer.encode_segments(template.segments({"text": ""}))[0]
    yield from before
    for piece in cut_pieces(pieces):
        yield from tokenizer.encode(piece)
    yield stop
