"""What a template makes of a record: segments of text."""

from __future__ import annotations

from typing import NamedTuple


class Segment(NamedTuple):
    """A stretch of text. `kind` is "text" (the user's: always ordinary text, whatever it spells), "template"
    (the template's own words: special tokens named in it are honoured), "chat" (the same of a checkpoint's chat
    template, which writes its own beginning-of-text), "stop" (`text` names the special token that ends a
    response; a vocabulary without it uses its end-of-text) or "bos" (a beginning-of-text, whichever the vocabulary
    has; nothing where it has none). `apart`: it is encoded apart from what stands before it, for there a prompt ends
    or an answer does; such edges are where they are whether the answer is a target or not."""

    text: str
    trained: bool
    kind: str = "text"
    apart: bool = False


# The roles that a record's keys can play.
PARTS = ("instruction", "input", "response", "system", "text", "messages")
