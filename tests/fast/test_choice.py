"""Which of the faster ways a run takes."""

import pytest
import torch

from gptft.config import Config
from gptft.errors import UserError
from gptft.fast import choice
from gptft.fast.choice import SAVING, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(**settings):
    return Config(**({"data": ("x",), "precision": "fp32"} | settings))


def chosen(device=CPU, **settings):
    choice = choose(config(**settings), device)
    return choice.packing, choice.share


def test_by_itself_a_run_takes_what_pays():
    assert chosen() == (SAVING, True)


def test_where_no_gain_was_seen_the_plain_path_stays():
    assert chosen(CUDA) == (None, False)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"fast": "off"}, (None, False)),
        ({"packing": "off"}, (None, False)),
        ({"share_prefix": "off"}, (SAVING, False)),
        ({"fast": "off", "packing": "on"}, (0.0, False)),
        ({"packing": "on"}, (0.0, True)),
        ({"share_prefix": "on"}, (0.0, True)),
        ({"packing": "off", "share_prefix": "on"}, (0.0, True)),
        ({"dropout": 0.1}, (SAVING, False)),
        ({"lora_rank": 4, "lora_dropout": 0.1}, (SAVING, False)),
        ({"compile": True}, (None, False)),
    ],
)
def test_what_is_asked_for_is_done(settings, expected):
    assert chosen(**settings) == expected


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"lora_rank": 4, "lora_dropout": 0.1}])
def test_sharing_with_dropout_is_refused_with_the_reason(settings):
    """Each example would have to drop the same: another model than was asked for."""
    with pytest.raises(UserError, match="--share_prefix: with dropout"):
        chosen(share_prefix="on", **settings)
    assert "no share_prefix: with dropout" in choose(config(**settings), CPU).describe()


def test_packing_with_compiled_blocks_is_refused_with_the_reason():
    with pytest.raises(UserError, match="--packing: with --compile"):
        chosen(packing="on", compile=True)


def test_it_is_said_what_was_chosen():
    assert choose(config(), CPU).describe() == (
        "fast: micro-batches are packed where that saves 10% of them; what their examples begin with alike is computed "
        "once; the head and the loss are computed some rows at a time"
    )
    assert choose(config(fast="off"), CPU).describe() == "fast: the plain path"


def copies(device=CPU, **settings):
    return choose(config(**({"precision": "bf16"} | settings)), device).copies


def test_copies_are_for_what_is_cast_otherwise():
    assert copies() and copies(fast="off", copies="on")
    assert not copies(copies="off") and not copies(fast="off") and not copies(CUDA, precision="bf16")
    assert copies(lora_rank=4) and copies(lora_rank=4, lora_base="int8", optimizer="adafactor")
    assert not copies(precision="fp32") and not copies(optimizer="adafactor") and not copies(compile=True)
    assert not copies(lora_rank=4, compile=True)


def test_frozen_weights_are_not_copied_where_memory_is_scarce(monkeypatch):
    """A model of which half the memory is full would have no room for its activations."""
    monkeypatch.setattr(choice, "free_memory", lambda device: 10e9)
    adapters = {"precision": "bf16", "lora_rank": 4}
    for settings, weights, copied in (({}, 8e9, True), ({}, 12e9, False), ({"lora_base": "bf16"}, 12e9, True)):
        assert choose(config(**adapters, **settings), CPU, 0, weights).copies == copied
    assert "no copies: they take half as much memory" in choose(config(**adapters), CPU, 0, 12e9).describe()
    assert choose(config(precision="bf16"), CPU, 0, 12e9).copies  # of trained weights: the rehearsal says


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"precision": "fp32"}, "they are for --precision bf16"),
        ({"optimizer": "adafactor"}, "AdamW's step"),
        ({"compile": True}, "--compile"),
    ],
)
def test_copies_that_cannot_be_are_refused_with_the_reason(settings, reason):
    with pytest.raises(UserError, match=f"--copies: .*{reason}"):
        copies(copies="on", **settings)


def test_what_an_ordinary_run_never_had_is_not_complained_of():
    """In fp32 there is nothing to copy, and a line about it would be noise."""
    assert "copies" not in choose(config(), CPU).describe()
    assert "no copies: they are made anew by AdamW's step" in (
        choose(config(optimizer="adafactor", precision="bf16"), CPU).describe()
    )


def test_the_head_is_computed_in_chunks_by_itself_on_the_cpu_and_elsewhere_when_asked_for():
    assert choose(config(), CPU).chunks and choose(config(compile=True, lora_rank=4), CPU).chunks
    assert choose(config(fast="off", chunk_head="on"), CPU).chunks and choose(config(chunk_head="on"), CUDA).chunks
    assert not choose(config(chunk_head="off"), CPU).chunks and not choose(config(fast="off"), CPU).chunks
    assert not choose(config(), CUDA).chunks


def test_in_fp16_the_head_in_chunks_is_refused_with_the_reason():
    """Its gradients are made before the scale that keeps small ones from being rounded to zero."""
    with pytest.raises(UserError, match="--chunk_head: in fp16 "):
        choose(config(chunk_head="on", precision="fp16"), CPU)
    found = choose(config(precision="fp16"), CPU)
    assert not found.chunks and "no chunk_head: in fp16" in found.describe()


def test_flex_attention_is_for_cuda_and_without_dropout():
    """It would crash in the first step, or train another model than was asked for."""
    assert choose(config(packing="flex"), CUDA).flex
    assert "micro-batches are packed, with flex attention" in choose(config(packing="flex"), CUDA).describe()
    assert not choose(config(packing="on"), CUDA).flex
    with pytest.raises(UserError, match="--packing flex: torch's flex attention has no gradient on cpu"):
        choose(config(packing="flex"), CPU)
    with pytest.raises(UserError, match="--packing flex: flex attention has no dropout"):
        choose(config(packing="flex", dropout=0.1), CUDA)
    with pytest.raises(UserError, match="--packing flex: with --compile"):
        choose(config(packing="flex", compile=True), CUDA)
