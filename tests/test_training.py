"""The loop: what it does to weights, schedule and random state, and what it must never do."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toys import Examples, difference, toy_examples, toy_model

from gptft.collate import collate, plan
from gptft.config import Config
from gptft.data.examples import Example
from gptft.device import Precision, random_state
from gptft.errors import NonFinite
from gptft.loss import Objective
from gptft.optim import allocate_state, learning_rate, make_optimizer
from gptft.run.rehearsal import rehearse
from gptft.training import Evaluation, Step, Stopped, TrainState, evaluate_loss, total_steps, train

CPU = torch.device("cpu")
TO_BATCH = partial(collate, pad_id=0)


def setup(lengths=(5, 9, 14, 7, 20, 6, 11, 8, 17), dtype=torch.float64, n_val=3, model=None, **settings):
    config = Config(
        **{
            "lr": 1e-2,
            "warmup_steps": 2,
            "batch_size": 2,
            "grad_accum": 2,
            "precision": "fp32",
            "eval_every": 3,
            **settings,
        }
    )
    model = model or toy_model(dtype)
    model.set_dropout(config.dropout)
    examples = Examples(toy_examples(lengths))
    val = Examples(toy_examples([6, 13, 9][:n_val], seed=9))
    state = TrainState(model, make_optimizer(model, config), Precision(config.precision, torch.device("cpu")))
    return state, Objective(model), config, examples, val


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def run(state, objective, config, examples, val, stop=lambda: False):
    return list(train(state, objective, config, examples, val, TO_BATCH, stop))


def test_the_loop_is_the_plain_loop():
    """Against PyTorch's own pieces put together by hand: autograd of a mean over the window, clip, AdamW, LambdaLR."""
    settings = {"epochs": 2, "grad_clip": 0.5, "weight_decay": 0.1}
    state, objective, config, examples, val = setup(**settings, n_val=0)
    steps = [event for event in run(state, objective, config, examples, val) if isinstance(event, Step)]

    model = toy_model()
    decay = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay}, {"params": other, "weight_decay": 0}],
        lr=config.lr,
        weight_decay=0.1,
        fused=False,
        foreach=False,
    )
    total, losses = total_steps(len(examples), config), []
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / 2, 0.5 * (1 + math.cos(math.pi * max(0, n - 2) / (total - 2))))
    )
    for epoch in range(2):
        for window in plan(examples.lengths, 2, 2, config.seed, epoch):
            rows = []
            for i in (i for batch in window for i in batch):
                ids = torch.from_numpy(examples[i].ids.astype(np.int64))
                logits = model(ids[None, :-1])[0]
                start = examples[i].spans[0][0]
                rows.append(torch.nn.functional.cross_entropy(logits[start - 1 :], ids[start:], reduction="none"))
            loss = torch.cat(rows).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    assert [event.loss for event in steps] == pytest.approx(losses, rel=1e-10)
    # ten updates of fp64 rounding, amplified where AdamW divides by small second moments
    assert difference(weights(state.model), weights(model)) < 1e-9


def test_accumulation_changes_nothing():
    """The same windows as 4x1, 2x2 and 1x4 take the same steps."""
    results = []
    for size, accum in ((1, 4), (2, 2), (4, 1)):
        # equal lengths and a random order, so that the windows hold the same examples whatever the batch size
        state, objective, config, examples, val = setup(
            lengths=[5, 9, 14, 7, 20, 6, 11, 8], batch_size=size, grad_accum=accum, batching="random", epochs=3
        )
        events = run(state, objective, config, examples, val)
        results.append((weights(state.model), [e.loss for e in events if isinstance(e, Step)]))
    for result, losses in results[1:]:
        assert losses == pytest.approx(results[0][1], rel=1e-9)
        assert difference(result, results[0][0]) < 1e-8


