"""A tokenizer in llama.cpp's terms: what a GGUF file says of splitting, of merging, and of special tokens."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptft.errors import UserError
from gptft.export.hf import write_tokenizer
from gptft.files import read_json
from gptft.formats.gguf_tokenizer import BYTE, CONTROL, NORMAL, OWN, STEPS, UNKNOWN, UNUSED, USER_DEFINED
from gptft.formats.hf_tokenizer import CASED, CASELESS, REST
from gptft.text.chat import ChatTemplate
from gptft.text.engines import TiktokenEngine, nodes
from gptft.tokenizer import EMBEDDED_PATTERN, Tokenizer

if TYPE_CHECKING:
    import gguf

# How a tokenizer.json splits text -> (llama.cpp's name for it, whether that takes whole words past the merges)
SPLITS = {
    ("ByteLevel",): (("gpt-2", False),),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",): (("gpt-2", False),),
    ("Digits", "ByteLevel"): (("smollm", False),),
    (CASELESS + r"\p{N}{1,3}" + REST,): (("llama-bpe", True), ("smaug-bpe", False)),
    (CASELESS + r"\p{N}" + REST,): (("qwen2", False),),
}
# Of the names for other ways, the one that gives the most texts the same ids: 94% of a set of instructions for the
# embedded vocabulary, where "default" gives 5%; Mistral's tekken is written there with ASCII's upper and lower case.
NEAREST = {
    (EMBEDDED_PATTERN,): "llama-bpe",
    (CASED,): "tekken",
}


@dataclass
class Vocabulary:
    """What a GGUF file says of its tokenizer. `model`: "gpt2" (byte-level BPE), "llama" (sentencepiece's BPE) or
    "none"; `pre` names how text is split before merging."""

    model: str
    pre: str = "default"
    tokens: list[str] = dataclasses.field(default_factory=list)
    types: list[int] = dataclasses.field(default_factory=list)
    merges: list[str] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    space_prefix: bool = False
    bos: int = 0
    eos: int = 0
    unknown: int | None = None
    add_bos: bool = False
    chat_template: str = ""
    own: str = ""  # JSON: what llama.cpp has no exact name for, for whoever opens the file with gptft
    notes: list[str] = dataclasses.field(default_factory=list)


def vocabulary_of(tokenizer: Tokenizer | None, size: int) -> Vocabulary:
    """The tokenizer in llama.cpp's terms, by way of the `tokenizer.json` that transformers would be given; padded with
    unused tokens to `size`, the rows of the embedding."""
    if tokenizer is None:
        return Vocabulary("none", notes=["there is no tokenizer: the file takes and gives ids, no text"])
    if tokenizer.n_vocab > size:
        raise UserError(f"the tokenizer has {tokenizer.n_vocab} ids, more than the {size} rows of the embedding")
    with tempfile.TemporaryDirectory() as directory:
        notes = write_tokenizer(tokenizer, Path(directory))
        values = read_json(Path(directory) / "tokenizer.json")
        settings = read_json(Path(directory) / "tokenizer_config.json")
    model = values["model"]
    text_of = {i: token for token, i in model["vocab"].items()}
    text_of |= {token["id"]: token["content"] for token in values["added_tokens"]}
    steps = list(nodes([values["normalizer"], values["pre_tokenizer"]]))
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if not byte_level and not model.get("byte_fallback"):
        raise UserError("llama.cpp has no form for a BPE vocabulary that knows no bytes; --format hf exports it")
    vocabulary = Vocabulary("gpt2" if byte_level else "llama", notes=notes)
    vocabulary.tokens = [text_of.get(i, f"[PAD{i}]") for i in range(size)]
    vocabulary.types = [NORMAL if i in text_of else UNUSED for i in range(size)]
    for token in values["added_tokens"]:
        vocabulary.types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if len(set(vocabulary.tokens)) < size:  # llama.cpp would abort
        twice = next(token for n, token in enumerate(vocabulary.tokens) if token in vocabulary.tokens[:n])
        raise UserError(f"the tokenizer has two ids for {twice!r}: llama.cpp refuses such a vocabulary")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if byte_level:
        vocabulary.merges = [" ".join(merge) for merge in merges]
        _name_splitting(vocabulary, values, isinstance(tokenizer.engine, TiktokenEngine))
    else:
        _score_tokens(vocabulary, model, merges, tokenizer.engine.prefix_at)
    template = tokenizer.template
    named = template.variables if isinstance(template, ChatTemplate) else {}
    first = tokenizer.bos if tokenizer.bos is not None else tokenizer.specials.get(named.get("bos_token", ""))
    vocabulary.bos = tokenizer.eot if first is None else first  # what a template calls bos_token
    vocabulary.eos, vocabulary.add_bos = tokenizer.stop, tokenizer.bos is not None
    vocabulary.chat_template = settings.get("chat_template", "")
    own = {step: values[step] for step in STEPS} | {"ignore_merges": bool(model.get("ignore_merges"))}
    own |= {"eot": tokenizer.eot_name, "end_ids": list(tokenizer.end_ids), "named": named}
    vocabulary.own = json.dumps(own, ensure_ascii=False)
    return vocabulary


def _name_splitting(vocabulary: Vocabulary, values: dict, ranked: bool) -> None:
    """Name how text is split, and say so where llama.cpp has no name for it. `ranked`: the merges give every token
    that is a whole word, so that looking it up first changes nothing."""
    steps = values["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    way = tuple(word for word in map(_step_name, steps) if word)
    whole_words = bool(values["model"].get("ignore_merges"))
    names = SPLITS.get(way, ())
    exact = [name for name, ignores in names if ignores == whole_words or (ranked and not whole_words)]
    if exact:
        vocabulary.pre = exact[0]
    elif names:
        vocabulary.pre = names[0][0]
        vocabulary.notes.append(
            f"llama.cpp's {vocabulary.pre!r} splits text as this tokenizer does, but differs in whether "
            "whole words go past the merges: some ids of a text may differ"
        )
    else:
        vocabulary.pre = NEAREST.get(way, "default")
        how_many = "few" if vocabulary.pre == "default" else "most, not all,"
        vocabulary.notes.append(
            f"llama.cpp has no exact name for how this tokenizer splits text; it takes {vocabulary.pre!r}: "
            f"{how_many} texts get the same ids; given ids instead of text, it is exact"
        )
    if values["normalizer"]:
        kinds = ", ".join(node["type"] for node in nodes(values["normalizer"]))
        vocabulary.notes.append(f"llama.cpp does not normalize text ({kinds}): a text that this changes gets other ids")


def _step_name(step: dict) -> str:
    """A step of splitting as SPLITS names it; empty for one that splits nothing."""
    kind = step["type"]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return step["pattern"].get("Regex", "?")
    if kind == "Digits" and step.get("individual_digits"):
        return kind
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind if step.get("use_regex", True) else ""
    return "?"


def _score_tokens(vocabulary: Vocabulary, model: dict, merges: list, prefix_at: frozenset[str]) -> None:
    """llama.cpp merges the pair whose joined token has the highest score: the earlier a token is merged here, the
    higher it scores."""
    rank: dict[str, int] = {}
    for n, (a, b) in enumerate(merges):
        rank.setdefault(a + b, n)
    for i, token in enumerate(vocabulary.tokens):
        if vocabulary.types[i] == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            vocabulary.types[i] = BYTE
        if vocabulary.types[i] == USER_DEFINED:
            vocabulary.tokens[i] = token.replace("▁", " ")
    vocabulary.unknown = model["vocab"].get(model.get("unk_token") or "<unk>")
    if vocabulary.unknown is not None:
        vocabulary.types[vocabulary.unknown] = UNKNOWN
    vocabulary.scores = [-float(rank.get(token, len(merges))) for token in vocabulary.tokens]
    vocabulary.space_prefix = bool(prefix_at)
    if prefix_at == {"start"}:
        vocabulary.notes.append(
            "llama.cpp puts a space before a text that follows a special token, this tokenizer does not"
        )
    joined = {(a, b) for a, b in merges}
    for token in rank:
        if any(
            (token[:n], token[n:]) not in joined and token[:n] in model["vocab"] and token[n:] in model["vocab"]
            for n in range(1, len(token))
        ):
            vocabulary.notes.append(
                f"llama.cpp merges by tokens, this tokenizer by pairs, and {token!r} has a pair it does "
                "not merge: some ids of a text may differ"
            )
            break


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """The settings of a GGUF file that tell its tokenizer."""
    writer.add_tokenizer_model(vocabulary.model)
    if not vocabulary.tokens:
        return
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
    writer.add_string(OWN, vocabulary.own)
