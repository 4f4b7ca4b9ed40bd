"""The training loop, whole, reading from top to bottom, and the held-out loss. The loop yields what happened; whoever
consumes the events saves, logs and draws. Between two events the state is that of a completed step.

A **step** is one optimizer step, on one window; an **epoch** is one pass over the training split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from gptft.collate import Batch, by_length, plan
from gptft.config import Config
from gptft.data.examples import Example, Split
from gptft.device import Precision, random_state, set_random_state
from gptft.errors import Interrupted, NonFinite, SourceFailed
from gptft.loss import Objective
from gptft.model import GPT, training_flops
from gptft.optim import learning_rate, load_optimizer_state, step_where_finite
from gptft.parallel.ranks import here, whole
from gptft.parallel.window import own_slices
from gptft.parallel.wrap import synced_behind_last

ToBatch = Callable[[Sequence[Example]], Batch]  # `collate` with the run's pad id and mask bound to it


@dataclass(frozen=True)
class Step:
    """One optimizer step. `loss`: nats a target over the window; times in seconds; `flops`: FLOP/s on real tokens;
    `data_share`: of the time, what the loop waited for its data; `epoch`: passes over the data, of a stream, shards;
    `trained`: the window's batches, each with the losses of its targets."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    iter_time: float
    tokens_per_second: float
    flops: float
    data_share: float
    remaining_time: float
    trained: list[tuple[Batch, Tensor]] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class Evaluation:
    """The validation loss after `step`, in nats a target, the `score` where a metric decides, and whether it is the
    best so far."""

    step: int
    epoch: float
    eval_loss: float
    improved: bool = False
    score: float | None = None


@dataclass(frozen=True)
class Stopped:
    """Training ended before its last step: "interrupt" or "patience"."""

    step: int
    reason: str


Event = Step | Evaluation | Stopped


@dataclass
class Progress:
    """Where training stands: everything besides tensors that going on needs."""

    step: int = 0  # completed optimizer steps
    epoch: int = 0  # completed passes over the data
    window: int = 0  # completed windows of the current pass
    evaluated: int = -1  # the step of the last evaluation
    best_loss: float = math.inf
    best_score: float = -math.inf  # where a metric decides what is best; `best_loss` is then the loss there
    best_step: int = 0
    waited: int = 0  # evaluations since the best one
    seconds: float = 0.0  # spent in steps
    data_seconds: float = 0.0  # of these, spent waiting for data
    loss_sum: float = 0.0
    targets: int = 0
    tokens: int = 0
    examples: int = 0
    flops: float = 0.0


