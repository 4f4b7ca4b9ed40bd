"""The head and the loss in chunks against the plain path: the loss, the gradients, and what is never allocated."""

from functools import partial

import pytest
import torch
from allocations import Allocations
from torch import nn
from toys import Examples, difference, gradients, toy_examples, toy_model

from gptft.adapters.lora import LoraConfig, add_lora
from gptft.collate import collate
from gptft.config import Config
from gptft.device import Precision
from gptft.fast import head
from gptft.fast.choice import Choice
from gptft.fast.head import chunked_head_losses, chunked_losses
from gptft.fast.packing import pack
from gptft.loss import Objective, head_losses
from gptft.training import TrainState, train

CPU = torch.device("cpu")
C, V = 24, 301
SIZES = [1, 4, 5, 100]  # rows a chunk, of 13: one, several with a smaller last one, several, all
MODELS = {
    "gpt2": {"position": "learned", "qkv_bias": True, "mlp_bias": True, "out_bias": True},
    "llama": {"norm": "rms", "gated_mlp": True, "n_kv_head": 2, "qk_norm": True, "tie_embeddings": False},
    "neox": {"rope_fraction": 0.5, "parallel_residual": True, "tie_embeddings": False},
    "sliding window": {"window": 5, "full_layers": (1,), "n_kv_head": 1},
}


class Head(nn.Module):
    """As much of a model as `head_losses` looks at."""

    def __init__(self, weight):
        super().__init__()
        self.lm_head = nn.Linear(*reversed(weight.shape), bias=False)
        self.lm_head.weight = nn.Parameter(weight.clone())

    def head(self, h):
        return self.lm_head(h)


def numbers(n=13, dtype=torch.float64, seed=0):
    """h (n, C), weight (V, C), targets (n,)."""
    torch.manual_seed(seed)
    h, weight = torch.randn(n, C, dtype=torch.float64), torch.randn(V, C, dtype=torch.float64)
    return h.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), torch.randint(0, V, (n,))


def computed(losses, h, weight, targets, scale=1.0, bf16=False):
    """-> the sum, each loss, and the gradients of h and of the weight of `scale` times the sum."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total, each = losses(h, weight, targets)
    wanted = [x for x in (h, weight) if x.requires_grad]
    return total, each, *torch.autograd.grad(total * scale, wanted)


def plain(h, weight, targets):
    logits = nn.functional.linear(h, weight)
    each = nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )
    return each.sum(), each.detach()


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("scale", [1.0, 0.3, -700.0, 0.0])
def test_loss_and_gradients_are_those_of_the_plain_path(rows, scale):
    """In backward, all that forward made must be multiplied by what comes in: each chunk's part of it, and once."""
    given = numbers()
    found, expected = computed(partial(chunked_losses, rows=rows), *given, scale), computed(plain, *given, scale)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a, b) if not b.any() else difference(a, b) < 1e-14
    assert not found[1].requires_grad


@pytest.mark.parametrize("rows", SIZES)
def test_in_fp32_they_differ_in_last_bits(rows):
    given = numbers(dtype=torch.float32)
    for a, b in zip(
        computed(partial(chunked_losses, rows=rows), *given, 0.3), computed(plain, *given, 0.3), strict=True
    ):
        assert difference(a, b) < 1e-6


