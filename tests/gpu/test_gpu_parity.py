"""Models and attention on a GPU: families against transformers, attention against its formula, with fused kernels."""

import contextlib

import pytest
import torch
from hf_models import CASES, T, V, reference
from runs import SHAPE
from test_attention import written_out
from toys import difference, toy_model

from gptft.attention import KVCache, Layout, attend, seen_keys
from gptft.formats.hf import load_hf


@pytest.mark.parametrize("case", CASES)
def test_families_are_transformers_in_fp32(device, tmp_path, case, record_property):
    """Logits and the gradient of the embedding, TF32 off: 1e-5, some hundred roundings of 6e-8 over a few layers."""
    theirs = reference(case, torch.float32, tmp_path).to(device)
    ours = load_hf(tmp_path, torch.float32).to(device)
    idx = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(1)).to(device)
    weight = torch.randn(3, T, V, generator=torch.Generator().manual_seed(2)).to(device)
    logits = [ours(idx), theirs(idx).logits]
    for each in logits:
        (each * weight).sum().backward()
    off = difference(*logits)
    off_gradient = difference(ours.tok.weight.grad, theirs.get_input_embeddings().weight.grad)
    record_property("logits differ by", off)
    record_property("gradient by", off_gradient)
    assert off < 1e-5
    assert off_gradient < 1e-5


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("case", CASES)
def test_families_are_as_near_to_fp32_in_bf16_as_transformers(device, tmp_path, case, autocast, record_property):
    """In bf16, by its weights or by autocast: both sides round, each in its order; ours may not be half as far again
    from fp32 as theirs."""
    theirs = reference(case, torch.float32, tmp_path).to(device)
    ours = load_hf(tmp_path, torch.float32).to(device)
    idx = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        exact = theirs(idx).logits
        if autocast:
            lowered = torch.autocast(device.type, torch.bfloat16)
        else:
            lowered, ours = contextlib.nullcontext(), ours.bfloat16()
            theirs = type(theirs).from_pretrained(tmp_path, dtype=torch.bfloat16).to(device)  # its tables stay in fp32
        with lowered:
            off, their_off = (difference(logits.float(), exact) for logits in (ours(idx), theirs(idx).logits))
    record_property("ours from fp32", off)
    record_property("theirs", their_off)
    assert off < 1.5 * their_off + 1e-3
    assert off < 0.1


def fused(device):
    """Only fused kernels: where none takes the arguments, torch raises."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION])


def heads(device, dtype, n_kv, S=77, B=3, nh=8, hs=64):
    g = torch.Generator().manual_seed(n_kv)
    return [torch.randn(B, n, S, hs, generator=g).to(device, dtype).requires_grad_() for n in (nh, n_kv, n_kv)]


ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of a result and of its gradients
DOCUMENTS = torch.tensor([0] * 30 + [1] * 40 + [2] * 7)
LAYOUTS = {  # a name: (sliding window, documents, whether the causal kernel does)
    "causal": (0, None, True),
    "window": (16, None, False),
    "long-window": (77, None, True),
    "packed": (0, DOCUMENTS, False),
    "packed-window": (16, DOCUMENTS, False),
}


@pytest.mark.parametrize("dtype", ROUNDING, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("n_kv", [8, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_in_training_is_its_formula_with_a_fused_kernel(device, name, n_kv, dtype, record_property):
    """Sliding windows and packed rows with grouped heads fell to the kernel that writes all scores out."""
    sliding_window, documents, causal = LAYOUTS[name]
    tensors = heads(device, dtype, n_kv)
    place = torch.arange(77)[None]
    doc = None if documents is None else documents[None]
    layout = Layout.of_rows(77, "cpu") if documents is None else Layout(place, doc)
    layout = layout.to(device)
    layout.make_masks({sliding_window}, dtype)
    with fused(device):
        out = attend(*tensors, layout, sliding_window=sliding_window)
        out.float().square().sum().backward()
    assert layout.is_causal(sliding_window) == causal

    exact = [x.detach().double().cpu().requires_grad_() for x in tensors]
    expected = written_out(*exact, seen_keys(place, place, sliding_window, doc))
    expected.square().sum().backward()
    off = difference(out.detach().double().cpu(), expected.detach())
    off_gradient = max(difference(x.grad.double().cpu(), y.grad) for x, y in zip(tensors, exact, strict=True))
    record_property("differs by", off)
    record_property("gradients by", off_gradient)
    assert off < ROUNDING[dtype]
    assert off_gradient < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("n_kv", [8, 2])
@pytest.mark.parametrize("sliding_window", [0, 16])
@pytest.mark.parametrize("lengths", [(70, 70, 70), (70, 33, 51)], ids=["even", "uneven"])
def test_attention_in_decoding_is_its_formula_with_a_fused_kernel(device, lengths, sliding_window, n_kv, dtype):
    """One query a row beside the cache, then three at once."""
    q, k, v = (x.detach() for x in heads(device, dtype, n_kv))
    cache = KVCache(1, 3, n_kv, 77, 64, device, dtype)
    cache.write(0, k[:, :, :70], v[:, :, :70], cache.begin(lengths))
    position, place = 70, [list(range(length)) for length in lengths]  # which tokens each row's cache holds, in order
    for count in (1, 3):
        new = slice(position, position + count)
        layout = cache.extend(count)
        layout.make_masks({sliding_window}, dtype)
        keys, values = cache.write(0, k[:, :, new], v[:, :, new], layout)
        with fused(device):
            out = attend(q[:, :, new], keys, values, layout, sliding_window=sliding_window)
        for row, held in enumerate(place):
            held += range(position, position + count)
            ends = torch.arange(len(held))
            visible = seen_keys(ends[None, -count:], ends[None], sliding_window)
            exact = [x[row : row + 1].double().cpu() for x in (q[:, :, new], k[:, :, held], v[:, :, held])]
            assert difference(out[row : row + 1].double().cpu(), written_out(*exact, visible)) < ROUNDING[dtype]
        position += count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_with_a_sliding_window_runs_on_fused_kernels(device, precision, record_property):
    """Forward and backward, layers with and without the window, grouped heads, norms of q and k; against masks made
    by hand in fp64."""
    shape = SHAPE | {"n_embd": 128, "n_head": 8, "window": 40, "full_layers": (1,), "qk_norm": True}
    model, exact = toy_model(torch.float32, **shape).to(device), toy_model(torch.float64, **shape)
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    idx = torch.randint(0, 331, (2, 200), generator=torch.Generator().manual_seed(3))
    with fused(device), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(idx.to(device))
        logits.float().square().mean().backward()
    expected = exact(idx)
    off = difference(logits.detach().double().cpu(), expected.detach())
    record_property("logits differ by", off)
    assert off < (1e-5 if precision == "fp32" else 0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