@dataclass
class TrainState:
    """The whole state of training in one object: model, optimizer, gradient scale, progress, random state."""

    model: GPT
    optimizer: torch.optim.Optimizer
    precision: Precision
    progress: Progress = field(default_factory=Progress)

    def state_dict(self) -> dict:
        """Everything but the weights, which a checkpoint holds already."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "progress": vars(self.progress).copy(),
            "random": random_state(self.model.device),
        }

    def load_state_dict(self, state: dict) -> None:
        load_optimizer_state(self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        set_random_state(state["random"], self.model.device)


def steps_per_epoch(n_examples: int, config: Config) -> int:
    """Windows of one pass; the last may be smaller."""
    return math.ceil(math.ceil(n_examples / config.batch_size) / config.grad_accum)


def total_steps(n_examples: int, config: Config) -> int:
    """Optimizer steps of the run: max_steps, or as many as the epochs take."""
    return config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(n_examples, config)))


def train(
    state: TrainState,
    objective: Objective,
    config: Config,
    train_set: Split,
    val_set: Split,
    to_batch: ToBatch,
    should_stop: Callable[[], bool] = lambda: False,
    score: Callable[[], float] | None = None,
) -> Iterator[Event]:
    """Train until the last step, an early stop, or `should_stop`; yields Step, Evaluation and Stopped events. The best
    step is that of the highest `score`, where there is one, else of the lowest validation loss.

    Each of several processes trains on its slice of every window, and all take the same steps (`parallel.ranks`).
    Raises NonFinite, with the weights as they were after the last good step, when a loss or gradient is not finite.
    """
    model, optimizer, scaler, progress = state.model, state.optimizer, state.precision.scaler, state.progress
    total = total_steps(len(train_set), config)
    eval_every = config.eval_every or max(1, total // 10)
    started, first_step, per_epoch = time.perf_counter(), progress.step, 1
    windows = upcoming_windows(train_set, config, state, to_batch, should_stop)
    batches = next(windows) if progress.step < total else []
    model.train()

    while True:
        # evaluate, wherever an evaluation is due: before the first step, every eval_every steps, and at the end
        if progress.window or progress.step < total:  # where the last step ends a shard, no further one is asked for
            per_epoch = steps_per_epoch(len(train_set.part(progress.epoch)), config)
        due = progress.step % eval_every == 0 or progress.step >= total
        if len(val_set) and due and progress.evaluated != progress.step:
            try:
                yield evaluate(state, objective, config, val_set, to_batch, per_epoch, should_stop, score)
            except Interrupted:
                yield Stopped(progress.step, "interrupt")
                return
        if progress.step >= total:
            return
        if config.patience and progress.waited >= config.patience:
            yield Stopped(progress.step, "patience")
            return

        # forward and backward: one normalisation over the window, so its division into batches changes nothing
        began, step = time.perf_counter(), progress.step + 1
        n_targets, *work = here().total(*count(model, batches))
        before, following = random_state(model.device), None
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, config)
        while True:
            try:
                losses = backward(state, objective, batches, n_targets, should_stop)
                asked = time.perf_counter()
                following = following or (next(windows) if step < total else [])  # collated while the device works
                waited = time.perf_counter() - asked
                loss_sum, grad_norm = here().add_up(add_up(losses)), clip_gradients(state, config.grad_clip)
            except (Interrupted, SourceFailed, RuntimeError, MemoryError) as error:
                # the window is dropped: the state is that of the last completed step
                optimizer.zero_grad(set_to_none=True)
                set_random_state(before, model.device)
                if not isinstance(error, Interrupted):
                    raise
                yield Stopped(progress.step, "interrupt")
                return

            # the step; the device leaves out one that is not finite, so that the host may look later
            update_weights(state, torch.isfinite(loss_sum) & torch.isfinite(grad_norm), n_targets)
            optimizer.zero_grad(set_to_none=True)

            # the one time in a step that the host waits for the device
            loss_sum, grad_norm = torch.stack((loss_sum, grad_norm.to(loss_sum.dtype))).tolist()
            if math.isfinite(loss_sum) and math.isfinite(grad_norm):
                break
            set_random_state(before, model.device)
            if not scaler.is_enabled() or scaler.get_scale() < 1.0 or not math.isfinite(loss_sum):
                raise NonFinite(describe_non_finite(step, loss_sum, grad_norm, batches, losses), 1)
            # fp16 overflowed: the scale is lower now, and the same window comes again

        # the books
        seconds = time.perf_counter() - began
        tokens, flops = keep_books(progress, loss_sum, n_targets, *work, seconds, waited, per_epoch)
        pace = (time.perf_counter() - started) / (step - first_step)  # evaluations and saves included
        yield Step(
            step=step,
            epoch=progress.epoch + progress.window / per_epoch,
            loss=loss_sum / max(n_targets, 1),
            learning_rate=optimizer.param_groups[0]["lr"],
            grad_norm=grad_norm,
            iter_time=seconds,
            tokens_per_second=tokens / seconds,
            flops=flops / seconds,
            data_share=waited / seconds,
            remaining_time=pace * (total - step),
            trained=list(zip(batches, losses, strict=True)),
        )
        batches = following


def upcoming_windows(
    train_set: Split, config: Config, state: TrainState, to_batch: ToBatch, should_stop: Callable[[], bool]
) -> Iterator[list[Batch]]:
    """The windows still to come, epoch after epoch without end, collated and on their way to the device."""
    epoch, done = state.progress.epoch, state.progress.window
    while True:
        part = here().first_do(partial(train_set.part, epoch), should_stop)
        windows = plan(part.lengths, config.batch_size, config.grad_accum, config.seed, epoch, config.batching)
        for window in own_slices(windows[done:], part, config, state.model):
            yield [to_batch([part[i] for i in chosen]).to(state.model.device) for chosen in window]
        epoch, done = epoch + 1, 0


def backward(
    state: TrainState, objective: Objective, batches: list[Batch], n_targets: int, should_stop: Callable[[], bool]
) -> list[Tensor]:
    """Add up the gradients of the window's mean loss a target -> per batch, each target's loss. Raises Interrupted."""
    losses = []
    for batch in synced_behind_last(objective, batches):
        with state.precision.autocast():
            loss, each = objective(batch)
        state.precision.scaler.scale(loss / max(n_targets, 1)).backward()
        losses.append(each)
        if should_stop():
            raise Interrupted
    return losses


def add_up(losses: list[Tensor]) -> Tensor:
    """The sum of all losses, a scalar on their device; in fp64, but for MPS, which has none."""
    dtype = torch.float32 if losses[0].device.type == "mps" else torch.float64
    return torch.stack([each.sum(dtype=dtype) for each in losses]).sum()


def clip_gradients(state: TrainState, limit: float) -> Tensor:
    """Scale the gradients down to a norm of `limit` (0: leave them) -> the norm before, a scalar on the device. After
    unscaling, so that the limit means the same in every precision."""
    if hasattr(state.optimizer, "clip"):  # some of the gradients are elsewhere (`fast.copies`)
        return state.optimizer.clip(limit)
    state.precision.scaler.unscale_(state.optimizer)
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    norm = whole(get_total_norm([parameter.grad for parameter in parameters]))
    clip_grads_with_norm_(parameters, limit or math.inf, norm)
    return norm


def update_weights(state: TrainState, finite: Tensor, n_targets: int) -> None:
    """The optimizer's step; left out where the window had no target, and where a loss or a gradient is not finite.
    Under fp16 the scaler leaves out what overflowed, and sets the scale for the next step."""
    scaler = state.precision.scaler
    if n_targets and scaler.is_enabled():
        if finite.item():  # the scaler looks at gradients alone: a logit that overflowed may leave them finite
            scaler.step(state.optimizer)
    elif n_targets:
        step_where_finite(state.optimizer, finite)
    scaler.update()


def count(model: GPT, batches: list[Batch]) -> tuple[int, int, int, float]:
    """Targets, tokens, examples and floating-point operations of some batches."""
    return (
        sum(batch.n_targets for batch in batches),
        sum(sum(batch.lengths) for batch in batches),
        sum(len(batch.records) for batch in batches),
        sum(training_flops(model, batch.lengths, batch.n_targets) for batch in batches),
    )


def keep_books(
    progress: Progress,
    loss_sum: float,
    n_targets: int,
    tokens: int,
    examples: int,
    flops: float,
    seconds: float,
    waited: float,
    per_epoch: int,
) -> tuple[int, float]:
    """Write a completed step into `progress` -> its tokens, and its floating-point operations on them."""
    progress.step, progress.window = progress.step + 1, progress.window + 1
    if progress.window == per_epoch:
        progress.epoch, progress.window = progress.epoch + 1, 0
    progress.seconds, progress.data_seconds = progress.seconds + seconds, progress.data_seconds + waited
    progress.flops, progress.loss_sum = progress.flops + flops, progress.loss_sum + loss_sum
    progress.targets, progress.tokens = progress.targets + n_targets, progress.tokens + tokens
    progress.examples += examples
    return tokens, flops


def evaluate(
    state: TrainState,
    objective: Objective,
    config: Config,
    val_set: Split,
    to_batch: ToBatch,
    per_epoch: int,
    should_stop: Callable[[], bool],
    score: Callable[[], float] | None,
) -> Evaluation:
    """Measure the validation loss and note it in the progress; where the scores are alike the lower loss is better.
    Raises NonFinite, and Interrupted as `evaluate_loss` does."""
    progress = state.progress
    loss = evaluate_loss(objective, val_set, config.eval_batch_size, to_batch, state.precision, should_stop)
    if not math.isfinite(loss):
        raise NonFinite(f"step {progress.step}: the validation loss is {loss}", 1)
    reached = -math.inf if score is None else score()
    improved = (reached, -loss) > (progress.best_score, -progress.best_loss)
    progress.evaluated = progress.step
    progress.waited = 0 if improved else progress.waited + 1
    if improved:
        progress.best_loss, progress.best_score, progress.best_step = loss, reached, progress.step
    epoch = progress.epoch + progress.window / per_epoch
    return Evaluation(progress.step, epoch, loss, improved, None if score is None else reached)


@torch.no_grad()
def evaluate_loss(
    objective: Objective,
    split: Split,
    batch_size: int,
    to_batch: ToBatch,
    precision: Precision,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Mean loss a target over the whole split, in nats: (sum of all losses) / (number of all targets).

    It does not depend on the batch size. Dropout is off, and training mode is as before afterwards. Raises
    Interrupted when `should_stop` says so between two batches.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    losses, n_targets = [], 0
    try:
        for chosen in here().share(by_length(split.lengths, batch_size), []):
            if should_stop():
                raise Interrupted
            batch = to_batch([split[i] for i in chosen]).to(model.device)
            with precision.autocast():
                _, each = objective(batch)
            losses.append(add_up([each]))
            n_targets += batch.n_targets
    finally:
        model.train(was_training)
    loss_sum, n_targets = here().total(torch.stack(losses).sum().item(), n_targets)
    return loss_sum / n_targets


def describe_non_finite(
    step: int, loss_sum: float, grad_norm: float, batches: list[Batch], losses: list[Tensor]
) -> str:
    """What is not finite, and the examples behind it: those with such a loss, or else all of the window."""
    records = []
    for batch, each in zip(batches, losses, strict=True):
        rows = batch.whose.cpu()[~torch.isfinite(each.cpu())]
        records += [batch.records[row] for row in sorted(set(rows.tolist()))]
    records = here().gather_lists(records) or here().gather_lists([r for batch in batches for r in batch.records])
    what = f"the loss is {loss_sum}" if not math.isfinite(loss_sum) else f"the gradient norm is {grad_norm}"
    named = ", ".join(f"{file}, line {line}" for file, line in records[:8])
    more = f" and {len(records) - 8} more" if len(records) > 8 else ""
    return (
        f"step {step}: {what}; weights are as after step {step - 1}. The examples: {named}{more}. A lower --lr or more "
        "--warmup_steps may help"
    )
