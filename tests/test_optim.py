import pytest
import torch
from toys import toy_model

from gptft.config import Config
from gptft.device import Precision, pick_device
from gptft.errors import UserError
from gptft.optim import learning_rate, make_optimizer, parameter_groups


def test_schedule_warms_up_and_ends_at_its_minimum():
    """Row 9: the last step has min_lr, whatever the number of steps; the warm-up's last step has lr."""
    for name in ("cosine", "linear"):
        config = Config(schedule=name, lr=1.0, min_lr=0.1, warmup_steps=5)
        rates = [learning_rate(step, 40, config) for step in range(1, 41)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[-1] == pytest.approx(0.1)
        assert rates[5:] == sorted(rates[5:], reverse=True)
    assert learning_rate(40, 40, Config(schedule="constant", lr=1.0, warmup_steps=5)) == 1.0


def test_linear_and_cosine_by_their_formulas():
    config = Config(schedule="linear", lr=1.0, warmup_steps=0)
    assert learning_rate(5, 10, config) == pytest.approx(0.5)
    assert learning_rate(5, 20, Config(schedule="cosine", lr=1.0, warmup_steps=0)) == pytest.approx(0.8535533906)


def test_the_warm_up_takes_half_of_a_run_at_most():
    """More warm-up than steps: the schedule still reaches its peak and ends at its minimum (row 9)."""
    config = Config(lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [learning_rate(step, 4, config) for step in range(1, 5)]
    assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1])
    assert learning_rate(1, 1, config) == pytest.approx(0.1)


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
