"""Checkpoints in parts: where each rank holds a part of every tensor, it writes what it holds, while training goes on.

Nothing is gathered, on no rank. By torch.distributed.checkpoint, in a folder that is enough by itself:

    config.json, gptft_tokenizer.json, ...   as in an ordinary checkpoint
    __0_0.distcp, __1_0.distcp, ...          each rank's part: weights and optimizer state, by the names of the weights
    .metadata                                which rows of which tensor lie in which part
    resume.pt                                what else going on needs: progress, scale, random state of every rank
    manifest.json                            the step, "sharded": true, and the SHA-256 of every other file

Any number of ranks goes on from it, sharded or not, and one process too; `consolidate` makes an ordinary checkpoint of
it. It is written beside its place and moved there by a rename, as that is, once every rank's part is on disk. Nothing
that is read of it is code, and nothing is read that the manifest does not list.
"""

from __future__ import annotations

import os
import pickle
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from gptft import checkpoint
from gptft.adapters.lora import Base, LoraConfig, add_lora
from gptft.architecture import GPTConfig
from gptft.checkpoint import beside, listed_file, verify
from gptft.device import random_state
from gptft.errors import UserError
from gptft.files import read_json, sha256_file
from gptft.loading import load_tokenizer
from gptft.model import GPT
from gptft.parallel.launch import NEVER
from gptft.parallel.ranks import here, local
from gptft.parallel.wrap import is_sharded
from gptft.prompts import saved_template
from gptft.tokenizer import Tokenizer, embedded


class Saver:
    """Saves checkpoints in parts, one at a time. All ranks make it, and call it at the same points.

    What it writes is copied first, to the memory of the host: there, as long as it is written, each rank holds its
    part of weights and optimizer state once more.
    """

    def __init__(self) -> None:
        self.rank = here().rank
        # a group of its own: what the ranks' threads tell each other must not meet what their main threads do
        self.group = dist.new_group(backend="gloo", timeout=NEVER)
        self.stager = Copies()
        self.thread: threading.Thread | None = None
        self.error, self.broken = None, None  # what came of it, the same on all ranks; and what kept it from that
        # torch 2.9 says this of itself, from the thread
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", module="torch.distributed.checkpoint")

    def begin(
        self,
        path: Path,
        model: GPT,
        optimizer: torch.optim.Optimizer,
        tokenizer: Tokenizer | None,
        step: int,
        resume: dict,
    ) -> None:
        """Take a copy of the state as it is, and begin to write it to `path`; `settle` says what has come of it.
        `resume`: as for `save_together`. Raises UserError, on all ranks, where the folder cannot be made."""
        ranks, temporary = here(), beside(path, "tmp")
        self.path, self.step = path, step
        resume = resume | {"random_of_ranks": ranks.gather(random_state(model.device))}
        resume["state"] = resume["state"] | {"optimizer": resume["state"]["optimizer"] | {"state": {}}}  # in the parts
        reason = None
        if ranks.first:
            try:
                checkpoint.begin(temporary, model, tokenizer)
                checkpoint.write_tensors(resume, temporary / "resume.pt")
            except (OSError, RuntimeError) as error:
                reason = f"rank 0: {self._why(error)}"
        reason = ranks.tell(reason)
        blind = [] if reason else [rank for rank, sees in enumerate(ranks.gather(temporary.is_dir())) if not sees]
        if blind:
            reason = f"rank {blind[0]} does not see it: --out_dir must be on a disk that all machines share"
        if reason:
            if ranks.first:
                checkpoint.drop(temporary, path)
            raise checkpoint.not_written(path, reason)
        self.error = self.broken = None
        written = dcp.async_save(
            state_of(model, optimizer),
            storage_writer=Writer(temporary, per_thread_copy_ahead=0),
            async_stager=self.stager,
            process_group=self.group,
        )
        self.thread = threading.Thread(target=self._complete, args=(written, temporary), name="Saver._complete")
        self.thread.start()

    def settle(self, wait: bool) -> int | None:
        """Whether what was begun has come to its place -> its step; None where nothing was, or, unless it is to `wait`,
        where any rank is still at it. Raises UserError, on all ranks, where any could not write its part; the previous
        checkpoint is intact."""
        ranks = here()
        if self.thread is None or (not wait and ranks.any(self.thread.is_alive())):
            return None
        with ranks.pausing():  # a slow disk is no rank that hangs
            self.thread.join()
        self.thread = None
        if self.broken:
            raise self.broken
        errors = [error for error in ranks.gather(self.error) if error]
        if errors:
            raise checkpoint.not_written(self.path, errors[0])
        return self.step

    def _complete(self, written: Future, temporary: Path) -> None:
        """In a thread of each rank, beside the training: when all parts are on disk, hash them and move the folder to
        its place. Every rank comes to each collective, whatever has failed before; where one has died they raise, as
        those of the main thread do, which tells why."""
        digests, failed, told = {}, "", [""]
        try:
            try:
                written.result()
                digests = {file.name: sha256_file(file) for file in temporary.glob(f"__{self.rank}_*")}
            except CheckpointException as error:  # of any rank, on all; no Exception to torch
                failed = next(f"rank {rank}: {self._why(e)}" for rank, (e, _) in error.failures.items())
            except RuntimeError:  # of a collective, where a rank has died
                raise
            except Exception as error:
                failed = f"rank {self.rank}: {self._why(error)}"
            of_ranks: list = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(of_ranks, (digests, failed), group=self.group)
            if self.rank == 0:
                failed = next((failed for _, failed in of_ranks if failed), "")
                told = [failed or self._move({k: v for mine, _ in of_ranks for k, v in mine.items()}, temporary)]
                if told[0]:
                    checkpoint.drop(temporary, self.path)
            dist.broadcast_object_list(told, src=0, group=self.group)
            self.error = told[0]
        except BaseException as error:
            self.broken = error

    def _move(self, digests: dict[str, str], temporary: Path) -> str:
        """On the first rank -> why it could not be, or nothing."""
        for name in digests:
            if not (temporary / name).exists():
                return f"rank 0: {name} is not on its disk; --out_dir must be on one that all machines share"
        try:
            checkpoint.complete(temporary, self.path, {"step": self.step, "sharded": True}, digests)
        except (OSError, RuntimeError) as error:
            return f"rank 0: {self._why(error)}"
        return ""

    def _why(self, error: BaseException) -> str:
        if isinstance(error, OSError | RuntimeError):
            return checkpoint.why(error, self.path)
        return " ".join(f"{type(error).__name__}: {error}".split())


