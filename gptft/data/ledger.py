"""The books of a dataset: whose every token is, and what became of it.

    tokens of the user + of the template + repeated  =  trained + masked + cut + dropped + set aside

over all that was read, and in each split. A token is the template's when no byte of it is the user's. A **repeated**
token stands in two chunks of a long text; **masked** are those that are read and not scored, **cut** those that records
lost to truncation, **dropped** those of records that were left out, and **set aside** those of examples that
`--data_fraction` leaves out. What could not be read at all counts as bytes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptft.prompts import Template
from gptft.text.chat import ChatTemplate
from gptft.text.segments import Segment
from gptft.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptft.data.examples import Dataset, Split

# What is counted while the examples are made.
LEDGER = (
    "records_read",
    "records_kept",
    "records_cut",
    "tokens_read",
    "tokens_user",
    "tokens_template",
    "tokens_kept",
    "tokens_cut",
    "tokens_dropped",
    "tokens_repeated",
    "targets",
    "bytes_unread",
)
MARK = "\ue000"  # stands for a byte of the user's
AT_ONCE = 500_000  # characters gone through together
Encoded = tuple[list[int], bool]  # ids, trained


class Owners:
    """Tells whose the tokens of examples are."""

    def __init__(self, tokenizer: Tokenizer, template: Template | ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.sizes = np.full(tokenizer.n_vocab, -1)  # of each token, in bytes, once asked for
        self.around = (len(template.lead), len(template.tail)) if isinstance(template, Template) else (0, 0)

    def count_template(self, examples: Sequence[tuple[Sequence[Segment], Sequence[Encoded]]]) -> list[int]:
        """How many tokens of each example, (its segments, what the tokenizer's `encode_parts` has for them), hold no
        byte of the user's."""
        counts = []
        marked: list[str] = []  # pieces of text, the user's bytes marked
        tokens: list[list[int]] = []  # and their ids
        of: list[int] = []  # and the number of their example
        size = 0
        for number, (segments, parts) in enumerate(examples):
            counts.append(len(parts[0][0]))  # the vocabulary's beginning-of-text
            pieces = self.tokenizer.pieces([self._mark(segment) for segment in segments])
            for (piece, _), (ids, _) in zip(pieces, parts[1:], strict=True):
                if isinstance(piece, int):
                    counts[-1] += 1
                else:
                    marked.append(piece)
                    tokens.append(ids)
                    of.append(number)
                    size += len(piece)
            if size > AT_ONCE or number == len(examples) - 1:
                for example, count in zip(of, self._count_in_pieces(marked, tokens), strict=True):
                    counts[example] += count
                marked, tokens, of, size = [], [], [], 0
        return counts

    def _count_in_pieces(self, marked: list[str], tokens: list[list[int]]) -> list[int]:
        """The template's tokens of each piece, counted in all of them at once: one by one it takes as long as encoding.

        The bytes of a piece's tokens, one after the other, are those of its text, perhaps with a space in front that
        the vocabulary puts there and that is nobody's. Where it writes a text in other bytes, all count as the user's.
        """
        points = code_points("".join(marked))
        users = points == ord(MARK)
        bytes_of = np.where(users, 1, widths(points))
        users_before = _sums(np.repeat(users, bytes_of))  # each byte, and in all
        starts = _sums(bytes_of)[_sums([len(text) for text in marked])]  # of the pieces, in bytes, and the end
        lengths = np.array([len(ids) for ids in tokens], dtype=int)
        sizes = self._sizes(np.fromiter(itertools.chain.from_iterable(tokens), dtype=int))
        ends, first = _sums(sizes), _sums(lengths)
        piece = np.repeat(np.arange(len(marked)), lengths)  # of each token
        extra = np.diff(ends[first]) - np.diff(starts)  # bytes of each piece's tokens that its text does not have
        end = ends[1:] - ends[first[piece]] - extra[piece]  # where each token ends in its piece's text
        begun, ended = (users_before[starts[piece] + at.clip(0, np.diff(starts)[piece])] for at in (end - sizes, end))
        templates = np.bincount(piece[begun == ended], minlength=len(marked))
        templates[(extra != 0) & (extra != 1)] = 0
        return np.where(np.diff(users_before[starts]), templates, lengths).tolist()

    def _mark(self, segment: Segment) -> Segment:
        """The segment with every byte of the user's as a MARK; a response has the template's text around it."""
        text = segment.text
        if segment.kind != "text":
            return segment
        before, behind = self.around if segment.apart else (0, 0)
        end = len(text) - behind
        size = end - before if text.isascii() else len(text[before:end].encode(errors="surrogatepass"))
        return Segment(text[:before] + MARK * size + text[end:], *segment[1:])

    def _sizes(self, ids: np.ndarray) -> np.ndarray:
        for i in np.unique(ids[self.sizes[ids] < 0]).tolist():
            self.sizes[i] = len(self.tokenizer.token_bytes(i))
        return self.sizes[ids]


def code_points(text: str) -> np.ndarray:
    """The number of each character."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def widths(points: np.ndarray) -> np.ndarray:
    """The bytes that UTF-8 has for each character."""
    return 1 + (points >= 0x80) + (points >= 0x800).astype(int) + (points >= 0x10000)


def _sums(values: Sequence[int] | np.ndarray) -> np.ndarray:
    """The sum of what stands before each, and of all."""
    return np.concatenate([[0], np.cumsum(values, dtype=int)])


def books(split: Split, mask_prompt: bool = True) -> dict[str, int]:
    """The books of one split: both sides of the law, which holds where they are equal."""
    user, template, repeated, cut = (int(column.sum()) for column in split.dataset.origin[split.indices].T)
    stored = int(split.lengths.sum())
    trained = int(split.target_counts.sum()) if mask_prompt else stored - len(split)
    return {
        "examples": len(split),
        "tokens_user": user,
        "tokens_template": template,
        "tokens_repeated": repeated,
        "targets": trained,
        "tokens_masked": stored - trained,
        "tokens_cut": cut,
    }


def complete(datasets: dict[str, Dataset], splits: dict[str, Split], whole: Split | None, mask_prompt: bool) -> None:
    """Write into each dataset's ledger what is known once it is split: what is masked, the books of its splits, and
    what is set aside; `whole` is the training split before that, None where nothing is."""
    for name, dataset in datasets.items():
        dataset.ledger["tokens_masked"] = len(dataset.ids) - dataset.ledger["targets"]
        its = {part: split for part, split in splits.items() if split.dataset is dataset}
        dataset.ledger["splits"] = {part: books(split, mask_prompt) for part, split in its.items()}
        if whole is not None and name == "data":
            kept, all_of_it = dataset.ledger["splits"]["data"], books(whole, mask_prompt)
            aside = dataset.ledger["set_aside"] = {key: all_of_it[key] - kept[key] for key in kept}
            for key in ("targets", "tokens_masked", "tokens_cut"):
                dataset.ledger[key] -= aside[key]
            dataset.ledger["tokens_set_aside"] = sum(aside[key] for key in ("targets", "tokens_masked", "tokens_cut"))


def add(ledger: dict, shard: dict, kept: dict[str, int], every: dict[str, int]) -> None:
    """Let a ledger that is complete tell of a further shard of the same corpus, too. `kept` and `every`: the books of
    what is trained of the shard, and of all in it; the rest is set aside."""
    aside = {key: every[key] - kept[key] for key in every}
    for name in (*LEDGER, "examples"):
        ledger[name] += shard[name]
    for name in ("records_dropped", "unused_keys"):
        ledger[name] = dict(Counter(ledger[name]) + Counter(shard[name]))
    ledger["tokens_masked"] += every["tokens_masked"]
    before = ledger.get("set_aside", dict.fromkeys(aside, 0))
    ledger["set_aside"] = {key: before[key] + aside[key] for key in aside}
    for key in ("targets", "tokens_masked", "tokens_cut"):
        ledger[key] -= aside[key]
        ledger["tokens_set_aside"] = ledger.get("tokens_set_aside", 0) + aside[key]
    for key in kept:
        ledger["splits"]["data"][key] += kept[key]
