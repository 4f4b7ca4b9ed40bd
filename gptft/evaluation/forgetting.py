"""What a model loses of what it knew, which its own data cannot show.

Three figures: the perplexity on a general text, before and after; that on the answers which the base itself gave to
prompts outside of the data; and how far the tuned model has moved from the base in choosing the tokens of those
answers: D(tuned || base), the sum over the vocabulary of p log(p / q) in nats a token, exact at each token that is
looked at. The base has chosen those answers itself, so that any other model finds them less likely, a better one too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gptft.collate import collate
from gptft.data.examples import Example
from gptft.data.shapes import prompt_parts
from gptft.device import Precision
from gptft.errors import BadRecord
from gptft.evaluation.intervals import intervals
from gptft.evaluation.losses import Losses, compare_losses, measure_losses
from gptft.files import read_json_lines, resource
from gptft.generation import prompt_ids, respond
from gptft.model import GPT
from gptft.text.segments import Segment
from gptft.tokenizer import Tokenizer, embedded
from gptft.training import ToBatch

PASSAGES = 24  # of the general text
ANSWER_TOKENS = 48  # the longest answer of the base
LOOKED_AT = 6  # tokens of each answer at which the two are compared; a base's choices there stay in memory
BATCH = 8


@dataclass(frozen=True)
class Remembered:
    """What the base knew: by kind (general, own_answers) `examples`, the `texts` behind them, and its `losses`; and
    `log_q` (tokens of the answers that are looked at, V)."""

    examples: dict[str, list[Example]]
    texts: dict[str, list[str]]
    losses: dict[str, Losses]
    log_q: Tensor
    to_batch: ToBatch
    n_vocab: int


def remember(
    model: GPT, tokenizer: Tokenizer, precision: Precision, at_most: int = PASSAGES, max_new_tokens: int = ANSWER_TOKENS
) -> Remembered:
    """Ask the base, before it is trained or beside the tuned model. Prompts that leave no room are left out. `at_most`
    and `max_new_tokens`: what the test prompts may cost, of which this is not to take more."""
    to_batch = partial(collate, pad_id=tokenizer.eot)
    examples, texts = {}, {}
    examples["general"], texts["general"] = general_text(model, tokenizer, at_most)
    examples["own_answers"], texts["own_answers"] = own_answers(
        model, tokenizer, probes()[:at_most], precision, min(max_new_tokens, ANSWER_TOKENS)
    )
    examples = {kind: some for kind, some in examples.items() if some}
    losses = {kind: measure_losses(model, some, BATCH, to_batch, precision) for kind, some in examples.items()}
    log_q = log_probabilities(model, examples.get("own_answers", []), to_batch, precision, tokenizer.n_vocab)
    return Remembered(examples, texts, losses, log_q, to_batch, tokenizer.n_vocab)


def measure_forgetting(base: Remembered, model: GPT, precision: Precision) -> tuple[dict, list[dict]]:
    """The tuned model on the same -> {"general": ..., "own_answers": ..., each as `compare_losses` has it, "kl": {"n":
    answers, "tokens": those looked at, "value", "low", "high"}}; and a row for each text that it is made of."""
    found, rows, own = {}, [], base.examples.get("own_answers", [])
    log_p = log_probabilities(model, own, base.to_batch, precision, base.n_vocab)
    divergence = (log_p.exp() * (log_p - base.log_q)).sum(-1).double().numpy()  # (tokens,)
    sizes = [len(looked_at(example)) for example in own]
    kl = np.array([part.sum() for part in np.split(divergence, np.cumsum(sizes)[:-1])])  # of each answer
    for kind, examples in base.examples.items():
        losses = measure_losses(model, examples, BATCH, base.to_batch, precision)
        found[kind] = compare_losses(base.losses[kind], losses)
        for number, text in enumerate(base.texts[kind]):
            file, place = examples[number].record
            sums = {"before": base.losses[kind].sums[number], "after": losses.sums[number]}
            targets = int(losses.targets[number])
            rows.append({"kind": kind, "file": file, "number": place, "text": text, "targets": targets})
            rows[-1] |= {side: float(value / targets) for side, value in sums.items()}
            if kind == "own_answers":
                rows[-1] |= {"kl": float(kl[number] / sizes[number]), "looked_at": sizes[number]}
    if own:
        sums = np.stack([kl, np.array(sizes)], 1)
        (interval,) = intervals([sums], lambda sums, _: sums[:, 0] / sums[:, 1], math.inf)
        found["kl"] = {"n": len(own), "tokens": sum(sizes)} | interval._asdict()
    return found, rows


def probes() -> list[str]:
    """The prompts of `data/probes.jsonl`, which the project wrote: all kinds of things that people ask."""
    records = read_json_lines(resource("data/probes.jsonl"))
    return ["\n\n".join(filter(None, (record["instruction"], record.get("input")))) for record in records]


def general_text(model: GPT, tokenizer: Tokenizer, at_most: int) -> tuple[list[Example], list[str]]:
    """The passages of `data/general.txt`, each cut to what the model reads. Of the project's own small vocabulary,
    which no other text was made for, they are the first of the text that its default trains on."""
    name = "data/text.txt" if tokenizer.n_vocab == embedded().n_vocab else "data/general.txt"
    passages = resource(name).read_text(encoding="utf-8").split("\n\n")[: min(at_most, PASSAGES)]
    start = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
    examples = []
    for number, passage in enumerate(passages, 1):
        ids = [start, *tokenizer.encode(passage)][: model.config.block_size + 1]
        examples.append(Example(np.array(ids), [(1, len(ids))], (name, number)))
    return examples, passages


def own_answers(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], precision: Precision, max_new_tokens: int
) -> tuple[list[Example], list[str]]:
    """What the model says to each prompt, as an example whose targets are the response and, where it came to one, its
    end; and the texts. An empty response that was cut off has no target, and is left out. None where the template
    is no place for a question alone."""
    try:
        asked = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    except BadRecord:
        return [], []
    room = model.config.block_size - max_new_tokens
    chosen = [number for number, ids in enumerate(asked) if len(ids) <= room]
    given = respond(model, tokenizer, [asked[n] for n in chosen], max_new_tokens, batch_size=BATCH, precision=precision)
    examples, texts = [], []
    for number, response in zip(chosen, given, strict=True):
        parts = prompt_parts(tokenizer.template, prompts[number])
        response_segment = Segment(response.text, True, apart=True)
        ids, _ = tokenizer.encode_segments([*tokenizer.template.prompt_segments(parts), response_segment])
        ids += [tokenizer.stop] if response.finished else []
        if len(ids) > len(asked[number]):
            span = (len(asked[number]), len(ids))
            examples.append(Example(np.array(ids), [span], ("data/probes.jsonl", number + 1)))
            texts.append(response.text)
    return examples, texts


def looked_at(example: Example) -> np.ndarray:
    """The tokens of an example's answer at which two models are compared: at most LOOKED_AT, evenly over it."""
    ((start, end),) = example.spans
    return np.unique(np.linspace(start, end - 1, LOOKED_AT).round().astype(int))


@torch.no_grad()
def log_probabilities(
    model: GPT, examples: Sequence[Example], to_batch: ToBatch, precision: Precision, n_vocab: int
) -> Tensor:
    """(tokens that are looked at, V): the log-probabilities of whatever might stand there, in fp32, on the CPU. V is of
    the tokenizer: one model may have more rows beyond it than another."""
    was_training = model.training
    model.eval()
    try:
        found = []
        for start in range(0, len(examples), BATCH):
            some = examples[start : start + BATCH]
            batch = to_batch(some).to(model.device)
            T = batch.idx.size(1)
            places = np.concatenate([row * T + looked_at(example) - 1 for row, example in enumerate(some)])
            with precision.autocast():
                h = model.hidden(batch.idx, batch.layout, scored=torch.from_numpy(places).to(model.device))  # (n, C)
                logits = model.head(h)[:, :n_vocab].float()  # (n, V)
            found.append(logits.log_softmax(-1).cpu())
    finally:
        model.train(was_training)
    return torch.cat(found) if found else torch.zeros(0, n_vocab)