class Copies(AsyncStager):
    """Copies of a state's tensors on the CPU, made before training goes on and changes them in place."""

    _synchronize_after_execute = False  # `stage` returns when they are made

    def __init__(self) -> None:
        self.mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def stage(self, state_dict: dict) -> dict:
        return {name: self.stage(v) if isinstance(v, dict) else self.copied(v) for name, v in state_dict.items()}

    def copied(self, tensor: Tensor) -> Tensor:
        copy = local(tensor.detach()).to("cpu", copy=True)
        if not isinstance(tensor, DTensor):
            return copy
        whole = {"shape": tensor.shape, "stride": tensor.stride()}
        return DTensor.from_local(copy, self.mesh, tensor.placements, run_check=False, **whole)


class Writer(dcp.FileSystemWriter):
    """Writes this rank's part, and puts it on disk."""

    def write_data(self, plan, planner):
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:  # torch's own, in place of what the disk said
            raise (error.__context__ or error) from None

    def storage_meta(self) -> None:
        """Nothing: torch would note where the folder lay."""


def state_of(model: GPT, optimizer: torch.optim.Optimizer | None = None) -> dict:
    """What the parts hold: {"model": {name: weights}, "optimizer": {name: {"exp_avg": ..., ...}}}, this process's own
    tensors. By names, since a parameter's number is another where others are trained beside it."""
    if is_sharded(model):
        model.reshard()  # what is gathered would be taken for the weights as they are
    state = {"model": {name: tensor.detach() for name, tensor in checkpoint.weights_of(model)[1].items()}}
    if optimizer:
        names = {parameter: name for name, parameter in model.named_parameters()}
        state["optimizer"] = {names[parameter]: values for parameter, values in optimizer.state.items()}
    return state


def is_in_parts(path: Path) -> bool:
    """Whether a checkpoint is one of these. Raises UserError where there is none."""
    return verify(path, ()).get("sharded") is True


