"""Text of others as it can be shown: nothing in it steers a terminal or a page."""

from __future__ import annotations

import re

# control characters, but for tab and newline; what turns the direction of the text around it; halves of surrogate
# pairs, which UTF-8 cannot hold; and what is no character at all
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def printable(text: str) -> str:
    """What cannot be seen, or should not act, as escapes."""
    return UNSEEN.sub(lambda match: escape(ord(match[0])), text)


def whole_characters(text: str) -> str:
    """The text with each half of a surrogate pair as U+FFFD, as tiktoken has it: UTF-8 cannot hold one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def escape(point: int) -> str:
    return f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}"
