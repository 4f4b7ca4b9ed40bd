"""The errors that users see, each one line that says what to put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. Commands print it as one line and exit with `status`."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class NonFinite(UserError):
    """A loss or gradient norm became NaN or infinite: training stopped, weights untouched, nothing saved."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the valid name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def need_extra(package: str, extra: str, what: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"{what} needs the package {package!r}: pip install 'gptft[{extra}]'")


class BadRecord(ValueError):
    """A record that cannot be used; the message names the key and what is wrong with it."""


class Interrupted(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM) while something long was under way."""
