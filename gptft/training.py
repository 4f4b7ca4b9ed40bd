"""The training loop, whole, reading from top to bottom. It yields what happened; whoever consumes the events saves,
logs and draws. Between two events the state is that of a completed step.

A **step** is one optimizer step, on one window; an **epoch** is one pass over the training split.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from gptft.adapters.lora import training_flops
from gptft.collate import IGNORE, Batch, by_length, collate, plan
from gptft.config import Config
from gptft.data.examples import Split
from gptft.device import Precision
from gptft.errors import Interrupted, NonFinite, UserError
from gptft.loss import Objective
from gptft.model import GPT
from gptft.optim import learning_rate


@dataclass(frozen=True)
class Step:
    """One optimizer step. `loss`: nats a target over the window; times in seconds; `flops`: FLOP/s on real tokens."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    iter_time: float
    tokens_per_second: float
    flops: float
    remaining_time: float


@dataclass(frozen=True)
class Evaluation:
    """The validation loss after `step`, in nats a target, and whether it is the lowest so far."""

    step: int
    epoch: float
    eval_loss: float
    improved: bool = False


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
    best_step: int = 0
    waited: int = 0  # evaluations since the best one
    seconds: float = 0.0  # spent in steps
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
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        set_random_state(state["random"], self.model.device)


