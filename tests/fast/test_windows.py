"""Sliding windows block by block against the mask: the same sums. fp64 leaves the order of summation."""

import dataclasses

import pytest
import torch
from test_decoding import random_prompts
from torch.nn import functional as F
from toys import difference, gradients, toy_examples, toy_model

from gptft.attention import CacheLayout, Layout, attend
from gptft.collate import collate
from gptft.config import Config
from gptft.decoding import decode_plain
from gptft.errors import UserError
from gptft.fast import windows
from gptft.fast.choice import choose
from gptft.fast.continuous import decode_continuously
from gptft.fast.packing import pack
from gptft.fast.windows import Windows, beside_cache, in_windows
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


@pytest.mark.parametrize("begin", [0, 1, 5, 17])
@pytest.mark.parametrize("T", [1, 4, 9, 23])
@pytest.mark.parametrize("window", [0, 1, 4, 6, 20])
def test_attention_beside_a_cache_is_that_under_the_mask(window, T, begin):
    """A long prompt was read under a mask for all its tokens by all its keys."""
    q = torch.randn(2, 4, T, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 2, begin + T, 8, dtype=torch.float64) for _ in "kv")
    plain = CacheLayout(torch.arange(begin, begin + T)[None], causal=begin == 0, end=begin + T, even=True)
    found = beside_cache(begin, T, window, CPU)
    assert isinstance(found, Windows) == (0 < window < begin + T >= 8)
    assert difference(attend(q, k, v, found, 0.0, window), attend(q, k, v, plain, 0.0, window)) < 1e-14
    # a layer of the same model that sees the whole row
    assert difference(attend(q, k, v, found), attend(q, k, v, plain)) < 1e-14


def test_prompts_are_read_block_by_block(monkeypatch):
    """The ids are those of the plain loop; the scores of a prompt are not all computed."""
    model = toy_model(window=5, full_layers=(1,), n_kv_head=1)
    prompts = random_prompts([20, 27, 9, 31])
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, *prompt[:16]] for prompt in prompts]  # that begin alike
    expected = [decode_plain(model, prompt, 5, (), model.config.vocab_size) for prompt in prompts]
    seen, kernel = [], F.scaled_dot_product_attention

    def counted(q, k, *rest, **more):
        seen.append((q.size(2), k.size(2)))
        return kernel(q, k, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    answers = [[] for _ in prompts]
    for pairs in decode_continuously(model, prompts, 5, (), model.config.vocab_size, rows=4):
        for n, token in pairs:
            answers[n].append(token)
    assert answers == expected
    assert (5, 9) in seen, "a block of queries with the keys that its windows reach"


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
    (mask,) = {part.mask(4).shape for *_, first, _, part in Windows.of_rows(64, CPU).blocks(4) if first}
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
