"""Checkpoints: atomic save, verified load, and `load` for anything that can be loaded.

A checkpoint is a folder that is enough by itself:

    config.json                       the architecture
    model.pt                          the weights, fp32
    vocab.tiktoken, gptft_tokenizer.json   the tokenizer and the prompt template
    resume.pt                         what going on needs (not in `best`)
    manifest.json                     the step, the model id, and the SHA-256 of every other file

It is written beside its place and moved there by a rename, so a crash or a full disk leaves the previous one whole.
Nothing in it is code: tensors are read with weights_only=True.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch

from gptft.architecture import PRESETS, GPTConfig
from gptft.files import UserError, nearest, sha256_file, sync_directory, sync_tree
from gptft.model import GPT
from gptft.pretrained import download, hf_tokenizer, is_hf, load_hf
from gptft.tokenizer import Tokenizer, embedded


def save(path: Path, model: GPT, tokenizer: Tokenizer | None, step: int, resume: dict | None = None) -> None:
    """Write a checkpoint to `path`, replacing one that is there only once the new one is whole and on disk.

    Raises UserError when the disk is full or cannot be written; what was there before is then untouched.
    """
    path = Path(path)
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, temporary / "model.pt")
        (temporary / "config.json").write_text(json.dumps({"gptft": dataclasses.asdict(model.config)}, indent=1))
        if tokenizer:
            tokenizer.save(temporary)
        if resume is not None:
            torch.save(resume, temporary / "resume.pt")
        files = {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}
        manifest = {"step": step, "model_id": model_id(model, tokenizer), "sha256": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        sync_tree(temporary)
        recover(path)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(temporary, path)
        sync_directory(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        recover(path)
        free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
        reason = getattr(error, "strerror", None) or f"{free / 1e6:.0f} MB are free on the disk"
        raise UserError(f"the checkpoint {path} could not be written ({reason}); earlier ones are intact", 1) from None


def _beside(path: Path, suffix: str) -> Path:
    return path.parent / f".{path.name}.{suffix}"


def recover(path: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    old = _beside(path, "old")
    if not path.exists() and old.exists():
        os.rename(old, path)


def verify(path: Path) -> dict:
    """The manifest of a checkpoint, once every file has been found to be as it was written. Raises UserError."""
    recover(path)
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        wanted = manifest["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint of gptft, or a broken one ({error!r})") from None
    for name, digest in wanted.items():
        if not (path / name).exists():
            raise UserError(f"{path}: {name} is missing")
        if sha256_file(path / name) != digest:
            raise UserError(f"{path}: {name} is damaged: it is not what was saved")
    return manifest


def load_ours(path: Path, dtype: torch.dtype = torch.float32) -> tuple[GPT, Tokenizer | None]:
    """Model (on the CPU) and tokenizer of one of our checkpoints, verified."""
    verify(path)
    values = json.loads((path / "config.json").read_text()).get("gptft", {})
    config = GPTConfig.from_dict(values, str(path / "config.json"))
    with torch.device("meta"):
        model = GPT(config)
    load_weights(model, path, dtype)
    tokenizer = Tokenizer.load(path) if (path / "vocab.tiktoken").exists() else None
    return model, tokenizer


def load_weights(model: GPT, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Put the weights of checkpoint `path` into `model`; a missing, extra or misshapen tensor is named."""
    state = load_tensors(path / "model.pt")
    wanted = model.state_dict()
    for name in wanted.keys() | state.keys():
        if name not in state or name not in wanted:
            which = "lacks the tensor" if name not in state else "has an unexpected tensor"
            raise UserError(f"{path}: a checkpoint of another architecture: it {which} {name!r}")
        if state[name].shape != wanted[name].shape:
            raise UserError(
                f"{path}: a checkpoint of another architecture: {name!r} has shape {tuple(state[name].shape)} "
                f"where {tuple(wanted[name].shape)} is due"
            )
    if next(model.parameters()).is_meta:
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
        model.requires_grad_(True)
    else:
        model.load_state_dict(state)


def load_tensors(path: Path) -> dict:
    """A file of tensors and plain values; anything that would run code is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and runtime errors all come out of a wrong file
        raise UserError(f"{path} cannot be loaded as tensors ({type(error).__name__})") from None


def newest(out_dir: Path) -> tuple[Path | None, list[str]]:
    """The valid checkpoint with the most steps that training can go on from, and what is wrong with newer ones."""
    found, problems = [], []
    for name in {re.sub(r"^\.(.*)\.old$", r"\1", entry.name) for entry in out_dir.iterdir() if entry.is_dir()}:
        if name == "last" or re.fullmatch(r"step-\d+", name):
            try:
                manifest = verify(out_dir / name)
                if "resume.pt" in manifest["sha256"]:
                    found.append((manifest["step"], name == "last", out_dir / name))
            except UserError as error:
                problems.append(str(error))
    return (max(found)[2] if found else None), problems


def prune(out_dir: Path, keep: int, step: int) -> None:
    """Delete all but the newest `keep` step-NNNNNN checkpoints up to `step`; later ones are those that resuming
    passed over, since they are damaged."""
    found = {int(e.name.removeprefix("step-")): e for e in out_dir.iterdir() if re.fullmatch(r"step-\d+", e.name)}
    kept = sorted(number for number in found if number <= step)[-keep:]
    for number in found.keys() - set(kept):
        shutil.rmtree(found[number], ignore_errors=True)


def model_id(model: GPT, tokenizer: Tokenizer | None) -> str:
    """A hash of weights, architecture and tokenizer: the same wherever the checkpoint is loaded in fp32."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    digest.update((tokenizer.digest if tokenizer else "").encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load(name: str | Path, device="cpu", dtype: torch.dtype | None = None) -> tuple[GPT, Tokenizer | None]:
    """A model and its tokenizer, from anything that can be loaded.

    `name`: a checkpoint of gptft or a run's folder (its `best`, else its `last`), a local Hugging Face directory, a
    preset (fresh weights, embedded vocabulary), or a hub id. `dtype` None: fp32. The model is in evaluation mode.
    """
    model, tokenizer = _load(str(name), dtype or torch.float32)
    if tokenizer and tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {tokenizer.n_vocab} ids, more than the {model.config.vocab_size} rows of the "
            "model's embedding"
        )
    return model.to(device).eval(), tokenizer


def _load(name: str, dtype: torch.dtype) -> tuple[GPT, Tokenizer | None]:
    path = Path(name)
    recover(path)
    if path.is_dir():
        for part in ("best", "last"):
            recover(path / part)
        inner = next((path / part for part in ("", "best", "last") if (path / part / "manifest.json").exists()), None)
        if inner is not None:
            return load_ours(inner, dtype)
        if is_hf(path):
            model = load_hf(path, dtype)
            return model, hf_tokenizer(path, model.config)
        raise UserError(f"{name}: neither a checkpoint (manifest.json), nor a run with one, nor a Hugging Face "
                        "directory (config.json with a model_type)")  # fmt: skip
    if name in PRESETS:
        return preset(name, seed=0).to(dtype), embedded()
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory{nearest(name, PRESETS)}")
    directory = download(name)
    model = load_hf(directory, dtype)
    return model, hf_tokenizer(directory, model.config)


def preset(name: str, seed: int) -> GPT:
    """A from-scratch model over the embedded vocabulary."""
    return GPT.create(GPTConfig(vocab_size=embedded().n_vocab, **PRESETS[name]), seed)
