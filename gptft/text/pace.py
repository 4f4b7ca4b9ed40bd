"""How fast an answer comes: how long one waits for its first token, and how many a second follow."""

from __future__ import annotations

import sys
import time


class Pace:
    """Notes tokens as they come, from the moment it is made. `clock`: seconds."""

    def __init__(self, clock=time.perf_counter) -> None:
        self.clock, self.began = clock, clock()
        self.first = self.last = None  # when tokens came
        self.at_first = self.tokens = 0  # how many with the first, and in all

    def note(self, tokens: int) -> None:
        """So many have come."""
        self.last, self.tokens = self.clock(), self.tokens + tokens
        if self.first is None:
            self.first, self.at_first = self.last, tokens

    def __str__(self) -> str:
        if self.first is None:
            return "no token came"
        said, rest = f"first token after {self.first - self.began:.2f} s", self.tokens - self.at_first
        if rest and self.last > self.first:
            said += f", then {rest / (self.last - self.first):.1f} tokens a second"
        return f"{said} ({self.tokens} in {self.last - self.began:.1f} s)"

    def show(self) -> None:
        """Say it, where somebody sees it."""
        if on_a_terminal():
            print(self, file=sys.stderr)


def on_a_terminal() -> bool:
    """Whether standard error is one."""
    return sys.stderr.isatty()
