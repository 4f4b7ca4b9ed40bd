"""A run's folder: choosing it, going on from it, and filling it while the loop goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from gptft import checkpoint
from gptft.adapters.lora import adapters_of
from gptft.config import Config
from gptft.data.examples import Split
from gptft.files import UserError
from gptft.loss import Objective
from gptft.model import GPT
from gptft.run import console
from gptft.run.console import say
from gptft.tokenizer import Tokenizer
from gptft.training import Evaluation, Step, Stopped, TrainState, total_steps, train


def choose_out_dir(config: Config) -> Path:
    """The run's folder. One that holds a run is refused unless --resume; the default name gets a number instead."""
    if config.out_dir:
        out_dir = Path(config.out_dir)
        if holds_run(out_dir) and not config.resume:
            raise UserError(f"--out_dir {out_dir} already holds a run: choose another, or go on with it by --resume")
        return out_dir
    if config.resume:
        raise UserError("--resume needs --out_dir: the folder of the run to go on with")
    init = Path(config.init)
    if init.name in ("best", "last") or init.name.startswith("step-"):
        init = init.parent  # a run's checkpoint goes by the name of its run
    stem = f"{init.name}-{Path(config.data[0].removeprefix('embedded:')).stem}"
    return numbered(Path("checkpoints") / stem)


def numbered(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... where it already holds a run."""
    candidate, number = path, 2
    while holds_run(candidate) or holds_run(candidate / "pretrain"):  # the embedded default's first stage
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def holds_run(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise UserError(f"--out_dir {path} is a file")
    return path.is_dir() and any((path / name).exists() for name in ("config.toml", "metrics.jsonl", "last", "best"))


def describe_inputs(config: Config, model: GPT, tokenizer: Tokenizer, train_set: Split, val_set: Split) -> dict:
    """What must be the same for a run to go on, and where it ran: bit for bit is promised for the same machine only."""
    settings = ("seed", "batch_size", "grad_accum", "batching", "mask_prompt", "optimizer")
    lora = adapters_of(model)
    return {
        "model it starts from": lora.base.id if lora else checkpoint.model_id(model, tokenizer),
        "adapters (--lora_...)": [dataclasses.asdict(lora.config), lora.held] if lora else None,
        "training data": train_set.digest(),
        "validation data": val_set.digest(),
        **{name: getattr(config, name) for name in settings},
        "machine": {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": model.device.type},
    }


def find_checkpoint(out_dir: Path, fingerprint: dict) -> Path | None:
    """The newest valid checkpoint to go on from; with none, say so: the run starts at step 0.

    Raises UserError, naming what differs, when data or model have changed.
    """
    path, problems = checkpoint.newest(out_dir) if out_dir.is_dir() else (None, [])
    for problem in problems:
        say(f"passed over: {problem}")
    if path is None:
        say(f"{out_dir} has no valid checkpoint to go on from: starting at step 0")
        return None
    was = checkpoint.load_tensors(path / "resume.pt")["fingerprint"]
    for name, value in fingerprint.items():
        if name != "machine" and was.get(name) != value:
            raise UserError(f"--resume: the {name} changed since {path} was saved; start anew in another --out_dir")
    for name, value in fingerprint["machine"].items():
        if was["machine"][name] != value:
            say(f"note: {name} was {was['machine'][name]}, now {value}: results will be close, not the same bits")
    return path


def go_on(state: TrainState, path: Path) -> None:
    """Bring weights, optimizer, progress and random state back from a checkpoint."""
    checkpoint.load_weights(state.model, path)
    state.load_state_dict(checkpoint.load_tensors(path / "resume.pt")["state"])
    say(f"going on from {path}, step {state.progress.step}")


def run_loop(state: TrainState, objective: Objective, config: Config, splits: tuple[Split, Split], pad_id: int,
             out_dir: Path, tokenizer: Tokenizer, fingerprint: dict) -> None:  # fmt: skip
    """Consume the loop's events: metrics, progress bar, checkpoints. Raises Interruption after Ctrl-C or SIGTERM."""

    def save(name: str, with_state: bool = True) -> None:
        extra = {"state": state.state_dict(), "fingerprint": fingerprint} if with_state else None
        checkpoint.save(out_dir / name, state.model, tokenizer, state.progress.step, extra)

    metrics = console.Metrics(out_dir / "metrics.jsonl", state.progress, config.log_every)
    bar = console.Bar(total_steps(len(splits[0]), config), state.progress.step)
    with contextlib.closing(metrics), contextlib.closing(bar), catch_signals() as caught:
        for event in train(state, objective, config, *splits, pad_id, lambda: bool(caught)):
            if isinstance(event, Stopped):
                if event.reason == "interrupt":
                    save("last")
                    raise Interruption(
                        f"stopped after step {event.step}; saved in {out_dir / 'last'}", caught[0], out_dir
                    )
                say(f"stopped early at step {event.step}: {config.patience} evaluations without improvement")
                continue
            metrics.write(event)
            bar.show(event)
            if isinstance(event, Evaluation) and event.improved:
                save("best", with_state=False)
            if isinstance(event, Step) and config.save_every and event.step % config.save_every == 0:
                save(f"step-{event.step:06}")
                checkpoint.prune(out_dir, config.keep, event.step)
        save("last")


def how_to_resume(out_dir: Path) -> str:
    """The command that goes on with a run, as this one was started."""
    command = "python train.py" if Path(sys.argv[0]).name == "train.py" else "python -m gptft train"
    return f"Go on with: {command} --resume --out_dir {out_dir}"


class Interruption(UserError):
    """A run was stopped by Ctrl-C or SIGTERM (`number`) and can be resumed in `out_dir`."""

    def __init__(self, what: str, number: int, out_dir: Path) -> None:
        self.what, self.number = what, number
        super().__init__(f"{what}. {how_to_resume(out_dir)}", 128 + number)


@contextlib.contextmanager
def handle_signals(handler) -> Iterator[None]:
    """Let `handler(number, frame)` answer SIGINT and SIGTERM; only the main thread may set this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


@contextlib.contextmanager
def resumable(out_dir: Path) -> Iterator[None]:
    """Before and after the loop: a signal ends the run at once, and the user is told how to go on."""

    def stop(number: int, frame) -> None:
        raise Interruption("stopped; what was saved is kept", number, out_dir)

    with handle_signals(stop):
        yield


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """In the loop: collect signals in a list, so that a step can be ended in order; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def note(number: int, frame) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        # os.write, since a handler may interrupt a print and must not enter another
        os.write(2, b"\nstopping: saving the last completed step ... (again Ctrl-C: at once)\n")

    with handle_signals(note):
        yield caught