def load_parts(path: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state of a checkpoint in parts, which was verified, into those of this process: whole,
    or this rank's part. The optimizer's state must be allocated. Raises UserError."""
    fill(state_of(model, optimizer), path)


@torch.no_grad()
def fill(state: dict, path: Path) -> None:
    """Fill the tensors of `state`, which is as `state_of` has it, out of a checkpoint in parts. One stored part of one
    tensor is in memory at a time. Raises UserError; a missing, extra or misshapen tensor is named."""
    reader = Reader(path)
    wanted = {name: tuple(tensor.shape) for kind, values in state.items() for name, tensor in flat(values, kind)}
    found = {name: size for name, size in reader.sizes().items() if name.partition(".")[0] in state}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            of = f"is {found[name]}" if name in found else "is missing"
            due = f"where {wanted[name]} is due" if name in wanted else "which is not expected"
            raise UserError(f"{path}: a checkpoint of another architecture: the tensor {name!r} {of}, {due}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this process reads by itself
            dcp.load(state, storage_reader=reader, no_dist=True)
    except CheckpointException as failed:  # torch catches whatever is raised in between, a signal's answer too
        error = next(iter(failed.failures.values()))[0]
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise error from None
        raise UserError(f"{path} cannot be loaded ({type(error).__name__}: {error})") from None


def flat(values: dict, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """(name.of.it, tensor) of each tensor in nested dicts, as torch names them in .metadata."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


class Reader(dcp.FileSystemReader):
    """Reads the files that a checkpoint's manifest lists. Raises UserError."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        manifest = verify(path, ())
        try:
            with open(listed_file(path, manifest, ".metadata"), "rb") as file:
                self.metadata = Plain(file).load()
            for place in self.metadata.storage_data.values():
                listed_file(path, manifest, place.relative_path)
            self.sizes()
        except UserError:
            raise
        except Exception as error:  # whatever comes out of a broken pickle
            raise UserError(f"{path / '.metadata'} cannot be read ({type(error).__name__}: {error})") from None

    def read_metadata(self, *_, **__) -> Metadata:
        return self.metadata

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by its name."""
        return {name: tuple(stored.size) for name, stored in self.metadata.state_dict_metadata.items()}


# what .metadata is made of, beside the names of dtypes
KNOWN = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


class Plain(pickle.Unpickler):
    """Reads .metadata, of which torch's own reader takes whatever code a pickle may call."""

    def find_class(self, module: str, name: str):
        if name in KNOWN.get(module, ()) or (module == "torch" and isinstance(vars(torch).get(name), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, and code is never run")


def consolidate(path: str | Path, out: str | Path) -> None:
    """Write an ordinary checkpoint to `out`, for whatever takes a model: the weights, or the adapters, of a checkpoint
    in parts, or of the newest one in a run's folder. The optimizer's state is left.

    One process does it, without a GPU. The weights are put together in a file beside `out`, not in memory: the disk
    needs room for twice their size. Raises UserError, with nothing written, where it cannot be done.
    """
    path, out = find_parts(Path(path)), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already: name another place for the consolidated checkpoint")
    manifest = verify(path)
    model, tokenizer = outline(path, manifest)
    stored = Reader(path).metadata.state_dict_metadata
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            state = {}
            for name, outlined in checkpoint.weights_of(model)[1].items():
                found = stored.get(f"model.{name}")  # `fill` says what is missing
                dtype = found.properties.dtype if found else outlined.dtype
                state[name] = on_disk(Path(folder) / str(len(state)), outlined.shape, dtype)
            fill({"model": state}, path)
            checkpoint.save(out, model, tokenizer, manifest["step"], state=state)
    except OSError as error:
        raise checkpoint.not_written(out, checkpoint.why(error, out)) from None


def find_parts(path: Path) -> Path:
    """The checkpoint in parts at `path`: itself, or the newest of a run. Raises UserError where there is none."""
    if (path / "manifest.json").exists() or not path.is_dir():
        if not is_in_parts(path):
            raise UserError(f"{path} is no sharded checkpoint: it is an ordinary one already")
        return path
    found = []
    for entry in path.iterdir():
        if re.fullmatch(r"step-\d+|last", entry.name) and is_in_parts(entry):
            found.append((verify(entry, ())["step"], entry.name == "last", entry))
    if not found:
        raise UserError(f"{path}: neither a sharded checkpoint nor a run with one")
    return max(found)[2]


def outline(path: Path, manifest: dict) -> tuple[GPT, Tokenizer | None]:
    """The model of a checkpoint without its weights, its adapters beside it, and its tokenizer; of adapters, whose
    vocabulary is their base's, one that has their template alone."""
    values = read_json(listed_file(path, manifest, "config.json"))
    with torch.device("meta"):
        model = GPT(GPTConfig.from_dict(values.get("gptft", {}), str(path / "config.json")))
    if "lora" not in values:
        return model, load_tokenizer(path, manifest)
    try:
        add_lora(model, LoraConfig(**values["lora"]), base=Base(**values["base"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path / 'config.json'}: not the settings of adapters ({error!r})") from None
    if "template.json" not in manifest["sha256"]:
        return model, None
    tokenizer = embedded()
    tokenizer.template = saved_template(read_json(path / "template.json"), str(path / "template.json"))
    return model, tokenizer


def on_disk(place: Path, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor whose numbers lie in a file. Its room on the disk is taken first: a page that finds none when it is
    written would end the process."""
    size = max(1, shape.numel() * dtype.itemsize)
    with open(place, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return torch.from_file(str(place), True, shape.numel(), dtype=dtype).view(shape)
