"""`load` for anything that can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptft.adapters.frozen import freeze_layers_as, is_frozen
from gptft.adapters.lora import Base, LoraConfig, adapters_of, add_lora, lora_state, merge_lora
from gptft.architecture import PRESETS, GPTConfig
from gptft.checkpoint import listed_file, load_weights, model_id, recover, save, stored_weights, verify
from gptft.errors import UserError, nearest
from gptft.files import read_json
from gptft.formats.gguf import open_gguf
from gptft.formats.gguf_file import is_gguf, read_gguf
from gptft.formats.gguf_tokenizer import read_gguf_tokenizer
from gptft.formats.hf import hf_tokenizer, is_hf, open_hf
from gptft.formats.hub import download
from gptft.formats.peft import TEMPLATE, is_peft, peft_base, read_peft
from gptft.formats.tensors import Weights
from gptft.model import GPT
from gptft.prompts import saved_template
from gptft.tokenizer import Tokenizer, embedded


@dataclass
class Opened:
    """What lies in files: the model on the "meta" device, its weights, not read yet, and its tokenizer."""

    model: GPT
    weights: Weights
    tokenizer: Tokenizer | None
    is_gguf: bool = False

    def load(self, freeze: str = "fp32") -> tuple[GPT, Tokenizer | None]:
        """The model on the CPU and its tokenizer. `freeze`: as `load` has it."""
        model = freeze_layers_as(self.model, freeze) if self.is_gguf else self.model
        return self.weights.fill(model.to_empty(device="cpu")), self.tokenizer


def load_ours(
    path: Path, dtype: torch.dtype = torch.float32, base: str | Path | None = None
) -> tuple[GPT, Tokenizer | None]:
    """Model (on the CPU) and tokenizer of one of our checkpoints, verified."""
    manifest, values = read_ours(path)
    if "lora" not in values:
        return open_ours(path, manifest, values, dtype).load()
    model, tokenizer = load_adapters(path, values, dtype, base)
    if tokenizer and "template.json" in manifest["sha256"]:  # adapters bring the one that they were trained with
        tokenizer.template = saved_template(read_json(path / "template.json"), str(path / "template.json"))
    return model, tokenizer


def read_ours(path: Path) -> tuple[dict, dict]:
    """The manifest and config.json of one of our checkpoints, verified."""
    if verify(path, ()).get("sharded"):
        raise UserError(
            f"{path} is a sharded checkpoint, to go on from: make an ordinary one of it, by "
            f"python -m gptft consolidate {path} OUT, and name OUT"
        )
    manifest = verify(path)
    return manifest, read_json(listed_file(path, manifest, "config.json"))


def open_ours(path: Path, manifest: dict, values: dict, dtype: torch.dtype) -> Opened:
    """One of our checkpoints that is a whole model."""
    config = GPTConfig.from_dict(values.get("gptft", {}), str(path / "config.json"))
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    return Opened(model, stored_weights(model, path, manifest), load_tokenizer(path, manifest))


def load_tokenizer(path: Path, manifest: dict) -> Tokenizer | None:
    """The tokenizer of one of our checkpoints, if it has one. Raises UserError where its vocabulary is none that the
    manifest lists."""
    if "gptft_tokenizer.json" not in manifest["sha256"]:
        return None
    values = read_json(path / "gptft_tokenizer.json")
    listed_file(path, manifest, "tokenizer.json" if values.get("engine") == "tokenizers" else "vocab.tiktoken")
    return Tokenizer.load(path)


def load_adapters(
    path: Path, values: dict, dtype: torch.dtype, base: str | Path | None
) -> tuple[GPT, Tokenizer | None]:
    """The base that `values` (config.json) names, or `base`, with the adapters of `path` on it. Raises UserError when
    that base cannot be loaded, and when it is another than the one that was trained on."""
    try:
        settings, recorded = LoraConfig(**values["lora"]), Base(**values["base"])
        if not isinstance(recorded.name, str) or "bf16" not in recorded.model_id:
            raise ValueError(values["base"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path / 'config.json'}: not the settings of adapters ({error!r})") from None
    name = str(base or recorded.name)
    give = f"name the right one with {'another ' if base else ''}--base (base= in Python)"
    try:
        if recorded.seed is not None and base in (None, "", recorded.name):
            model, tokenizer = preset(recorded.name, recorded.seed), embedded()
        else:  # the id of weights rounded to bf16 was recorded too, so that 32 bits each need not be held
            model, tokenizer = _load(name, dtype if dtype == torch.bfloat16 else torch.float32)
    except UserError as error:
        raise UserError(f"{path}: its base {name!r} cannot be loaded ({error}); {give}", error.status) from None
    rounded = model.tok.weight.dtype == torch.bfloat16 or "fp32" not in recorded.model_id
    identity = model_id(model, tokenizer, torch.bfloat16 if rounded else None)
    wanted = recorded.model_id["bf16" if rounded else "fp32"]
    if adapters_of(model) or identity != wanted:
        raise UserError(
            f"{path} holds adapters for another base: for {recorded.name} with model id {wanted}, but "
            f"{name} has {identity}; {give}"
        )
    add_lora(model.to(dtype), settings, base=recorded)
    load_weights(model, path, verified=True)
    return model, tokenizer


def merge(path: str | Path, out: str | Path, base: str | Path | None = None) -> None:
    """Write an ordinary checkpoint to `out`: the adapters of `path` folded into their base, in full precision,
    whatever the base was held in while training. Raises UserError, with nothing written, where that cannot be."""
    inner, out = find_ours(Path(path)), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: name another place for the merged model")
    manifest = verify(inner, ["config.json"]) if inner else {}
    if inner and "lora" not in read_json(inner / "config.json"):
        raise UserError(f"{path} is a whole model: there are no adapters to merge")
    model, tokenizer = load(path, base=base)
    if adapters_of(model) is None:
        raise UserError(f"{path} is a whole model: there are no adapters to merge")
    save(out, merge_lora(model), tokenizer, manifest.get("step", 0))


def base_of(
    model: GPT, tokenizer: Tokenizer | None, name: str, seed: int = 0, state: Mapping[str, Tensor] | None = None
) -> Base:
    """How adapters for `model`, which was loaded by `name`, will name it. `seed`: of a preset. `state`: its weights,
    where it holds them otherwise."""
    if state is None and is_frozen(model):  # as it was read
        _, state = open_gguf(read_gguf(Path(name)), torch.float32)
    ids = {"bf16": model_id(model, tokenizer, torch.bfloat16, state)}
    if model.tok.weight.dtype != torch.bfloat16:
        ids["fp32"] = model_id(model, tokenizer, state=state)
    if name in PRESETS:
        return Base(name, ids, seed)
    return Base(str(Path(name).absolute()) if Path(name).exists() else name, ids)


def load(
    name: str | Path,
    device="cpu",
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    freeze: str = "fp32",
    opened: Opened | None = None,
) -> tuple[GPT, Tokenizer | None]:
    """A model and its tokenizer, from anything that can be loaded.

    `name`: a checkpoint of gptft or a run's folder (its `best`, else its `last`), a local Hugging Face directory or
    PEFT's, a GGUF file, a preset (fresh weights, embedded vocabulary), or a hub id. `dtype` None: fp32. The model is in
    evaluation mode. Adapters are loaded with their base, from where it was or from `base`, and stay apart from it
    (`lora.merge_lora` makes one model of them). `freeze`: how the linear layers of a GGUF file are held, as they are
    read (`adapters.frozen.freeze_layers_as`); of anything else that is for the caller to do. `opened`: by `open_model`.
    """
    model, tokenizer = opened.load(freeze) if opened else _load(str(name), dtype or torch.float32, base, freeze)
    if base and not adapters_of(model):
        raise UserError(f"{name} is a whole model; --base (base= in Python) goes with adapters")
    check_vocabulary(str(name), model, tokenizer)
    return model.to(device).eval(), tokenizer


def open_model(name: str, dtype: torch.dtype = torch.float32) -> Opened | None:
    """A model as it lies in files, for whoever is to say where its weights go; None for one that does not lie there as
    it is: a preset, or adapters. Raises UserError as `load` does."""
    path = None if name in PRESETS else find(name)
    if path is None or is_peft(path):
        return None
    if (path / "manifest.json").exists():
        manifest, values = read_ours(path)
        opened = None if "lora" in values else open_ours(path, manifest, values, dtype)
    else:
        opened = open_other(path, dtype, name)
    if opened:
        check_vocabulary(name, opened.model, opened.tokenizer)
    return opened


def check_vocabulary(name: str, model: GPT, tokenizer: Tokenizer | None) -> None:
    if tokenizer and tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {tokenizer.n_vocab} ids, more than the {model.config.vocab_size} rows of the "
            "model's embedding"
        )


def find_ours(path: Path) -> Path | None:
    """Our checkpoint at `path`: itself, or a run's `best`, else its `last`; None where there is none."""
    for part in ("", "best", "last"):
        recover(path / part)
    return next((path / part for part in ("", "best", "last") if (path / part / "manifest.json").exists()), None)


