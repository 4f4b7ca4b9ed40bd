"""A model as a directory of the Hugging Face kind: what transformers loads, and what a hub takes.

    config.json, generation_config.json        the architecture; which token ends a response
    model.safetensors                          the weights; beyond `shard_bytes` in numbered files with an index
    tokenizer.json, tokenizer_config.json      the vocabulary and the chat template
    README.md                                  the model card

Weights are written one tensor at a time, so that memory stays near the model's own.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptft import __version__
from gptft.adapters.frozen import ROUNDED, is_frozen
from gptft.adapters.lora import adapters_of
from gptft.architecture import PRESETS, GPTConfig
from gptft.checkpoint import model_id
from gptft.errors import UserError, nearest
from gptft.export.hf_tokenizer import write_hf_tokenizer
from gptft.files import new_directory
from gptft.formats.families import Place, all_places, config_to_hf
from gptft.formats.tensors import SAFETENSORS_NAMES
from gptft.model import GPT
from gptft.tokenizer import Tokenizer

# What a caller may tell of a model for its card; everything may be left out.
CARD = {
    "name": "what the model is called; else the directory's name",
    "base": "what it was fine-tuned from: a hub id, or words; or the preset that it was trained from scratch as",
    "data": "what it was trained on, in words",
    "license": "the license's id on the hub, such as mit",
    "language": "a list of language codes, such as ['en']",
    "figures": "a dict of measured numbers by name, such as {'validation loss': 1.23}",
}
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of the files: its name, its shape, how many bytes it takes, and how to make it."""

    name: str
    shape: tuple[int, ...]
    n_bytes: int
    make: Callable[[], Tensor]


