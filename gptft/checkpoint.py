"""Checkpoints: atomic save, verified load, exact resume.

A checkpoint is a folder that is enough by itself:

    config.json                       the architecture
    model.pt                          the weights, fp32
    gptft_tokenizer.json              the tokenizer and the prompt template; its vocabulary lies beside it
    resume.pt                         what going on needs (not in `best`)
    manifest.json                     the step, the model id, and the SHA-256 of every other file

One of a model with adapters (adapters/lora.py) names its base instead of carrying it, and is a few megabytes:

    config.json                       the architecture, the adapters' settings, the base's name and model id
    adapter.pt                        the adapters, fp32
    template.json                     the prompt template; the vocabulary is the base's
    resume.pt, manifest.json          as above

One that several ranks write together, each its part, to go on from, is described in parallel/sharded.py.

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
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gptft.adapters.frozen import ROUNDED, is_frozen
from gptft.adapters.lora import adapters_of, lora_state
from gptft.errors import UserError
from gptft.files import sha256_file, sync_directory, sync_tree
from gptft.formats.tensors import Weights, as_stored, read_bin
from gptft.model import GPT
from gptft.tokenizer import Tokenizer

HASHED_AT_ONCE = 1 << 22  # numbers


def save(
    path: Path,
    model: GPT,
    tokenizer: Tokenizer | None,
    step: int,
    resume: dict | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint to `path`, replacing one that is there only once the new one is whole and on disk. `state`:
    what `weights_of` the model would be, where it holds a part of its weights alone.

    Raises UserError when the disk is full or cannot be written; what was there before is then untouched.
    """
    path, lora = Path(path), adapters_of(model)
    if lora and not lora.base:
        raise UserError(f"{path}: adapters are saved with the name of their base: add_lora(..., base=base_of(...))")
    if not lora and is_frozen(model):
        raise UserError(f"{path}: {ROUNDED}")
    temporary = beside(path, "tmp")
    try:
        begin(temporary, model, tokenizer)
        weights, own = weights_of(model)
        state = own if state is None else state
        state = {name: tensor.detach().cpu() for name, tensor in state.items()}  # once, to be written and hashed
        with ThreadPoolExecutor(1) as second:  # the weights' two digests at once: of the file, and of the numbers
            identity = second.submit(model_id, model, tokenizer, state=state)
            digests = {weights: write_tensors(state, temporary / weights)}
            if resume is not None:
                digests["resume.pt"] = write_tensors(resume, temporary / "resume.pt")
        complete(temporary, path, {"step": step, "model_id": identity.result()}, digests)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        drop(temporary, path)
        raise not_written(path, why(error, path)) from None


def begin(temporary: Path, model: GPT, tokenizer: Tokenizer | None) -> None:
    """Make the folder in which a checkpoint is written, with all of it but tensors."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    lora, values = adapters_of(model), {"gptft": dataclasses.asdict(model.config)}
    if lora:
        values |= {"lora": dataclasses.asdict(lora.config), "base": dataclasses.asdict(lora.base)}
        if tokenizer and tokenizer.template:
            (temporary / "template.json").write_text(json.dumps(tokenizer.template.to_dict(), indent=1))
    elif tokenizer:
        tokenizer.save(temporary)
    (temporary / "config.json").write_text(json.dumps(values, indent=1))


def complete(temporary: Path, path: Path, about: dict, digests: Mapping[str, str]) -> None:
    """Give a checkpoint whose files are written its manifest, put it on disk and move it to its place. `digests`: of
    files that were hashed already."""
    names = sorted({file.name for file in temporary.iterdir()} | digests.keys())
    sha256 = {name: digests.get(name) or sha256_file(temporary / name) for name in names}
    (temporary / "manifest.json").write_text(json.dumps(about | {"sha256": sha256}, indent=1))
    sync_tree(temporary)
    recover(path)
    old = beside(path, "old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.rename(temporary, path)
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def drop(temporary: Path, path: Path) -> None:
    """Take away what could not be written; what was at `path` is there."""
    shutil.rmtree(temporary, ignore_errors=True)
    recover(path)


def why(error: BaseException, path: Path) -> str:
    """What kept a checkpoint from being written, in a few words."""
    free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
    return getattr(error, "strerror", None) or f"{free / 1e6:.0f} MB are free on the disk"


def not_written(path: Path, reason: str) -> UserError:
    return UserError(f"the checkpoint {path} could not be written ({reason}); what was there is intact", 1)


def write_tensors(values: dict, path: Path) -> str:
    """Write what torch.save can write -> the SHA-256 of the file, which need not be read again for it."""
    with open(path, "wb") as file:
        hashed = HashedFile(file)
        try:
            torch.save(values, hashed)
        except RuntimeError as error:  # torch's own, in place of what the disk said, or of a signal's
            raise (hashed.error or error.__context__ or error) from None
    return hashed.digest.hexdigest()


class HashedFile:
    """A file open for writing, and the SHA-256 of what was written. torch.save writes from front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data: memoryview) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def weights_of(model: GPT) -> tuple[str, dict[str, Tensor]]:
    """The file and the tensors that a checkpoint keeps of a model: all of them, or its adapters alone."""
    return ("adapter.pt", lora_state(model)) if adapters_of(model) else ("model.pt", model.state_dict())


