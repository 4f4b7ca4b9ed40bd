"""Stands in for `generation.log_likelihoods_plain` where several continuations have one context, as the answers to a
question of a benchmark: the context is read once, and its continuations stand behind it in one row.

    row        C C C C  a a a  b b  c c c c      C: the context, a b c: its continuations
    position   0 1 2 3  4 5 6  4 5  4 5 6 7      each goes on where the context ends
    sees       C, and of a, b and c its own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptft.attention import Layout
from gptft.model import GPT

Request = tuple[Sequence[int], Sequence[int]]  # (context, continuation), ids
Row = tuple[tuple[int, ...], list[int]]  # a context and the numbers of its requests
LONGEST = 512  # tokens of continuations in a row


@dataclass
class SharedContext(Layout):
    """`doc` is 0 for the context's tokens, n for those of the n-th continuation, -1 for padding."""

    def visible(self, sliding_window: int) -> Tensor:
        behind = self.pos[:, :, None] - self.pos[:, None, :]  # (B, T, S)
        seen = (behind >= 0) & ((self.doc[:, None, :] == 0) | (self.doc[:, None, :] == self.doc[:, :, None]))
        if sliding_window:
            seen &= behind < sliding_window
        return seen[:, None]


@torch.no_grad()
def log_likelihoods_shared(model: GPT, requests: Sequence[Request], batch_size: int) -> list[tuple[float, bool]]:
    """As the plain one. `batch_size`: requests in a pass, at most."""
    # like lengths together: less padding
    rows = sorted(rows_of(requests, batch_size), key=lambda row: -length_of(row, requests))
    found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    start = 0
    while start < len(rows):
        stop, size = start + 1, len(rows[start][1])
        while stop < len(rows) and size + len(rows[stop][1]) <= batch_size:
            size += len(rows[stop][1])
            stop += 1
        for number, result in measure(model, rows[start:stop], requests):
            found[number] = result
        start = stop
    return found


def rows_of(requests: Sequence[Request], batch_size: int) -> list[Row]:
    """The requests by context: at most `batch_size` and LONGEST tokens of continuations in a row, for what each sees of
    the others is a table of its length squared."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(requests):
        groups.setdefault(tuple(context), []).append(number)
    rows: list[Row] = []
    for context, numbers in groups.items():
        room = 0
        for number in numbers:
            size = len(requests[number][1])
            if size > room or len(rows[-1][1]) >= batch_size:
                rows.append((context, []))
                room = max(LONGEST, size)
            rows[-1][1].append(number)
            room -= size
    return rows


def sharing_pays(requests: Sequence[Request], batch_size: int) -> bool:
    """Whether a fifth of the tokens at least need not be read: below that, the mask costs what is saved."""
    alone = sum(len(context) + len(continuation) - 1 for context, continuation in requests)
    return sum(length_of(row, requests) for row in rows_of(requests, batch_size)) <= 0.8 * alone


def length_of(row: Row, requests: Sequence[Request]) -> int:
    """Tokens of a row; the last of a continuation is never read."""
    context, numbers = row
    return len(context) + sum(len(requests[number][1]) - 1 for number in numbers)


def measure(model: GPT, rows: Sequence[Row], requests: Sequence[Request]) -> list[tuple[int, tuple[float, bool]]]:
    """One pass over some rows -> (number of the request, its result)."""
    B, T = len(rows), max(length_of(row, requests) for row in rows)
    idx, pos = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.long)
    doc = torch.full((B, T), -1)
    places, targets, of = [], [], []  # of each scored token: where its prediction stands, its id, its request
    for row, (context, numbers) in enumerate(rows):
        c = len(context)
        idx[row, :c], pos[row, :c], doc[row, :c] = torch.tensor(context), torch.arange(c), 0
        end = c
        for branch, number in enumerate(numbers, 1):
            continuation = requests[number][1]
            n = len(continuation) - 1
            here = slice(end, end + n)
            idx[row, here] = torch.tensor(continuation[:-1], dtype=torch.long)
            pos[row, here], doc[row, here] = torch.arange(c, c + n), branch
            places += [row * T + c - 1, *range(row * T + end, row * T + end + n)]
            targets += continuation
            of += [number] * len(continuation)
            end += n
    device = model.device
    layout = SharedContext(pos.to(device), doc.to(device))
    h = model.hidden(idx.to(device), layout, scored=torch.tensor(places, device=device))  # (n, C)
    sums, greedy = score(model.head(h), torch.tensor(targets, device=device))
    results: dict[int, tuple[float, bool]] = {}
    for number, value, right in zip(of, sums.tolist(), greedy.tolist(), strict=True):
        so_far = results.get(number, (0.0, True))
        results[number] = (so_far[0] + value, so_far[1] and right)
    return list(results.items())


def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, V) and targets (n,) -> log p of each target (n,), in fp32, and whether it is the likeliest (n,)."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen - logits.logsumexp(-1), logits.argmax(-1) == targets
