"""The books of a dataset: whose every token is, and what became of it.

    tokens of the user + of the template + repeated  =  trained + masked + cut + dropped + set aside

over all that was read, and in each split. A token is the template's when no byte of it is the user's. A **repeated**
token stands in two chunks of a long text; **masked** are those that are read and not scored, **cut** those that records
lost to truncation, **dropped** those of records that were left out, and **set aside** those of examples that
`--data_fraction` leaves out. What could not be read at all counts as bytes.
"""

from __future__ import annotations

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
MARK = "\ue000"  # stands for a character of the user's


class Owners:
    """Tells whose the tokens of an example are."""

    def __init__(self, tokenizer: Tokenizer, template: Template | ChatTemplate) -> None:
        self.tokenizer, self.sizes = (
            tokenizer,
            np.full(tokenizer.n_vocab, -1),
        )  # of each token, in bytes, once asked for
        self.around = (len(template.lead), len(template.tail)) if isinstance(template, Template) else (0, 0)

    def count_template(self, segments: Sequence[Segment], parts: Sequence[tuple[list[int], bool]]) -> int:
        """How many tokens hold no byte of the user's. `parts`: as the tokenizer's `encode_parts` has them."""
        pieces = self.tokenizer.pieces(segments)
        marked = self.tokenizer.pieces([self._mark(segment) for segment in segments])
        count = len(parts[0][0])  # the vocabulary's beginning-of-text
        for (piece, _), (mark, _), (ids, _) in zip(pieces, marked, parts[1:], strict=True):
            if isinstance(piece, int):
                count += 1
            elif MARK not in mark:
                count += len(ids)
            elif mark.strip(MARK):
                count += len(ids) - self._count_user(piece, mark, ids)
        return count

    def _mark(self, segment: Segment) -> Segment:
        """The segment with every character of the user's as MARK; a response has the template's around it."""
        if segment.kind != "text":
            return segment
        before, behind = self.around if segment.apart else (0, 0)
        end = len(segment.text) - behind
        middle = MARK * len(segment.text[before:end])
        return segment._replace(text=segment.text[:before] + middle + segment.text[end:])

    def _count_user(self, text: str, mark: str, ids: list[int]) -> int:
        """The tokens of a text that hold a byte of the user's; `mark` is the text, the user's characters marked.

        The bytes of the tokens, one after the other, are those of the text, perhaps with a space in front that the
        vocabulary puts there. Where it writes the text in other bytes, all count as the user's.
        """
        sizes = self._sizes(np.array(ids, dtype=int))
        users = np.repeat(code_points(mark) == ord(MARK), widths(code_points(text)))
        ends = np.cumsum(sizes)
        if len(ends) and ends[-1] == len(users) + 1:
            users = np.concatenate([[False], users])
        if not len(ends) or ends[-1] != len(users):
            return len(ids)
        so_far = np.concatenate([[0], np.cumsum(users)])
        return int((so_far[ends] > so_far[ends - sizes]).sum())

    def _sizes(self, ids: np.ndarray) -> np.ndarray:
        for i in set(ids[self.sizes[ids] < 0].tolist()):
            self.sizes[i] = len(self.tokenizer.token_bytes(i))
        return self.sizes[ids]


def code_points(text: str) -> np.ndarray:
    """The number of each character."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def widths(points: np.ndarray) -> np.ndarray:
    """The bytes that UTF-8 has for each character."""
    return 1 + (points >= 0x80) + (points >= 0x800).astype(int) + (points >= 0x10000)


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
