"""Stands in for `decoding.decode` of one prompt, greedy, where the answer repeats what stands in the prompt, as
quotations, corrections and extracts do (prompt lookup: github.com/apoorvumang/prompt-lookup-decoding).

The last tokens are looked up in all that was written; what followed them there is a draft of what may follow here. One
pass reads the draft and says of each of its tokens whether greedy decoding would have written it: those before the
first that is wrong are kept, and the token that is right in its place (arXiv 2304.04487, and with a smaller model for
the drafts 2211.17192).

    written   ... the quick brown fox jumps over ... the quick brown
    draft                                                            fox jumps over
    the pass                                                         fox jumps on      two are kept, and "on" comes free

The ids are those of `decode`, each of them. A pass over several tokens rounds otherwise than one over one, in the last
bits, and so do the keys and values that it leaves behind. Where the best logit is so little above the second that this
could decide between them, the text is read again from where it was last read by passes of one token, one token a pass:
that gives the very numbers of `decode`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from gptft.attention import KVCache
from gptft.decoding import allowed, check_lengths
from gptft.errors import UserError
from gptft.fast.sampling import largest
from gptft.model import GPT
from gptft.parallel.ranks import here

NGRAM = 2  # tokens that are looked up: with three it is noticed later that something is copied
SHORTEST, LONGEST = 3, 16  # drafts: on two cores each token of a pass costs an eighth of a pass over one with the
# weights as they lie or as one row reads them fastest, a thirtieth as several rows do (`rows_in_a_pass`)
REST = 64  # passes without a draft, at most, where drafts are of no use
COARSE = 1e-2  # of the largest logit: where rounding may decide between logits so far apart, drafts cannot pay


@torch.no_grad()
def decode_with_lookup(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Collection[int],
    n_vocab: int,
    cache_dtype: torch.dtype | None = None,
    holes: Sequence[int] = (),
    ended: set[int] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """As `decode`, one prompt after the other: yields a (prompt number, new id) pair a time, several after one pass
    where a draft was right. `ended`: as `continuous.decode_continuously` has it.

    Numbers in 16 bits are so coarse that nearly every token would have to be read again: there nothing is drafted.
    """
    check_lengths(model, prompts)
    ended = set() if ended is None else ended
    for number, prompt in enumerate(prompts):
        left = min(max_new_tokens, model.config.block_size - len(prompt) + 1)
        if left > 0 and number not in ended:
            text = Text(model, prompt, left, n_vocab, cache_dtype, holes)
            for token in text.grow(stops):
                yield [(number, token)]
                if number in ended:
                    break
        ended.add(number)


def rows_in_a_pass(decode: str) -> int:
    """For how many rows the weights are to be arranged (`decoding_model.arranged`): a draft is read as several rows
    are. Where nothing is drafted it is one."""
    return 1 if decode in ("bf16", "int8") else LONGEST


def takes_lookup(asked: bool | None, model, prompts: int, temperature: float, decode: str, lowered: bool) -> bool:
    """Whether prompts are answered by lookup: as `asked`; where that is left open, a single one is, greedily, on the
    CPU in one process, and where nothing is in 16 bits or fewer. Several prompts gain more from one another's company.
    `lowered`: the cache is in 16 bits. Raises UserError where it is asked for and cannot be."""
    if asked and temperature > 0:
        raise UserError("lookup foresees the likeliest tokens alone: it needs temperature 0")
    if asked is not None:
        return asked
    whole = decode not in ("bf16", "int8") and not lowered and getattr(model, "kind", "fp32") == "fp32"
    return prompts == 1 and temperature == 0 and whole and model.device.type == "cpu" and here().size == 1


class Text:
    """A prompt and its answer so far, with a cache of all but the last token.

    `plain`: of so many tokens the keys and values are those of `decode`, bit for bit.
    """

    def __init__(
        self,
        model: GPT,
        prompt: Sequence[int],
        left: int,
        n_vocab: int,
        cache_dtype: torch.dtype | None,
        holes: Sequence[int],
    ) -> None:
        self.model, self.left, self.n_vocab, self.holes = model, left, n_vocab, holes
        self.ids, self.plain, self.tolerance = list(prompt), 0, 0.0
        size = min(len(prompt) + left, model.config.block_size)
        self.cache: KVCache = model.new_cache(1, size, cache_dtype)
        self.copies, self.pace = Copies(prompt), Pace()

    def grow(self, stops: Collection[int]) -> Iterator[int]:
        """The answer, id by id, `left` at most."""
        found = [self._first()]
        while True:
            for token in found:
                if token in stops:
                    return
                self.ids.append(token)
                self.copies.add(token)
                self.left -= 1
                yield token
            if not self.left:
                return
            found = self._next()

    def _first(self) -> int:
        """Read the prompt -> the first token of the answer."""
        n, device = len(self.ids), self.model.device
        idx, last = torch.tensor([self.ids], device=device), torch.tensor([n - 1], device=device)
        logits = self.model.head(self.model.hidden(idx, self.cache.begin([n]), self.cache, scored=last))  # (1, V)
        self.plain = n
        self.tolerance = relative_tolerance(self.model, logits, self.cache)
        return allowed(logits, self.n_vocab, self.holes).argmax(-1).item()

    def _next(self) -> list[int]:
        """The tokens that come next: as many as a draft had right, and one more."""
        start = len(self.ids) - 1  # tokens in the cache
        longest = min(self.pace.ask(), self.left - 1) if self.tolerance < COARSE else 0
        draft = self.copies.find(longest) if longest else []
        best, clear = self._read([self.ids[-1], *draft])
        right = next((at for at, token in enumerate(draft) if token != best[at]), len(draft))
        found = best[: right + 1]
        if all(clear[: right + 1]):
            if draft:
                self.pace.learn(len(draft), right)
        else:
            sure = clear.index(False)
            found = [*found[:sure], self._read_again(found[:sure])]
            self.pace.learn(len(draft), 0)
        self.cache.lengths = torch.tensor([start + len(found)])  # what is behind them is written over
        return found

    def _read(self, tokens: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Pass tokens through the model -> behind each the likeliest id, and whether it is so in spite of rounding."""
        start = int(self.cache.lengths[0])
        idx = torch.tensor([tokens], device=self.model.device)
        h = self.model.hidden(idx, self.cache.extend(len(tokens)), self.cache)[0]  # (T, C)
        logits = self.model.head(h)  # (T, V)
        if len(tokens) == 1 and self.plain == start:
            self.plain = start + 1
        among = allowed(logits, self.n_vocab, self.holes)
        if self.plain > start:
            return among.argmax(-1).tolist(), [True]
        values, ids = largest(among, 2)  # (T, 2) each
        margin = values[:, 0] - values[:, 1]  # (T,)
        clear = margin > self.tolerance * logits.abs().amax(-1)
        token, clear = torch.stack([ids[:, 0], clear.long()]).tolist()  # one wait for the device
        return token, clear

    def _read_again(self, found: Sequence[int]) -> int:
        """What stands behind the text and the tokens found is too close: read it all as `decode` does -> the id."""
        text = [*self.ids, *found]
        self.cache.lengths = torch.tensor([self.plain])
        for token in text[self.plain :]:
            (best,), _ = self._read([token])
        return best


