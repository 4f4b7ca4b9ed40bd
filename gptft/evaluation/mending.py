"""The training records that are nearest to what went wrong: where the data is to be mended, or added to.

Near is measured twice. By the model itself: the cosine of the means of its last hidden states over the prompts' tokens,
less the mean over all training prompts (what all share, the template above all, would make every cosine nearly 1). And
by the text: the share of words and pairs of words that both prompts have (Jaccard).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from gptft.collate import by_length
from gptft.curation.entries import Entry, Reader
from gptft.errors import BadRecord, UserError
from gptft.evaluation.metrics import exact_match
from gptft.evaluation.mistakes import asked_texts
from gptft.evaluation.responses import prompt_and_expected
from gptft.generation import prompt_ids
from gptft.model import GPT
from gptft.tokenizer import Tokenizer

NEAREST = 3  # of either kind
WORD = re.compile(r"\w+")


def is_failure(row: dict, side: str) -> bool:
    """Whether a side's answer has a mistake (`mistake_counts.note_mistakes` noted them), or is not the expected one."""
    return bool(row["mistakes"][side]) or not exact_match(row[side], row["expected"])


def read_training(files: Sequence[Path], fields: dict[str, str]) -> tuple[list[Entry], int]:
    """The records that can be used and that ask something, and how many others there are. Raises UserError where there
    is none."""
    reader = Reader(fields)
    entries = [entry for path in files for entry in reader.entries(path) if isinstance(entry, Entry)]
    if asking := [entry for entry in entries if "text" not in entry.parts]:
        return asking, reader.records - len(asking)
    raise UserError(f"--mend_data {' '.join(map(str, files))}: there is no record with a prompt and a response in it")


def that_can_be_asked(tokenizer: Tokenizer, entries: Sequence[Entry], fields: dict) -> list[Entry]:
    """The records that the template has a place for."""

    def fits(entry: Entry) -> bool:
        with suppress(BadRecord):
            return bool(prompt_ids(tokenizer, prompt_and_expected(entry.record, fields)[0]))
        return False

    return [entry for entry in entries if fits(entry)]


def find_nearest(
    model: GPT,
    tokenizer: Tokenizer,
    failures: Sequence[dict],
    entries: Sequence[Entry],
    fields: dict,
    training_fields: dict,
    asked_files: Collection[str] = (),
    side: str = "after",
) -> Iterator[dict]:
    """A row for each failure: its record, the expected response, the answer and its mistakes, and the `nearest`
    training records, those by the hidden states and those by the text, each with file, line, `hidden` (the cosine),
    `text` (the share) and the record itself. `fields`, `training_fields`: what the keys of either are named.
    `asked_files`: where the questions came from; there a record is no lesson to itself."""
    asked = [prompt_and_expected(row["record"], fields)[0] for row in failures]
    known = [prompt_and_expected(entry.record, training_fields)[0] for entry in entries]
    train = embed(model, tokenizer, known)  # (records, C)
    middle = train.mean(0)
    cosines = unit(embed(model, tokenizer, asked) - middle) @ unit(train - middle).T  # (failures, records)
    own = [n for n, entry in enumerate(entries) if entry.file in asked_files]
    pieces = Pieces([pieces_of(asked_texts(parts)) for parts in known])
    for row, parts, by_hidden in zip(failures, asked, cosines.numpy(), strict=True):
        by_text = pieces.shares(pieces_of(asked_texts(parts)))
        itself = [n for n in own if entries[n].record == row["record"]]
        by_hidden[itself] = by_text[itself] = -2.0
        chosen = [n for by in (by_hidden, by_text) for n in np.argsort(-by, kind="stable")[:NEAREST].tolist()]
        nearest = [
            {
                "file": entries[n].file,
                "line": entries[n].line,
                "hidden": round(float(by_hidden[n]), 4),
                "text": round(float(by_text[n]), 4),
                "record": entries[n].record,
            }
            for n in dict.fromkeys(chosen)
            if n not in itself
        ]
        said = {"record": row["record"], "expected": row["expected"], "answer": row[side]}
        yield said | {"mistakes": row["mistakes"][side], "nearest": nearest}


@torch.no_grad()
def embed(model: GPT, tokenizer: Tokenizer, prompts: Sequence, batch_size: int = 16) -> torch.Tensor:
    """The mean of the last hidden states over each prompt's tokens, in fp32 on the CPU: (prompts, C). Of a prompt
    beyond block_size the end is looked at. Padding stands on the right, where nothing before it sees it."""
    ids = [prompt_ids(tokenizer, prompt)[-model.config.block_size :] for prompt in prompts]
    found = torch.zeros(len(ids), model.config.n_embd)
    was_training = model.training
    model.eval()
    try:
        for chosen in by_length(np.array([len(each) for each in ids]), batch_size):
            T = len(ids[chosen[0]])
            idx = torch.tensor([ids[n] + [tokenizer.eot] * (T - len(ids[n])) for n in chosen])
            hidden = model.hidden(idx.to(model.device)).float().cpu()  # (B, T, C)
            for row, n in enumerate(chosen):
                found[n] = hidden[row, : len(ids[n])].mean(0)
    finally:
        model.train(was_training)
    return found


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; one of zeros, which has no direction, stays."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def pieces_of(texts: Sequence[str]) -> set[str]:
    """The words of a prompt, and each two in a row."""
    words = WORD.findall("\n".join(texts).casefold())
    return {*words, *map(" ".join, pairwise(words))}


class Pieces:
    """The pieces of many texts, by which all that share some with another are found at once."""

    def __init__(self, texts: Sequence[set[str]]) -> None:
        self.sizes = np.array([len(text) for text in texts])
        self.having: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            for piece in text:
                self.having.setdefault(piece, []).append(number)

    def shares(self, text: set[str]) -> np.ndarray:
        """Of each text the pieces that both have, over those that either has."""
        numbers = [number for piece in text for number in self.having.get(piece, ())]
        both = np.bincount(numbers, minlength=len(self.sizes)) if numbers else np.zeros(len(self.sizes))
        return both / np.maximum(self.sizes + len(text) - both, 1)