def test_leftovers_are_scaled_by_their_own_tokens():
    """9 examples in windows of 4: three steps an epoch, the last of one example, nothing carried over."""
    state, objective, config, examples, val = setup(epochs=2, batching="random", n_val=0)
    events = run(state, objective, config, examples, val)
    assert len(events) == total_steps(9, config) == 6
    assert [event.epoch for event in events][2] == 1.0
    assert all(p.grad is None for p in state.model.parameters())
    # the third window alone, from the weights that it met
    fresh, objective2, config2, *_ = setup(epochs=2, batching="random", n_val=0)
    loop = train(fresh, objective2, config2, examples, val, TO_BATCH)
    next(loop), next(loop)
    (chosen,) = plan(examples.lengths, 2, 2, config.seed, 0, "random")[2]
    (alone,) = chosen
    ids = torch.from_numpy(examples[alone].ids.astype(np.int64))
    logits = fresh.model(ids[None, :-1])[0, 2:]
    expected = torch.nn.functional.cross_entropy(logits, ids[3:]).item()
    assert next(loop).loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accum", [1, 2, 4])
def test_one_schedule_step_per_optimizer_step(accum):
    """The learning rate follows optimizer steps, and is at its minimum after the last, whatever the accumulation."""
    state, objective, config, examples, val = setup(grad_accum=accum, epochs=3, min_lr=1e-4)
    steps = [event for event in run(state, objective, config, examples, val) if isinstance(event, Step)]
    total = total_steps(len(examples), config)
    assert [e.learning_rate for e in steps] == [learning_rate(n, total, config) for n in range(1, total + 1)]
    assert steps[-1].learning_rate > learning_rate(total + 1, total, config) == pytest.approx(1e-4)
    assert [e.remaining_time for e in steps][-1] == 0


def test_max_steps_overrides_epochs():
    state, objective, config, examples, val = setup(epochs=5, max_steps=4, n_val=0)
    assert len(run(state, objective, config, examples, val)) == 4


def test_evaluation_does_not_depend_on_its_batch():
    """The same loss at batch 1, 4 and 16, and dropout off in it, training mode back after it."""
    state, objective, _, examples, _ = setup(dropout=0.5)
    state.model.train()
    losses = [evaluate_loss(objective, examples, size, TO_BATCH, state.precision) for size in (1, 4, 16, 4)]
    assert max(abs(loss - losses[0]) for loss in losses) < 1e-10 * losses[0]
    assert state.model.training
    mean_of_rows = np.mean([evaluate_loss(objective, Examples([e]), 1, TO_BATCH, state.precision) for e in examples])
    assert abs(mean_of_rows - losses[0]) > 1e-4, "a mean of means would pass here"


def test_evaluations_happen_at_the_start_every_n_steps_and_at_the_end():
    state, objective, config, examples, val = setup(max_steps=8)
    events = run(state, objective, config, examples, val)
    assert [e.step for e in events if isinstance(e, Evaluation)] == [0, 3, 6, 8]
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 9))
    best = min((e.eval_loss, e.step) for e in events if isinstance(e, Evaluation))
    assert (state.progress.best_loss, state.progress.best_step) == best


def test_early_stop_by_patience():
    """A learning rate that can only do harm: after two evaluations without improvement it stops."""
    state, objective, config, examples, val = setup(max_steps=50, lr=0.5, warmup_steps=0, patience=2, grad_clip=0)
    events = run(state, objective, config, examples, val)
    assert events[-1] == Stopped(6, "patience")
    assert state.progress.best_step == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_stay_fp32_and_follow_fp32_at_a_tiny_learning_rate(precision):
    """Weights in bf16 would swallow every update of this size (0% of them changed, as measured elsewhere)."""
    settings = {"lr": 1e-5, "warmup_steps": 0, "schedule": "constant", "max_steps": 100, "n_val": 0, "weight_decay": 0}
    state, objective, config, examples, val = setup(dtype=torch.float32, precision=precision, **settings)
    start = weights(state.model)
    run(state, objective, config, examples, val)
    assert weights(state.model).dtype == torch.float32
    exact, objective, config, *_ = setup(dtype=torch.float32, **settings)
    run(exact, objective, config, examples, val)
    moved, expected = weights(state.model) - start, weights(exact.model) - start
    # gradients of 8 or 11 bits flip signs where they are near 0, and AdamW moves by signs at first
    assert difference(moved, expected) < (1e-6 if precision == "fp32" else 0.25)
    assert (moved != 0).float().mean() > 0.9