def relative_tolerance(model: GPT, logits: Tensor, cache: KVCache) -> float:
    """By how much of the largest logit the best two must differ, so that rounding cannot have decided between them.

    A sum of n products in arithmetic of precision eps is off by about sqrt(n) eps times its terms' size (Higham and
    Mary 2019, doi 10.1137/18M1226312: by more only with a probability that falls exponentially), a hidden state, to
    which every layer adds such sums of n_embd and more products, by about sqrt(n_layer n_embd) eps. Of two logits, each
    from two computations, all four are off. A sum in blocks, as the libraries add up, is off by far less, which pays
    for the sums longer than n_embd, and for what the head's weights add up to beyond the logit. 64 at least stands for
    what does not shrink with the model: softmax, norms, the activation.
    """
    config = model.config
    return 4 * max(64.0, math.sqrt(config.n_layer * config.n_embd)) * precision_of(model, logits, cache)


def precision_of(model: GPT, logits: Tensor, cache: KVCache) -> float:
    """The eps of the coarsest numbers that a pass computes with."""
    dtypes = [logits.dtype, cache.k.dtype]
    if isinstance(model, torch.nn.Module):  # frozen layers in 16 bits round what they are given
        dtypes += [weight.dtype for weight in model.parameters() if weight.is_floating_point()]
    if getattr(model, "kind", "fp32") != "fp32":  # weights arranged in fewer bits than the logits have
        dtypes.append(torch.bfloat16)
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.append(torch.get_autocast_dtype(logits.device.type))
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    tf32 = logits.is_cuda and torch.get_float32_matmul_precision() != "highest"
    return max(eps, 2.0**-10) if tf32 else eps


class Copies:
    """A text, and where in it each run of NGRAM tokens was last gone on with. Adding and finding take no longer as the
    text grows."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self.behind: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """The next token of the text."""
        if len(self.ids) >= NGRAM:
            self.behind[tuple(self.ids[-NGRAM:])] = len(self.ids)
        self.ids.append(token)

    def find(self, longest: int) -> list[int]:
        """What followed when the text last ended as it does now, `longest` tokens; none where it never did. What runs
        into the end of the text goes on with itself: a text that goes round in a circle is drafted, too."""
        at = self.behind.get(tuple(self.ids[-NGRAM:]))
        if at is None:
            return []
        period = len(self.ids) - at
        return [self.ids[at + n % period] for n in range(longest)]


class Pace:
    """How long drafts are: twice as long after one that was right from end to end, as long as it was right after
    another. After one that was of no use there is none for a while, and for twice as long each time."""

    def __init__(self) -> None:
        self.length, self.rest, self.waits = SHORTEST, 1, 0

    def ask(self) -> int:
        """Before every pass: the tokens to draft for it, at most."""
        if self.waits:
            self.waits -= 1
            return 0
        return self.length

    def learn(self, drafted: int, right: int) -> None:
        """After a pass: so many of the tokens drafted for it were right, from the first on."""
        self.length = 2 * self.length if 0 < right == drafted else max(right, SHORTEST)
        self.length = min(self.length, LONGEST)
        self.rest = 1 if right else min(2 * self.rest, REST)
        self.waits = 0 if right else self.rest
