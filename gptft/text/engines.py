"""What turns ordinary text into token ids: tiktoken, or the `tokenizers` library. `Tokenizer` works over either.

An engine knows no templates and gives no special token: `encode` and `encode_batch` take text as it stands. `prefix`
asks for the space that some vocabularies put before a text; `prefix_at` says where they do.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tiktoken

from gptft.errors import need_extra
from gptft.files import atomic_write
from gptft.text.printable import whole_characters

LONG = 200_000  # characters; see TiktokenEngine.encode
WORTH_A_THREAD = 100  # texts
# GPT-2's way to write a byte as one printable character, which files of the Hugging Face kind use.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE}
BYTE_OF |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)}
UTF8_BYTES = {*range(256)} - {0xC0, 0xC1, *range(0xF5, 256)}
CHARACTER = {byte: character for character, byte in BYTE_OF.items()}


class TiktokenEngine:
    """Byte-level BPE by tiktoken: `ranks` maps bytes to ids, `pattern` splits a text before merging."""

    prefix_at: frozenset[str] = frozenset()  # where a text is given a space in front: nowhere
    strips = False
    flags: dict[str, dict] = {}  # noqa: RUF012  (nothing writes to it)

    def __init__(self, ranks: dict[bytes, int], pattern: str, specials: dict[str, int]) -> None:
        if len(set(ranks.values())) < len(ranks):  # tiktoken would panic
            raise ValueError("two tokens have one id")
        self.ranks, self.pattern = ranks, pattern
        self.encoding = tiktoken.Encoding("gptft", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.n_vocab = self.encoding.n_vocab

    def ids(self) -> set[int]:
        """The ids of ordinary tokens."""
        return set(self.ranks.values())

    def encode(self, text: str, prefix: bool = False) -> list[int]:
        if len(text) <= LONG:
            return self.encoding.encode_ordinary(text)
        # the pattern cannot get past a run of white space much longer than this: tiktoken would crash
        cuts = [cut for run in re.finditer(r"\s+", text) for cut in range(run.start() + LONG, run.end(), LONG)]
        parts = (text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
        return [i for part in parts for i in self.encoding.encode_ordinary(part)]

    def encode_batch(self, texts: list[str], prefixes: list[bool]) -> list[list[int]]:
        threads = min(os.cpu_count() or 1, len(texts) // WORTH_A_THREAD)
        if threads < 2:
            return self._encode_each(texts)
        # a stretch of the texts a thread: tiktoken's own batch hands out each by itself, which takes longer than a loop
        size = -(-len(texts) // threads)
        stretches = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for encoded in pool.map(self._encode_each, stretches) for ids in encoded]

    def _encode_each(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def token_bytes(self, i: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(i)
        except KeyError:  # a gap in the ids
            return b""

    def content(self) -> bytes:
        """Everything that decides the ids of ordinary text but the pattern, as bytes to hash."""
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(token + rank.to_bytes(4, "little") for token, rank in ordered)

    def save(self, directory: Path) -> dict:
        """-> what `gptft_tokenizer.json` must say to find it again."""
        with atomic_write(directory / "vocab.tiktoken", "wb") as file:
            for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
                file.write(base64.b64encode(token) + b" %d\n" % rank)
        return {"pattern": self.pattern}


def ranks_of(values: dict) -> dict[bytes, int] | None:
    """The vocabulary as tiktoken has it, where merging by rank does what these merges do; else None.

    tiktoken merges the pair whose joined bytes have the lowest rank. A token only ever arises from the two parts in
    which its own bytes end up, whatever stands around them; so it is enough that each token's own two parts are among
    the merges, and that the merges come in the order of the ids they make. A token whose own bytes do not end up in
    two parts is found only by looking up whole words, which `tokenizers` does where ignore_merges is set.
    """
    model, added = values["model"], values["added_tokens"]
    if any(not token["special"] for token in added) or model.get("byte_fallback"):
        return None
    names = {token["content"] for token in added}
    if model.get("ignore_merges") and any(name in model["vocab"] for name in names):
        return None
    try:
        ranks = {bytes(BYTE_OF[c] for c in token): i for token, i in model["vocab"].items() if token not in names}
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        pairs = [tuple(bytes(BYTE_OF[c] for c in part) for part in merge) for merge in merges]
    except KeyError:
        return None
    made = [ranks.get(a + b, -1) for a, b in pairs]
    if made != sorted(made) or -1 in made[:1] or not all(bytes([byte]) in ranks for byte in UTF8_BYTES):
        return None
    listed, derived = set(pairs), derivations(ranks)
    for token in ranks:
        if len(token) > 1 and (derived[token] not in listed if token in derived else not model.get("ignore_merges")):
            return None
    return ranks


def derivations(ranks: dict[bytes, int]) -> dict[bytes, tuple[bytes, bytes]]:
    """For each token the two parts it is merged from when its own bytes are merged by rank; none where they stay in
    more parts than two."""
    rank, out = ranks.get, {}
    for token in ranks:
        parts = [token[n : n + 1] for n in range(len(token))]
        while len(parts) > 2:
            best, at = None, 0
            for n in range(len(parts) - 1):
                found = rank(parts[n] + parts[n + 1])
                if found is not None and (best is None or found < best):
                    best, at = found, n
            if best is None:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2 and parts[0] in ranks and parts[1] in ranks:
            out[token] = (parts[0], parts[1])
    return out


class TokenizersEngine:
    """BPE by the `tokenizers` library, from the values of a `tokenizer.json`.

    Some vocabularies put a space before a text (`prefix_at` says where: at the "start" of a sequence, or after a
    "special" token too). A text that goes on from another text is encoded by a second copy without that, so that
    `[/INST]` and ` answer` are not given two spaces. One thing is not so: where a token that is added but not special
    stands inside such a text, what follows it gets no space either.
    """

    def __init__(self, values: dict) -> None:
        self.values = values
        self.n_vocab = 1 + max([*values["model"]["vocab"].values(), *(t["id"] for t in values["added_tokens"])])
        self.prefix_at, bare = _without_prefix(values)
        self.first = self._open(values)
        self.further = self._open(bare) if self.prefix_at else self.first
        added = values["added_tokens"]
        self.flags = {token["content"]: token for token in added if token.get("special")}
        self.added = {token["id"]: token["content"].encode() for token in added}
        unknown = values["model"].get("unk_token")
        self.special = {token["id"] for token in self.flags.values() if token["content"] != unknown}
        steps = list(nodes(values.get("decoder")))
        self.byte_level = any(node["type"] == "ByteLevel" for node in steps)
        self.strips = any(
            node["type"] == "Strip" and node.get("content") == " " and node.get("start") for node in steps
        )
        self.strips |= bool(self.prefix_at) and any(node["type"] == "Metaspace" for node in steps)

    def ids(self) -> set[int]:
        """The ids of the tokens, special ones too."""
        return {*self.values["model"]["vocab"].values(), *self.added}

    @staticmethod
    def _open(values: dict):
        try:
            import tokenizers
        except ImportError:
            raise need_extra("tokenizers", "hf", "this vocabulary") from None
        try:
            opened = tokenizers.Tokenizer.from_str(json.dumps({**values, "truncation": None, "padding": None}))
        except Exception as error:  # `tokenizers` raises bare ones
            raise ValueError(str(error)) from None
        opened.encode_special_tokens = True  # a special token's name in a text is ordinary text
        return opened

    def encode(self, text: str, prefix: bool = False) -> list[int]:
        return self.encode_batch([text], [prefix])[0]

    def encode_batch(self, texts: list[str], prefixes: list[bool]) -> list[list[int]]:
        texts = [whole_characters(text) for text in texts]
        out: list[list[int]] = [[]] * len(texts)
        for engine, prefixed in ((self.first, True), (self.further, False)):
            chosen = [n for n, prefix in enumerate(prefixes) if prefix == prefixed]
            encoded = engine.encode_batch_fast([texts[n] for n in chosen], add_special_tokens=False)
            for n, encoding in zip(chosen, encoded, strict=True):
                out[n] = encoding.ids
                if self.special.intersection(encoding.ids):
                    out[n] = self._spelled_out(texts[n], prefixed)
        return out

    def _spelled_out(self, text: str, prefix: bool) -> list[int]:
        """A text in which a special token's name is a word of the vocabulary: the name is cut behind its first
        character, so that it stays text."""
        cuts = [match.start() + 1 for match in re.finditer("|".join(map(re.escape, self.flags)), text)]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        engines = [self.first if prefix else self.further] + [self.further] * (len(parts) - 1)
        return [
            i
            for engine, part in zip(engines, parts, strict=True)
            for i in engine.encode(part, add_special_tokens=False).ids
            if i not in self.special
        ]

    def token_bytes(self, i: int) -> bytes:
        if i in self.added:
            return self.added[i]
        token = self.first.id_to_token(i) or ""
        if self.byte_level and all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    def content(self) -> bytes:
        """The tokenizer.json but for what is no matter of ordinary text: the same wherever it has been written."""
        kept = {name: self.values.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        return json.dumps(kept, sort_keys=True).encode()

    def save(self, directory: Path) -> dict:
        with atomic_write(directory / "tokenizer.json") as file:
            json.dump(self.values, file, ensure_ascii=False)
        return {"engine": "tokenizers"}


def nodes(value) -> Iterator[dict]:
    """Every step of a normalizer, pre-tokenizer or decoder of a tokenizer.json, those inside sequences too."""
    if isinstance(value, dict):
        if "type" in value:
            yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def _without_prefix(values: dict) -> tuple[frozenset[str], dict]:
    """Where a tokenizer.json puts a space before a text, and the same tokenizer.json without that."""
    places: set[str] = set()
    steps = json.loads(json.dumps({name: values.get(name) for name in ("normalizer", "pre_tokenizer")}))
    for node in nodes(steps):
        if node["type"] == "Prepend":
            places |= {"start", "special"}
            node["prepend"] = ""
        elif node["type"] == "Metaspace":
            scheme = node.get("prepend_scheme", "always") if node.get("add_prefix_space", True) else "never"
            places |= {"always": {"start", "special"}, "first": {"start"}}.get(scheme, set())
            node.pop("add_prefix_space", None)
            node["prepend_scheme"] = "never"
        elif node["type"] == "ByteLevel" and node.get("add_prefix_space"):
            places |= {"start", "special"}
            node["add_prefix_space"] = False
    return frozenset(places), {**values, **steps}
