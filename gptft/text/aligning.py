"""Which of a rendered text is the user's? A conversation is rendered twice: once as it is, and once with a placeholder
for each of its texts. What stands around the placeholders is the template's."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from gptft.text.conversation import REASONING, answer_start
from gptft.text.segments import Segment

# Characters of Unicode's private plane: no template looks for them, and no strip() takes them away.
PLACEHOLDER = re.compile("\U000f0001(\\d+)\U000f0002")
TAG = re.compile(r"(</?[A-Za-z_]+>)")
NAMELESS = ("id", "type", "tool_call_id")  # what tells calls of tools apart; a template may do without


PLAIN = ("role", "content", "weight", "tool_call_id")  # keys of a message that need no place of their own


class Source(NamedTuple):
    """Where a text of a conversation stands: in which message, under which key, and whether it is reasoning."""

    message: int
    key: str
    reasoning: bool = False


Piece = tuple[str, Source | None]  # a stretch of rendered text, and what it is from; None: the template's own


class Changed(Exception):
    """A rendering is not its skeleton with the texts filled in: (where from, what the template does to it)."""


class Masked(NamedTuple):
    """Messages with placeholders for their texts, and these texts with their sources."""

    messages: list[dict]
    texts: list[str]
    sources: list[Source]


def mask(messages: list[dict], tags: bool, keys: bool, specials: Collection[str] = ()) -> Masked:
    """Placeholders for the contents and, if `keys`, for the texts under all further keys.

    `tags`: tags such as <think> stay where they stand in a content, for a template may look for them.
    """
    masked = Masked([], [], [])

    def put(text: str, source: Source) -> str:
        if not text.strip():
            return text
        masked.texts.append(text)
        masked.sources.append(source)
        return f"\U000f0001{len(masked.texts) - 1}\U000f0002"

    def walk(value, source: Source):
        if isinstance(value, str):
            return put(value, source)
        if isinstance(value, dict):
            return {
                key: item if key in NAMELESS and isinstance(item, str) else walk(item, source)
                for key, item in value.items()
            }
        return [walk(item, source) for item in value] if isinstance(value, list) else value

    for n, message in enumerate(messages):
        out = {}
        for key, value in message.items():
            if key == "content" and isinstance(value, str):
                out[key] = _mask_content(n, value, put, TAG.split(value) if tags else [value], specials)
            elif key in PLAIN or not keys:
                out[key] = value
            else:
                out[key] = walk(value, Source(n, key, key in REASONING))
        masked.messages.append(out)
    return masked


def _mask_content(n: int, content: str, put, parts: list[str], specials: Collection[str]) -> str:
    kept = [not text.strip() or (k % 2 == 1 and text not in specials) for k, text in enumerate(parts)]
    if all(kept):  # nothing but tags
        return put(content, Source(n, "content"))
    answer = max((k for k, text in enumerate(parts) if text == "</think>" and kept[k]), default=-1)
    return "".join(
        text if keep else put(text, Source(n, "content", k < answer))
        for k, (text, keep) in enumerate(zip(parts, kept, strict=True))
    )


def align(skeleton: str, masked: Masked, rendered: str, may_lack: Collection[int] = ()) -> list[Piece]:
    """The rendering in pieces, as the skeleton has them. A text may have lost the white space around it, or have been
    written as JSON. `may_lack`: messages whose reasoning the template may leave out. Raises Changed."""
    first, *rest = PLACEHOLDER.split(skeleton)  # template, number, template, number, ...
    for number in sorted(set(range(len(masked.texts))) - {int(number) for number in rest[::2]}):
        source = masked.sources[number]
        if not (source.reasoning and source.message in may_lack):
            alone = sum(other[:2] == source[:2] for other in masked.sources) == 1
            raise Changed(source, "leaves out" if alone else "leaves out a part of")
    if not rendered.startswith(first):
        raise Changed(Source(0, "content"), "changes with")
    pieces: list[Piece] = [(first, None)]
    position = len(first)
    for k in range(0, len(rest), 2):
        text, source, follows = masked.texts[int(rest[k])], masked.sources[int(rest[k])], rest[k + 1]
        last = k + 2 == len(rest)
        for variant in _variants(text):
            end = position + len(variant) + len(follows)
            if rendered.startswith(variant + follows, position) and (not last or end == len(rendered)):
                break
        else:
            raise Changed(source, "changes")
        pieces += [(variant, source), (follows, None)]
        position = end
    return [piece for piece in pieces if piece[0]]


def _variants(text: str):
    """What a template may have made of a text."""
    yield from (text, text.strip(), text.lstrip(), text.rstrip())
    yield from (text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    yield json.dumps(text, ensure_ascii=False)[1:-1]


def placed(pieces: list[Piece]) -> Iterator[tuple[int, str, Source | None]]:
    """The pieces with where each starts in the rendering."""
    position = 0
    for text, source in pieces:
        yield position, text, source
        position += len(text)


def text_of(pieces: list[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def extent(pieces: list[Piece], n: int, answer: bool = False) -> tuple[int, int] | None:
    """Where the texts of message n start and end, or its `answer` alone, without reasoning; None where it has none."""
    edges: list[int] = []
    for position, text, source in placed(pieces):
        if source and source.message == n and not (answer and (source.reasoning or source.key != "content")):
            # reasoning and answer may be one text
            edges += [position + (answer_start(text) if answer else 0), position + len(text)]
    return (edges[0], edges[-1]) if edges else None


def next_message(pieces: list[Piece], position: int) -> int:
    """Where the first text of a message starts at or after `position`; the end of the rendering where none does."""
    starts = (start for start, _, source in placed(pieces) if start >= position and source)
    return next(starts, len(text_of(pieces)))


def pieces_after(pieces: list[Piece], position: int) -> list[Piece]:
    """The pieces from `position` on."""
    rest = [(text[max(position - start, 0) :], source) for start, text, source in placed(pieces)]
    return [piece for piece in rest if piece[0]]


def cut(
    pieces: list[Piece], edges: Collection[int], spans: list[tuple[int, int]] = (), stops: list[tuple[int, int]] = ()
) -> list[Segment]:
    """Pieces -> segments, cut at the `edges` of answers. `spans`: what is trained, and `stops`: the special tokens that
    end it, both as [start, end) in the rendering."""
    segments, cuts = [Segment("", False, "chat")], {*edges, *itertools.chain(*spans, *stops)}
    for first, text, source in placed(pieces):
        last = first + len(text)
        for start, end in itertools.pairwise(sorted({first, last, *(edge for edge in cuts if first < edge < last)})):
            trained = any(a <= start and end <= b for a, b in spans)
            kind = "text" if source else "stop" if (start, end) in stops else "chat"
            segments.append(Segment(text[start - first : end - first], trained, kind, start in edges))
    return segments
