"""The tokenizer in a GGUF file -> a Tokenizer with the ids that the model was trained on, and its chat template.

A file tells the tokens, their kinds, the merges (or, of sentencepiece's BPE, the scores that stand for them), and by a
name how text is split before. What is missing in it for a `tokenizer.json` is made here, and read as any other.
"""

from __future__ import annotations

import json

import numpy as np

from gptft.errors import UserError
from gptft.formats.gguf_file import GGUFFile
from gptft.formats.hf_tokenizer import CASED, CASELESS, REST, check_tokenizer, tokenizer_of
from gptft.text.chat import ChatTemplate
from gptft.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's kinds of tokens
# What llama.cpp has no name for, of files that gptft wrote: steps of a tokenizer.json, the end of a text where another
# token ends a response, and further ids that end one
OWN = "gptft.tokenizer"
LONGEST = 4096  # characters of a token
STEPS = ("normalizer", "pre_tokenizer", "decoder")


def byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict:
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, byte_level(False)]}


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(True)]}
_LLAMA3, _QWEN = _split(CASELESS + r"\p{N}{1,3}" + REST), _split(CASELESS + r"\p{N}" + REST)
# llama.cpp's names for how text is split -> (the step, whether whole words go past the merges, the normalizer): as the
# models have it that llama.cpp gives these names (llama-vocab.cpp)
SPLITTINGS: dict[str, tuple[dict, bool, dict | None]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"), (byte_level(True), False, None)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), (_LLAMA3, True, None)),
    "smaug-bpe": (_LLAMA3, False, None),
    "smollm": (_DIGITS, False, None),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_QWEN, False, {"type": "NFC"})),
    "tekken": (_split(CASED), True, None),
}


def read_gguf_tokenizer(file: GGUFFile) -> Tokenizer | None:
    """The tokenizer of a file; None where it has none. Raises UserError naming the setting that cannot be used."""
    model = file.settings.get("tokenizer.ggml.model", "none")
    if isinstance(model, str) and model == "none":
        return None
    if not isinstance(model, str) or model not in ("gpt2", "llama"):
        raise UserError(f"{file.path}: tokenizer.ggml.model = {model!r} is not supported; gpt2 and llama (BPE) are")
    try:
        values = _byte_level(file) if model == "gpt2" else _sentencepiece(file)
        own = _own(file)
        values |= {step: own[step] for step in STEPS if step in own}
        values["model"]["ignore_merges"] = own.get("ignore_merges", values["model"]["ignore_merges"])
        check_tokenizer(values, file.path)
        named = _named(file) | own.get("named", {})
        if "eos_token" not in named:
            raise UserError(f"{file.path}: tokenizer.ggml.eos_token_id is missing: what ends a text?")
        for token in values["added_tokens"]:
            token["special"] |= token["content"] in named.values()
        adds_bos = _flag(file, "add_bos_token", values.pop("adds_bos"))
        bos = file.settings.get("tokenizer.ggml.bos_token_id") if adds_bos else None
        eot = own.get("eot", named["eos_token"])
        for token in values["added_tokens"]:
            token["special"] |= token["content"] == eot
        tokenizer = tokenizer_of(values, eot, bos)
        if bos is not None and bos >= tokenizer.n_vocab:
            raise UserError(f"{file.path}: tokenizer.ggml.bos_token_id cannot be {bos}: it is an unused token's")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{file.path}: its tokenizer cannot be read ({type(error).__name__}: {str(error)[:200]})"
        ) from None
    tokenizer.end_ids = _end_ids(file, tokenizer.n_vocab, own.get("end_ids"))
    source = file.settings.get("tokenizer.chat_template")
    if isinstance(source, str) and source:
        tokenizer.template = ChatTemplate(source, named, tuple(tokenizer.specials), eot)
    return tokenizer


def _tokens(file: GGUFFile) -> tuple[list[str], list[int]]:
    """The tokens by id, and their kinds."""
    tokens = file.settings.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{file.path}: tokenizer.ggml.tokens is no list of texts")
    if (longest := max(map(len, tokens))) > LONGEST:  # looking for its parts would take hours
        raise UserError(f"{file.path}: tokenizer.ggml.tokens has one of {longest:,} characters")
    kinds = file.settings.get("tokenizer.ggml.token_type")
    kinds = [NORMAL] * len(tokens) if kinds is None else np.asarray(kinds).tolist()
    if len(kinds) != len(tokens):
        raise UserError(f"{file.path}: {len(kinds):,} kinds (tokenizer.ggml.token_type) for {len(tokens):,} tokens")
    for key in ("bos_token_id", "eos_token_id"):  # in some files they are of no kind of their own
        i = file.settings.get(f"tokenizer.ggml.{key}")
        if type(i) is int and i < len(tokens) and kinds[i] == NORMAL:
            kinds[i] = CONTROL
    while kinds and kinds[-1] == UNUSED:  # rows of the embedding beyond the vocabulary
        kinds.pop()
    return tokens[: len(kinds)], kinds


