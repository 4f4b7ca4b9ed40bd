"""A run's folder: choosing it, going on from it, and filling it while the loop goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from gptft import checkpoint, report
from gptft.config import Config
from gptft.data import Split
from gptft.files import UserError
from gptft.loss import Objective
from gptft.model import GPT
from gptft.report import say
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
    return {
        "architecture": dataclasses.asdict(model.config),
        "tokenizer": tokenizer.digest,
        "training data": train_set.digest(),
        "validation data": val_set.digest(),
        "seed": config.seed,
        "batch_size": config.batch_size,
        "grad_accum": config.grad_accum,
        "batching": config.batching,
        "machine": {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": model.device.type},
    }


def resume(state: TrainState, out_dir: Path, fingerprint: dict) -> None:
    """Bring the state back from the newest valid checkpoint; with none, say so and start at step 0.

    Raises UserError, naming what differs, when data or model have changed.
    """
    path, problems = checkpoint.newest(out_dir)
    for problem in problems:
        say(f"passed over: {problem}")
    if path is None:
        say(f"{out_dir} has no valid checkpoint to go on from: starting at step 0")
        return
    saved = checkpoint.load_tensors(path / "resume.pt")
    was, now = saved["fingerprint"], fingerprint
    for name in now:
        if name != "machine" and was.get(name) != now[name]:
            raise UserError(
                f"--resume: the {name} changed since {path} was saved; start a new run in another --out_dir"
            )
    for name, value in now["machine"].items():
        if was["machine"][name] != value:
            say(
                f"note: {name} was {was['machine'][name]}, now {value}: results will be close, not bit for bit the same"
            )
    checkpoint.load_weights(state.model, path)
    state.load_state_dict(saved["state"])
    say(f"going on from {path}, step {state.progress.step}")


def run_loop(state: TrainState, objective: Objective, config: Config, splits: tuple[Split, Split], pad_id: int,
             out_dir: Path, tokenizer: Tokenizer, fingerprint: dict) -> None:  # fmt: skip
    """Consume the loop's events: metrics, progress bar, checkpoints. Raises Interruption after Ctrl-C or SIGTERM."""

    def save(name: str, with_state: bool = True) -> None:
        extra = {"state": state.state_dict(), "fingerprint": fingerprint} if with_state else None
        checkpoint.save(out_dir / name, state.model, tokenizer, state.progress.step, extra)

    metrics = report.Metrics(out_dir / "metrics.jsonl", state.progress, config.log_every)
    bar = report.Bar(total_steps(len(splits[0]), config), state.progress.step)
    with contextlib.closing(metrics), contextlib.closing(bar), catch_signals() as caught:
        for event in train(state, objective, config, *splits, pad_id, lambda: bool(caught)):
            if isinstance(event, Stopped):
                if event.reason == "interrupt":
                    save("last")
                    raise Interruption(out_dir / "last", event.step, caught[0], out_dir)
                say(f"stopped early at step {event.step}: {config.patience} evaluations without improvement")
                continue
            metrics.write(event)
            bar.show(event)
            if isinstance(event, Evaluation) and event.improved:
                save("best", with_state=False)
            if isinstance(event, Step) and config.save_every and event.step % config.save_every == 0:
                save(f"step-{event.step:06}")
                checkpoint.prune(out_dir, config.keep)
        save("last")


class Interruption(UserError):
    """Training was stopped by Ctrl-C or SIGTERM (`number`): saved in `saved`, to be resumed in `out_dir`."""

    def __init__(self, saved: Path, step: int, number: int, out_dir: Path) -> None:
        self.saved, self.step, self.number = saved, step, number
        super().__init__(
            f"stopped after step {step}; saved in {saved}. Go on with: python train.py --resume --out_dir {out_dir}",
            128 + number,
        )


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them; a second Ctrl-C stops at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return

    def handle(number: int, frame) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        print("\nstopping: saving the last completed step ... (again Ctrl-C: at once)", file=sys.stderr)

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
