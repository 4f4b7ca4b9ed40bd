"""Hugging Face checkpoints -> our parameters, strictly: every tensor is placed, none is left over or misshapen."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptft.architecture import GPTConfig
from gptft.files import UserError, need_extra
from gptft.model import GPT
from gptft.tokenizer import Tokenizer, gpt2

GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# keys of a GPT-2 config.json that change the arithmetic, and the one value that we compute
GPT2_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def config_from_hf(hf: dict, source: str) -> GPTConfig:
    """The architecture out of a Hugging Face `config.json`. What is not supported is refused, never approximated."""
    if hf.get("model_type") != "gpt2":
        raise UserError(f"{source}: model_type {hf.get('model_type')!r} is not supported; supported: gpt2")
    for key, value in GPT2_FIXED.items():
        if hf.get(key, value) != value:
            raise UserError(f"{source}: {key} = {hf[key]!r} is not supported; only {value!r} is")
    activation = hf.get("activation_function", "gelu_new")
    if activation not in GPT2_ACTIVATIONS:
        raise UserError(f"{source}: activation_function = {activation!r} is not supported")
    values = {
        "vocab_size": hf.get("vocab_size"),
        "block_size": hf.get("n_positions"),
        "n_layer": hf.get("n_layer"),
        "n_head": hf.get("n_head"),
        "n_embd": hf.get("n_embd"),
        "n_inner": hf.get("n_inner") or 0,
        "norm_eps": float(hf.get("layer_norm_epsilon", 1e-5)),
        "activation": GPT2_ACTIVATIONS[activation],
        "tie_embeddings": hf.get("tie_word_embeddings", True),
    }
    return GPTConfig.from_dict({key: value for key, value in values.items() if value is not None}, source)


def gpt2_names(config: GPTConfig) -> dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]]:
    """Their tensor -> ours, each with what is done to it.

    GPT-2 stores linear weights as (in, out), the transpose of nn.Linear's, and q, k, v side by side.
    """
    C = config.n_embd

    def same(x: Tensor) -> Tensor:
        return x

    def transposed(x: Tensor) -> Tensor:
        return x.T if x.dim() == 2 else x  # a bias is a vector and stays as it is

    def third(n: int) -> Callable[[Tensor], Tensor]:
        return lambda x: transposed(x[..., n * C : (n + 1) * C])

    names = {"wte.weight": [("tok.weight", same)], "wpe.weight": [("pos.weight", same)]}
    for part in ("weight", "bias"):
        names[f"ln_f.{part}"] = [(f"norm.{part}", same)]
        for n in range(config.n_layer):
            theirs, ours = f"h.{n}", f"blocks.{n}"
            names[f"{theirs}.ln_1.{part}"] = [(f"{ours}.norm1.{part}", same)]
            names[f"{theirs}.ln_2.{part}"] = [(f"{ours}.norm2.{part}", same)]
            names[f"{theirs}.attn.c_attn.{part}"] = [
                (f"{ours}.attn.{name}.{part}", third(number)) for number, name in enumerate("qkv")
            ]
            for their_name, our_name in (
                ("attn.c_proj", "attn.out"),
                ("mlp.c_fc", "mlp.up"),
                ("mlp.c_proj", "mlp.down"),
            ):
                names[f"{theirs}.{their_name}.{part}"] = [(f"{ours}.{our_name}.{part}", transposed)]
    if not config.tie_embeddings:
        names["lm_head.weight"] = [("lm_head.weight", same)]
    return names


# prefixes that wrappers leave in front of names, and buffers of old GPT-2 files that hold no weights
PREFIX = re.compile(r"^(?:_orig_mod\.|module\.|transformer\.)+")
BUFFER = re.compile(r"^h\.\d+\.attn\.(?:masked_)?bias$")


def load_hf(directory: Path, dtype: torch.dtype) -> GPT:
    """A GPT with the weights of a local Hugging Face directory, on the CPU. Missing, extra and misshapen tensors
    raise UserError by name."""
    config = config_from_hf(_read_json(directory / "config.json"), str(directory / "config.json"))
    with torch.device("meta"):
        model = GPT(config)
    names, wanted = gpt2_names(config), model.state_dict()
    ours: dict[str, Tensor] = {}
    head = None
    for raw_name, tensor in tensors(directory):
        name = PREFIX.sub("", raw_name)
        if BUFFER.match(name):
            continue
        if name == "lm_head.weight" and config.tie_embeddings:
            head = tensor
            continue
        if name not in names:
            raise UserError(f"{directory}: unexpected tensor {raw_name!r}")
        for our_name, change in names[name]:
            placed = change(tensor)
            if placed.shape != wanted[our_name].shape:
                raise UserError(
                    f"{directory}: tensor {raw_name!r} has shape {tuple(tensor.shape)}, which gives "
                    f"{tuple(placed.shape)} for {our_name}; the config asks for {tuple(wanted[our_name].shape)}"
                )
            ours[our_name] = placed.to(dtype).contiguous()
    for name, targets in names.items():
        if any(our_name not in ours for our_name, _ in targets):
            raise UserError(f"{directory}: the tensor {name!r} is missing")
    if head is not None and not torch.equal(head.to(dtype), ours["tok.weight"]):
        raise UserError(f"{directory}: tie_word_embeddings is true, yet lm_head.weight differs from wte.weight")
    model.load_state_dict(ours, assign=True)
    return model.requires_grad_(True)


def tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of `model.safetensors`, its sharded form, or `pytorch_model.bin`, one at a time."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").exists():
        files = ["model.safetensors"]
    elif index.exists():
        files = sorted(set(_read_json(index).get("weight_map", {}).values()))
    elif (directory / "pytorch_model.bin").exists():
        yield from _read_bin(directory / "pytorch_model.bin")
        return
    elif (directory / "pytorch_model.bin.index.json").exists():
        weight_map = _read_json(directory / "pytorch_model.bin.index.json").get("weight_map", {})
        for file in sorted(set(weight_map.values())):
            yield from _read_bin(directory / file)
        return
    else:
        raise UserError(f"{directory}: no model.safetensors, no index of its shards and no pytorch_model.bin")
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise need_extra("safetensors", "hf", "reading .safetensors files") from None
    for file in files:
        if not (directory / file).exists():
            raise UserError(f"{directory}: the shard {file!r}, named in the index, is absent")
        try:
            with safe_open(directory / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dict
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{directory / file}: not a whole safetensors file ({error})") from None


def _read_bin(path: Path) -> Iterator[tuple[str, Tensor]]:
    if not path.exists():
        raise UserError(f"{path.parent}: the shard {path.name!r}, named in the index, is absent")
    try:
        # weights_only: a pickle may hold code, and a checkpoint is never code
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)).items()
    except Exception as error:  # pickle, zip and runtime errors all come out of a broken file
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be loaded as weights ({type(error).__name__}: {first})") from None


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object")
    return values


def is_hf(directory: Path) -> bool:
    """Whether a directory has Hugging Face's layout."""
    path = directory / "config.json"
    return path.exists() and "model_type" in _read_json(path)


def hf_tokenizer(directory: Path, config: GPTConfig) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory: from its own files; without any, GPT-2's for a model with GPT-2's
    vocabulary size, else None."""
    has_files = (directory / "tokenizer.json").exists() or (directory / "vocab.json").exists()
    return gpt2(directory) if has_files or config.vocab_size == 50257 else None


def download(hub_id: str) -> Path:
    """The local directory of a hub id, fetched with huggingface_hub, or found in its cache without a network."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise need_extra("huggingface_hub", "hf", f"the hub id {hub_id!r}") from None
    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", "vocab.json", "merges.txt",
                "tokenizer.json"]  # fmt: skip
    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=patterns))
        if not any(directory.glob("*.safetensors")):
            directory = Path(snapshot_download(hub_id, allow_patterns=["pytorch_model*", *patterns]))
        return directory
    except GatedRepoError:
        raise UserError(f"{hub_id!r} is gated: ask for access on its page and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id!r} is no local directory, no preset and no repository on the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{hub_id!r} is not in the local cache and the hub cannot be reached") from None
    except Exception as error:  # whatever else a network can do
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{hub_id!r} cannot be downloaded ({type(error).__name__}: {first})") from None
