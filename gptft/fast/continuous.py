"""Stands in for `decoding.decode` where there are more prompts than rows: whoever has its answer leaves, and whoever
waits enters, while the others go on (continuous batching; Orca, Yu et al., OSDI 2022).

    pass    1  2  3  4  5  6  7  8         P: prompts are read, each gives its first token
    row 0   P  a  a  a     a  a  d         a, b, ...: a token of an answer
    row 1   P  b  b  c  P  d  d
    row 2   P  c  c     P  e               when b ends, c moves up; in pass 5, d and e are read

What all prompts begin with (a template, a system prompt, examples) is read once. Ids are those of `decode`: in fp32
another batch rounds otherwise, so that two logits which are all but equal may change places, as in any batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence

import torch

from gptft.decoding import GREEDY, Sampling, allowed, check_lengths, random_streams
from gptft.fast.rows import Rows
from gptft.fast.sampling import choose_by_blocks
from gptft.model import GPT

# What a pass costs beside its tokens, in tokens read: its kernels are started, its weights come from memory. On two
# cores that is some 15 tokens of a model of 135 million parameters, on a GPU several hundred of any model's.
PASS = 64


@torch.no_grad()
def decode_continuously(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Collection[int],
    n_vocab: int,
    sampling: Sampling = GREEDY,
    numbers: Sequence[int] | None = None,
    cache_dtype: torch.dtype | None = None,
    holes: Sequence[int] = (),
    rows: int = 16,
    ended: set[int] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """As `decode`, of any number of prompts, at most `rows` at once: yields after each pass the (prompt number, new id)
    pairs, a prompt's first with the pass that reads it.

    `ended`: into this set goes the number of each prompt that has come to its end; what the caller puts in between two
    passes is gone on with no further. Memory is bounded whatever the number of prompts: `rows.cache_bytes` of `rows`
    rows, each as long as the longest prompt with its answer, and one row of the shared beginning.
    """
    check_lengths(model, prompts)
    ended = set() if ended is None else ended
    left = [min(max_new_tokens, model.config.block_size - len(prompt) + 1) for prompt in prompts]  # tokens to come
    if not prompts or max_new_tokens < 1:
        ended.update(range(len(prompts)))
        return
    rows = max(1, min(rows, len(prompts)))
    size = max(len(prompt) + new - 1 for prompt, new in zip(prompts, left, strict=True))  # the last id is never read
    cache = Rows(model, rows, size, cache_dtype)
    if beginning := shared_beginning(prompts):
        cache.share(beginning)
    line = Line(prompts, rows)
    who: list[int] = []  # the prompt in each row
    tokens: list[int] = []  # the last id of each row
    streams: list[torch.Generator] = []  # each row's random numbers
    while line.waiting or who:
        first = len(who)
        if group := line.next_to_enter(len(who), ended):
            h = cache.enter([prompts[n] for n in group])  # (n, C)
            who += group
            streams += random_streams(sampling, group if numbers is None else [numbers[n] for n in group])
        elif who:
            first, h = 0, cache.step(tokens)  # (rows, C)
        else:
            return  # the caller wants none of those who waited
        asked = who[first:]
        logits = allowed(model.head(h), n_vocab, holes)
        tokens[first:] = new = choose_by_blocks(logits, sampling, streams[first:]).tolist()
        emitted = [(n, token) for n, token in zip(asked, new, strict=True) if token not in stops]
        for n, _ in emitted:
            left[n] -= 1
        ended.update(n for n, token in zip(asked, new, strict=True) if token in stops or not left[n])
        if emitted:
            yield emitted
        if gone := [row for row, n in enumerate(who) if n in ended]:
            order = cache.leave(gone)
            who, tokens, streams = ([of_row[row] for row in order] for of_row in (who, tokens, streams))


class Line:
    """Who waits, and when to enter. The longest come first: what will not fit fails at once, and like lengths meet.

    A pass that reads prompts costs what a pass costs, be they one or many, so that it would be a waste for each row
    that is free; but a free row wastes its share of every pass. So prompts enter as soon as the rows that were free
    have cost as much as a pass, which is when their passes add up to the number of rows: where the two costs are
    equal, their sum is least (the economic order quantity; Harris 1913). That holds on a CPU and on a GPU, for it is
    the same price on both sides. Where all who wait find a row there is nothing to wait for.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], rows: int) -> None:
        self.prompts, self.rows = prompts, rows
        self.waiting = deque(sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), *prompts[n])))
        self.idle = 0  # passes for which a row was free, added up over the rows

    def next_to_enter(self, in_use: int, ended: Collection[int]) -> list[int]:
        """Before every pass: the prompts that are to be read in it, none where the others go on. Those of one pass are
        so alike in length that their padding costs less than another pass."""
        free = self.rows - in_use
        self.idle = self.idle + free if in_use else self.rows  # it holds up nobody's passes where there are none
        if self.idle < self.rows and len(self.waiting) > free:
            return []
        group: list[int] = []
        padding = 0
        while self.waiting and len(group) < free:
            n = self.waiting[0]
            padding += len(self.prompts[group[0]]) - len(self.prompts[n]) if group else 0
            if padding > PASS:
                break
            self.waiting.popleft()
            if n not in ended:
                group.append(n)
        if len(group) == free:
            self.idle = 0
        return group


def shared_beginning(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all prompts begin with, where it pays to read it apart; else nothing. Each keeps a token of its own, at
    least, for its first id comes from there.

    It is a pass more, and the prompts are read with a mask: that pays where it saves the cost of a pass, and a fifth
    of what would be read (below that, the mask costs what is saved).
    """
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)  # in the order of words all others lie between them
    n = min(map(len, prompts)) - 1
    n = next((at for at in range(n) if first[at] != last[at]), n)
    saved = (len(prompts) - 1) * n
    return first[:n] if saved >= max(PASS, sum(map(len, prompts)) / 5) else ()
