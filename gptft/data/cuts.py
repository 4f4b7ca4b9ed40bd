"""Where a text may be cut so that its pieces, tokenised one by one, have the ids of the whole.

It is shown per vocabulary, from how it splits a text before merging, or from its tokens; where it cannot be shown,
there is no cut. All the places lie next to white space:

    a|_b     before a space that follows a character which is no white space
    a↵|b     between a single line feed and a character on either side that is no white space

**By the pattern.** Merging never leaves a match of the pattern, so it is enough that the matches are the same. No
alternative of ALTERNATIVES matches a space behind anything but white space, nor behind a line feed anything but white
space or `/`. So a match of the whole text ends at the cut, and what is right of it is matched alike, for nothing looks
back. Left of it only white space looks at what follows (`$` and `(?!\\S)`): there is none before the first kind of cut;
before the second it is the one line feed, which is a match of its own or the end of the punctuation before it, whether
or not the text ends there.

**By the tokens.** Where nothing is split before merging (Llama 2), no merge can reach over the cut if no token holds a
space behind another character; merges left and right of it then do not know of each other.

What happens before that leaves the places alone: Unicode's composition joins nothing with a space or a line feed before
it, and white space beside an added token stays where no token is set to take it away.
"""

from __future__ import annotations

import re

from gptft.text.engines import TiktokenEngine, TokenizersEngine
from gptft.tokenizer import Tokenizer

CUT = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=[^\s/])")
# Llama 2's kind writes a space as U+2581, and takes one that stands in a text for a space.
CUT_BEFORE_SPACE = re.compile(r"(?<=[^\s▁])(?= )")
# The alternatives of the patterns by which the vocabularies that we know split a text before merging.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ALTERNATIVES = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", r"'(?:[sdmt]|ll|ve|re)", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    *(r" ?\p{L}++", r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
    *(rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"),
    *(r" ?\p{N}++", r" ?\p{N}+", r"\p{N}", r"\p{N}{1,2}", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]++", r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r"\s*[\r\n]+", r"\s++$", r"\s+(?!\S)", r"\s", r"\s+"),
}


def cuts_of(tokenizer: Tokenizer) -> re.Pattern | None:
    """The places where a text may be cut for this vocabulary, as matches of no length; None: nowhere that is shown."""
    engine = tokenizer.engine
    if isinstance(engine, TiktokenEngine):
        return CUT if _is_known(engine.pattern) else None
    values = engine.values
    if not _leaves_white_space(engine) or not _spells_no_special(values):
        return None
    normalizer = _steps(values["normalizer"], "normalizers")
    if _splits_by_known_pattern(_steps(values["pre_tokenizer"], "pretokenizers")):
        return CUT if all(step["type"] == "NFC" for step in normalizer) else None
    return CUT_BEFORE_SPACE if _writes_spaces_as_one_character(values, normalizer) else None


def _is_known(pattern: str) -> bool:
    """Whether a pattern is made of known alternatives and nothing else."""
    alternatives = re.findall(r"(?:\([^()]*\)|\[[^\]]*\]|[^|()\[\]])+", pattern)
    return "|".join(alternatives) == pattern and set(alternatives) <= ALTERNATIVES


def _steps(value: dict | None, inside: str) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer, in order."""
    if not value:
        return []
    return value[inside] if value["type"] == "Sequence" else [value]


def _leaves_white_space(engine: TokenizersEngine) -> bool:
    """Whether tokens that are found in a text before it is split, if there are any, are found in its pieces too."""
    added = [token for token in engine.values["added_tokens"] if not token.get("special")]
    if added and engine.prefix_at:  # a space would be put behind each, in the text's first piece alone
        return False
    return not any(token.get("lstrip") or token.get("rstrip") or CUT.search(token["content"]) for token in added)


def _spells_no_special(values: dict) -> bool:
    """Whether a special token's name in a text can never come out as that token: the engine would look at the text
    again, as a whole."""
    names, model = {token["content"] for token in values["added_tokens"] if token.get("special")}, values["model"]
    merged = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    if model.get("ignore_merges"):  # whole matches are looked up: none of a known pattern goes on behind letters
        merged |= {name for name in model["vocab"] if not re.search("[A-Za-z][^A-Za-z]", name)}
    return not names & merged


def _splits_by_known_pattern(steps: list[dict]) -> bool:
    """Whether a text is split by a known pattern, into bytes; digits may be split before."""
    *before, last = steps or [{"type": ""}]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return False
    splits = [step for step in before if step["type"] != "Digits"]
    if last.get("use_regex", True):
        return not splits
    if len(splits) != 1 or splits[0]["type"] != "Split":
        return False
    how = splits[0].get("behavior"), splits[0].get("invert", False)
    return how == ("Isolated", False) and _is_known(splits[0]["pattern"].get("Regex", ""))


def _writes_spaces_as_one_character(values: dict, normalizer: list[dict]) -> bool:
    """Whether spaces become U+2581, and no token holds one behind another character."""
    steps = _steps(values["pre_tokenizer"], "pretokenizers")
    replaces = [step for step in normalizer if step["type"] == "Replace"]
    written = [step.get("content") for step in replaces if step["pattern"] == {"String": " "}]
    written += [step.get("replacement", "▁") for step in steps if step["type"] == "Metaspace"]
    known = all(step["type"] in ("Prepend", "Replace") for step in normalizer) and len(replaces) <= 1
    known = known and all(step["type"] == "Metaspace" for step in steps)
    vocab = values["model"]["vocab"]
    known = known and not values["model"].get("ignore_merges")
    return known and written == ["▁"] and "▁" in vocab and not any(re.search("[^▁]▁", token) for token in vocab)
