"""Text in, text out: the template, the ids, decoding, the text. For every caller that asks a model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptft.data.shapes import prompt_parts
from gptft.decoding import GREEDY, Sampling, check_lengths
from gptft.device import Precision
from gptft.errors import UserError
from gptft.fast.continuous import decode_continuously
from gptft.fast.decoding_model import arranged
from gptft.fast.lookup import decode_with_lookup, rows_in_a_pass, takes_lookup
from gptft.fast.shared_context import Request, log_likelihoods_shared, score, sharing_pays
from gptft.model import GPT
from gptft.parallel.lockstep import lockstep
from gptft.parallel.ranks import here
from gptft.text.pace import Pace
from gptft.text.progress import progress
from gptft.tokenizer import Tokenizer

BATCH = 16  # prompts that are answered at once, unless another number is given


def prompt_ids(tokenizer: Tokenizer, prompt, raw: bool = False, max_input_tokens: int = 0) -> list[int]:
    """The ids that the model is given for a prompt: a text, a record (a dict), a conversation (a list), or the `Parts`
    of a record that is recognised already, by --fields perhaps. A list of ids stays as it is.

    The tokenizer's template is applied unless `raw`. `max_input_tokens` above 0 keeps the last that many, for the end
    of a prompt is where the template asks for the answer; a beginning-of-text stays before them, and is counted.
    """
    template = tokenizer.template
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        ids = prompt
    elif raw or template is None:
        if not isinstance(prompt, str):
            raise UserError("a record or a conversation needs a prompt template; this tokenizer has none")
        ids = ([] if tokenizer.bos is None else [tokenizer.bos]) + tokenizer.encode(prompt)
    else:
        ids, _ = tokenizer.encode_segments(template.prompt_segments(prompt_parts(template, prompt)))
    if not max_input_tokens or len(ids) <= max_input_tokens:
        return ids
    kept = 1 if ids[0] in tokenizer.beginnings else 0
    if max_input_tokens <= kept:
        raise UserError(f"max_input_tokens {max_input_tokens} has room for the beginning-of-text alone")
    return ids[:kept] + ids[len(ids) - max_input_tokens + kept :]


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end a response, each of them: the template's stop, the end-of-text, and what the model's own files
    name (a chat model often names several: the end of a turn, and the end of a text)."""
    return frozenset([tokenizer.stop, tokenizer.eot, *tokenizer.end_ids])


def lowered_dtype(model: GPT, precision: Precision | None) -> torch.dtype | None:
    """In what the products and the cache of decoding are, where that is fewer bits than the weights have; else None.

    On CUDA that is a run's own precision. On the CPU decoding waits for memory, and its attention is in fp32 anyhow.
    """
    if precision is None or precision.name == "fp32" or model.device.type != "cuda":
        return None
    return precision.dtype


