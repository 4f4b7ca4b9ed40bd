"""Sliding windows block by block against the mask: the same sums. fp64 leaves the order of summation."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from toys import difference, gradients, toy_examples, toy_model

from gptft.attention import Layout, attend
from gptft.collate import collate
from gptft.config import Config
from gptft.errors import UserError
from gptft.fast import windows
from gptft.fast.choice import choose
from gptft.fast.packing import pack
from gptft.fast.windows import Windows, in_windows
from gptft.loss import Objective

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(windows, "BLOCK", 4)


@pytest.mark.parametrize("T", [1, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("window", [0, 1, 3, 4, 6, 30])
def test_attention_is_that_under_the_mask(T, window):
    """At the edge of a block a query saw a key too many, or one too few."""
    q, k, v = (torch.randn(2, heads, T, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    expected = attend(q, k, v, Layout.of_rows(T, CPU), 0.0, window)
    found = attend(q, k, v, Windows.of_rows(T, CPU), 0.0, window)
    assert difference(found, expected) < 1e-14
    weights = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (found, expected)), strict=True):
        assert (a - b).norm() < 1e-13 * (1 + b.norm())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_loss_and_gradient_are_those_under_the_mask(packed, checkpointed):
    model = toy_model(window=5, full_layers=(1,), n_kv_head=1).train()
    model.checkpoint_activations = checkpointed
    batch = collate(toy_examples([13, 20, 13, 31, 9]), 0)
    fast = pack(batch, share=False, windows=True) if packed else in_windows(batch)
    assert packed or isinstance(fast.layout, Windows)
    outcomes = []
    for each in (batch, fast):
        model.zero_grad(set_to_none=True)
        loss, losses = Objective(model)(each)
        loss.backward()
        outcomes.append((loss.detach(), losses, gradients(model)))
    for a, b in zip(*outcomes, strict=True):
        assert difference(b, a) < 1e-12


def test_scores_beyond_the_windows_are_not_computed(monkeypatch):
    """A mask hides them, and their products are computed all the same."""
    computed, kernel = [], F.scaled_dot_product_attention

    def counted(q, k, *rest, **more):
        computed.append(q.size(2) * k.size(2))
        return kernel(q, k, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    q = torch.randn(1, 2, 64, 8)
    attend(q, q, q, Windows.of_rows(64, CPU), 0.0, 4)
    assert sum(computed) <= 64 * (4 + 4) < 64 * 64 / 4
    (mask,) = {part.mask(4).shape for _, _, first, part in Windows.of_rows(64, CPU).blocks(4) if first}
    assert mask == (1, 1, 4, 7)


def test_short_rows_and_models_without_windows_are_left_as_they_are():
    batch = collate(toy_examples([7, 6]), 0)
    assert in_windows(batch) is batch
    laid = dataclasses.replace(batch, layout=Layout.of_rows(6, CPU))
    assert in_windows(laid) is laid
    assert choose(Config(), CPU, window=5).windows and "block by block" in choose(Config(), CPU, 5).describe()
    assert not choose(Config(), CPU).windows and not choose(Config(windows="off"), CPU, 5).windows
    with pytest.raises(UserError, match="--windows: with --compile"):
        choose(Config(windows="on", compile=True), CPU, 5)
