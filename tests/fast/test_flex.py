"""Packed micro-batches with flex attention against padded ones. torch refuses its gradient on the CPU, though the way
in which all scores are written out has one; here that refusal is taken away. The kernel itself is for the tests of the
GPU."""

import pytest
import torch
from test_packing import SHAPES, SHARED, batch, compute  # noqa: F401 - batch is a fixture
from torch.nn.attention import flex_attention
from toys import difference, toy_model

from gptft.collate import IGNORE
from gptft.fast.flex import BLOCK, FILL, FlexPacked, in_blocks
from gptft.fast.packing import pack


@pytest.fixture
def gradient_on_the_cpu(monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_are_those_of_the_padded_rows(batch, gradient_on_the_cpu, shape, share):  # noqa: F811
    """A mask that lets an example see its neighbour's tokens: a normal loss and a wrong model."""
    model = toy_model(**SHAPES[shape]).train()
    packed = in_blocks(pack(batch, share))
    assert packed.idx.size(1) % BLOCK == 0
    assert packed.layout.shared == (SHARED if share else 0)
    expected, found = compute(model, batch), compute(model, packed)
    assert difference(found[0], expected[0]) < 1e-12
    assert difference(found[1], expected[1]) < 1e-12  # in the same order
    assert difference(found[2], expected[2]) < 1e-10
    assert torch.equal(packed.whose, batch.whose)


def test_tokens_that_fill_a_row_have_no_target(batch):  # noqa: F811
    packed = in_blocks(pack(batch, True))
    filling = packed.layout.doc == FILL
    assert filling.sum() == -pack(batch, True).idx.size(1) % BLOCK
    assert (packed.targets[filling] == IGNORE).all()
    assert packed.n_targets == batch.n_targets


def test_what_is_not_packed_stays_as_it_is(batch):  # noqa: F811
    assert in_blocks(batch) is batch


def test_another_device_gets_the_same_layout(batch):  # noqa: F811
    """Masks that were made for one device are not those of another."""
    layout = in_blocks(pack(batch, True)).layout
    layout.make_masks({0}, torch.float32)
    assert layout._masks.keys() == {0}
    moved = layout.to(torch.device("meta"))
    assert isinstance(moved, FlexPacked)
    assert (moved.pos.device.type, moved._masks, moved.groups) == ("meta", {}, layout.groups)
