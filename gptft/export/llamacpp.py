"""A model as a GGUF file for llama.cpp: its names of tensors, its metadata, its ways to store a number.

What llama.cpp does not compute is refused by name, never approximated in silence; what it computes a little otherwise
is returned as notes, one line each. Its side was read in its sources (src/models/*.cpp, src/llama-vocab.cpp) and is
proven by tests/export/test_llamacpp.py, which runs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptft.adapters.lora import adapters_of
from gptft.architecture import GPTConfig
from gptft.errors import UserError, need_extra
from gptft.export.llamacpp_vocabulary import vocabulary_of, write_vocabulary
from gptft.files import sync_directory
from gptft.formats.families import config_to_hf
from gptft.model import GPT, rotary_frequencies
from gptft.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf
    import numpy as np

KINDS = ("fp32", "fp16", "q8_0")
BLOCK = 32  # numbers that share a scale in q8_0: a row must be a multiple of it
# transformers' families -> llama.cpp's architectures
ARCHITECTURES = {
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
FUSED = ("gpt2", "gptneox")  # q, k and v are one tensor, and the activation is GELU's tanh form
# These turn channel 2i with 2i + 1, where we and the others turn channel i with i + half: rows are put in that order.
NEIGHBOURS = ("llama", "smollm3")
OUTER = {"tok": "token_embd", "pos": "position_embd", "norm": "output_norm", "lm_head": "output"}
INNER = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.out": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file and those of ours that it holds, one after the other.

    `heads`: so many heads whose rows go from (first half, second half) to neighbours.
    """

    name: str
    parts: tuple[Tensor, ...]
    heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.size(0) for part in self.parts), *self.parts[0].shape[1:])

    def value(self) -> np.ndarray:
        x = torch.cat([part.detach().to("cpu", torch.float32) for part in self.parts])
        if self.heads:
            x = x.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # (nh, 2, hs/2, ...) -> (rows, ...)
        return x.contiguous().numpy()


def export_gguf(
    model: GPT, tokenizer: Tokenizer | None, path: str | Path, kind: str = "fp16", name: str = ""
) -> list[str]:
    """Write `model` and its tokenizer to the new file `path`; -> notes on what llama.cpp does otherwise, if anything.

    `kind` is how matrices are stored: "fp32", "fp16", or "q8_0" (8 bits a number and a scale for each 32). Norms,
    biases and learned positions stay in fp32. Without a tokenizer the file takes and gives ids only. `name` is what
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
    arch, notes = architecture_of(model.config)
    entries = list(entries_of(model, arch))
    kinds = [storage(entry, kind) for entry in entries]
    halved = [entry.name for entry, stored in zip(entries, kinds, strict=True) if kind == "q8_0" and stored == "F16"]
    if halved:
        notes.append(f"kept in fp16, since their rows are no multiple of {BLOCK}: {', '.join(halved)}")
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    notes += vocabulary.notes
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def entries_of(model: GPT, arch: str) -> Iterator[Entry]:
    """Every tensor of the file."""
    config, ours = model.config, dict(model.named_parameters())
    for name in ours:
        stem, _, part = name.rpartition(".")
        if not stem.startswith("blocks."):
            yield Entry(f"{OUTER[stem]}.{part}", (ours[name],))
            continue
        _, layer, inner = stem.split(".", 2)
        if inner in ("attn.q", "attn.k", "attn.v") and arch in FUSED:
            if inner == "attn.q":
                qkv = tuple(ours[f"blocks.{layer}.attn.{x}.{part}"] for x in "qkv")
                yield Entry(f"blk.{layer}.attn_qkv.{part}", qkv)
            continue
        heads = {"attn.q": config.n_head, "attn.k": config.n_kv_head}.get(inner, 0) if arch in NEIGHBOURS else 0
        yield Entry(f"blk.{layer}.{INNER[inner]}.{part}", (ours[name],), heads)
    if arch == "gptneox":  # it asks for tensors that others may leave out: zeros and a copy change nothing
        if config.tie_embeddings:
            yield Entry("output.weight", (model.tok.weight,))
        for layer in range(config.n_layer):
            if not config.qkv_bias:
                yield Entry(f"blk.{layer}.attn_qkv.bias", (torch.zeros(3 * config.n_embd),))
            if not config.out_bias:
                yield Entry(f"blk.{layer}.attn_output.bias", (torch.zeros(config.n_embd),))
    if config.rope_original:  # by how much each pair of channels is slowed down
        plain = rotary_frequencies(dataclasses.replace(config, rope_original=0), "cpu")
        yield Entry("rope_freqs.weight", (plain / rotary_frequencies(config, "cpu"),))


def storage(entry: Entry, kind: str) -> str:
    """ggml's name for how a tensor is stored. As llama.cpp's own converter does: vectors and positions in fp32, and
    rows that cannot be cut into blocks in fp16."""
    if kind == "fp32" or len(entry.shape) == 1 or entry.name == "position_embd.weight":
        return "F32"
    return "Q8_0" if kind == "q8_0" and entry.shape[-1] % BLOCK == 0 else "F16"


def write_settings(writer: gguf.GGUFWriter, config: GPTConfig, arch: str, kind: str, name: str) -> None:
    import gguf

    writer.add_name(name)
    files = gguf.LlamaFileType
    writer.add_file_type({"fp32": files.ALL_F32, "fp16": files.MOSTLY_F16, "q8_0": files.MOSTLY_Q8_0}[kind])
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.position == "rotary":
        writer.add_rope_dimension_count(config.rotary_size)
        writer.add_rope_freq_base(config.rope_theta)
    if arch not in FUSED:
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
    if arch == "gptneox":
        writer.add_parallel_residual(config.parallel_residual)


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
