"""A model as a GGUF file for llama.cpp: its names of tensors, its metadata, its ways to store a number.

What llama.cpp does not compute is refused by name, never approximated in silence; what it computes a little otherwise
is returned as notes, one line each. Its side was read in its sources (src/models/*.cpp, src/llama-vocab.cpp) and is
proven by tests/export/test_llamacpp.py, which runs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gptft.adapters.frozen import ROUNDED, is_frozen
from gptft.adapters.lora import adapters_of
from gptft.architecture import GPTConfig
from gptft.errors import UserError, need_extra
from gptft.export.llamacpp_vocabulary import vocabulary_of, write_vocabulary
from gptft.files import beside, sync_directory
from gptft.formats.families import config_to_hf
from gptft.formats.gguf_names import FAMILY_OF, FUSED, OWN_CONFIG, Entry, entries_of, settings_of
from gptft.model import GPT
from gptft.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

# how matrices may be stored -> ggml's name for it
KINDS = {
    "fp32": "F32",
    "fp16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q5_1": "Q5_1",
    "q5_0": "Q5_0",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0",
}
BLOCK = 32  # numbers that share a scale in the kinds that begin with q: a row must be a multiple of it
# transformers' families -> llama.cpp's architectures
ARCHITECTURES = {family: arch for arch, family in FAMILY_OF.items()} | {"mistral": "llama"}


def export_gguf(
    model: GPT, tokenizer: Tokenizer | None, path: str | Path, kind: str = "fp16", name: str = ""
) -> list[str]:
    """Write `model` and its tokenizer to the new file `path`; -> notes on what llama.cpp does otherwise, if anything.

    `kind` is one of KINDS: how matrices are stored. Those that begin with q have so many bits a number and a scale for
    each 32; below 8 bits, embeddings and the output layer have 8, as llama.cpp's own tool leaves them. Norms, biases
    and learned positions stay in fp32. Without a tokenizer the file takes and gives ids only. `name` is what
    llama.cpp shows, else the file's. Raises UserError, with nothing written, where llama.cpp cannot compute the model.
    """
    try:
        import gguf
    except ImportError:
        raise need_extra("gguf", "gguf", "writing a GGUF file") from None
    path = Path(path)
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of GGUF file: one of {', '.join(KINDS)}")
    if path.exists():
        raise UserError(f"{path} exists already: name another place for the exported model")
    if adapters_of(model):
        raise UserError("the model has adapters: merge them first (python -m gptft merge ADAPTER OUT)")
    if is_frozen(model):
        raise UserError(ROUNDED)
    arch, notes = architecture_of(model.config)
    entries = list(entries_of(model, arch))
    kinds = [storage(entry, kind) for entry in entries]
    halved = [entry.name for entry, stored in zip(entries, kinds, strict=True) if stored == "F16"]
    if kind.startswith("q") and halved:
        notes.append(f"kept in fp16, since their rows are no multiple of {BLOCK}: {', '.join(halved)}")
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    notes += vocabulary.notes
    temporary = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(temporary, arch)
        write_settings(writer, model.config, arch, kind, name or path.stem)
        write_vocabulary(writer, vocabulary)
        write_tensors(writer, entries, kinds)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error})", 1) from None
    finally:
        with contextlib.suppress(OSError):  # a parent that is a file has no files
            temporary.unlink(missing_ok=True)
    return notes


def architecture_of(config: GPTConfig) -> tuple[str, list[str]]:
    """llama.cpp's architecture for `config`, and notes. Raises UserError naming what llama.cpp does not compute."""
    family, _ = config_to_hf(config)
    arch = ARCHITECTURES[family.model_type]
    biased = config.qkv_bias or config.out_bias or config.mlp_bias
    windows = {config.sliding_window_of(layer) for layer in range(config.n_layer)}
    every_fourth = tuple(range(3, config.n_layer, 4))
    wanted = ("gelu_tanh", "gelu") if arch in FUSED else ("silu",)
    cannot = {
        f"an attention window (of {config.window} tokens, below the {config.block_size} of its context)": any(
            0 < window < config.block_size for window in windows
        ),
        f"the activation {config.activation!r}": config.activation not in wanted,
        "Llama 3's stretched rotary frequencies": bool(config.rope_original) and arch != "llama",
        "a head size of its own": arch == "qwen2" and config.head_size * config.n_head != config.n_embd,
        "biases in attention or MLP": arch in ("qwen3", "smollm3") and biased,
        f"layers without positions other than every fourth ({config.no_rope_layers} here)": arch == "smollm3"
        and config.no_rope_layers != every_fourth,
    }
    for what, is_so in cannot.items():
        if is_so:
            raise UserError(f"llama.cpp's {arch!r} has no form for {what}; --format hf exports this model exactly")
    notes = []
    if config.activation == "gelu":
        notes.append(f"llama.cpp's {arch!r} computes the exact GELU by its tanh form: logits differ by some 1e-4")
    return arch, notes


def storage(entry: Entry, kind: str) -> str:
    """ggml's name for how a tensor is stored. As llama.cpp's own converter does: vectors and positions in fp32, and
    rows that cannot be cut into blocks in fp16."""
    if kind == "fp32" or len(entry.shape) == 1 or entry.name == "position_embd.weight":
        return "F32"
    if not kind.startswith("q"):
        return KINDS[kind]
    if entry.shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if entry.name in ("token_embd.weight", "output.weight") else KINDS[kind]


def kind_of_file(types: dict[str, str]) -> str:
    """The kind in which a file holds most of its matrices, where that can be written; "" where it cannot. `types`:
    ggml's name for each tensor."""
    counts = Counter(stored for name, stored in types.items() if re.match(r"blk\.\d+\.\w+\.weight$", name))
    counts = counts if len(counts) == 1 else Counter({name: n for name, n in counts.items() if name != "F32"})
    most = counts.most_common(1)[0][0] if counts else ""
    return next((kind for kind, stored in KINDS.items() if stored == most), "")


def write_settings(writer: gguf.GGUFWriter, config: GPTConfig, arch: str, kind: str, name: str) -> None:
    import gguf

    writer.add_name(name)
    files = gguf.LlamaFileType
    writer.add_file_type(files.ALL_F32 if kind == "fp32" else files[f"MOSTLY_{KINDS[kind]}"])
    if kind.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in settings_of(config, arch).items():
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}[type(value)]
        add(f"{arch}.{key}", value)
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    writer.add_string(OWN_CONFIG, json.dumps({key: value for key, value in own.items() if value != defaults[key]}))


def write_tensors(writer: gguf.GGUFWriter, entries: list[Entry], kinds: list[str]) -> None:
    """The list of tensors, then their numbers one tensor after the other: no more than one is held twice."""
    import gguf
    import numpy as np

    for entry, stored in zip(entries, kinds, strict=True):
        ggml = gguf.GGMLQuantizationType[stored]
        block, size = gguf.GGML_QUANT_SIZES[ggml]
        n_bytes = int(np.prod(entry.shape)) // block * size
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), n_bytes, raw_dtype=ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, stored in zip(entries, kinds, strict=True):
        value = entry.value()
        if stored == "F16" and np.abs(value).max() > np.finfo(np.float16).max:
            raise UserError(f"{entry.name} holds numbers beyond fp16's {np.finfo(np.float16).max:.0f}: choose fp32")
        writer.write_tensor_data(gguf.quants.quantize(value, gguf.GGMLQuantizationType[stored]))
    writer.close()
