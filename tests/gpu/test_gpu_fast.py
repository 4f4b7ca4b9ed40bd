"""What is for CUDA alone: flex attention in packed rows, decoding by recorded passes. Both have their arithmetic proven
on the CPU (tests/fast); here are the kernels and the records themselves."""

import numpy as np
import pytest
import torch
from runs import SHAPE, TO_BATCH, examples
from test_decoding import collect, random_prompts
from test_gpu_decoding import NEW, VARIANTS, V, narrowest_margins
from toys import difference, gradients, toy_model

from gptft.data.examples import Example
from gptft.decoding import decode_plain
from gptft.fast.continuous import decode_continuously
from gptft.fast.decoding_model import arranged
from gptft.fast.flex import in_blocks
from gptft.fast.packing import pack
from gptft.loss import Objective


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_flex_attention_learns_what_padded_rows_learn(cuda, variant, share, record_property):
    """fp32 without TF32: 1e-4, for the kernel sums in another order and takes exponents to the base of 2."""
    model = toy_model(torch.float32, 0, **(SHAPE | VARIANTS[variant])).to(cuda).train()
    beginning = np.arange(1, 11, dtype=np.uint16)
    rows = []
    for each in examples(12):
        [(start, end)], more = each.spans, len(beginning)
        rows.append(Example(np.concatenate((beginning, each.ids)), [(start + more, end + more)], each.record))
    packed = in_blocks(pack(TO_BATCH(rows), share))
    assert packed.layout.shared == (len(beginning) if share else 0)
    found = []
    for batch in (TO_BATCH(rows), packed):
        model.zero_grad(set_to_none=True)
        loss, _ = Objective(model)(batch.to(cuda))
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    off, off_gradient = (difference(b, a) for a, b in zip(*found, strict=True))
    record_property("loss differs by", off)
    record_property("gradient by", off_gradient)
    assert off < 1e-5
    assert off_gradient < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_recorded_passes_give_the_oracles_ids_wherever_the_margin_is_clear(cuda, variant, record_property):
    """A record that reads what was there when it was made gives the first tokens over and over."""
    model = toy_model(torch.float32, 1, **(SHAPE | VARIANTS[variant])).to(cuda)
    prompts = random_prompts([3, 9, 1, 14, 6, 40], V)
    recorded, compared = arranged(model, "graph"), 0
    answers: list[list[int]] = [[] for _ in prompts]
    for pairs in decode_continuously(recorded, prompts, NEW, (), V, rows=4):
        for n, token in pairs:
            answers[n].append(token)
    for prompt, *given in zip(prompts, answers, collect(recorded, prompts, NEW, (), V), strict=True):
        expected = decode_plain(model, prompt, NEW, (), V)
        margins = narrowest_margins(model, prompt, expected)
        clear = next((n for n, margin in enumerate(margins) if margin <= 1e-4), NEW)
        compared += clear
        for answer in given:
            assert answer[:clear] == expected[:clear]
    record_property("passes recorded", len(recorded.passes))
    record_property("tokens compared", compared)
    assert recorded.passes
    assert compared > 0.9 * len(prompts) * NEW
