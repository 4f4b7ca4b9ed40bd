"""Text <-> token ids. A user's text never becomes a special token, whatever it spells.

`Tokenizer` holds what every vocabulary needs (special tokens, segments, the beginning of a text, streaming) and leaves
ordinary text to an engine (text/engines.py): tiktoken, or the `tokenizers` library for vocabularies that tiktoken
cannot give exactly (formats/hf_tokenizer.py decides).
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import tiktoken

from gptft.errors import UserError
from gptft.files import atomic_write, read_json, resource
from gptft.prompts import Template, saved_template
from gptft.text.chat import ChatTemplate
from gptft.text.engines import TiktokenEngine, TokenizersEngine
from gptft.text.segments import Segment

EOT = "<|endoftext|>"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# The embedded vocabulary, as data/make.py trained it: numbers in ones and twos, so that they can be copied.
EMBEDDED_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer:
    """A vocabulary with its special tokens, and the prompt template that goes with it.

    `specials` maps names to ids; `eot` is the one that ends a text; `bos` is the id that every text begins with, None
    where there is none. `end_ids` are further ids that end a response, as the model's own files name them.
    `template` is None until a run or a checkpoint sets it.
    """

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, specials: dict[str, int], eot: str = EOT, bos: int | None = None
    ) -> None:
        if eot in specials:  # else said below, before tiktoken is given anything
            self.engine: TiktokenEngine | TokenizersEngine = TiktokenEngine(ranks, pattern, specials)
        self._set(specials, eot, bos)

    @classmethod
    def over(cls, engine: TokenizersEngine, specials: dict[str, int], eot: str, bos: int | None = None) -> Tokenizer:
        """A tokenizer whose ordinary text another engine encodes."""
        tokenizer = cls.__new__(cls)
        tokenizer.engine = engine
        tokenizer._set(specials, eot, bos)
        return tokenizer

    def _set(self, specials: dict[str, int], eot: str, bos: int | None) -> None:
        if eot not in specials:
            raise UserError(f"the tokenizer has no special token {eot!r} to end a text with")
        self.specials, self.eot_name, self.eot, self.bos = specials, eot, specials[eot], bos
        self.end_ids: tuple[int, ...] = ()
        self.template: Template | ChatTemplate | None = None
        # special tokens that take the white space of the template behind them, as Phi-3's do
        self.strips_behind = {specials[name] for name in specials if self.engine.flags.get(name, {}).get("rstrip")}
        self._split_specials = lru_cache(self._split_specials)  # every record has the same words of the template
        self._special_names = re.compile("|".join(map(self._name_pattern, sorted(specials, key=len, reverse=True))))

    def _name_pattern(self, name: str) -> str:
        """How a special token is found in a template: some take the white space beside them, or are whole words."""
        flags = self.engine.flags.get(name, {})
        edge = (r"(?<!\w)", r"(?!\w)") if flags.get("single_word") else ("", "")
        left, right = (r"\s*" if flags.get(side) else "" for side in ("lstrip", "rstrip"))
        return left + edge[0] + re.escape(name) + edge[1] + right

    @property
    def ranks(self) -> dict[bytes, int]:
        return self.engine.ranks

    @property
    def pattern(self) -> str:
        return self.engine.pattern

    @property
    def encoding(self) -> tiktoken.Encoding:
        return self.engine.encoding

    @property
    def n_vocab(self) -> int:
        """One more than the largest id."""
        return self.engine.n_vocab

    @cached_property
    def holes(self) -> list[int]:
        """Ids below `n_vocab` that no token has: a model may have rows for them, and must never emit one."""
        return sorted(set(range(self.n_vocab)) - self.engine.ids() - self.special_ids)

    def encode(self, text: str) -> list[int]:
        """Ids of an ordinary text on its own, without the beginning-of-text.

        A literal `<|endoftext|>` in it stays text. Half of a surrogate pair becomes U+FFFD.
        """
        return self.engine.encode(text, "start" in self.engine.prefix_at)

    def token_bytes(self, i: int) -> bytes:
        """The bytes that a token stands for; they need not be whole characters. An id without a token has none."""
        return self.engine.token_bytes(i)

    def decode(self, ids: Iterable[int], after: int | None = None) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD; special tokens are left out.

        `after` is the id before them, None at the start of a text: there a space that the vocabulary puts before
        every text (Llama 2's does) is left out again.
        """
        return "".join(self.stream(ids, after))

    def stream(self, ids: Iterable[int], after: int | None = None) -> Iterator[str]:
        """`decode`, as text becomes complete: a character whose bytes are spread over tokens appears once, whole."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        place = "start" if after is None else "special" if after in self.special_ids else "text"
        due = self.engine.strips and place in self.engine.prefix_at
        for i in ids:
            if i not in self.special_ids and (text := decoder.decode(self.token_bytes(i))):
                if due:
                    text, due = text.removeprefix(" "), False
                if text:
                    yield text
        if rest := decoder.decode(b"", final=True):
            yield rest

    @cached_property
    def special_ids(self) -> set[int]:
        return set(self.specials.values())

    def stop_id(self, name: str) -> int:
        """The id of the token that ends a response: the template's own if the vocabulary has it, else end-of-text."""
        return self.specials.get(name, self.eot)

    @property
    def stop(self) -> int:
        """The id that ends a response under the tokenizer's template, and without one the end-of-text."""
        return self.stop_id(self.template.stop) if self.template else self.eot

    @property
    def beginnings(self) -> set[int]:
        """The ids of a beginning-of-text: the vocabulary's own, and that which a chat template writes itself."""
        named = self.template.variables.get("bos_token", "") if isinstance(self.template, ChatTemplate) else ""
        return {self.bos, self.specials.get(named)} - {None}

    def pieces(self, segments: Sequence[Segment]) -> list[tuple[str | int, bool]]:
        """Segments -> (text to encode, or a special id; trained). Neighbours with one flag are joined, so that they
        are encoded whole; where the flag changes, or a segment stands apart, the text is cut, so that a prompt's ids do
        not depend on what follows it."""
        joined: list[tuple[str | int, bool]] = []
        for text, trained, kind, apart in segments:
            before = joined[-1][0] if joined else None
            if kind == "stop":
                made: list[str | int] = [self.stop_id(text)]
            elif kind == "bos":
                made = [] if self.bos is None else [self.bos]
            elif kind in ("template", "chat"):
                made = self._split_specials(text.lstrip() if before in self.strips_behind else text)
            else:
                made = [text]
            for number, piece in enumerate(made):
                goes_on = joined and isinstance(joined[-1][0], str) and joined[-1][1] == trained
                if goes_on and isinstance(piece, str) and not (apart and number == 0):
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
            name = match.group()
            out.append(self.specials[name if name in self.specials else name.strip()])
            position = match.end()
        if position < len(text):
            out.append(text[position:])
        return out

    def encode_segments(self, segments: list[Segment]) -> tuple[list[int], list[tuple[int, int]]]:
        """-> (ids, trained spans [start, end)), as `encode_many` has them."""
        return self.encode_many([segments])[0]

    def encode_many(self, examples: list[list[Segment]]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each example (ids, trained spans [start, end)), over all cores."""
        return [grow(parts) for parts in self.encode_parts(examples)]

    def encode_parts(self, examples: list[list[Segment]]) -> list[list[tuple[list[int], bool]]]:
        """For each example (ids, trained) of what stands before its pieces, and of each of them.

        The beginning-of-text comes first where the vocabulary has one, untrained and once at most; a chat template
        of the checkpoint's own writes it, or leaves it out, itself. A vocabulary that puts a space before texts does
        so at the start of an example, and after special tokens if it does it there, but never where a text goes on
        from another: the start of a response is what was asked for.
        """
        pieces = [self.pieces(segments) for segments in examples]
        texts, prefixes = [], []
        for example in pieces:
            place = "start"
            for piece, _ in example:
                if isinstance(piece, str):
                    texts.append(piece)
                    prefixes.append(place in self.engine.prefix_at)
                place = "special" if isinstance(piece, int) else "text" if piece else place
        encoded = iter(self.engine.encode_batch(texts, prefixes))
        encoded_parts = []
        for segments, example in zip(examples, pieces, strict=True):
            complete = self.bos is None or not example or example[0][0] == self.bos or segments[0].kind == "chat"
            parts = [([], False) if complete else ([self.bos], False)]
            parts += [(next(encoded) if isinstance(piece, str) else [piece], trained) for piece, trained in example]
            encoded_parts.append(parts)
        return encoded_parts

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the ids."""
        content = [getattr(self.engine, "pattern", None), sorted(self.specials.items()), self.eot_name]
        content += [] if self.bos is None else [self.bos]
        return hashlib.sha256(json.dumps(content).encode() + self.engine.content()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write `gptft_tokenizer.json` (specials, template, ...), and beside it the vocabulary: `vocab.tiktoken`
        (base64 token, rank) or `tokenizer.json`."""
        values = {
            **self.engine.save(directory),
            "specials": self.specials,
            "eot": self.eot_name,
            "bos": self.bos,
            "template": self.template.to_dict() if self.template else None,
        }
        if self.end_ids:
            values["end_ids"] = list(self.end_ids)
        with atomic_write(directory / "gptft_tokenizer.json") as file:
            json.dump(values, file, indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer that `save` wrote."""
        path = directory / "gptft_tokenizer.json"
        try:
            values = read_json(path)
            rest = values["specials"], values["eot"], values.get("bos")
            end_ids = values.get("end_ids", [])
            for key, fits in (
                ("specials", _are_ids(rest[0])),
                ("eot", isinstance(rest[1], str)),
                ("bos", rest[2] is None or _are_ids({"bos": rest[2]})),
                ("end_ids", isinstance(end_ids, list) and _are_ids(dict(enumerate(end_ids)))),
            ):
                if not fits:
                    raise UserError(f"{path}: {key} cannot be {json.dumps(values[key])[:80]}")
            if values.get("engine") == "tokenizers":
                tokenizer = cls.over(TokenizersEngine(read_json(directory / "tokenizer.json")), *rest)
            else:
                tokenizer = cls(read_ranks(directory / "vocab.tiktoken"), values["pattern"], *rest)
            tokenizer.end_ids = tuple(end_ids)
            if values["template"] is not None:
                tokenizer.template = saved_template(values["template"], str(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}: not a tokenizer of gptft ({error!r})") from None
        return tokenizer


def _are_ids(values) -> bool:
    return isinstance(values, dict) and all(type(i) is int and 0 <= i < 1 << 32 for i in values.values())


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


def gpt2() -> Tokenizer:
    """GPT-2's vocabulary from tiktoken (cache or download), for a checkpoint that brings none of its own.

    tiktoken's `r50k_base` has the ids of its `gpt2` and asks for one file instead of two.
    """
    try:
        base = tiktoken.get_encoding("r50k_base")
    except Exception as error:  # requests' own exceptions, or a cache that cannot be written
        raise UserError(
            "GPT-2's vocabulary is not in tiktoken's cache and could not be downloaded "
            f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a filled cache"
        ) from None
    return Tokenizer(base._mergeable_ranks, GPT2_PATTERN, {EOT: 50256})
