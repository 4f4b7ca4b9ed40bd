"""Words that are spelt wrong, told without a dictionary: by the words of the data and of the model's vocabulary.

A vocabulary of byte pairs has the commonest words of its language whole. A word that is neither there nor in the data,
and that no known word makes with an ending, a beginning or another known word, is rare, or spelt wrong; where one
letter more, less, or another, or two neighbours swapped make a common word of it, it is called the latter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from gptft.tokenizer import Tokenizer

LETTERS = 5  # of a word that is looked at: short ones are all near to each other
PART = 5  # letters of either part of a word made of two: shorter pieces of a vocabulary are seldom words
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
ENDINGS = (
    *("s", "es", "ed", "d", "ing", "er", "ers", "r", "or", "est", "ly", "ness", "less", "ful", "able", "ible", "ment"),
    *("ish", "ism", "ist", "ists", "ize", "ise", "ized", "ised", "ity", "ive", "al", "ally", "ic", "ical", "ous", "y"),
    *("ion", "ation", "ance", "ence", "like", "ship", "hood", "ings", "ily", "ier", "iest", "ies", "ied"),
)
DOUBLING = ("ed", "ing", "er", "ers", "est", "y", "ish")  # stopped, biggest
BEGINNINGS = (
    "un",
    "re",
    "in",
    "im",
    "non",
    "over",
    "under",
    "mis",
    "dis",
    "pre",
    "out",
    "inter",
    "multi",
    "sub",
    "anti",
)


class Spelling:
    """The words that are known: those of `texts`, and those that `tokenizer` has whole."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        self.common = frozenset(whole_words(tokenizer))
        self.known = self.common.union(*map(words_in, texts))
        self.near: dict[str, list[str]] = {}  # a known word without one of its letters -> the word
        for word in self.known:
            if len(word) >= LETTERS - 1:
                for short in {word, *shortened(word)}:
                    self.near.setdefault(short, []).append(word)

    def misspelt(self, text: str, also: Collection[str] = ()) -> list[str]:
        """The words of a text that are spelt wrong, small letters alone: names go by no rule. `also`: more words that
        are known, those of the prompt; a slip of one of them is no new word, whatever it might be made of."""
        found = []
        for match in WORD.finditer(text):
            word = match.group()
            if not (word.isascii() and word.isalpha() and word.islower()) or len(word) < LETTERS:
                continue
            if word in also or word in self.known:
                continue
            candidates = {other for short in (word, *shortened(word)) for other in self.near.get(short, ())}
            slip = any(is_slip(word, other) for other in also)
            if slip or (not self.is_made(word) and any(one_edit(word, other) for other in candidates)):
                found.append(word)
        return found

    def is_made(self, word: str) -> bool:
        """Whether a word is known, or made of known ones."""
        known = self.known
        if word in known or any(stem in known for stem in stems(word)):
            return True
        parts = ((word[:at], word[at:]) for at in range(PART, len(word) - PART + 1))
        return any(first in known and (second in known or second.removesuffix("s") in known) for first, second in parts)


def whole_words(tokenizer: Tokenizer) -> Iterator[str]:
    """The words of small letters that are one token behind a blank."""
    for i in range(tokenizer.n_vocab):
        word = tokenizer.token_bytes(i).decode(errors="replace")
        if word[:1] == " " and word[1:].isalpha() and word.islower():
            yield word[1:]


def words_in(text: str) -> set[str]:
    """The words of a text, in small letters; of one with a hyphen or an apostrophe also its parts."""
    found = {match.group().lower() for match in WORD.finditer(text)}
    return found.union(*(re.split(r"['’-]", word) for word in found))


def stems(word: str) -> Iterator[str]:
    """What a word may come from: without an ending, as it is spelt before that, and without a beginning."""
    for ending in ENDINGS:
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 3 or (ending[0] == stem[-1] == "s"):
            continue
        if ending == "es" and not stem.endswith(("s", "x", "z", "h", "o")):
            continue
        yield stem
        if ending[0] in "aeiouy":
            yield stem + "e"
            if stem[-1] == stem[-2] and len(stem) > 3 and ending in DOUBLING:
                yield stem[:-1]
        if stem[-1] == "i":
            yield stem[:-1] + "y"
        if ending in ("ily", "ier", "iest", "ies", "ied"):
            yield stem + "y"
    for beginning in BEGINNINGS:
        rest = word.removeprefix(beginning)
        if rest != word and len(rest) >= 4:
            yield rest


def shortened(word: str) -> set[str]:
    """A word without one of its letters, each in turn."""
    return {word[:n] + word[n + 1 :] for n in range(len(word))}


def is_slip(word: str, other: str) -> bool:
    """Whether a word is another with one edit before its last letter, which no ending explains."""
    return len(other) >= LETTERS and one_edit(word, other) and word[-1] == other[-1]


def one_edit(a: str, b: str) -> bool:
    """Whether one letter more, less, or another, or two neighbours swapped, make one word of the other."""
    if a == b or abs(len(a) - len(b)) > 1:
        return False
    n = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if len(a) != len(b):
        shorter, longer = sorted((a, b), key=len)
        return shorter[n:] == longer[n + 1 :]
    return a[n + 1 :] == b[n + 1 :] or (a[n : n + 2] == b[n : n + 2][::-1] and a[n + 2 :] == b[n + 2 :])