def test_fp16_clips_unscaled_gradients():
    """Clipping before unscaling would clip everything to nothing; the norm reported is the true one."""
    norms = []
    for precision in ("fp32", "fp16"):
        state, objective, config, examples, val = setup(dtype=torch.float32, precision=precision, max_steps=3, n_val=0)
        norms.append([e.grad_norm for e in run(state, objective, config, examples, val)])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_fp16_overflow_lowers_the_scale_and_repeats_the_window():
    """No window is lost to an overflow; at the minimum scale it stops instead of looping for ever."""
    state, objective, config, examples, val = setup(dtype=torch.float32, precision="fp16", max_steps=4, n_val=0)
    state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    events = run(state, objective, config, examples, val)
    assert [e.step for e in events] == [1, 2, 3, 4]
    assert state.precision.scaler.get_scale() < 2.0**30
    assert state.progress.examples == 4 * 4 - 3  # 9 examples in windows of 4, 4, 1, then 4 again


def poison(model):
    with torch.no_grad():
        model.tok.weight[60] = torch.nan


def test_a_non_finite_loss_stops_with_weights_unchanged_and_names_the_examples():
    """One NaN step ended runs elsewhere with "Training Complete" and an all-NaN model."""
    model = toy_model(tie_embeddings=False)
    poison(model)
    examples = toy_examples([5, 9, 14, 7], vocab_size=59)
    examples[2].ids[4] = 60
    state, objective, config, _, val = setup(model=model, n_val=0, batch_size=1, grad_accum=1, batching="random")
    before, seen = weights(model), []
    with pytest.raises(NonFinite, match=r"step \d: the loss is nan; .*: toy.jsonl, line 3\. A lower"):
        for event in train(state, objective, config, Examples(examples), val, TO_BATCH):
            seen.append(event)
            before = weights(model)
    assert torch.equal(torch.nan_to_num(weights(model)), torch.nan_to_num(before))
    assert state.progress.step == len(seen)


def test_a_non_finite_gradient_stops_too():
    """A finite loss with an infinite gradient norm must not be clipped into NaN weights."""
    state, objective, config, examples, val = setup(n_val=0)
    before = weights(state.model)
    state.model.norm.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NonFinite, match=r"step 1: the gradient norm is (inf|nan)"):
        run(state, objective, config, examples, val)
    assert torch.equal(weights(state.model), before)


def test_rehearsal_leaves_everything_as_it_was():
    """Weights, gradients, random state and optimizer are as without it, and the run after it is the same."""
    results = []
    for rehearsed in (False, True):
        state, objective, config, examples, val = setup(dropout=0.3, max_steps=5)
        torch.manual_seed(1)
        if rehearsed:
            before, random = weights(state.model), random_state(CPU)
            rehearse(state, objective, config, examples, val, TO_BATCH)
            assert torch.equal(weights(state.model), before) and torch.equal(random["cpu"], random_state(CPU)["cpu"])
            assert all(p.grad is None for p in state.model.parameters())
            assert len(state.optimizer.state) == len(list(state.model.parameters()))
        run(state, objective, config, examples, val)
        results.append(weights(state.model))
    assert torch.equal(*results)


