"""Prompts that already hold a template: what the user wrote is taken out again, so that it is not wrapped twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from gptft.errors import BadRecord

PLACEHOLDER = re.compile(r"\{(\w+)\}")


@cache
def pattern_of(prompt: str) -> re.Pattern:
    """What matches a whole prompt that was made by this one, up to white space at its end; a group for each part."""
    pattern, named = "", set()
    for number, piece in enumerate(PLACEHOLDER.split(prompt.rstrip())):
        part = "instruction" if piece == "prompt" else piece
        if number % 2 == 0:
            pattern += re.escape(piece)
        else:
            pattern += f"(?P={part})" if part in named else f"(?P<{part}>.*?)"
            named.add(part)
    return re.compile(pattern + r"\s*", re.DOTALL)


def take_out(parts: dict, prompts: Sequence[str]) -> dict:
    """A record's parts, its instruction freed of the first of these prompts that it holds; unchanged where it holds
    none. Raises BadRecord where a part stands both in the instruction and beside it."""
    text = parts.get("instruction")
    for prompt in prompts if isinstance(text, str) else ():
        if found := pattern_of(prompt).fullmatch(text):
            for part, inside in found.groupdict().items():
                if part != "instruction" and inside.strip() and parts.get(part, "").strip():
                    raise BadRecord(f"its prompt already holds a template with a text for {part!r}, and it has another")
            return {**parts, **found.groupdict()}
    return parts
