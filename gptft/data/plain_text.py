"""Long texts: read, tokenised and cut into examples piece by piece, so that memory does not grow with the file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from gptft.prompts import Template
from gptft.text.chat import ChatTemplate
from gptft.tokenizer import Tokenizer

NEAR = 1000  # characters before the end that are searched for a cut first


def chunks(ids: Iterable[int], max_length: int) -> Iterator[list[int]]:
    """Ids of a text -> chunks of `max_length`. Neighbours share one token, so that all but the first are targets."""
    ids = iter(ids)
    chunk = list(itertools.islice(ids, max_length))
    while chunk:
        yield chunk
        further = list(itertools.islice(ids, max_length - 1))
        chunk = chunk[-1:] + further if further else []


def cut_pieces(pieces: Iterable[str], cut: re.Pattern) -> Iterator[str]:
    """The same text in other pieces, which begin and end at places of `cut` (cuts.py). A text that has none is one
    piece: memory is then that of the whole."""
    rest, searched = "", 0
    for piece in pieces:
        rest += piece
        if end := _last_cut(rest, searched, cut):
            yield rest[:end]
            rest = rest[end:]
        searched = max(0, len(rest) - 2)  # a cut is told by two characters before it and one behind
    if rest:
        yield rest


def _last_cut(text: str, start: int, cut: re.Pattern) -> int:
    """The last place after `start` where the text may be cut; 0: there is none."""
    for begin in (max(start, len(text) - NEAR), start):
        if places := [match.start() for match in cut.finditer(text, begin)]:
            return places[-1]
    return 0


def text_ids(
    tokenizer: Tokenizer, template: Template | ChatTemplate, pieces: Iterable[str], cut: re.Pattern
) -> Iterator[int]:
    """The ids of a text that comes in pieces, with the beginning-of-text and the stop around it that the template
    gives to a text, as `encode_segments` has them for the whole. `cut`: as `cuts_of` the tokenizer says."""
    *before, stop = tokenizer.encode_segments(template.segments({"text": ""}))[0]
    yield from before
    for number, piece in enumerate(cut_pieces(pieces, cut)):
        yield from tokenizer.engine.encode(piece, number == 0 and "start" in tokenizer.engine.prefix_at)
    yield stop