def test_rehearsal_meets_the_longest_batches():
    """What will not fit must fail in the first minute, so the longest examples of both splits are tried."""
    state, objective, config, examples, val = setup()
    shapes = []
    hidden = state.model.hidden

    def spy(idx, *args, **options):
        shapes.append(tuple(idx.shape))
        assert len(state.optimizer.state) > 0, "the peak holds the optimizer's state beside the activations"
        return hidden(idx, *args, **options)

    state.model.hidden = spy
    rehearse(state, objective, config, examples, val, TO_BATCH)
    assert shapes[0] == (2, max(map(len, (e.ids for e in examples))) - 1)
    assert shapes[1] == (3, max(map(len, (e.ids for e in val))) - 1)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_allocating_optimizer_state_moves_no_weight(optimizer):
    state, *_ = setup(optimizer=optimizer, weight_decay=0.5)
    before = weights(state.model)
    allocate_state(state.optimizer)
    assert torch.equal(weights(state.model), before)
    assert all(g["lr"] == 1e-2 for g in state.optimizer.param_groups)
    for values in state.optimizer.state.values():
        assert all(not tensor.any() for tensor in values.values() if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adafactor"},
        {"dropout": 0.3},
        {"precision": "fp16"},
        {"checkpoint_activations": True, "dropout": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop_at", [1, 4, 5, 7])
def test_stopping_and_going_on_is_the_unbroken_run(settings, stop_at):
    """Losses, order, learning rate, weights and random state equal the unbroken run's, bit for bit, wherever
    it was stopped: in mid-epoch, at an epoch's end, before an evaluation."""
    kind = {"dtype": torch.float32, "max_steps": 10, **settings}
    torch.manual_seed(3)
    whole, objective, config, examples, val = setup(**kind)
    whole.model.checkpoint_activations = config.checkpoint_activations
    expected = run(whole, objective, config, examples, val)

    torch.manual_seed(3)
    first, objective, *_ = setup(**kind)
    first.model.checkpoint_activations = config.checkpoint_activations
    events = []
    for event in train(first, objective, config, examples, val, TO_BATCH):
        events.append(event)
        if isinstance(event, Step) and event.step == stop_at:
            break
    saved, saved_weights = first.state_dict(), {k: v.clone() for k, v in first.model.state_dict().items()}

    torch.manual_seed(99)  # what happens in between must not matter
    second, objective, *_ = setup(**kind)
    second.model.checkpoint_activations = config.checkpoint_activations
    second.model.load_state_dict(saved_weights)
    second.load_state_dict(saved)
    events += run(second, objective, config, examples, val)
    timeless = [
        dataclasses.replace(e, iter_time=0, tokens_per_second=0, flops=0, data_share=0, remaining_time=0)
        if isinstance(e, Step)
        else e
        for e in events
    ]
    wanted = [
        dataclasses.replace(e, iter_time=0, tokens_per_second=0, flops=0, data_share=0, remaining_time=0)
        if isinstance(e, Step)
        else e
        for e in expected
    ]
    assert timeless == wanted
    assert torch.equal(weights(second.model), weights(whole.model))
    assert torch.equal(second.state_dict()["random"]["cpu"], whole.state_dict()["random"]["cpu"])


def test_an_interrupt_in_mid_step_drops_the_window():
    """Ctrl-C between two micro-batches: state and random state are those of the last completed step."""
    state, objective, config, examples, val = setup(dropout=0.3, max_steps=6, n_val=0)
    calls, snapshots = [], {}

    def stop():
        calls.append(1)
        return len(calls) == 6  # two micro-batches a window, the third window of one: in the middle of a window

    events = []
    for event in train(state, objective, config, examples, val, TO_BATCH, stop):
        events.append(event)
        snapshots[event.step] = (weights(state.model), random_state(CPU)["cpu"])
    assert isinstance(events[-1], Stopped) and events[-1].reason == "interrupt"
    assert torch.equal(weights(state.model), snapshots[events[-1].step][0])
    assert state.progress.step == events[-2].step
    assert all(p.grad is None for p in state.model.parameters())
    # going on gives the unbroken run
    rest = run(state, objective, config, examples, val)
    assert [e.step for e in rest] == list(range(events[-1].step + 1, 7))


def test_adapts_to_a_learnable_pattern():
    """It learns: on a pattern that can be memorised the loss falls by an order of magnitude."""
    state, objective, config, examples, val = setup(dtype=torch.float32, max_steps=120, eval_every=120, n_val=0)
    steps = run(state, objective, config, examples, val)
    assert steps[-1].loss < 0.1 * steps[0].loss


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_all_masked_micro_batch_changes_no_update(precision):
    """The update of a window equals that of the same window without its micro-batch of nothing but -100."""
    masked = Example(np.arange(1, 9, dtype=np.uint16), [], ("toy.jsonl", 99))
    results = []
    for extra in ([], [masked]):
        state, objective, config, *_ = setup(
            dtype=torch.float32,
            precision=precision,
            batch_size=1,
            max_steps=1,
            grad_accum=4,
            batching="random",
            warmup_steps=0,
            n_val=0,
        )
        examples = Examples([*toy_examples([5, 9, 14]), *extra])
        run(state, objective, config, examples, [])
        results.append(weights(state.model))
    # the same terms, summed in another order
    assert torch.isfinite(results[1]).all() and difference(results[1], results[0]) < 1e-5


def test_fp16_stops_at_the_minimum_scale():
    """A gradient that overflows whatever the scale ends the run, instead of repeating the window for ever."""
    state, objective, config, examples, val = setup(dtype=torch.float32, precision="fp16", max_steps=4, n_val=0)
    before = weights(state.model)
    state.model.norm.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NonFinite, match=r"step 1: the gradient norm is (inf|nan)"):
        run(state, objective, config, examples, val)
    assert state.precision.scaler.get_scale() <= 1.0 and torch.equal(weights(state.model), before)


class Waits(TorchDispatchMode):
    """Counts the operations for which a host would have to wait for a device, by the name of each."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")

    def __init__(self):
        super().__init__()
        self.seen, self.counting = [], True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if self.counting and name in self.WAITING:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_nothing_in_a_step_waits_for_the_device_but_its_one_look(position):
    """Each micro-batch asked the device where its targets were and whether its losses were finite, so the host could
    never run ahead. The one look of a step is a `tolist`, which on the CPU is no operation."""
    model = toy_model(torch.float32, position=position, window=6, n_kv_head=2)
    state, objective, config, examples, val = setup(dtype=torch.float32, model=model, n_val=0, max_steps=4)
    waits = Waits()

    def collate_on_the_host(chosen):
        waits.counting = False
        batch = TO_BATCH(chosen)
        waits.counting = True
        return batch

    events = train(state, objective, config, examples, val, collate_on_the_host)
    next(events)  # allocates the optimizer's state
    with waits:
        assert len(list(events)) == 3
    assert waits.seen == []


def test_this_count_sees_a_wait():
    with Waits() as waits:
        torch.ones(3)[0].item()
        torch.ones(3).nonzero()
    assert waits.seen == ["aten::_local_scalar_dense", "aten::nonzero"]


def test_the_window_that_is_repeated_after_an_overflow_does_not_use_up_the_next():
    """The next window is collated while the device works: a repetition must not collate one more and lose it."""
    outcomes = []
    for precision in ("fp16", "fp32"):
        state, objective, config, examples, val = setup(dtype=torch.float32, precision=precision, max_steps=5, n_val=0)
        if precision == "fp16":
            state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        seen = []
        list(
            train(state, objective, config, examples, val, lambda chosen, seen=seen: seen.append(1) or TO_BATCH(chosen))
        )
        outcomes.append((len(seen), state.progress.examples, state.progress.tokens))
    assert outcomes[0] == outcomes[1]


def test_a_loss_that_is_not_finite_moves_no_weight_under_fp16_though_its_gradients_are_finite():
    """The scaler looks at gradients alone; -log of a probability that fp16 rounds to 0 has finite ones."""
    state, objective, config, examples, val = setup(dtype=torch.float32, precision="fp16", n_val=0)
    forward, before = objective.forward, weights(state.model)
    objective.forward = lambda batch: tuple(part + torch.inf for part in forward(batch))
    with pytest.raises(NonFinite, match="step 1: the loss is inf"):
        run(state, objective, config, examples, val)
    assert torch.equal(weights(state.model), before)


def test_the_share_of_waiting_is_that_of_the_time_until_the_data_is_there(monkeypatch):
    """By a clock that only the data and the model move: 1 for each batch, 3 for each forward pass."""
    now = [0.0]
    monkeypatch.setattr("gptft.training.time.perf_counter", lambda: now[0])
    state, objective, config, examples, _ = setup(n_val=0, batch_size=9, grad_accum=1, epochs=3)
    forward = objective.forward

    def slow_forward(batch):
        now[0] += 3
        return forward(batch)

    def slow_batch(chosen):
        now[0] += 1
        return TO_BATCH(chosen)

    monkeypatch.setattr(objective, "forward", slow_forward)
    steps = [event for event in train(state, objective, config, examples, [], slow_batch) if isinstance(event, Step)]
    assert [step.data_share for step in steps] == [0.25, 0.25, 0.0]  # behind the last step none is waited for
    assert state.progress.data_seconds == 2.0 and state.progress.seconds == 11.0