class Response(NamedTuple):
    """What a model said, in how many tokens, and whether it came to its end, or was cut off for want of room."""

    text: str
    tokens: int
    finished: bool


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence,
    max_new_tokens: int = 100,
    raw: bool = False,
    max_input_tokens: int = 0,
    batch_size: int = BATCH,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    precision: Precision | None = None,
    lookup: bool | None = None,
    decode: str = "auto",
) -> list[str]:
    """The model's responses to `prompts`, in their order; the prompt is not repeated. Greedy unless temperature > 0.

    A prompt is a text, a record such as {"instruction": ..., "input": ...}, or a list of messages; the checkpoint's
    template is applied unless `raw`. Raises UserError for a prompt beyond block_size, unless `max_input_tokens` (in
    tokens) cuts its start. `batch_size`: prompts at once. `precision`: what a run trains in; None: the weights' own.
    `lookup`: greedily, one prompt after the other, faster where responses repeat what stands in the prompt; None: of a
    single prompt. `decode`: how the weights are read (`fast.decoding_model.arranged`): in fp32, bf16 or int8, "plain",
    "graph" on CUDA, or as suits them.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    given = (raw, max_input_tokens, batch_size, sampling, precision)
    responses = respond(model, tokenizer, prompts, max_new_tokens, *given, lookup=lookup, decode=decode)
    return [response.text for response in responses]


def respond(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence,
    max_new_tokens: int = 100,
    raw: bool = False,
    max_input_tokens: int = 0,
    batch_size: int = BATCH,
    sampling: Sampling = GREEDY,
    precision: Precision | None = None,
    until: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    lookup: bool | None = None,
    decode: str = "auto",
    pace: Pace | None = None,
) -> list[Response]:
    """As `generate`, for whoever asks more than the text of each response. `until`: texts that end a response, too; it
    is cut before the first of them, and has the tokens that were made. `numbers`: which stream of random numbers each
    prompt draws from, where these prompts are some of many; None: 0, 1, 2, ... `pace`: notes when tokens come."""
    if isinstance(prompts, str):
        raise UserError("prompts must be a list of prompts, not one text")
    ids = [prompt_ids(tokenizer, prompt, raw, max_input_tokens) for prompt in prompts]
    check_lengths(model, ids)
    answers: list[list[int]] = [[] for _ in ids]
    ended: set[int] = set()  # places in `mine`
    # each rank has long prompts and short ones
    mine = here().share(sorted(range(len(ids)), key=lambda n: len(ids[n])))
    was_training, lowered = model.training, lowered_dtype(model, precision)
    lookup = takes_lookup(lookup, model, len(prompts), sampling.temperature, decode, lowered is not None)
    model.eval()
    try:
        with lockstep(model), precision.autocast() if lowered else contextlib.nullcontext():
            rows = 1 if lookup else max(1, min(batch_size, len(mine)))
            at_once = rows_in_a_pass(decode) if lookup else rows
            fast = arranged(model, decode, at_once, passes=max_new_tokens * -(-len(mine) // rows))
            asked = (fast, [ids[n] for n in mine], max_new_tokens, stop_ids(tokenizer), tokenizer.n_vocab)
            if lookup:
                passes = decode_with_lookup(*asked, lowered, tokenizer.holes, ended)
            else:
                # a stream of random numbers belongs to a prompt, not to its place here
                streams = [n if numbers is None else numbers[n] for n in mine]
                passes = decode_continuously(*asked, sampling, streams, lowered, tokenizer.holes, batch_size, ended)
            quiet = len(mine) <= batch_size
            with progress(total=len(mine), unit="prompts", quiet=quiet, desc="answering", delay=1) as bar:
                for pairs in passes:
                    if pace:
                        pace.note(len(pairs))
                    for place, token in pairs:
                        answer = answers[mine[place]]
                        answer.append(token)
                        if holds_one(tokenizer, answer, until):
                            ended.add(place)
                    bar.update(len(ended) - bar.n)
                    here().beat()
    finally:
        model.train(was_training)
    for n, answer in here().gather_lists([(n, answers[n]) for n in mine]):
        answers[n] = answer
    template = None if raw else tokenizer.template
    lead, tail = (template.lead, template.tail) if template else ("", "")
    responses = []
    for prompt, answer in zip(ids, answers, strict=True):
        text = tokenizer.decode(answer, after=prompt[-1]).removeprefix(lead).removesuffix(tail)
        # the last token of a response is never read again, so that there is room for one more
        room = min(max_new_tokens, model.config.block_size + 1 - len(prompt))
        cut = min((at for end in until if (at := text.find(end)) >= 0), default=None)
        responses.append(Response(text[:cut], len(answer), len(answer) < room or cut is not None))
    return responses


def holds_one(tokenizer: Tokenizer, answer: Sequence[int], ends: Sequence[str]) -> bool:
    """Whether the last token has brought one of the texts: it stands within as many tokens as it has bytes."""
    return any(end in tokenizer.decode(answer[-len(end.encode()) :], after=0) for end in ends)


class Likelihood(NamedTuple):
    """log p of a continuation after its context, in nats, and whether greedy decoding would give it."""

    value: float
    greedy: bool


def log_likelihoods(
    model: GPT, requests: Sequence[Request], batch_size: int = 16, precision: Precision | None = None
) -> list[Likelihood]:
    """How likely each continuation is after its context: `requests` are (context, continuation), ids, none empty.

    Continuations of one context are measured together (`fast.shared_context`). Raises UserError for a request that has
    more tokens than the model's block_size and one, of which the last is never read.
    """
    for number, (context, continuation) in enumerate(requests, 1):
        if not len(context) or not len(continuation):
            raise UserError(f"request {number}: context and continuation must have a token each")
        if len(context) + len(continuation) > model.config.block_size + 1:
            raise UserError(
                f"request {number} has {len(context) + len(continuation)} tokens, and the model reads "
                f"{model.config.block_size}"
            )
    measure = log_likelihoods_shared if sharing_pays(requests, batch_size) else log_likelihoods_plain
    was_training, lowered = model.training, lowered_dtype(model, precision)
    model.eval()
    try:
        with precision.autocast() if lowered else contextlib.nullcontext():
            return [Likelihood(*found) for found in measure(model, requests, batch_size)]
    finally:
        model.train(was_training)


@torch.no_grad()
def log_likelihoods_plain(model: GPT, requests: Sequence[Request], batch_size: int) -> list[tuple[float, bool]]:
    """Every request by itself: a row is its context and its continuation, padded on the right."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    order = sorted(range(len(requests)), key=lambda n: -sum(map(len, requests[n])))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        T = sum(map(len, requests[chosen[0]])) - 1
        idx = torch.zeros(len(chosen), T, dtype=torch.long)
        places, targets = [], []
        for row, number in enumerate(chosen):
            context, continuation = requests[number]
            ids = [*context, *continuation]
            idx[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            places += range(row * T + len(context) - 1, row * T + len(ids) - 1)
            targets += continuation
        h = model.hidden(idx.to(model.device), scored=torch.tensor(places, device=model.device))  # (n, C)
        values, greedy = score(model.head(h), torch.tensor(targets, device=model.device))
        sizes = [len(requests[number][1]) for number in chosen]
        for number, value, right in zip(chosen, values.split(sizes), greedy.split(sizes), strict=True):
            found[number] = (value.cpu().double().sum().item(), bool(right.all()))
    return found