@pytest.mark.parametrize("rows", SIZES)
def test_under_autocast_they_differ_by_the_rounding_of_bf16(rows):
    """The losses are of the same products, and a sum in fp32: all but equal. Gradients are no further from the exact
    ones than the plain path's: summed over chunks in 16 bits they would be."""
    given = numbers(dtype=torch.float32)
    found = computed(partial(chunked_losses, rows=rows), *given, 0.3, bf16=True)
    expected = computed(plain, *given, 0.3, bf16=True)
    exact = computed(plain, *given, 0.3)
    assert difference(found[1], expected[1]) < 1e-6
    for a, b, c in zip(found[2:], expected[2:], exact[2:], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert difference(a, b) < 6e-3 and difference(a, c) < 1.2 * difference(b, c)


def test_logits_far_from_zero_do_not_overflow():
    h, weight, targets = numbers(dtype=torch.float32)
    found, expected = (computed(f, h * 100, weight, targets) for f in (chunked_losses, plain))
    assert all(torch.isfinite(x).all() for x in found) and difference(found[1], expected[1]) < 1e-6


@pytest.mark.parametrize("rows", [2, 100])
def test_gradients_are_those_of_finite_differences(rows):
    h, weight, targets = numbers(n=5)
    again = partial(Again.apply, targets, rows)  # gradcheck passes back twice, as a graph of several chunks cannot
    assert torch.autograd.gradcheck(again, (h, weight[:7].detach().requires_grad_()))


class Again(torch.autograd.Function):
    """`chunked_losses`, made anew in each backward pass."""

    @staticmethod
    def forward(ctx, targets, rows, h, weight):
        ctx.save_for_backward(h, weight)
        ctx.rest = targets % len(weight), rows
        return chunked_losses(h, weight, *ctx.rest)[0]

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            given = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            total, _ = chunked_losses(*given, *ctx.rest)
        return None, None, *torch.autograd.grad(total, given, grad)


def test_a_second_pass_over_a_graph_is_right_or_refused():
    """Of several chunks the first writes into what the second would read: it would be scaled twice, in silence."""
    h, weight, targets = numbers()
    total, _ = chunked_losses(h, weight, targets, rows=100)
    once, twice = (torch.autograd.grad(total, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    total, _ = chunked_losses(h, weight, targets, rows=4)
    torch.autograd.grad(total, weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, weight)


@pytest.mark.parametrize("bf16", [False, True])
def test_without_targets_loss_and_gradients_are_zero(bf16):
    """A rank whose micro-batch is empty takes part with gradients of 0, none of them missing and none a NaN."""
    total, each, *grads = computed(chunked_losses, *numbers(n=0, dtype=torch.float32), 2.0, bf16)
    assert total == 0 and each.shape == (0,) and [grad.shape for grad in grads] == [(0, C), (V, C)]
    assert not grads[1].any()
    with torch.no_grad():
        assert chunked_losses(*numbers(n=0))[0] == 0


@pytest.mark.parametrize("frozen", ["h", "weight", "both"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    h, weight, targets = numbers()
    h, weight = h.requires_grad_(frozen == "weight"), weight.requires_grad_(frozen == "h")
    if frozen == "both":
        total, each = chunked_losses(h, weight, targets, rows=4)
        assert not total.requires_grad and difference(each, plain(h, weight, targets)[1]) < 1e-14
        return
    found, expected = computed(partial(chunked_losses, rows=4), h, weight, targets), computed(plain, h, weight, targets)
    assert len(found) == 3 and difference(found[2], expected[2]) < 1e-14


def allocated(losses, h, weight, targets, bf16=False):
    """How many bytes each new tensor of a forward and a backward pass has, the largest first."""
    with Allocations() as made, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses(h, weight, targets)[0].mul(0.3).backward()
    return sorted(made.sizes, reverse=True)


@pytest.mark.parametrize("rows", [10, 100])
@pytest.mark.parametrize("bf16", [False, True])
def test_one_chunk_of_logits_is_made_and_one_gradient_of_the_weights_size(rows, bf16, monkeypatch):
    """The gradient of the weight is made once, and becomes `weight.grad` as it is: a reference that was kept to it
    would have autograd copy it. With autocast there is the weight in 16 bits beside it."""
    monkeypatch.setattr(head, "BLOCK", V)
    monkeypatch.setattr(head, "SLICE", C)
    h, weight, targets = numbers(n=100, dtype=torch.float32)
    of_weight, of_chunk = 4 * V * C, (2 if bf16 else 4) * V * rows
    sizes = allocated(partial(chunked_losses, rows=rows), h, weight, targets, bf16)
    expected = sorted([of_weight, of_chunk, *([of_weight // 2] if bf16 else [])], reverse=True)
    assert [n for n in sizes if n > h.nbytes] == [n for n in expected if n > h.nbytes]
    assert allocated(plain, h, weight, targets, bf16).count(4 * V * 100) > 1, "the plain path has logits of all rows"


def test_of_a_frozen_head_no_tensor_of_its_size_is_made():
    h, weight, targets = numbers(n=100, dtype=torch.float32)
    sizes = allocated(partial(chunked_losses, rows=10), h, weight.requires_grad_(False), targets)
    assert sizes[0] == 4 * V * 10 < 4 * V * C


def test_a_measurement_makes_one_chunk_of_logits_and_no_gradient():
    h, weight, targets = numbers(n=100, dtype=torch.float32)
    with torch.no_grad(), Allocations() as made:
        _, each = chunked_losses(h, weight, targets, rows=10)
    assert max(made.sizes) == 4 * V * 10 and difference(each, plain(h, weight, targets)[1]) < 1e-6


def test_a_chunk_has_as_many_rows_as_its_bytes_allow_and_no_fewer_than_pay(monkeypatch):
    h, weight, targets = numbers(n=100, dtype=torch.float32)
    monkeypatch.setattr(head, "LOGITS", 4 * V * 40)  # 40 rows: three chunks of 34, 34 and 32
    monkeypatch.setattr(head, "ROWS", 5)
    assert 4 * V * 34 in allocated(chunked_losses, h, weight, targets)
    monkeypatch.setattr(head, "LOGITS", 1)  # 5
    assert 4 * V * 5 in allocated(chunked_losses, h, weight, targets)


@pytest.mark.parametrize("shape", MODELS)
def test_a_models_gradient_is_that_of_the_plain_path(shape, monkeypatch):
    """Of a tied head the weight is the embedding's, which has a gradient of its own beside the head's."""
    monkeypatch.setattr(head, "LOGITS", 1)
    monkeypatch.setattr(head, "ROWS", 7)
    model = toy_model(**MODELS[shape])
    batch, found = collate(toy_examples([9, 14, 22, 5]), pad_id=0), []
    for losses in (head_losses, chunked_head_losses):
        loss, each = Objective(model, losses)(batch)
        (loss / 3).backward()
        found.append((loss, each, gradients(model)))
        model.zero_grad()
    assert all(difference(a, b) < 1e-13 for a, b in zip(found[1], found[0], strict=True))


def test_a_head_that_is_more_than_a_weight_takes_the_plain_path():
    """Someone's own layer in its place would be passed by."""

    class Doubled(nn.Linear):
        def forward(self, h):
            return 2 * super().forward(h)

    h, weight, targets = numbers()
    model = Head(weight.detach())
    ordinary = chunked_head_losses(model, h, targets)[0]
    model.lm_head = Doubled(C, V, bias=False, dtype=h.dtype)
    with torch.no_grad():
        model.lm_head.weight.copy_(weight / 2)
    assert difference(chunked_head_losses(model, h, targets)[0], ordinary) < 1e-14


def run(chunks, precision="fp32", lora=False, copies=False, dtype=torch.float64, **shape):
    """The losses of 20 steps, and the weights behind them."""
    model = toy_model(dtype, **shape).train()
    if lora:
        add_lora(model, LoraConfig(4), 0, None)
    config = Config(data=("x",), batch_size=3, grad_accum=2, max_steps=20, warmup_steps=0, lr=1e-3)
    precision = Precision(precision, CPU)
    optimizer, objective = Choice(None, False, copies, chunks).prepare(model, config, precision)
    examples = Examples(toy_examples([5, 9, 14, 7, 8, 22, 6, 11, 4]))
    state = TrainState(model, optimizer, precision)
    to_batch = partial(collate, pad_id=0)
    events = train(state, objective, config, examples, Examples(), lambda chosen: pack(to_batch(chosen), True, 0.0))
    losses = [event.loss for event in events]
    return losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("lora", [False, True])
def test_twenty_steps_are_those_of_the_plain_path(shape, lora, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", 1)
    monkeypatch.setattr(head, "ROWS", 7)
    (expected, weights), (found, chunked) = (run(chunks, lora=lora, **MODELS[shape]) for chunks in (False, True))
    assert found == pytest.approx(expected, rel=1e-10) and difference(chunked, weights) < 1e-8
    assert expected[-1] < expected[0], "nothing was learned"


@pytest.mark.parametrize("copies", [False, True])
def test_twenty_steps_in_bf16_have_the_losses_of_the_plain_path(copies, monkeypatch):
    """The layers of the blocks may have copies in 16 bits, which are another part of the objective."""
    monkeypatch.setattr(head, "LOGITS", 1)
    monkeypatch.setattr(head, "ROWS", 7)
    expected, found = (run(chunks, "bf16", copies=copies, dtype=torch.float32)[0] for chunks in (False, True))
    assert found == pytest.approx(expected, rel=5e-3)