def _load(
    name: str, dtype: torch.dtype, base: str | Path | None = None, freeze: str = "fp32"
) -> tuple[GPT, Tokenizer | None]:
    if name in PRESETS:  # a folder of that name is meant by ./NAME
        return preset(name, seed=0).to(dtype), embedded()
    path = find(name)
    if (path / "manifest.json").exists():
        return load_ours(path, dtype, base)
    if is_peft(path):
        return load_peft(path, dtype, base)
    return open_other(path, dtype, name).load(freeze)


def find(name: str) -> Path:
    """Where a model lies: a folder, a hub's files fetched into one, or a GGUF file. Raises UserError."""
    path = Path(name)
    inner = find_ours(path)
    if inner is not None or is_gguf(path) or path.is_dir():
        return inner or path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        missing = "no such file" if path.suffix == ".gguf" else f"no such directory{nearest(name, PRESETS)}"
        what = "a file, and no GGUF file" if path.is_file() else missing
        raise UserError(f"{name}: {what}")
    return download(name)


def open_other(path: Path, dtype: torch.dtype, name: str) -> Opened:
    """A model that others have written: a GGUF file, or a Hugging Face directory. `name`: how it was asked for."""
    if is_gguf(path):
        file = read_gguf(path)
        tokenizer = read_gguf_tokenizer(file)  # first, for it is the quicker to fail
        return Opened(*open_gguf(file, dtype), tokenizer, is_gguf=True)
    if is_hf(path):
        model, weights = open_hf(path, dtype)
        return Opened(model, weights, hf_tokenizer(path, model.config))
    raise UserError(
        f"{name}: neither a checkpoint (manifest.json), nor a run with one, nor a Hugging Face "
        "directory (config.json with a model_type), nor PEFT's adapters (adapter_config.json)"
    )


