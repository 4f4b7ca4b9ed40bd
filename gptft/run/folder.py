"""A run's folder: choosing it, and filling it while the loop goes on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from gptft import checkpoint
from gptft.config import Config
from gptft.device import is_out_of_memory
from gptft.errors import NonFinite, SourceFailed, UserError
from gptft.parallel.ranks import here, local
from gptft.parallel.saving import save_together
from gptft.parallel.sharded import Saver
from gptft.parallel.wrap import is_sharded
from gptft.run import console
from gptft.run.console import say
from gptft.run.loggers import open_loggers
from gptft.run.metrics_file import Metrics
from gptft.run.of_ranks import OfRanks
from gptft.run.record_losses import MOST, TrainingLosses, keep_none
from gptft.run.rehearsal import LESS_TO_EVALUATE, LESS_TO_TRAIN
from gptft.run.signals import Interruption, catch_signals, how_to_resume
from gptft.tokenizer import Tokenizer
from gptft.training import Evaluation, Event, Step, Stopped, TrainState


def choose_out_dir(config: Config) -> Path:
    """The run's folder. One that holds a run is refused unless --resume; the default name gets a number instead."""
    if config.out_dir:
        out_dir = Path(config.out_dir)
        refuse_used(out_dir, config.resume)
        return out_dir
    if config.resume:
        raise UserError("--resume needs --out_dir: the folder of the run to go on with")
    return numbered(Path("checkpoints") / default_name(config))


def default_name(config: Config) -> str:
    """The name of a run that is given none: of what it starts from, and of its data."""
    init = Path(config.init)
    if init.name in ("best", "last") or init.name.startswith("step-"):
        init = init.parent  # a run's checkpoint goes by the name of its run
    data = config.data[0].removeprefix("embedded:").removeprefix("hf:").replace(":", "-")
    return f"{init.name}-{Path(data).stem}"


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


def refuse_used(out_dir: Path, resume: bool) -> None:
    """Raise UserError for a folder that holds a run, unless it is gone on with."""
    if holds_run(out_dir) and not resume:
        raise UserError(f"--out_dir {out_dir} already holds a run: choose another, or go on with it by --resume")


