"""`load` for anything that can be loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from gptft.adapters.frozen import is_frozen
from gptft.adapters.lora import Base, LoraConfig, adapters_of, add_lora, lora_state, merge_lora
from gptft.architecture import PRESETS, GPTConfig
from gptft.checkpoint import listed_file, load_weights, model_id, recover, save, verify
from gptft.errors import UserError, nearest
from gptft.files import read_json
from gptft.formats.gguf import WeightsOf, load_gguf
from gptft.formats.gguf_file import is_gguf, read_gguf
from gptft.formats.gguf_tokenizer import read_gguf_tokenizer
from gptft.formats.hf import hf_tokenizer, is_hf, load_hf
from gptft.formats.hub import download
from gptft.formats.peft import TEMPLATE, is_peft, peft_base, read_peft
from gptft.model import GPT
from gptft.prompts import saved_template
from gptft.tokenizer import Tokenizer, embedded


def load_ours(
    path: Path, dtype: torch.dtype = torch.float32, base: str | Path | None = None
) -> tuple[GPT, Tokenizer | None]:
    """Model (on the CPU) and tokenizer of one of our checkpoints, verified."""
    manifest = verify(path)
    values = read_json(listed_file(path, manifest, "config.json"))
    if "lora" in values:
        model, tokenizer = load_adapters(path, values, dtype, base)
        if tokenizer and "template.json" in manifest["sha256"]:  # adapters bring the one that they were trained with
            tokenizer.template = saved_template(read_json(path / "template.json"), str(path / "template.json"))
        return model, tokenizer
    config = GPTConfig.from_dict(values.get("gptft", {}), str(path / "config.json"))
    with torch.device("meta"):
        model = GPT(config)
    load_weights(model, path, dtype, verified=True)
    return model, load_tokenizer(path, manifest)


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


def base_of(model: GPT, tokenizer: Tokenizer | None, name: str, seed: int = 0) -> Base:
    """How adapters for `model`, which was loaded by `name`, will name it. `seed`: of a preset."""
    state = WeightsOf(read_gguf(Path(name))) if is_frozen(model) else None  # it was frozen as it was read
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
) -> tuple[GPT, Tokenizer | None]:
    """A model and its tokenizer, from anything that can be loaded.

    `name`: a checkpoint of gptft or a run's folder (its `best`, else its `last`), a local Hugging Face directory or
    PEFT's, a GGUF file, a preset (fresh weights, embedded vocabulary), or a hub id. `dtype` None: fp32. The model is in
    evaluation mode. Adapters are loaded with their base, from where it was or from `base`, and stay apart from it
    (`lora.merge_lora` makes one model of them). `freeze`: how the linear layers of a GGUF file are held, each as soon
    as it is read (`adapters.frozen.freeze_layers_as`); of anything else that is for the caller to do.
    """
    model, tokenizer = _load(str(name), dtype or torch.float32, base, freeze)
    if base and not adapters_of(model):
        raise UserError(f"{name} is a whole model; --base (base= in Python) goes with adapters")
    if tokenizer and tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {tokenizer.n_vocab} ids, more than the {model.config.vocab_size} rows of the "
            "model's embedding"
        )
    return model.to(device).eval(), tokenizer


def find_ours(path: Path) -> Path | None:
    """Our checkpoint at `path`: itself, or a run's `best`, else its `last`; None where there is none."""
    for part in ("", "best", "last"):
        recover(path / part)
    return next((path / part for part in ("", "best", "last") if (path / part / "manifest.json").exists()), None)


def _load(
    name: str, dtype: torch.dtype, base: str | Path | None = None, freeze: str = "fp32"
) -> tuple[GPT, Tokenizer | None]:
    path = Path(name)
    if name in PRESETS:  # a folder of that name is meant by ./NAME
        return preset(name, seed=0).to(dtype), embedded()
    inner = find_ours(path)
    if inner is not None:
        return load_ours(inner, dtype, base)
    if is_gguf(path):
        file = read_gguf(path)
        tokenizer = read_gguf_tokenizer(file)  # first, for it is the quicker to fail
        return load_gguf(file, dtype, freeze), tokenizer
    if not path.is_dir():
        if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
            missing = "no such file" if path.suffix == ".gguf" else f"no such directory{nearest(name, PRESETS)}"
            what = "a file, and no GGUF file" if path.is_file() else missing
            raise UserError(f"{name}: {what}")
        path = download(name)
    if is_peft(path):
        return load_peft(path, dtype, base)
    if is_hf(path):
        model = load_hf(path, dtype)
        return model, hf_tokenizer(path, model.config)
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
