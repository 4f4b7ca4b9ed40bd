import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys import difference, gradients, toy_examples, toy_model

from gptft.collate import IGNORE, collate
from gptft.data.examples import Example
from gptft.loss import Objective


def masked_reference(model, batch):
    """The loss with logits everywhere and PyTorch's own ignore_index."""
    logits = model(batch.idx)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")


def test_head_at_targets_alone_gives_the_same_loss_and_gradients():
    """The gathered head is an optimisation of the plain one: equal to 1e-10 in fp64, gradients too."""
    model = toy_model()
    batch = collate(toy_examples([5, 9, 14, 7]), pad_id=0)
    Objective(model)(batch)[0].backward()
    ours = gradients(model)
    model.zero_grad()
    reference = masked_reference(model, batch)
    reference.backward()
    assert difference(Objective(model)(batch)[0], reference) < 1e-10
    assert difference(ours, gradients(model)) < 1e-10


class Perfect(torch.nn.Module):
    """Stands where a GPT stands: its logits at position t are certain of the token at t + ahead."""

    def __init__(self, idx, V, ahead):
        super().__init__()
        self.certain = 50.0 * F.one_hot(idx.roll(-ahead, dims=1), V).double()

    def hidden(self, idx, layout=None, cache=None, scored=None):
        return self.certain[:, : idx.size(1)].flatten(0, 1)[scored]

    def head(self, h):
        return h


@pytest.mark.parametrize("ahead, low", [(1, True), (2, False)])
def test_the_shift_happens_once(ahead, low):
    """Logits that predict t+1 perfectly give a loss near 0, those that predict t+2 do not (double shift)."""
    ids = np.arange(1, 13, dtype=np.uint16)
    batch = collate([Example(ids, [(1, 12)], ("", 1))], pad_id=0)
    model = Perfect(torch.from_numpy(ids.astype(np.int64))[None], 61, ahead)
    loss, losses = Objective(model)(batch)
    assert len(losses) == batch.n_targets == 11
    assert (loss.item() / 11 < 1e-8) == low


def test_uniform_logits_cost_log_v():
    """A closed form: a model that knows nothing pays log V for every target."""
    model = toy_model()
    with torch.no_grad():
        model.tok.weight.zero_()
    batch = collate(toy_examples([6, 10]), pad_id=0)
    loss, losses = Objective(model)(batch)
    assert loss.item() == pytest.approx(batch.n_targets * math.log(61), rel=1e-12)
    assert losses.tolist() == pytest.approx([math.log(61)] * batch.n_targets, rel=1e-12)


def test_all_masked_batch_changes_nothing():
    """A micro-batch without targets gives 0 and zero gradients; PyTorch's mean over nothing would be NaN."""
    model = toy_model()
    batch = collate(toy_examples([5, 8]), pad_id=0)
    Objective(model)(batch)[0].backward()
    without = gradients(model)
    masked = replace(batch, targets=torch.full_like(batch.targets, IGNORE), scored=batch.scored[:0])
    loss, losses = Objective(model)(masked)
    loss.backward()
    assert loss.item() == 0.0 and len(losses) == 0
    assert torch.equal(gradients(model), without)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_division_into_micro_batches_changes_no_gradient(position):
    """Eight unequal rows as 8x1, 4x2 and 1x8 give equal gradients (means of micro-batch means would not)."""
    examples = toy_examples([4, 15, 7, 20, 9, 5, 31, 12])
    results = []
    for size in (1, 2, 4, 8):
        model = toy_model(position=position)
        batches = [collate(examples[i : i + size], pad_id=0) for i in range(0, 8, size)]
        n_targets = sum(batch.n_targets for batch in batches)
        for batch in batches:
            (Objective(model)(batch)[0] / n_targets).backward()
        results.append(gradients(model))
    assert max(difference(result, results[-1]) for result in results) < 1e-10


@pytest.mark.parametrize("pad_id", [0, 5, 60])
def test_padding_changes_nothing(pad_id):
    """The pad id, and how much of it there is, leave loss and gradients alone: masks go by position."""
    examples = toy_examples([5, 12])
    model = toy_model()
    Objective(model)(collate(examples, pad_id))[0].backward()
    padded = gradients(model)
    model.zero_grad()
    for example in examples:
        Objective(model)(collate([example], 0))[0].backward()
    assert difference(padded, gradients(model)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_is_in_fp32_under_autocast(dtype):
    """Logits of 8 bits would make losses of 8 bits: under autocast the losses stay fp32, near the exact ones."""
    model = toy_model(torch.float32)
    batch = collate(toy_examples([9, 12]), pad_id=0)
    exact = Objective(model)(batch)[1]
    with torch.autocast("cpu", dtype=dtype):
        _, losses = Objective(model)(batch)
    assert losses.dtype == torch.float32
    assert difference(losses, exact) < 0.02
