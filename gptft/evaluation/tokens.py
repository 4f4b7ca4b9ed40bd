"""Examples token by token, read from the very tensors that the loss receives: what is masked, what is a target, and how
likely a model finds each target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gptft.collate import IGNORE, Batch
from gptft.data.examples import Example, Split
from gptft.device import Precision
from gptft.evaluation.losses import score_targets
from gptft.model import GPT
from gptft.tokenizer import Tokenizer
from gptft.training import ToBatch

SHOWN = 3  # examples of a run

KINDS = {
    "target": "a target: the model learns to predict it",
    "masked": "context only: read, not scored (-100)",
    "padding": "padding: neither read nor scored",
}


@dataclass(frozen=True)
class Token:
    """One token of a row: its position, id, text and kind (a key of KINDS)."""

    position: int
    id: int
    text: str
    kind: str


def row_tokens(batch: Batch, row: int, tokenizer: Tokenizer) -> list[Token]:
    """The tokens of one row of a batch.

    Position t of `idx` predicts position t + 1, so the token at t + 1 is a target where targets[t] is one. The last
    token of an example is only ever a target: it is not in `idx`.
    """
    idx, targets, length = batch.idx[row].tolist(), batch.targets[row].tolist(), batch.lengths[row]
    tokens = [Token(0, idx[0], token_text(tokenizer, idx[0]), "masked")]
    for t, target in enumerate(targets):
        if target != IGNORE:
            i, kind = target, "target"
        elif t + 1 < len(idx):
            i, kind = idx[t + 1], "masked" if t + 1 < length else "padding"
        else:
            continue
        tokens.append(Token(t + 1, i, token_text(tokenizer, i), kind))
    return tokens


def token_text(tokenizer: Tokenizer, i: int) -> str:
    """A token as text; one that is a part of a character shows its bytes."""
    if i in tokenizer.special_ids:
        return next(name for name, value in tokenizer.specials.items() if value == i)
    content = tokenizer.token_bytes(i)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in content)


def token_rows(name: str, examples: Split, tokenizer: Tokenizer, to_batch: ToBatch) -> list[dict]:
    """The lines of tokens.jsonl, without losses: of some examples of the split with this name, spread over it, the
    number, the file and line, and the text and kind of each token."""
    rows = []
    for number in np.unique(np.linspace(0, len(examples) - 1, min(SHOWN, len(examples)), dtype=int)).tolist():
        file, line = examples[number].record
        tokens = row_tokens(to_batch([examples[number]]), 0, tokenizer)
        rows.append({"split": name, "example": number, "file": file, "line": line})
        rows[-1] |= {"tokens": [token.text for token in tokens], "kinds": [token.kind for token in tokens]}
    return rows


@torch.no_grad()
def token_losses(model: GPT, example: Example, to_batch: ToBatch, precision: Precision) -> list[float | None]:
    """The loss of each of an example's `row_tokens` in nats, the right tokens before it given; None where it is no
    target. Dropout is off, and training mode is as before afterwards."""
    batch = to_batch([example]).to(model.device)
    was_training = model.training
    model.eval()
    try:
        each, _ = score_targets(model, batch, precision)
    finally:
        model.train(was_training)
    losses = dict(zip((batch.scored + 1).tolist(), each.tolist(), strict=True))  # t predicts the token at t + 1
    T = batch.idx.size(1)
    return [losses.get(position) for position in range(T + (T in losses))]
