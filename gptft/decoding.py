"""Decoding. The core takes and gives token ids; text is a thin layer over it.

`decode_plain` is the whole idea in a dozen lines: feed everything, take the best next token, repeat. `decode` gives
the same ids with a KV cache and several prompts at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptft.errors import UserError
from gptft.model import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy: the likeliest token, always.

    top_k keeps the k likeliest tokens (0: all), top_p the fewest whose probabilities reach p (arXiv 1904.09751); as
    likely as the last of them is as good as it. seed is any whole number.
    Each prompt draws from its own stream, seeded with (seed, its number), so a batch changes nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:  # NaN is refused too
            raise UserError("temperature and top_k must be finite and at least 0, and top_p above 0 and at most 1")


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Logits (B, V) -> the next ids (B,), on the CPU. Row n takes one number from generators[n], whatever V is, and
    looks up in the cumulated probabilities which token it falls on. Raises UserError where logits are not numbers."""
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    logits = logits.float().cpu()
    # differences from the best cannot overflow; below 1e-30 every temperature gives the same probabilities
    logits = (logits - logits.max(-1, keepdim=True).values) / max(sampling.temperature, 1e-30)
    if sampling.top_k and sampling.top_k < logits.size(-1):
        smallest = logits.topk(sampling.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)  # (B, V)
    if sampling.top_p < 1:
        probabilities = probabilities.masked_fill(probabilities < nucleus_floor(probabilities, sampling.top_p), 0.0)
    cumulated = probabilities.cumsum(-1, dtype=torch.float64)  # (B, V)
    total = cumulated[:, -1:].contiguous()  # (B, 1)
    if not torch.isfinite(total).all():
        raise UserError("the model's logits are not finite numbers: its weights are damaged, or out of fp16's range")
    drawn = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])  # (B, 1), in [0, 1)
    # strictly below the total, so that rounding cannot point beyond the last token that has a probability
    below = drawn * torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulated, below, right=True)[:, 0]


def nucleus_floor(probabilities: Tensor, top_p: float, topk=torch.topk) -> Tensor:
    """The smallest probability (B, 1) among the fewest tokens of each row (B, V) that reach `top_p` together. Few do,
    as a rule, so that not the whole vocabulary is sorted."""
    V, most = probabilities.size(-1), 64
    while True:
        ordered = topk(probabilities, min(most, V))[0]  # (B, most), falling
        cumulated = ordered.cumsum(-1, dtype=torch.float64)
        if most >= V or (cumulated[:, -1] >= top_p).all():
            break
        most *= 16
    # a token is kept while those before it have not reached top_p, so the first always is
    return ordered.masked_fill(cumulated - ordered >= top_p, torch.inf).min(-1, keepdim=True).values


def allowed(logits: Tensor, n_vocab: int, holes: Sequence[int]) -> Tensor:
    """Logits (B, V) of the tokens that a vocabulary has: an id without a token would be no text, and no ending."""
    logits = logits[:, :n_vocab]
    return logits.index_fill(1, torch.tensor(holes, device=logits.device), -torch.inf) if holes else logits


def random_streams(sampling: Sampling, numbers: Sequence[int]) -> list[torch.Generator]:
    """A stream of random numbers for each prompt, by its number. The two are hashed into one seed: a seed of any size
    has streams of its own."""
    seeds = [hashlib.blake2b(f"{sampling.seed} {number}".encode(), digest_size=8).digest() for number in numbers]
    return [torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1) for seed in seeds]


@torch.no_grad()
def decode_plain(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    stops: Collection[int],
    n_vocab: int,
    sampling: Sampling = GREEDY,
    holes: Sequence[int] = (),
) -> list[int]:
    """One prompt's continuation without a cache: the oracle. Any of the ids in `stops` ends it and is not returned; one
    of `n_vocab` and above, or in `holes`, is never chosen."""
    ids = list(prompt)
    check_lengths(model, [ids])
    generators = random_streams(sampling, [0])
    while len(ids) - len(prompt) < max_new_tokens and len(ids) <= model.config.block_size:
        h = model.hidden(torch.tensor([ids], device=model.device))  # (1, T, C)
        new = choose(allowed(model.head(h[:, -1]), n_vocab, holes), sampling, generators).item()
        if new in stops:
            break
        ids.append(new)
    return ids[len(prompt) :]


@torch.no_grad()
def decode(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Collection[int],
    n_vocab: int,
    sampling: Sampling = GREEDY,
    numbers: Sequence[int] | None = None,
    cache_dtype: torch.dtype | None = None,
    holes: Sequence[int] = (),
) -> Iterator[list[tuple[int, int]]]:
    """Continue several prompts at once with a KV cache: yields after each pass the (prompt number, new id) pairs.

    Prompts of unequal length stand side by side, each from position 0. A row that comes to one of the ids in `stops`,
    which is not yielded, or fills block_size, ends alone; when half of the rows have, the others
    move together. `numbers`: which random stream each prompt draws from; None: 0, 1, 2, ... `cache_dtype`: of the
    cache; None: that of the weights, but whoever decodes under autocast wants autocast's, or the cache would be rounded
    anew at every pass. `holes`: ids that are never chosen, as those of n_vocab and above are not.
    """
    check_lengths(model, prompts)
    B, longest, block = len(prompts), max(map(len, prompts)), model.config.block_size
    cache = model.new_cache(B, min(longest + max_new_tokens, block), cache_dtype)
    left = [min(max_new_tokens, block - len(prompt) + 1) for prompt in prompts]  # tokens still to come, per prompt
    generators = random_streams(sampling, range(B) if numbers is None else numbers)

    idx = torch.zeros(B, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        idx[row, : len(prompt)] = torch.tensor(prompt)
    layout = cache.begin([len(prompt) for prompt in prompts])
    last = torch.arange(B) * longest + cache.lengths - 1  # (B,) each prompt's last token in (B * T)
    h = model.hidden(idx.to(model.device), layout, cache, scored=last.to(model.device))  # (B, C)

    rows = list(range(B))  # which prompt each row of the cache belongs to
    while True:
        new = choose(allowed(model.head(h), n_vocab, holes), sampling, [generators[row] for row in rows])  # (rows,)
        emitted = []
        for row, token in zip(rows, new.tolist(), strict=True):
            if left[row] > 0 and token not in stops:
                emitted.append((row, token))
                left[row] -= 1
            else:
                left[row] = 0
        if emitted:
            yield emitted
        alive = [n for n, row in enumerate(rows) if left[row] > 0]
        if not alive:
            return
        if len(alive) <= len(rows) // 2:
            cache.keep(alive)
            rows, new = [rows[n] for n in alive], new[alive]
            alive = list(range(len(rows)))
        h = model.hidden(new[:, None].to(model.device), cache.extend(growing=alive), cache)[:, 0]  # (rows, C)


def check_lengths(model: GPT, prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number + 1} is empty: there is nothing to continue")
        if len(prompt) > model.config.block_size:
            raise UserError(
                f"prompt {number + 1} has {len(prompt)} tokens, the model's block_size is {model.config.block_size}; "
                "shorten it, or let max_input_tokens cut its start"
            )