def beside(path: Path, suffix: str) -> Path:
    """Where a checkpoint is while it is written ("tmp"), or replaced ("old")."""
    return path.parent / f".{path.name}.{suffix}"


def is_there(path: Path) -> bool:
    """Whether there is a folder, or was before a replacement that was cut off."""
    recover(path)
    return path.exists()


def recover(path: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    old = beside(path, "old")
    if not path.exists() and old.exists():
        os.rename(old, path)


def verify(path: Path, names: Collection[str] | None = None) -> dict:
    """The manifest of a checkpoint, once every file that it lists has been found to be as it was written. `names`: only
    these files, which it must list. Raises UserError."""
    recover(path)
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        wanted = manifest["sha256"]
        if not isinstance(wanted, dict) or not isinstance(manifest["step"], int):
            raise ValueError("it has another form")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a checkpoint of gptft, or a broken one ({error!r})") from None
    for name in wanted if names is None else names:
        file = listed_file(path, manifest, name)
        if not file.exists():
            raise UserError(f"{path}: {name} is missing")
        if sha256_file(file) != wanted[name]:
            raise UserError(f"{path}: {name} is damaged: it is not what was saved")
    return manifest


def listed_file(path: Path, manifest: dict, name: str) -> Path:
    """Where a file of checkpoint `path` lies. Raises UserError where the manifest does not list it: it is none that was
    saved, and is not read."""
    if name not in manifest["sha256"]:
        raise UserError(f"{path}: manifest.json lists no {name}, and what it does not list is not read")
    return path / name


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, verified; None where there is none, or a damaged one."""
    try:
        return verify(path)["step"]
    except UserError:
        return None


def set_aside(path: Path) -> Path | None:
    """Rename a folder to NAME-set-aside, or NAME-set-aside-2 and so on where that is taken: it is kept, and nothing
    takes it for what it was. -> its new place; None where there was no folder."""
    recover(path)
    if not path.exists():
        return None
    place, number = path.with_name(f"{path.name}-set-aside"), 2
    while place.exists():
        place, number = path.with_name(f"{path.name}-set-aside-{number}"), number + 1
    os.rename(path, place)
    sync_directory(path.parent)
    return place


def load_weights(model: GPT, path: Path, verified: bool = False) -> dict:
    """Put the weights of checkpoint `path` into `model`, or its adapters where `model` has some; -> its manifest.

    The file is verified before it is read, unless it was `verified` a moment ago: hashing takes a while. Raises
    UserError, with the model as it was; a missing, extra or misshapen tensor is named.
    """
    manifest = verify(path, () if verified else (weights_of(model)[0],))
    stored_weights(model, path, manifest).fill(model)
    return manifest


def stored_weights(model: GPT, path: Path, manifest: dict) -> Weights:
    """The weights of checkpoint `path`, or its adapters where `model` has some, not read yet. Raises UserError where
    they are not those of such a model; a missing, extra or misshapen tensor is named."""
    file, wanted = weights_of(model)
    stored = {tensor.name: tensor for tensor in read_bin(listed_file(path, manifest, file))}
    for name in wanted.keys() | stored.keys():
        if name not in stored or name not in wanted:
            which = "lacks the tensor" if name not in stored else "has an unexpected tensor"
            raise UserError(f"{path}: a checkpoint of another architecture: it {which} {name!r}")
        if stored[name].shape != tuple(wanted[name].shape):
            raise UserError(
                f"{path}: a checkpoint of another architecture: {name!r} has shape {stored[name].shape} "
                f"where {tuple(wanted[name].shape)} is due"
            )
    return Weights([as_stored(name, tensor) for name, tensor in stored.items()], model.tok.weight.dtype)


def load_tensors(path: Path) -> dict:
    """A file of tensors and plain values, mapped into memory as it is used; what would run code is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and runtime errors all come out of a wrong file
        raise UserError(f"{path} cannot be loaded as tensors ({type(error).__name__})") from None


def newest(out_dir: Path) -> tuple[Path | None, list[str]]:
    """The valid checkpoint with the most steps that training can go on from, and what is wrong with newer ones."""
    valid, problems = [], []
    for name in {re.sub(r"^\.(.*)\.old$", r"\1", entry.name) for entry in out_dir.iterdir() if entry.is_dir()}:
        if name == "last" or re.fullmatch(r"step-\d+", name):
            try:
                manifest = verify(out_dir / name)
                if "resume.pt" in manifest["sha256"]:
                    valid.append((manifest["step"], name == "last", out_dir / name))
            except UserError as error:
                problems.append(str(error))
    return (max(valid)[2] if valid else None), problems


def prune(out_dir: Path, keep: int, step: int) -> None:
    """Delete all but the newest `keep` step-NNNNNN checkpoints up to `step`; later ones are those that resuming
    passed over, since they are damaged."""
    saved = {int(e.name.removeprefix("step-")): e for e in out_dir.iterdir() if re.fullmatch(r"step-\d+", e.name)}
    kept = sorted(number for number in saved if number <= step)[-keep:]
    for number in saved.keys() - set(kept):
        shutil.rmtree(saved[number], ignore_errors=True)


def model_id(
    model: GPT,
    tokenizer: Tokenizer | None,
    rounded: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> str:
    """A hash of weights, architecture and tokenizer: the same wherever the checkpoint is loaded. With adapters: of
    their base's id, their settings and them.

    Every tensor is hashed as fp32 (fp64 stays), so that weights kept in bf16 have one id whatever they are loaded in.
    `rounded`: the id that the model would have after its weights went through that dtype. `state`: what a checkpoint
    keeps of the model, where it was fetched from its device already, or its weights where the model holds them rounded.
    """
    # a field that a later version adds, with a default that changes nothing, changes no id
    config = {
        f.name: value for f in dataclasses.fields(model.config) if (value := getattr(model.config, f.name)) != f.default
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update((tokenizer.digest if tokenizer else "").encode())
    lora = adapters_of(model)
    if lora and lora.base:
        layers = sorted({name.split(".")[-2] for name in lora_state(model)})  # whichever names asked for them
        settings = [lora.base.id, {**dataclasses.asdict(lora.config), "targets": layers}]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if state is None:
        state = lora_state(model) if lora and lora.base else model.state_dict()
    for name in sorted(state):
        tensor = state[name]
        dtype = torch.float64 if tensor.dtype == torch.float64 and not rounded else torch.float32
        digest.update(f"{name} {dtype} {tuple(tensor.shape)}".encode())
        for part in tensor.detach().flatten().split(HASHED_AT_ONCE):  # no second copy of a large tensor
            part = (part.to(rounded) if rounded else part).to("cpu", dtype).contiguous()
            digest.update(part.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