def load_peft(path: Path, dtype: torch.dtype, base: str | Path | None) -> tuple[GPT, Tokenizer | None]:
    """Adapters that PEFT saved, on the base that they name, or on `base`. They carry no model id: that it is the right
    base cannot be told, beyond its shapes."""
    name = str(base or peft_base(path))
    if name and Path(name).resolve() == path.resolve():
        raise UserError(f"{path / 'adapter_config.json'} names itself as its base: give another with --base")
    if not name:
        raise UserError(f"{path / 'adapter_config.json'} names no base: give it with --base (base= in Python)")
    try:
        model, tokenizer = _load(name, dtype if dtype == torch.bfloat16 else torch.float32)
    except UserError as error:
        raise UserError(
            f"{path}: its base {name!r} cannot be loaded ({error}); name another with --base (base= in Python)",
            error.status,
        ) from None
    if adapters_of(model):
        raise UserError(f"{path}: its base {name!r} holds adapters itself: merge them first")
    settings, state = read_peft(path, model)
    recorded = base_of(model, tokenizer, name)
    add_lora(model.to(dtype), settings, base=recorded)
    with torch.no_grad():
        for name, tensor in lora_state(model).items():
            if name in state:  # a layer that PEFT left alone: a fresh adapter changes nothing
                tensor.copy_(state[name])
    if tokenizer and (path / TEMPLATE).exists():
        tokenizer.template = saved_template(read_json(path / TEMPLATE), str(path / TEMPLATE))
    return model, tokenizer


def preset(name: str, seed: int) -> GPT:
    """A from-scratch model over the embedded vocabulary."""
    return GPT.create(GPTConfig(vocab_size=embedded().n_vocab, **PRESETS[name]), seed)
