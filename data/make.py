"""Write the embedded data: plain text, instruction records, held-out records and a small BPE.

    python data/make.py           write the files next to this script
    python data/make.py --check   exit 1, naming any file that differs from what would be written

Everything is made from the word lists in words.py, by way of families.py and prose.py, with seeded generators,
so that a 0.75M-parameter GPT can be pretrained and tuned on two CPU cores in two minutes. The plain text tells,
as prose, what the instructions ask for later: someone repeats a sentence, puts it in the passive, converts a
length. That is where the model learns to copy; the prompt template never occurs in it.

The held-out split is by content, not by line. `held_out` in combos.py marks one combination of words in eight
(who did what to what; how many metres; who lives where). Marked combinations make up the test records and occur
nowhere else, in no phrasing, family or paragraph, though each of their words does.
"""

import base64
import json
import random
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

from families import Record, records
from prose import prose

SEED = 1
TEXT_BYTES = 2_200_000
TRAIN_PER_FAMILY = 700
TEST_PER_FAMILY = 40
VOCABULARY = 1280
HERE = Path(__file__).resolve().parent

# The pre-tokeniser for tiktoken.Encoding(pat_str=...), and what is its equal for Python's re: a contraction,
# a word with the space before it, one or two digits, punctuation with line ends after it, line ends, blanks.
PAT_STR = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERN = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+|\d{1,2}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = "### Question:\n{}\n\n### Answer:\n{}"


def train_bpe(text: str, size: int) -> list[bytes]:
    """The 256 bytes, then the most frequent adjacent pair inside a pre-token, again and again."""
    tokens = [bytes([i]) for i in range(256)]
    counts = Counter(PATTERN.findall(text))
    words = [([bytes([b]) for b in word.encode()], n) for word, n in sorted(counts.items())]
    while len(tokens) < size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
                pairs[pair] += n
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(left + right)
        for parts, _ in words:
            for i in range(len(parts) - 2, -1, -1):
                if parts[i : i + 2] == [left, right]:
                    parts[i : i + 2] = [left + right]
    return tokens


def check_split(train: list[Record], test: list[Record]) -> None:
    """No question in common, and every word of a held-out record known from its family."""
    asked = [{(r["instruction"], r["input"]) for r in part} for part in (train, test)]
    known = [
        {(r["family"], word) for r in part for word in re.findall("[A-Za-z]+", " ".join(r.values()))}
        for part in (train, test)
    ]
    assert asked[0].isdisjoint(asked[1]), "questions in both splits"
    assert known[1] <= known[0], sorted(known[1] - known[0])


def build() -> dict[str, bytes]:
    """Every file's name and content."""
    train = records(random.Random(SEED), False, TRAIN_PER_FAMILY)
    test = records(random.Random(SEED + 1), True, TEST_PER_FAMILY)
    text = prose(random.Random(SEED + 2), TEXT_BYTES)
    check_split(train, test)
    asked = [TEMPLATE.format("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in train]
    tokens = train_bpe("\n\n".join([text, *asked]), VOCABULARY)
    files = {
        "text.txt": text,
        "instructions.jsonl": "".join(json.dumps(r) + "\n" for r in train),
        "instructions-test.jsonl": "".join(json.dumps(r) + "\n" for r in test),
        "vocab.tiktoken": "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)),
    }
    return {name: content.encode() for name, content in files.items()}


def main() -> int:
    files = build()
    if sys.argv[1:] == ["--check"]:
        stale = [n for n, c in files.items() if not (HERE / n).is_file() or (HERE / n).read_bytes() != c]
        for name in stale:
            print(f"differs: data/{name}")
        return 1 if stale else 0
    for name, content in files.items():
        (HERE / name).write_bytes(content)
        print(f"data/{name}: {len(content):,} bytes, {len(content.splitlines()):,} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