def _vocabulary(
    file: GGUFFile, tokens: list[str], kinds: list[int], special: tuple[int, ...]
) -> tuple[dict[str, int], list[dict]]:
    """The vocabulary, and the tokens added to it: those above all others are in the latter alone."""
    added = [i for i, kind in enumerate(kinds) if kind in (*special, USER_DEFINED)]
    highest = max((i for i, kind in enumerate(kinds) if kind not in (*special, USER_DEFINED)), default=-1)
    vocab = {token: i for i, token in enumerate(tokens) if i <= highest}
    if len(vocab) <= highest:
        twice = next(token for i, token in enumerate(tokens) if vocab.get(token, i) != i)
        raise UserError(f"{file.path}: tokenizer.ggml.tokens has {twice!r} twice: a text could have either id")
    return vocab, [{"id": i, "content": tokens[i], "special": kinds[i] in special, "normalized": False} for i in added]


def _byte_level(file: GGUFFile) -> dict:
    tokens, kinds = _tokens(file)
    name = file.settings.get("tokenizer.ggml.pre", "default")
    if name not in SPLITTINGS and OWN not in file.settings:
        raise UserError(
            f"{file.path}: tokenizer.ggml.pre = {name!r}: how its tokenizer splits text is not known here; known: "
            f"{', '.join(SPLITTINGS)}"
        )
    step, whole_words, normalizer = SPLITTINGS.get(name, (byte_level(True), False, None))
    merges = file.settings.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise UserError(f"{file.path}: tokenizer.ggml.merges is no list of texts")
    vocab, added = _vocabulary(file, tokens, kinds, (CONTROL, UNKNOWN))
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole_words},
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": step,
        "decoder": byte_level(True),
        "adds_bos": whole_words,
    }


def _sentencepiece(file: GGUFFile) -> dict:
    tokens, kinds = _tokens(file)
    scores = file.settings.get("tokenizer.ggml.scores")
    scores = [] if scores is None else np.asarray(scores).tolist()
    if len(scores) < len(tokens):
        raise UserError(f"{file.path}: {len(scores):,} scores (tokenizer.ggml.scores) for {len(tokens):,} tokens")
    vocab, added = _vocabulary(file, tokens, kinds, (CONTROL, UNKNOWN))
    unknown = next((tokens[i] for i, kind in enumerate(kinds) if kind == UNKNOWN), None)
    prefix = _flag(file, "add_space_prefix", True)
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": _merges(vocab, scores, {tokens[i] for i, kind in enumerate(kinds) if kind != NORMAL}),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "adds_bos": True,
    }


def _merges(vocab: dict[str, int], scores: list[float], others: set[str]) -> list[list[str]]:
    """The pairs of tokens that make a token, the highest score first: llama.cpp merges the pair whose joined token
    scores highest."""
    found = []
    for token, i in vocab.items():
        if token in others:
            continue
        for n in range(1, len(token)):
            left, right = vocab.get(token[:n]), vocab.get(token[n:])
            if left is not None and right is not None and not {token[:n], token[n:]} & others:
                found.append((-scores[i], i, left, right, [token[:n], token[n:]]))
    return [pair for *_, pair in sorted(found)]


def _own(file: GGUFFile) -> dict:
    """What gptft wrote into the file of the tokenizer; {} where another wrote it. Raises UserError."""
    if OWN not in file.settings:
        return {}
    try:
        own = json.loads(file.settings[OWN])
    except (ValueError, TypeError, RecursionError):
        own = None
    fits = isinstance(own, dict) and all(
        isinstance(own.get(key, default), kinds)
        for key, default, kinds in (
            *((step, None, (dict, type(None))) for step in STEPS),
            ("ignore_merges", False, bool),
            ("eot", "", str),
            ("named", {}, dict),
            ("end_ids", [], list),
        )
    )
    fits = fits and all(type(i) is int and i >= 0 for i in own.get("end_ids", []))
    if not fits or not all(isinstance(name, str) for name in own.get("named", {}).values()):
        raise UserError(f"{file.path}: {OWN} is not what gptft writes there")
    return own


def _flag(file: GGUFFile, name: str, default: bool) -> bool:
    value = file.settings.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise UserError(f"{file.path}: tokenizer.ggml.{name} must be true or false, not {value!r}")
    return value


def _named(file: GGUFFile) -> dict[str, str]:
    """bos_token, eos_token and the like by name."""
    tokens, named = file.settings["tokenizer.ggml.tokens"], {}
    for key, name in (
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("unk_token", "unknown"),
        ("sep_token", "seperator"),  # as the format spells it
        ("pad_token", "padding"),
    ):
        i = file.settings.get(f"tokenizer.ggml.{name}_token_id")
        if i is not None:
            known = type(i) is int and 0 <= i < len(tokens)
            if not known and name not in ("bos", "eos"):  # of no use here; some files name an id beyond the vocabulary
                continue
            if not known:
                raise UserError(f"{file.path}: tokenizer.ggml.{name}_token_id cannot be {i!r}: no token has that id")
            named[key] = tokens[i]
    return named


def _end_ids(file: GGUFFile, n_vocab: int, own: list[int] | None) -> tuple[int, ...]:
    """Every id that the file names as the end of a text or of a turn."""
    if own is not None:
        return tuple(i for i in own if i < n_vocab)
    given = (file.settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(sorted({i for i in given if type(i) is int and 0 <= i < n_vocab}))
