"""Frozen layers in fewer bits: what rounding costs, and that no copies are made of them."""

import weakref

import pytest
import torch
from allocations import Allocations
from torch import nn
from torch.nn import functional as F
from toys import difference, toy_model

import gptft.adapters.frozen
from gptft.adapters.frozen import HalfLinear, Int8Linear, dense, freeze_layers_as, kind_for, linear_layers
from gptft.adapters.lora import LoraConfig, adapters_of, add_lora, merge_lora
from gptft.config import Config
from gptft.device import Precision
from gptft.errors import UserError

CPU = torch.device("cpu")


def test_int8_is_off_by_half_a_step_at_most():
    """A scale for the whole matrix, or a floor in place of rounding, is off by more; a row of zeros gave NaN."""
    torch.manual_seed(0)
    layer = nn.Linear(300, 40)
    with torch.no_grad():
        layer.weight *= torch.logspace(-3, 3, 40)[:, None]  # rows of very unequal size
        layer.weight[7] = 0.0
        layer.weight[8, 0] = -5e3
    held = Int8Linear(layer)
    assert held.q.dtype == torch.int8 and held.q.shape == (40, 300)
    error = (dense(held, torch.float32) - layer.weight).abs()
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert (error <= step / 2 * (1 + 1e-4)).all()
    assert (error > step / 4).float().mean() > 0.3  # rounding errors, spread evenly over half a step
    assert held.q.abs().amax() == 127 and not held.q[7].any() and (held.scale > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_products_and_gradients_are_those_of_the_rounded_weights(dtype):
    """The scale belongs to the outputs going forward and to the gradients going back."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 10)
    layer.weight.data *= torch.logspace(-2, 2, 10)[:, None]
    held = Int8Linear(layer)
    weight = dense(held, torch.float64)
    x = torch.randn(3, 5, 24).to(dtype).requires_grad_()
    upstream = torch.randn(3, 5, 10).to(dtype)
    y = held(x)
    y.backward(upstream)
    limit = {torch.float64: 1e-7, torch.float32: 1e-6}.get(dtype, 5e-3)  # the scales are fp32
    assert y.dtype == x.grad.dtype == dtype
    assert difference(y.double(), x.double() @ weight.T + layer.bias) < limit
    assert difference(x.grad.double(), upstream.double() @ weight) < limit


def test_fp16_does_not_overflow_on_whole_numbers():
    """x q^T before the scale would be far beyond 65504."""
    layer = nn.Linear(1000, 3, bias=False)
    layer.weight.data.fill_(0.01)
    y = Int8Linear(layer)(torch.full((2, 1000), 8.0, dtype=torch.float16))
    assert torch.allclose(y.float(), torch.full((2, 3), 80.0), rtol=2e-3)


def test_an_int8_base_keeps_no_wide_copy_for_backward():
    """Plain autograd saves the dequantised weights of every layer: more memory than was saved by 8 bits."""
    held, saved = Int8Linear(nn.Linear(24, 10)), []

    def pack(tensor):
        saved.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held(torch.randn(5, 24, requires_grad=True))
    assert (torch.int8, (10, 24)) in saved
    assert all(dtype == torch.int8 for dtype, shape in saved if shape == (10, 24))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_16_bits_are_never_cast(dtype, precision, monkeypatch):
    """Under fp16's autocast those in bf16 were, to fp16 at each use: a copy of every layer in every pass."""
    monkeypatch.setattr(gptft.adapters.frozen, "cpu_has_bf16", lambda: True)
    layer, x = HalfLinear(nn.Linear(256, 128), dtype), torch.randn(2, 256, requires_grad=True)
    with Allocations() as made:
        with Precision(precision, CPU).autocast():
            y = layer(x)
        y.float().sum().backward()
    assert y.dtype == Precision(precision, CPU).dtype
    assert max(made.sizes) < layer.weight.nbytes / 10
    assert difference(y.float(), x @ layer.weight.float().T + layer.bias.float()) < 0.01


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_processor_without_bf16_multiplies_in_fp32_and_rounds_as_one_that_has_it(monkeypatch, with_bias):
    """Emulated, a frozen layer of GPT-2's size in bf16 took some eighty times as long, forward and backward. The
    wide weights are gone after the product: kept for the backward pass, they would take twice what fp32 takes."""
    torch.manual_seed(0)
    layer = HalfLinear(nn.Linear(96, 40, bias=with_bias))
    x, upstream, outcomes, saved = torch.randn(2, 5, 96), torch.randn(2, 5, 40), {}, []
    for native in (True, False):
        monkeypatch.setattr(gptft.adapters.frozen, "cpu_has_bf16", lambda native=native: native)
        given = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            y = layer(given)
        y.backward(upstream)
        outcomes[native] = y.detach(), given.grad
    assert not any(tensor.dtype == torch.float32 and tensor.numel() == 40 * 96 for tensor in saved)
    for emulated, widened in zip(*(outcomes[native] for native in (True, False)), strict=True):
        assert widened.dtype == torch.float32 and difference(widened, emulated) < 2e-3  # sums in another order
        assert torch.equal(widened, widened.bfloat16().float())
    asked = []
    monkeypatch.setattr(F, "linear", lambda x, *rest: asked.append(x.dtype) or torch.zeros(40))
    layer(x)
    assert asked == [torch.float32]


def test_16_bits_are_those_of_the_products():
    """bf16 keeps 8 bits of a number where fp16 keeps 11: a base for fp16's products that went through bf16 has lost
    eight times more than it had to."""
    from gptft.finetuning import add_adapters
    from gptft.tokenizer import embedded

    exact = toy_model(torch.float32)
    errors = {}
    for precision, kind in (("bf16", "bf16"), ("fp16", "fp16")):
        model = toy_model(torch.float32)
        config = Config(lora_rank=2, lora_base="bf16", precision=precision, device="cpu", init="toy")
        add_adapters(config, model, embedded())
        assert adapters_of(model).frozen_as == kind
        pairs = zip(linear_layers(model), linear_layers(exact), strict=True)
        errors[kind] = max(difference(dense(ours.base, torch.float32), its.weight) for (*_, ours), (*_, its) in pairs)
        with pytest.raises(UserError, match=f"held in {kind}: adapters are merged into exact weights"):
            merge_lora(model)
    assert errors["fp16"] < errors["bf16"] / 6
    assert {kind: kind_for(kind, "fp16") for kind in ("fp32", "int8")} == {"fp32": "fp32", "int8": "int8"}


@pytest.mark.parametrize("number", [7e4, -1e30, float("nan")])
def test_numbers_beyond_fp16_are_refused_by_layer(number):
    """As infinities they would make every loss a nan. The model is left as it was."""
    model = toy_model(torch.float32)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 4] = number
    with pytest.raises(UserError, match=r"blocks.1.mlp.up holds numbers beyond fp16's 65504.*--lora_base int8 or fp32"):
        add_lora(model, LoraConfig(4), frozen_as="fp16")
    assert all(p.requires_grad for p in model.parameters()) and adapters_of(model) is None
    assert all(type(layer) is nn.Linear for _, _, _, layer in linear_layers(model))


@pytest.mark.parametrize("kind", ["bf16", "fp16", "int8"])
def test_no_more_than_one_layer_is_there_twice(monkeypatch, kind):
    """Layers that stay alive until the last is frozen would take half as much again as the model."""
    seen, most = [], [0]
    for name in ("HalfLinear", "Int8Linear"):

        class Watching(getattr(gptft.adapters.frozen, name)):
            def __init__(self, layer, **options):
                seen.append(weakref.ref(layer))
                most[0] = max(most[0], sum(each() is not None for each in seen))
                super().__init__(layer, **options)

        monkeypatch.setattr(gptft.adapters.frozen, name, Watching)
    freeze_layers_as(toy_model(torch.float32), kind)
    assert len(seen) == 12 and most[0] <= 2
