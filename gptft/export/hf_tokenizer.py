"""A tokenizer as the files of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

from gptft.export.jinja import to_jinja
from gptft.files import atomic_write
from gptft.formats.hf_tokenizer import _added
from gptft.prompts import Template
from gptft.text.chat import ChatTemplate
from gptft.text.engines import CHARACTER, TiktokenEngine, derivations
from gptft.tokenizer import GPT2_PATTERN, Tokenizer


def write_hf_tokenizer(tokenizer: Tokenizer, directory: Path, model_max_length: int | None = None) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`: AutoTokenizer gives the same ids from them, and
    `read_hf_tokenizer` a tokenizer with the same digest. `model_max_length` is in tokens.

    A model's config.json must not be of a model_type for which AutoTokenizer ignores these files' steps: qwen2 is one.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    engine = tokenizer.engine
    values = _tiktoken_json(engine, tokenizer.specials) if isinstance(engine, TiktokenEngine) else dict(engine.values)
    names = {i: name for name, i in tokenizer.specials.items()}
    bos_name = names.get(tokenizer.bos, "")
    values["post_processor"] = _post_processor(tokenizer.bos, bos_name)
    template, variables = tokenizer.template, {}
    if isinstance(template, ChatTemplate):
        variables = template.variables
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "pad_token": tokenizer.eot_name,
        **variables,
        "eos_token": tokenizer.eot_name,
    }
    if bos_name:
        config["bos_token"] = bos_name
    if model_max_length:
        config["model_max_length"] = model_max_length
    if template is not None:
        # behind a special token some vocabularies put no space before a text, as they do at the start of one; a
        # template that writes its beginning-of-text itself means it so
        writes_bos = isinstance(template, Template) and template.bos
        space = " " if bos_name and engine.prefix_at == {"start"} and not writes_bos else ""
        config["chat_template"] = to_jinja(template, names[tokenizer.stop], bos_name + space)
    for name, content in (("tokenizer.json", values), ("tokenizer_config.json", config)):
        with atomic_write(directory / name) as file:
            json.dump(content, file, ensure_ascii=False, indent=1)


def _post_processor(bos: int | None, name: str) -> dict | None:
    if bos is None:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    sequences = [{"Sequence": {"id": which, "type_id": number}} for number, which in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, sequences[0]],
        "pair": [first, *sequences],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }


def _tiktoken_json(engine: TiktokenEngine, specials: dict[str, int]) -> dict:
    """The values of a tokenizer.json for a vocabulary of tiktoken's: the merges are found from the ranks."""
    spell = lambda token: "".join(CHARACTER[byte] for byte in token)  # noqa: E731
    ordered = sorted(engine.ranks, key=engine.ranks.__getitem__)
    derived = derivations(engine.ranks)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    splitting: dict = byte_level
    if engine.pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": engine.pattern}, "behavior": "Isolated", "invert": False}
        splitting = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    whole_words = any(len(token) > 1 and token not in derived for token in ordered)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": whole_words,
        "vocab": {spell(token): engine.ranks[token] for token in ordered},
        "merges": [[spell(part) for part in derived[token]] for token in ordered if token in derived],
    }
    added = sorted((_added(name, i) for name, i in specials.items()), key=lambda token: token["id"])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": splitting,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