def random_state(device: torch.device) -> dict:
    """torch's random state on the CPU and on the device that trains, if that is another."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


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
    pad_id: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train until the last step, an early stop, or `should_stop`; yields Step, Evaluation and Stopped events.

    Raises NonFinite, with the weights as they were after the last good step, when a loss or gradient is not finite.
    """
    model, optimizer, scaler, progress = state.model, state.optimizer, state.precision.scaler, state.progress
    total = total_steps(len(train_set), config)
    eval_every = config.eval_every or max(1, total // 10)
    per_epoch = steps_per_epoch(len(train_set), config)
    started = time.perf_counter(), progress.step
    model.train()

    while True:
        # evaluate, wherever an evaluation is due: before the first step, every eval_every steps, and at the end
        due = progress.step % eval_every == 0 or progress.step >= total
        if len(val_set) and due and progress.evaluated != progress.step:
            try:
                eval_loss = evaluate_loss(
                    objective, val_set, config.eval_batch_size, pad_id, state.precision, config.mask_prompt, should_stop
                )
            except Interrupted:
                yield Stopped(progress.step, "interrupt")
                return
            if not math.isfinite(eval_loss):
                raise NonFinite(f"step {progress.step}: the validation loss is {eval_loss}; nothing was saved", 1)
            improved = eval_loss < progress.best_loss
            progress.evaluated = progress.step
            progress.waited = 0 if improved else progress.waited + 1
            if improved:
                progress.best_loss, progress.best_step = eval_loss, progress.step
            yield Evaluation(progress.step, progress.step / per_epoch, eval_loss, improved)
        if progress.step >= total:
            return
        if config.patience and progress.waited >= config.patience:
            yield Stopped(progress.step, "patience")
            return

        # the data: this step's window, collated, and the number of targets in all of it
        began = time.perf_counter()
        windows = plan(
            train_set.lengths, config.batch_size, config.grad_accum, config.seed, progress.epoch, config.batching
        )
        for window in windows[progress.window :]:
            batches = [collate([train_set[i] for i in chosen], pad_id, config.mask_prompt) for chosen in window]
            n_targets = sum(batch.n_targets for batch in batches)

            # forward and backward: one normalisation over the window, so its division into batches changes nothing
            before = random_state(model.device)
            while True:
                loss_sum, suspects = 0.0, []
                for batch in batches:
                    with state.precision.autocast():
                        loss, losses = objective(batch.to(model.device))
                    scaler.scale(loss / max(n_targets, 1)).backward()
                    losses = losses.cpu().double()  # summed on the host: MPS has no fp64
                    loss_sum += losses.sum().item()
                    suspects += non_finite_records(batch, losses)
                    if should_stop():  # the window is dropped: the state is that of the last completed step
                        optimizer.zero_grad(set_to_none=True)
                        set_random_state(before, model.device)
                        yield Stopped(progress.step, "interrupt")
                        return

                # clip: after unscaling, so that the limit means the same in every precision
                scaler.unscale_(optimizer)
                limit = config.grad_clip or math.inf
                grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()
                if math.isfinite(loss_sum) and math.isfinite(grad_norm):
                    break
                optimizer.zero_grad(set_to_none=True)
                if not scaler.is_enabled() or scaler.get_scale() <= 1.0 or not math.isfinite(loss_sum):
                    records = suspects or [record for batch in batches for record in batch.records]
                    raise NonFinite(describe_non_finite(progress.step + 1, loss_sum, grad_norm, records), 1)
                scaler.update()  # fp16 overflowed: a lower scale, and the same window again
                set_random_state(before, model.device)

            # the step
            rate = learning_rate(progress.step + 1, total, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if n_targets:
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            # the books
            seconds = time.perf_counter() - began
            tokens, flops = (
                sum(sum(b.lengths) for b in batches),
                sum(training_flops(model, b.lengths, b.n_targets) for b in batches),
            )
            progress.step, progress.window = progress.step + 1, progress.window + 1
            progress.seconds, progress.flops = progress.seconds + seconds, progress.flops + flops
            progress.loss_sum, progress.targets = progress.loss_sum + loss_sum, progress.targets + n_targets
            progress.tokens += tokens
            progress.examples += sum(len(b.records) for b in batches)
            if progress.window == len(windows):
                progress.epoch, progress.window = progress.epoch + 1, 0
            pace = (time.perf_counter() - started[0]) / (progress.step - started[1])  # evaluations and saves included
            yield Step(
                progress.step,
                progress.step / per_epoch,
                loss_sum / max(n_targets, 1),
                rate,
                grad_norm,
                seconds,
                tokens / seconds,
                flops / seconds,
                pace * (total - progress.step),
            )
            if progress.step >= total or progress.step % eval_every == 0:
                break
            began = time.perf_counter()


def non_finite_records(batch: Batch, losses: torch.Tensor) -> list[tuple[str, int]]:
    """The (file, line) of every row of a batch with a loss that is NaN or infinite; all tensors on the CPU."""
    wrong = ~torch.isfinite(losses)
    if not wrong.any():
        return []
    rows = (batch.targets != IGNORE).nonzero()[:, 0]  # the row of each target, in the order of the losses
    return [batch.records[row] for row in sorted(set(rows[wrong].tolist()))]


def describe_non_finite(step: int, loss_sum: float, grad_norm: float, records: list[tuple[str, int]]) -> str:
    what = f"the loss is {loss_sum}" if not math.isfinite(loss_sum) else f"the gradient norm is {grad_norm}"
    named = ", ".join(f"{file}, line {line}" for file, line in records[:8])
    more = f" and {len(records) - 8} more" if len(records) > 8 else ""
    return (
        f"step {step}: {what}; weights are as after step {step - 1} and nothing was saved. "
        f"The examples: {named}{more}. A lower --lr or more --warmup_steps may help."
    )


def rehearse(
    state: TrainState, objective: Objective, config: Config, train_set: Split, val_set: Split, pad_id: int
) -> None:
    """Forward and backward of the longest training batch with optimizer state allocated, and forward of the longest
    validation batch: what will not fit fails now. Weights, optimizer state and random state are as before.

    Raises UserError when memory runs out.
    """
    model, optimizer, before = state.model, state.optimizer, random_state(state.model.device)
    batch = collate(
        [train_set[i] for i in by_length(train_set.lengths, config.batch_size)[0]], pad_id, config.mask_prompt
    )
    try:
        model.train()
        allocate_state(optimizer)  # before the activations, as in every step but the first
        with state.precision.autocast():
            loss, _ = objective(batch.to(model.device))
        loss.backward()
        optimizer.zero_grad(set_to_none=True)
        if len(val_set):
            chosen = by_length(val_set.lengths, config.eval_batch_size)[0]
            batch = collate([val_set[i] for i in chosen], pad_id, config.mask_prompt)
            with torch.no_grad(), state.precision.autocast():
                objective(batch.to(model.device))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error):
            raise UserError(
                f"out of memory on {model.device} with the longest batch ({batch.idx.size(0)} examples of "
                f"{batch.idx.size(1)} tokens): lower --batch_size (and raise --grad_accum) or --max_length, or set "
                "--checkpoint_activations",
                1,
            ) from None
        raise
    finally:
        set_random_state(before, model.device)


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer allocate its state without moving a weight: one step of zero gradients at learning rate 0,
    after which its counters and moments are set back to zero."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for tensor in itertools.chain.from_iterable(values.values() for values in optimizer.state.values()):
        if isinstance(tensor, torch.Tensor):
            tensor.zero_()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def evaluate_loss(
    objective: Objective,
    split: Split,
    batch_size: int,
    pad_id: int,
    precision: Precision,
    mask_prompt: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Mean loss a target over the whole split, in nats: (sum of all losses) / (number of all targets).

    It does not depend on the batch size. Dropout is off, and training mode is as before afterwards. Raises
    Interrupted when `should_stop` says so between two batches.
    """
    model = objective.model
    was_training = model.training
    model.eval()
    total, n_targets = 0.0, 0
    try:
        for chosen in by_length(split.lengths, batch_size):
            if should_stop():
                raise Interrupted
            batch = collate([split[i] for i in chosen], pad_id, mask_prompt)
            with precision.autocast():
                _, losses = objective(batch.to(model.device))
            total += losses.cpu().double().sum().item()  # on the host: MPS has no fp64
            n_targets += batch.n_targets
    finally:
        model.train(was_training)
    return total / n_targets
