import pytest
import torch
from toys import toy_model

from gptft.config import FIELDS, OPTIMIZERS, Config
from gptft.device import Precision, pick_device
from gptft.errors import UserError
from gptft.optim import (
    SCHEDULES,
    allocate_state,
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    parameter_groups,
    step_where_finite,
    unused_settings,
)


def test_schedule_warms_up_and_is_at_its_minimum_after_the_last_step():
    """The warm-up's last step has lr; min_lr, by default 0, would be the rate of the step after the last."""
    for name in ("cosine", "linear"):
        config = Config(schedule=name, lr=1.0, min_lr=0.1, warmup_steps=5)
        rates = [learning_rate(step, 40, config) for step in range(1, 42)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[-2] > rates[-1] == pytest.approx(0.1)
        assert rates[5:] == sorted(rates[5:], reverse=True)
    assert learning_rate(40, 40, Config(schedule="constant", lr=1.0, warmup_steps=5)) == 1.0


def test_linear_and_cosine_by_their_formulas():
    config = Config(schedule="linear", lr=1.0, warmup_steps=0)
    assert learning_rate(6, 10, config) == pytest.approx(0.5)
    assert learning_rate(6, 20, Config(schedule="cosine", lr=1.0, warmup_steps=0)) == pytest.approx(0.8535533906)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_after_the_warm_up_the_schedule_is_that_of_transformers(name):
    """Its warm-up starts at 0, where ours takes a first step; behind it both are the same curve."""
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=30).lr_lambdas[0]
    config = Config(schedule=name, lr=1.0, warmup_steps=4)
    rates = [learning_rate(step, 30, config) for step in range(5, 31)]
    assert rates == pytest.approx([theirs(step - 1) for step in range(5, 31)], rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_of_a_run_trains(name):
    """A run of one step trained nothing, and every run wasted its last step: their rate was min_lr, by default 0."""
    for total in (1, 2, 3, 7):
        rates = [learning_rate(step, total, Config(schedule=name, lr=1.0)) for step in range(1, total + 1)]
        assert min(rates) > 0 and max(rates) == 1.0


def test_settings_offer_the_schedules_and_optimizers_that_there_are():
    assert set(FIELDS["schedule"].metadata["choices"]) == set(SCHEDULES)
    assert all(hasattr(torch.optim, name) for name in OPTIMIZERS.values())


def test_an_optimizer_has_its_own_defaults(monkeypatch):
    """AdamW's betas were the defaults of the settings, so another optimizer was given them too."""
    model = toy_model(torch.float32)
    monkeypatch.setitem(OPTIMIZERS, "adamax", "Adamax")
    monkeypatch.setitem(OPTIMIZERS, "sgd", "SGD")
    for name in OPTIMIZERS:
        own = getattr(torch.optim, OPTIMIZERS[name])(model.parameters()).defaults
        made = make_optimizer(model, Config(optimizer=name)).defaults
        assert {key: made[key] for key in ("betas", "eps") if key in made} == {
            key: own[key] for key in ("betas", "eps") if key in own
        }
    given = Config(optimizer="adafactor", betas=(0.8, 0.9))
    assert unused_settings(make_optimizer(model, given), given) == ["betas"]
    assert make_optimizer(model, Config(betas=(0.8, 0.9), eps=1e-6)).defaults["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state(optimizer):
    """The device leaves it out by itself, so that the host need not wait for it in every step."""
    model = toy_model(torch.float32)
    optimizer = make_optimizer(model, Config(optimizer=optimizer, lr=1e-2, weight_decay=0.5))
    for finite, poison in ((True, 0.0), (False, torch.nan), (True, 0.0)):
        before = [p.detach().clone() for p in model.parameters()]
        counts = [values["step"].item() for values in optimizer.state.values()]
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1 + poison)
        step_where_finite(optimizer, torch.tensor(finite))
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(moved) if finite else not any(moved)
        if not finite:
            assert counts == [values["step"].item() for values in optimizer.state.values()]
    assert all(values["step"].item() == 2 for values in optimizer.state.values())
    assert not any(
        torch.isnan(t).any() for values in optimizer.state.values() for t in values.values() if t is not None
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_saved_state_is_copied_into_the_optimizers_own_tensors(optimizer):
    """Two states were in memory while a run was resumed; and settings stay those of the configuration."""
    model = toy_model(torch.float32)
    first = make_optimizer(model, Config(optimizer=optimizer, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    first.step()
    second = make_optimizer(model, Config(optimizer=optimizer, weight_decay=0.2))
    allocate_state(second)
    places = [t.data_ptr() for values in second.state.values() for t in values.values() if t is not None]
    load_optimizer_state(second, first.state_dict())
    assert places == [t.data_ptr() for values in second.state.values() for t in values.values() if t is not None]
    for p in model.parameters():
        for name, saved in first.state[p].items():
            assert saved is second.state[p][name] is None or torch.equal(saved, second.state[p][name])
    assert second.param_groups[0]["weight_decay"] == 0.2


def test_the_warm_up_takes_half_of_a_run_at_most():
    """More warm-up than steps: the schedule still reaches its peak and comes down from it."""
    config = Config(lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(step, 4, config) for step in range(1, 5)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55])
    assert learning_rate(1, 1, config) == 1.0


def test_decay_on_matrices_only():
    """Biases and norms are not decayed; every trained parameter is in one group; a frozen one is in none."""
    model = toy_model(torch.float32)
    model.tok.weight.requires_grad_(False)
    matrices, vectors = parameter_groups(model, 0.3)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)] for p in matrices["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(names) - 1


def test_a_group_without_parameters_is_left_out():
    """Of a model with adapters no vector is trained."""
    model = toy_model(torch.float32)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    for name in ("adamw", "adafactor"):
        assert len(make_optimizer(model, Config(optimizer=name)).param_groups) == 1


def test_adamw_is_its_formula():
    """One step of AdamW (arXiv 1711.05101, algorithm 2) by hand, in fp64."""
    model = toy_model()
    optimizer = make_optimizer(model, Config(lr=0.01, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8))
    p = model.blocks[0].attn.q.weight
    before, grad = p.detach().clone(), torch.ones_like(p) * 0.3
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * grad / (grad.square().sqrt() + 1e-8)
    assert torch.allclose(p, expected, rtol=1e-12, atol=0)


def test_adafactor_is_pytorchs_and_learns():
    model = toy_model(torch.float32)
    optimizer = make_optimizer(model, Config(optimizer="adafactor", lr=0.01))
    assert isinstance(optimizer, torch.optim.Adafactor)
    losses = []
    for _ in range(20):
        logits = model(torch.arange(16)[None])
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.arange(1, 16))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_device_that_is_not_there_is_named():
    assert pick_device("cpu").type == "cpu"
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UserError, match=f"--device {missing}: this machine has no such device"):
        pick_device(missing)


def test_precision_names():
    """fp32 is no autocast at all; fp16 alone has a gradient scale; auto is one of them."""
    cpu = torch.device("cpu")
    assert Precision("fp32", cpu).dtype == torch.float32
    assert Precision("fp16", cpu).scaler.is_enabled() and not Precision("bf16", cpu).scaler.is_enabled()
    assert Precision("auto", cpu).name in ("fp32", "bf16")
    with Precision("bf16", cpu).autocast():
        assert toy_model(torch.float32)(torch.arange(4)[None]).dtype == torch.bfloat16