def export_hf(
    model: GPT,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    shard_bytes: int = 5_000_000_000,
    card: dict | None = None,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Write `model` and its tokenizer to a new `directory`; -> notes, one line each, on what to know about it.

    `card` tells more of the model: see CARD. `dtype` None: that of the weights. Raises UserError where transformers
    has no such model, and where the directory holds something; nothing is then written.
    """
    directory, card = Path(directory), card or {}
    for key in card:
        if key not in CARD:
            raise UserError(f"the model card: unknown key {key!r}{nearest(key, CARD)}; it may have {', '.join(CARD)}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already and is not empty: name another place for the exported model")
    if adapters_of(model):
        raise UserError("the model has adapters: merge them first (python -m gptft merge ADAPTER OUT)")
    if is_frozen(model):
        raise UserError(ROUNDED)
    dtype = dtype or model.tok.weight.dtype
    if dtype not in SAFETENSORS_NAMES:
        raise UserError(f"weights cannot be exported as {dtype}: one of {', '.join(map(name_of, SAFETENSORS_NAMES))}")
    family, config = config_to_hf(model.config)
    tokens = token_ids(tokenizer)
    config |= {
        "torch_dtype": name_of(dtype),
        "bos_token_id": tokens["bos_token_id"],
        "eos_token_id": tokens["eos_token_id"],
        "pad_token_id": None,
    }
    with new_directory(directory) as temporary:
        write_json(temporary / "config.json", config)
        write_json(temporary / "generation_config.json", generation_settings(tokenizer))
        notes = write_tokenizer(tokenizer, temporary, model.config.block_size) if tokenizer else []
        shown = without_template(tokenizer) if notes else tokenizer
        notes += qwen2_note(family.model_type, temporary) if tokenizer else []
        write_weights(tensors_to_write(model, all_places(family, model.config), dtype), temporary, shard_bytes, dtype)
        text = model_card(model, tokenizer, shown, family.model_type, dtype, card, directory.name)
        (temporary / "README.md").write_text(text, encoding="utf-8")
    return notes


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- tokenizer


def token_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The ids that transformers wants to know. None is said too: a family's own default would be some other token.

    The padding id is for generation alone: in config.json, transformers would keep that row of the embedding from
    learning.
    """
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    first = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
    return {"bos_token_id": first, "eos_token_id": tokenizer.stop, "pad_token_id": tokenizer.eot}


def generation_settings(tokenizer: Tokenizer | None) -> dict:
    """generation_config.json: greedy, and every id that ends a response; the model may have named several."""
    tokens = token_ids(tokenizer)
    if tokenizer and (further := [i for i in tokenizer.end_ids if i != tokenizer.stop]):
        tokens["eos_token_id"] = [tokenizer.stop, *further]
    return {"do_sample": False, **tokens}


def write_tokenizer(tokenizer: Tokenizer, directory: Path, block_size: int | None = None) -> list[str]:
    """Write a tokenizer's files; -> a note where its template cannot be a chat template and is left out."""
    try:
        write_hf_tokenizer(tokenizer, directory, block_size)
        return []
    except UserError as error:
        if tokenizer.template is None:
            raise
        write_hf_tokenizer(without_template(tokenizer), directory, block_size)
        return [f"no chat template is carried along: {error}"]


def without_template(tokenizer: Tokenizer) -> Tokenizer:
    bare = copy.copy(tokenizer)
    bare.template = None
    return bare


def qwen2_note(model_type: str, directory: Path) -> list[str]:
    """For qwen2, AutoTokenizer takes Qwen's own steps whatever the files say: a note where those are others."""
    values = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    normalizer, steps = values["normalizer"] or {}, values["pre_tokenizer"] or {}
    first = (steps.get("pretokenizers") or [{}])[0]
    pattern = (first.get("pattern") or {}).get("Regex", "")
    as_qwen = normalizer.get("type") == "NFC" and pattern.startswith("(?i:'s|'t") and r"|\p{N}| ?" in pattern
    if model_type != "qwen2" or as_qwen:
        return []
    return [
        "transformers' AutoTokenizer splits text as Qwen2 does for a qwen2 model, which this tokenizer does not: "
        "load it with PreTrainedTokenizerFast.from_pretrained"
    ]


# ---- weights


def tensors_to_write(model: GPT, places: list[Place], dtype: torch.dtype) -> list[TensorToWrite]:
    """Every tensor of the files, under transformers' names, not made yet."""
    ours = dict(model.named_parameters())

    def one(place: Place) -> TensorToWrite:
        parts = [ours[name].detach() for name in place.ours]
        meta = place.join([torch.empty(part.shape, device="meta") for part in parts])

        def make() -> Tensor:
            x = place.join([part.to("cpu", dtype) for part in parts]).contiguous()
            if dtype == torch.float16 and not x.isfinite().all():
                raise UserError(f"{place.theirs} holds numbers beyond float16's 65504: export as bfloat16 or float32")
            return x

        return TensorToWrite(place.theirs, tuple(meta.shape), meta.numel() * dtype.itemsize, make)

    return [one(place) for place in places]


def write_weights(tensors: list[TensorToWrite], directory: Path, shard_bytes: int, dtype: torch.dtype) -> None:
    """`model.safetensors`, or numbered files of at most `shard_bytes` (a larger tensor has its own) and their index."""
    shards: list[list[TensorToWrite]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.n_bytes for t in shards[-1]) + tensor.n_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / name, shard, dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.n_bytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def write_safetensors(path: Path, tensors: list[TensorToWrite], dtype: torch.dtype) -> None:
    """The format by hand, since the library would hold all tensors at once: the length of the header (8 bytes), the
    header (JSON: for each tensor where its bytes are), the bytes."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": tensor.shape,
            "data_offsets": [end, end + tensor.n_bytes],
        }
        end += tensor.n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.make().reshape(-1).view(torch.uint8).numpy().data)


# ---- the model card


def model_card(
    model: GPT,
    tokenizer: Tokenizer | None,
    shown: Tokenizer | None,
    model_type: str,
    dtype: torch.dtype,
    card: dict,
    directory: str,
) -> str:
    """README.md: the front matter that a hub reads, and what a reader wants to know. `shown`: the tokenizer as it was
    written, without a template that transformers could not be given."""
    name, base = card.get("name") or directory, card.get("base") or ""
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["gptft", model_type]}
    front |= {key: card[key] for key in ("license", "language") if card.get(key)}
    if re.fullmatch(r"[\w.-]+/[\w.-]+|gpt2[\w-]*", base) and not Path(base).exists():
        front["base_model"] = base
    origin = f" Trained from scratch, as the preset {base}." if base in PRESETS else f" Fine-tuned from {base}."
    told = [origin if base else "", f" Trained on {card['data']}." if card.get("data") else ""]
    identity = model_id(model, tokenizer, None if dtype == model.tok.weight.dtype else dtype)
    figures = [
        (key, f"{value:.6g}" if isinstance(value, float) else value) for key, value in card.get("figures", {}).items()
    ]
    table = [*facts(model, dtype, model_type), ("gptft's model id", f"`{identity}`"), *figures]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {name}",
        "",
        f"A causal language model, made with gptft {__version__}.{''.join(told)}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in table),
    ]
    if shown and shown.template:
        end = next(name for name, i in shown.specials.items() if i == shown.stop)
        prompt = "".join(segment.text for segment in shown.template.prompt_segments({"messages": MESSAGES}))
        lines += [
            "",
            "## Prompt",
            "",
            f"The tokenizer's chat template writes the prompt; `{end}` ends a response. For example:",
            "",
            *fenced(prompt, "text"),
        ]
    where = name if "/" in name else directory  # the id on a hub, where it is known
    code = ["import gptft", "", f'model, tokenizer = gptft.load("{where}")']
    if tokenizer:
        code.append(f'print(gptft.generate(model, tokenizer, ["{QUESTION}"]))')
    lines += [
        "",
        "## Use",
        "",
        "With transformers:",
        "",
        *fenced(snippet(shown, where), "python"),
        "",
        "With gptft:",
        "",
        *fenced("\n".join(code), "python"),
    ]
    return "\n".join(lines) + "\n"


def facts(model: GPT, dtype: torch.dtype, model_type: str) -> list[tuple[str, str]]:
    config: GPTConfig = model.config
    heads = f"{config.n_head}" + (
        f" ({config.n_kv_head} for keys and values)" if config.n_kv_head < config.n_head else ""
    )
    return [
        ("architecture", model_type),
        ("weights", f"{model.n_parameters():,} in {name_of(dtype)}"),
        ("layers", f"{config.n_layer}"),
        ("width", f"{config.n_embd}"),
        ("heads", heads),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{config.block_size:,} tokens"),
    ]


def fenced(text: str, language: str) -> list[str]:
    """A block of code; the fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return [fence + language, *text.split("\n"), fence]


def snippet(tokenizer: Tokenizer | None, where: str) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{where}")',
    ]
    if tokenizer is None:
        return "\n".join([lines[0].removesuffix(", AutoTokenizer"), *lines[1:]])
    lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{where}")')
    if tokenizer.template:
        lines += [
            f"messages = {json.dumps(MESSAGES)}",
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",',
            "                                       return_dict=True)",
        ]
    else:
        lines.append(f'inputs = tokenizer("{QUESTION}", return_tensors="pt")')
    return "\n".join(
        [
            *lines,
            "output = model.generate(**inputs, max_new_tokens=100)[0, inputs.input_ids.size(1) :]",
            "print(tokenizer.decode(output, skip_special_tokens=True))",
        ]
    )