class Keeper:
    """Keeps what the loop's events tell: lines of metrics.jsonl, other loggers, the progress bar, checkpoints."""

    parts: Saver | None = None  # where each rank holds a part of the model, what saves it so

    def __init__(
        self, out_dir: Path, state: TrainState, tokenizer: Tokenizer, config: Config, fingerprint: dict, total: int
    ) -> None:
        self.out_dir, self.state, self.tokenizer, self.config = out_dir, state, tokenizer, config
        self.fingerprint = fingerprint
        if is_sharded(state.model):
            self.parts = Saver()
        self.logs: list = []
        if here().first:
            for left in out_dir.glob(".step-*.tmp"):  # by a run that was killed while it saved
                shutil.rmtree(left, ignore_errors=True)
            self.logs = [
                Metrics(out_dir / "metrics.jsonl", state.progress, config.log_every),
                *open_loggers(config, out_dir, state.progress),
            ]
        if total * config.batch_size * config.grad_accum <= MOST and not config.stream:
            self.logs.append(TrainingLosses(out_dir, state.progress))
        elif here().first:
            keep_none(out_dir)
        self.bar, self.of_ranks = console.Bar(total, state.progress.step), OfRanks(state.model.device, config.log_every)
        self.signals: list[int] = []

    def should_stop(self) -> bool:
        """Whether Ctrl-C or SIGTERM asked for it, on any rank."""
        return here().any(bool(self.signals))

    def keep(self, event: Event) -> None:
        """Log and show an event, and save what it makes worth saving. Raises Interruption where the loop was stopped by
        a signal, once that can be gone on from."""
        if isinstance(event, Stopped):
            if event.reason == "interrupt":
                path = self.save("last")
                raise Interruption(f"stopped after step {event.step}; saved in {path}", self.signal, self.out_dir)
            say(f"stopped early at step {event.step}: {self.config.patience} evaluations without improvement")
            return
        of_ranks = self.of_ranks.measure(event.step) if isinstance(event, Step) else {}
        for log in self.logs:
            log.write(event, of_ranks)
        self.bar.show(event)
        if isinstance(event, Evaluation) and event.improved and event.step:  # the start is on the user's disk already
            self.save_whole("best", resumable=False)
        every = self.config.save_every
        if isinstance(event, Step):
            self.settle(wait=False)
            if every and event.step % every == 0:
                self.save(f"step-{event.step:06}", wait=False)
        here().note(f"training, after step {event.step}")
        self.of_ranks.begin()

    @property
    def signal(self) -> int:
        """The signal that asked for an end, whichever rank it came to."""
        return max(here().gather(self.signals[0] if self.signals else 0))

    def close(self) -> None:
        for each in (*self.logs, self.bar):
            each.close()

    def save(self, name: str, wait: bool = True) -> Path:
        """Write a checkpoint of the state as it is, to go on from. Where each rank holds a part of the model, each
        writes its own: nothing is gathered, and `last` of a job that is to end is saved within seconds. Unless it is to
        `wait`, it is written while training goes on."""
        step, path = self.state.progress.step, self.out_dir / name
        if not self.parts:
            self.save_whole(name)
            self.prune(step)
            return path
        self.finish_pending(name)
        here().note(f"saving {name}")
        self.parts.begin(path, self.state.model, self.state.optimizer, self.tokenizer, step, self.resumable_state())
        if wait:
            self.settle(wait=True)
        return path

    def save_whole(self, name: str, resumable: bool = True) -> Path:
        """Write an ordinary checkpoint of the state as it is; `resumable`: with all that going on takes. Of a model in
        parts it is gathered, tensor by tensor, in the memory of the first rank's host: four bytes a weight, and twelve
        with AdamW's state, which goes into what is resumable."""
        here().note(f"saving {name}")
        extra, path = self.resumable_state() if resumable else None, self.out_dir / name
        save_together(path, self.state.model, self.tokenizer, self.state.progress.step, extra)
        return path

    def resumable_state(self) -> dict:
        return {"state": self.state.state_dict(), "fingerprint": self.fingerprint}

    def settle(self, wait: bool) -> None:
        """Hear of the checkpoint that is written meanwhile. Older ones are deleted once it is whole. Raises UserError,
        on all ranks, where it could not be written."""
        if self.parts and (step := self.parts.settle(wait)) is not None:
            self.prune(step)

    def finish_pending(self, name: str) -> None:
        """Before another is saved: wait for the one that is written meanwhile. That it failed ends the run, but for
        `last`, which is newer."""
        try:
            self.settle(wait=True)
        except UserError as error:
            if name != "last":
                raise
            say(f"note: {error}")

    def prune(self, step: int) -> None:
        if here().first:
            checkpoint.prune(self.out_dir, self.config.keep, step)

    def save_last_good(self) -> str:
        """After a loss that is not finite: save the state before it, if it is sound itself -> words on where it is."""
        self.finish_pending("last")
        step, weights = self.state.progress.step, self.state.model.parameters()
        if here().any(not all(torch.isfinite(local(parameter)).all() for parameter in weights)):
            return f"The weights of step {step} are not finite themselves, so they were not saved"
        try:
            return f"The state after step {step} is saved in {self.save('last')}"
        except UserError as error:  # a full disk must not hide what went wrong first
            return str(error)


@contextlib.contextmanager
def open_run(
    out_dir: Path, state: TrainState, tokenizer: Tokenizer, config: Config, fingerprint: dict, total: int
) -> Iterator[Keeper]:
    """A Keeper for the loop's events. When the loop has ended, by its last step or a signal, for want of memory or by a
    loss that is not finite, the state is in `last`.

    Raises Interruption after a signal, also one that came during the last save; NonFinite with the words where the
    last good state is.
    """
    keeper = Keeper(out_dir, state, tokenizer, config, fingerprint, total)
    with contextlib.closing(keeper), catch_signals() as keeper.signals:
        try:
            yield keeper
        except NonFinite as error:
            raise NonFinite(f"{error}. {keeper.save_last_good()}", error.status) from None
        except SourceFailed as error:
            raise UserError(f"{error}. Saved in {keeper.save('last')}. {how_to_resume(out_dir)}", 1) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            step = state.progress.step
            # the other ranks are at work, and cannot save with this one
            saved = f"The state after step {step} is saved in {keeper.save('last')}" if here().size == 1 else ""
            raise UserError(
                f"out of memory on {state.model.device} in step {step + 1}: {LESS_TO_TRAIN}; or, if it was in an "
                f"evaluation, {LESS_TO_EVALUATE}. {saved or how_to_resume(out_dir)}",
                1,
            ) from None
        keeper.finish_pending("last")
        path = keeper.save_whole("last")
        if number := keeper.signal:
            raise Interruption(f"stopped after the last step; saved in {path}", number, out_dir)
