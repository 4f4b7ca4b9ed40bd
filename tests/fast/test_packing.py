"""Packed micro-batches against padded ones: the same losses, the same gradient. fp64 leaves the order of summation."""

import dataclasses

import numpy as np
import pytest
import torch
from toys import difference, gradients, toy_model

from gptft.adapters.lora import LoraConfig, add_lora
from gptft.attention import Layout
from gptft.collate import IGNORE, collate
from gptft.data.examples import Example
from gptft.fast import packing
from gptft.fast.packing import pack
from gptft.loss import Objective

SHAPES = {
    "gpt2": {"position": "learned", "qkv_bias": True, "mlp_bias": True, "out_bias": True},
    "llama": {"norm": "rms", "gated_mlp": True, "n_kv_head": 2, "qk_norm": True, "tie_embeddings": False},
    "neox": {"rope_fraction": 0.5, "parallel_residual": True},
    "sliding window": {"window": 5, "full_layers": (1,), "n_kv_head": 1},
}
LENGTHS = [13, 20, 13, 31, 15, 20, 13, 11]
SHARED = 9


@pytest.fixture
def batch():
    """Eight examples whose prompts begin alike, as collated; two have prompts of their own behind that."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(1, 61, SHARED)
    examples = []
    for number, n in enumerate(LENGTHS):
        ids = np.concatenate((beginning, rng.integers(1, 61, n - SHARED)))
        ids[SHARED] = 1 + number % 2  # no token more in common
        examples.append(Example(ids, [(SHARED + 1 + number % 2, n)], ("toy.jsonl", number + 1)))
    return collate(examples, 0)


def compute(model, batch):
    model.zero_grad(set_to_none=True)
    loss, each = Objective(model)(batch)
    loss.backward()
    return loss.detach(), each, gradients(model)


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_are_those_of_the_padded_rows(batch, shape, share):
    """A token that sees another example's, or has another position, learns from what it should not."""
    model = toy_model(**SHAPES[shape]).train()
    packed = pack(batch, share)
    assert packed.layout.shared == (SHARED if share else 0)
    assert packed.idx.size(1) == sum(batch.lengths) - (len(LENGTHS) - 1) * packed.layout.shared
    expected, found = compute(model, batch), compute(model, packed)
    assert difference(found[0], expected[0]) < 1e-12
    assert difference(found[1], expected[1]) < 1e-12  # in the same order
    assert difference(found[2], expected[2]) < 1e-12
    assert torch.equal(packed.whose, batch.whose)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_learn_the_same(batch, dora):
    model = toy_model(**SHAPES["llama"])
    add_lora(model, LoraConfig(4, dora=dora), 0, None, "int8")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    model.train()
    # the base of 8 bits computes in fp32
    assert difference(compute(model, pack(batch, True))[2], compute(model, batch)[2]) < 1e-5


def test_activations_that_are_computed_again_are_the_same(batch):
    model = toy_model(**SHAPES["llama"]).train()
    expected = compute(model, batch)
    model.checkpoint_activations = True
    assert difference(compute(model, pack(batch, True))[2], expected[2]) < 1e-12


def test_padding_is_not_computed(batch):
    """What the linear layers read is real tokens alone, those that are shared once."""
    model, rows = toy_model(**SHAPES["llama"]).train(), []
    model.blocks[0].mlp.up.register_forward_hook(lambda module, given, out: rows.append(given[0].numel() // 32))
    for share in (False, True):
        Objective(model)(pack(batch, share))
    assert rows == [sum(batch.lengths), sum(batch.lengths) - (len(LENGTHS) - 1) * SHARED]


def test_no_scored_token_is_shared(batch):
    """Its target is another in each example, and but one would be learned."""
    scored = collate([Example(np.arange(20) + number, [(0, 20)], ("f", 1)) for number in (1, 1, 1)], 0)
    assert pack(scored, True).layout.shared == 0
    packed = pack(batch, True)
    assert packed.n_targets == batch.n_targets
    assert (packed.targets.flatten() != IGNORE).sum() == batch.n_targets
    assert packed.scored.min() >= SHARED


def test_each_example_keeps_a_token_of_its_own():
    """One that is a beginning of the others would have nothing left to attend with."""
    ids = np.arange(1, 30)
    examples = [Example(ids[:n], [(n - 1, n)], ("f", n)) for n in (12, 20, 29)]
    padded = collate(examples, 0)
    packed = pack(padded, True)
    assert packed.layout.shared == 10
    model = toy_model().train()
    assert difference(compute(model, packed)[2], compute(model, padded)[2]) < 1e-12


def test_few_tokens_in_common_are_not_shared(batch, monkeypatch):
    monkeypatch.setattr(packing, "FEWEST", SHARED + 1)
    assert pack(batch, True).layout.shared == 0


def test_what_saves_too_little_stays_padded(batch):
    saved = 1 - sum(batch.lengths) / batch.idx.numel()
    assert pack(batch, False, saved + 0.01) is batch
    assert pack(batch, False, saved - 0.01).layout is not None


def test_no_examples_stay_a_row_of_padding():
    """A rank that has nothing to do in a window takes part all the same."""
    empty = collate([], 0)
    assert pack(empty, True) is empty


def test_masks_are_made_once_for_all_layers(batch, monkeypatch):
    """A block that is computed again must find what it looks for; and a mask for each layer would take its time."""
    made, visible = [], packing.CacheLayout.visible
    monkeypatch.setattr(packing.CacheLayout, "visible", lambda self, *more: made.append(self) or visible(self, *more))
    model = toy_model(n_layer=6).train()
    Objective(model)(pack(batch, True))
    assert len(made) == len(set(LENGTHS))


def test_a_packed_row_moves_to_a_device(batch):
    packed = pack(batch, True)
    moved = packed.layout.to(torch.device("meta"))
    assert moved.pos.device.type == moved.doc.device.type == "meta"
    assert (moved.shared, moved.groups) == (packed.layout.shared, packed.layout.groups)
    assert isinstance(dataclasses.replace(moved), Layout)
