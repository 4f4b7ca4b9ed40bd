"""Tokenizers of the Hugging Face kind: a directory's own files -> a Tokenizer, and back.

A `tokenizer.json` holds a BPE vocabulary, its merges, the steps before and after them, and tokens added later. Where
tiktoken gives the very same ids, it does the work; where that cannot be shown, the `tokenizers` library does.
"""

from __future__ import annotations

import json
from pathlib import Path

from gptft.errors import UserError
from gptft.files import read_json
from gptft.text.chat import ChatTemplate
from gptft.text.engines import TokenizersEngine, nodes, ranks_of
from gptft.tokenizer import EMBEDDED_PATTERN, EOT, GPT2_PATTERN, Tokenizer

# Patterns that tiktoken's regular expressions and those of `tokenizers` read alike: tests compare the two on every
# code point and on hostile text. Any other pattern is left to `tokenizers`.
CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
CASED = (  # Mistral's tekken
    _WORD + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|" + _WORD + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2_PATTERN,
    **{pattern: pattern for pattern in (CASELESS + r"\p{N}{1,3}" + REST, CASELESS + r"\p{N}" + REST)},  # Llama 3, Qwen
    EMBEDDED_PATTERN: EMBEDDED_PATTERN,
}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DECODERS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "Sequence"}


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has the files that `read_hf_tokenizer` reads."""
    return any((directory / name).exists() for name in ("tokenizer.json", "vocab.json"))


def read_hf_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a directory, with the ids that transformers' AutoTokenizer gives, and its chat template.

    One difference is meant: a literal special token in a text stays text. Raises UserError naming the file and what
    in it cannot be used.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    config = _settings(directory)
    whole = path.exists()
    if not whole:
        path = directory / "vocab.json"
    try:
        values = _read(path) if whole else _from_vocab_and_merges(directory, config)
        check_tokenizer(values, path)
        named = _named_tokens(config)
        eot = _end_of_text(directory, values, named)
        _complete(values, config, {**named, "eos_token": eot}, directory)
        _check_ids(values, directory / "tokenizer_config.json")
        values = _as_llama(values, directory, config)
        bos = _beginning(values["post_processor"], path) if whole else None
        if not whole and config.get("add_bos_token") and "bos_token" in named:
            bos = next(token["id"] for token in values["added_tokens"] if token["content"] == named["bos_token"])
        tokenizer = tokenizer_of(values, eot, bos)
        tokenizer.end_ids = _end_ids(directory, tokenizer.n_vocab)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: not a tokenizer that can be read ({type(error).__name__}: {error})") from None
    source = _chat_source(directory, config)
    if source is not None:
        tokenizer.template = ChatTemplate(source, named, tuple(tokenizer.specials), eot)
    return tokenizer


def tokenizer_of(values: dict, eot: str, bos: int | None) -> Tokenizer:
    """The values of a `tokenizer.json`, complete and checked -> a Tokenizer; by tiktoken where that is exact."""
    specials = {token["content"]: token["id"] for token in values["added_tokens"] if token["special"]}
    ranks, pattern = ranks_of(values), _pattern(values)
    if ranks is not None and pattern is not None:
        return Tokenizer(ranks, pattern, specials, eot, bos)
    return Tokenizer.over(TokenizersEngine(values), specials, eot, bos)


# ---- reading the files


def _read(path: Path) -> dict:
    """A JSON object; {} where there is no such file."""
    return read_json(path) if path.exists() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _from_vocab_and_merges(directory: Path, config: dict) -> dict:
    """GPT-2's own two files as a tokenizer.json."""
    kind = config.get("tokenizer_class", "GPT2Tokenizer").removesuffix("Fast")
    if kind != "GPT2Tokenizer":
        raise UserError(f"{directory}: a {kind} needs its tokenizer.json; vocab.json and merges.txt are GPT-2's")
    path = directory / "merges.txt"
    lines = _text(path).split("\n")
    vocab = _read(directory / "vocab.json")
    step = {
        "type": "ByteLevel",
        "add_prefix_space": bool(config.get("add_prefix_space")),
        "trim_offsets": True,
        "use_regex": True,
    }
    merges = [line.strip().split() for line in lines if line.strip() and not line.startswith("#version")]
    for merge in merges:
        if len(merge) != 2 or any(part not in vocab for part in (*merge, "".join(merge))):
            raise UserError(f"{path}: the merge {' '.join(merge)!r} is not of the tokens in vocab.json")
    added = [(name, i) for name, i in [(EOT, vocab.get(EOT)), *_read(directory / "added_tokens.json").items()]]
    return {
        "added_tokens": [_added(name, i) for name, i in added if i is not None],
        "normalizer": None,
        "pre_tokenizer": step,
        "post_processor": None,
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _added(name: str, i: int, **flags) -> dict:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": i, "content": name, **plain, **{key: value for key, value in flags.items() if key in plain}}


def check_tokenizer(values: dict, path: Path) -> None:
    """Refuse what is no BPE, and what could not be turned back into text; fill in what a file may leave out."""
    model = values["model"]
    kind = model.setdefault("type", "BPE" if "merges" in model else "of no stated type")
    if kind != "BPE":
        raise UserError(f"{path}: its model is {kind}; only BPE is supported")
    if model.get("dropout"):
        raise UserError(f"{path}: model.dropout is {model['dropout']}: the ids of a text would be drawn by chance")
    values.setdefault("version", "1.0")
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        values.setdefault(name, None)
    values["added_tokens"] = [
        _added(token["content"], token["id"], **token) for token in values.get("added_tokens") or []
    ]
    _check_ids(values, path)
    added: list[dict] = []
    for token in values["added_tokens"]:
        expected = _next_id(model["vocab"], added, token["content"])
        if token["id"] != expected:  # `tokenizers` would not give it the id that the file says
            raise UserError(f"{path}: the added token {token['content']!r} has the id {token['id']}, not {expected}")
        added.append(token)
    kinds = {node["type"] for node in nodes(values["decoder"])}
    if not kinds or kinds - DECODERS or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        unknown = ", ".join(sorted(kinds - DECODERS)) or "no decoder, or marks of word parts"
        raise UserError(f"{path}: how its tokens become text is not supported ({unknown})")


def _check_ids(values: dict, path: Path) -> None:
    """Refuse two tokens with one id, and a token without a text."""
    for token in values["added_tokens"]:
        if not isinstance(token["content"], str) or not token["content"]:
            raise UserError(
                f"{path}: added_tokens: the token with the id {token['id']} has the content "
                f"{token['content']!r}; it must be a text"
            )
    owners: dict[int, str] = {}
    listed = [*values["model"]["vocab"].items(), *((token["content"], token["id"]) for token in values["added_tokens"])]
    for name, i in listed:
        if owners.setdefault(i, name) != name:
            raise UserError(f"{path}: the tokens {owners[i]!r} and {name!r} have one id, {i}")


def _settings(directory: Path) -> dict:
    """tokenizer_config.json, and over it special_tokens_map.json, but where the former lists the added tokens:
    transformers does not read the latter then."""
    merged: dict = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if "added_tokens_decoder" not in merged:
            config = _read(directory / name)
            for key in NAMED:
                value = config.get(key)
                text = value.get("content") if isinstance(value, dict) else value
                if not isinstance(text, str) and value is not None:
                    raise UserError(
                        f"{directory / name}: {key} must be a token's name, as text or as the content of "
                        f"an object, not {json.dumps(value)[:80]}"
                    )
            merged |= config
    return merged


def _named_tokens(config: dict) -> dict[str, str]:
    """bos_token, eos_token and the like by name, in transformers' order."""
    found = {}
    for key in [*NAMED, *(key for key in config if key.endswith("_token") and key not in NAMED)]:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            found[key] = text
    return found


def _end_of_text(directory: Path, values: dict, named: dict[str, str]) -> str:
    """The name of the token that ends a text: as named; else by the id in the model's settings; else GPT-2's."""
    if "eos_token" in named:
        return named["eos_token"]
    contents = {i: token for token, i in values["model"]["vocab"].items()}
    contents |= {token["id"]: token["content"] for token in values["added_tokens"]}
    for file in ("config.json", "generation_config.json"):
        i = _read(directory / file).get("eos_token_id")
        i = i[0] if isinstance(i, list) and i else i
        if isinstance(i, int) and i in contents:
            return contents[i]
    if EOT in contents.values():
        return EOT
    raise UserError(
        f"{directory}: no eos_token in tokenizer_config.json, no eos_token_id in config.json, and no token "
        f"{EOT!r}: what ends a text?"
    )


def _end_ids(directory: Path, n_vocab: int) -> tuple[int, ...]:
    """Every id of the vocabulary that the model's own settings name as an end: transformers stops at each of those in
    generation_config.json, and at those in config.json where there is no such file."""
    found: set[int] = set()
    for file in ("config.json", "generation_config.json"):
        given = _read(directory / file).get("eos_token_id")
        listed = given if isinstance(given, list) else [] if given is None else [given]
        for i in listed:
            if type(i) is not int:
                raise UserError(f"{directory / file}: eos_token_id must be an id or a list of ids, not {given!r}")
        found |= {i for i in listed if 0 <= i < n_vocab}
    return tuple(sorted(found))


def _complete(values: dict, config: dict, named: dict[str, str], directory: Path) -> None:
    """Add the tokens that the other files name and tokenizer.json lacks, with the ids that transformers gives them;
    a token with a name of its own is special. One that ends a text is not added: no model would ever write it."""
    added, vocab = values["added_tokens"], values["model"]["vocab"]
    wanted: dict[str, dict] = {}
    for _, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        wanted[token["content"]] = {**token, "special": token.get("special", False)}
    listed = set(wanted)
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    for name in [*named.values(), *(more.values() if isinstance(more, dict) else more)]:
        flags = name if isinstance(name, dict) else {}
        wanted.setdefault(flags.get("content", name), flags)
    known = {token["content"] for token in added}
    eot = named["eos_token"]
    if eot not in known and eot not in vocab and eot not in listed:
        raise UserError(f"{directory / 'tokenizer_config.json'}: eos_token {eot!r} is no token of the vocabulary")
    for name, flags in wanted.items():
        if name not in known:
            flags = {key: value for key, value in flags.items() if key != "id"}
            added.append(_added(name, _next_id(vocab, added, name), **flags))
            known.add(name)
    for token in added:
        token["special"] |= token["content"] in named.values()


def _next_id(vocab: dict[str, int], added: list[dict], name: str) -> int:
    """The id of a token that is added: its own in the vocabulary, else the next one free."""
    return vocab[name] if name in vocab else max(len(vocab), 1 + max((token["id"] for token in added), default=-1))


def _as_llama(values: dict, directory: Path, config: dict) -> dict:
    """What transformers 5 makes of a Llama model whose `tokenizer_class` is LlamaTokenizer.

    It does not take the steps of tokenizer.json but its own, by `legacy` and `add_prefix_space`: a text that begins
    with a space is not given another, and a text after a special token is given one only if `legacy`.
    """
    kind = config.get("tokenizer_class", "").removesuffix("Fast")
    steps = [values["pre_tokenizer"], values["decoder"]]
    byte_level = any(node["type"] == "ByteLevel" for node in nodes(steps))
    if kind != "LlamaTokenizer" or byte_level or _read(directory / "config.json").get("model_type") != "llama":
        return values
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else prefix
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {**values["model"], "fuse_unk": True, "byte_fallback": True, "unk_token": None, "ignore_merges": False}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {
        **values,
        "model": model,
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _beginning(processor: dict | None, path: Path) -> int | None:
    """The id that a post-processor puts before a text. transformers 5 goes by tokenizer.json here, and not by
    add_bos_token. What it may put behind a text is left to templates: a prompt goes on."""
    found: list[int] = []
    for node in nodes(processor):
        if node["type"] == "TemplateProcessing":
            for item in node["single"]:
                if "Sequence" in item:
                    break
                found += node["special_tokens"][item["SpecialToken"]["id"]]["ids"]
        elif node["type"] in ("RobertaProcessing", "BertProcessing"):
            found.append(node["cls"][1])
    if len(found) > 1:
        raise UserError(f"{path}: its post_processor puts {len(found)} tokens before a text; one is supported")
    return found[0] if found else None


def _chat_source(directory: Path, config: dict) -> str | None:
    """The chat template in chat_template.jinja, else in tokenizer_config.json; of several the one named default."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return _text(path)
    source = given = config.get("chat_template")
    try:
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}
        if isinstance(source, dict):
            source = source.get("default")
    except (KeyError, TypeError):
        source = 0
    if source is not None and not isinstance(source, str):
        raise UserError(
            f"{directory / 'tokenizer_config.json'}: chat_template must be text, or a list of objects with "
            f"name and template, not {json.dumps(given)[:80]}"
        )
    return source


# ---- what tiktoken can do exactly


def _pattern(values: dict) -> str | None:
    """tiktoken's pattern for a tokenizer.json that does nothing to a text but split it with a known one; else None."""
    steps = values["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    *before, last = steps
    if values["normalizer"] is not None or last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not before:
        return GPT2_PATTERN if last.get("use_regex", True) else None
    first = before[0]
    plain = (first.get("type"), first.get("behavior"), first.get("invert", False)) == ("Split", "Isolated", False)
    if len(before) > 1 or not plain or last.get("use_regex", True):
        return None
    return PATTERNS.get(first["pattern"].get("Regex"))


# ---- writing
