"""Text <-> token ids, over tiktoken. A user's text never becomes a special token, whatever it spells."""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import tiktoken

from gptft.files import UserError, atomic_write, resource
from gptft.prompts import Segment, Template, template_from_dict

EOT = "<|endoftext|>"
LONG = 200_000  # characters; see Tokenizer.encode
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# The embedded vocabulary, as data/make.py trained it: numbers in ones and twos, so that they can be copied.
EMBEDDED_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer:
    """A byte-level BPE vocabulary with its special tokens, and the prompt template that goes with it.

    `ranks` maps bytes to ids, `specials` names to ids. `template` is None until a run or a checkpoint sets it.
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, specials: dict[str, int], eot: str = EOT) -> None:
        self.ranks, self.pattern, self.specials = ranks, pattern, specials
        if eot not in specials:
            raise UserError(f"the tokenizer has no special token {eot!r} to end a text with")
        self.eot_name, self.eot = eot, specials[eot]
        self.encoding = tiktoken.Encoding("gptft", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.template: Template | None = None
        self._special_names = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))

    @property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: a literal `<|endoftext|>` in it stays text. Half of a surrogate pair becomes U+FFFD."""
        if len(text) <= LONG:
            return self.encoding.encode_ordinary(text)
        # the pattern cannot get past a run of white space much longer than this: tiktoken would crash
        cuts = [cut for run in re.finditer(r"\s+", text) for cut in range(run.start() + LONG, run.end(), LONG)]
        parts = (text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
        return [i for part in parts for i in self.encoding.encode_ordinary(part)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD; special tokens are left out."""
        special = self.special_ids
        return self.encoding.decode([i for i in ids if i not in special])

    @cached_property
    def special_ids(self) -> set[int]:
        return set(self.specials.values())

    def stop_id(self, name: str) -> int:
        """The id of the token that ends a response: the template's own if the vocabulary has it, else end-of-text."""
        return self.specials.get(name, self.eot)

    def pieces(self, segments: list[Segment]) -> list[tuple[str | int, bool]]:
        """Segments -> (text to encode, or a special id; trained). Neighbours with one flag are joined, so that they
        are encoded whole; where the flag changes the text is cut, so that a prompt's ids do not depend on what
        follows it."""
        joined: list[tuple[str | int, bool]] = []
        for text, trained, kind in segments:
            if kind == "stop":
                found: list[str | int] = [self.stop_id(text)]
            elif kind == "template":
                found = self._split_specials(text)
            else:
                found = [text]
            for piece in found:
                if joined and isinstance(piece, str) and isinstance(joined[-1][0], str) and joined[-1][1] == trained:
                    joined[-1] = (joined[-1][0] + piece, trained)
                else:
                    joined.append((piece, trained))
        return joined

    def _split_specials(self, text: str) -> list[str | int]:
        out: list[str | int] = []
        position = 0
        for match in self._special_names.finditer(text):
            if match.start() > position:
                out.append(text[position : match.start()])
            out.append(self.specials[match.group()])
            position = match.end()
        if position < len(text):
            out.append(text[position:])
        return out

    def encode_segments(self, segments: list[Segment]) -> tuple[list[int], list[tuple[int, int]]]:
        """-> (ids, trained spans [start, end)). The one helper through which ids and spans grow together."""
        return grow((self.encode(piece) if isinstance(piece, str) else [piece], trained)
                    for piece, trained in self.pieces(segments))  # fmt: skip

    def encode_many(self, examples: list[list[Segment]]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_segments` for many examples at once, over all cores."""
        pieces = [self.pieces(segments) for segments in examples]
        texts = [piece for example in pieces for piece, _ in example if isinstance(piece, str)]
        if any(len(text) > LONG for text in texts):
            encoded = map(self.encode, texts)
        else:
            encoded = iter(self.encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1))
        return [
            grow((next(encoded) if isinstance(piece, str) else [piece], trained) for piece, trained in example)
            for example in pieces
        ]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the ids."""
        content = json.dumps([self.pattern, sorted(self.specials.items()), self.eot_name]).encode()
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            content += token + rank.to_bytes(4, "little")
        return hashlib.sha256(content).hexdigest()

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text as it becomes complete: a character whose bytes are spread over tokens appears once, whole."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            if i not in self.special_ids and (text := decoder.decode(self.encoding.decode_single_token_bytes(i))):
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest

    def save(self, directory: Path) -> None:
        """Write `vocab.tiktoken` (base64 token, rank) and `gptft_tokenizer.json` (pattern, specials, template)."""
        with atomic_write(directory / "vocab.tiktoken", "wb") as file:
            for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
                file.write(base64.b64encode(token) + b" %d\n" % rank)
        values = {"pattern": self.pattern, "specials": self.specials, "eot": self.eot_name,
                  "template": self.template.to_dict() if self.template else None}  # fmt: skip
        with atomic_write(directory / "gptft_tokenizer.json") as file:
            json.dump(values, file, indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer that `save` wrote."""
        path = directory / "gptft_tokenizer.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            tokenizer = cls(
                read_ranks(directory / "vocab.tiktoken"), values["pattern"], values["specials"], values["eot"]
            )
            if values["template"]:
                tokenizer.template = template_from_dict(values["template"], str(path), extra=None)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a tokenizer of gptft ({error!r})") from None
        return tokenizer


def grow(parts: Iterable[tuple[list[int], bool]]) -> tuple[list[int], list[tuple[int, int]]]:
    """Join (ids, trained) parts into one list of ids and the trained spans in it, neighbouring spans merged."""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for part, trained in parts:
        start = len(ids)
        ids += part
        if trained and part:
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, len(ids)))
    return ids, spans


def read_ranks(path: Path) -> dict[bytes, int]:
    """A `.tiktoken` file: a line a token, its bytes in base64, a space, its rank."""
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"{path}, line {number}: expected a token in base64 and its rank") from None
    return ranks


def embedded() -> Tokenizer:
    """The vocabulary that the project trained on its own text."""
    ranks = read_ranks(resource("data/vocab.tiktoken"))
    return Tokenizer(ranks, EMBEDDED_PATTERN, {EOT: len(ranks)})


def gpt2(directory: Path | None = None) -> Tokenizer:
    """GPT-2's kind of vocabulary: from the directory's own `tokenizer.json`, or `vocab.json` and `merges.txt`; else
    from tiktoken (cache or download).

    tiktoken's `r50k_base` has the ids of its `gpt2` and asks for one file instead of two.
    """
    if directory and (directory / "tokenizer.json").exists():
        return _from_merges(directory / "tokenizer.json", *_read_tokenizer_json(directory / "tokenizer.json"))
    if directory and (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return _from_merges(directory / "vocab.json", *_read_vocab_and_merges(directory))
    try:
        base = tiktoken.get_encoding("r50k_base")
    except Exception as error:  # requests' own exceptions, or a cache that cannot be written
        raise UserError(
            "GPT-2's vocabulary is not in tiktoken's cache and could not be downloaded "
            f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a filled cache"
        ) from None
    return Tokenizer(base._mergeable_ranks, GPT2_PATTERN, {EOT: 50256})


def _read_vocab_and_merges(directory: Path) -> tuple[dict[str, int], list[str]]:
    """GPT-2's own two files -> (token -> id, merges)."""
    path = directory / "vocab.json"
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        path = directory / "merges.txt"
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not GPT-2's vocabulary ({error!r})") from None
    return ids, [line for line in lines if line and not line.startswith("#version")]


def _read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[str]]:
    """A `tokenizer.json` that does what GPT-2's does -> (token -> id, merges); any other is refused."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model, split = values["model"], values["pre_tokenizer"] or {}
        as_gpt2 = (
            model["type"] == "BPE" and not values.get("normalizer") and split.get("type") == "ByteLevel"
            and not split.get("add_prefix_space") and split.get("use_regex", True)
        )  # fmt: skip
        if not as_gpt2:
            raise UserError(f"{path}: only a byte-level BPE that splits text as GPT-2's does is supported")
        ids = {**model["vocab"], **{token["content"]: token["id"] for token in values.get("added_tokens", [])}}
        return ids, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a tokenizer that can be read ({error!r})") from None


def _from_merges(path: Path, ids: dict[str, int], merges: list[str]) -> Tokenizer:
    """Token -> id and the merges, as GPT-2's files have them, -> a Tokenizer. They write bytes as printable
    characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    of_character = {chr(byte): byte for byte in printable}
    of_character |= {chr(256 + number): byte for number, byte in enumerate(others)}
    try:
        specials = {EOT: ids[EOT]}
        ranks = {
            bytes(of_character[character] for character in token): rank for token, rank in ids.items() if token != EOT
        }
        merged = [bytes(of_character[character] for character in merge.replace(" ", "", 1)) for merge in merges]
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not GPT-2's vocabulary ({error!r})") from None
    # tiktoken merges by rank: ids must follow the order of the merges, and there must be no other tokens
    order = sorted(ranks, key=ranks.__getitem__)
    if {*order[:256]} != {bytes([byte]) for byte in range(256)} or order[256:] != merged:
        raise UserError(f"{path}: its ids and its merges are in different orders; tiktoken needs one order")
    return Tokenizer(ranks, GPT2_PATTERN, specials)
