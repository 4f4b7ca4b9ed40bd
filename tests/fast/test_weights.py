"""A model arranged for decoding computes what the plain one does."""

import weakref

import pytest
import torch
from test_model import CountedNorm
from toys import difference, toy_model

from gptft.adapters.frozen import freeze_layers_as, in_int8
from gptft.adapters.lora import LoraConfig, add_lora, lora_state
from gptft.decoding import decode, decode_plain
from gptft.errors import UserError
from gptft.fast import decoding_model, weights
from gptft.fast.calibrate import available
from gptft.fast.continuous import decode_continuously
from gptft.fast.decoding_model import BEST, PASSES, DecodingModel, arranged
from gptft.fast.weights import KINDS, Apart
from gptft.generation import generate
from gptft.model import GPT, NORMS, weight_bytes
from gptft.tokenizer import embedded

GATED = {
    "norm": "rms",
    "gated_mlp": True,
    "activation": "silu",
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "n_kv_head": 2,
}
VARIANTS = {
    "learned": {"position": "learned"},
    "rotary": {},
    "one_kv_head": {"n_kv_head": 1},
    "gated": GATED,
    "untied": {**GATED, "tie_embeddings": False},
    "parallel": {"parallel_residual": True, "rope_fraction": 0.25, "activation": "gelu", "tie_embeddings": False},
    "qk_norm": {"qk_norm": True, "norm": "rms", "n_kv_head": 2},
    "qk_layer_norm": {"qk_norm": True},
    "sliding_window": {"window": 4, "full_layers": (1,)},
    "no_rope": {"no_rope_layers": (1,)},
    "llama_3": {"rope_original": 16, "rope_factor": 4.0},
}
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}
LENGTHS = [12, 9, 1, 7]


def random_idx(B, T):
    return torch.randint(0, 61, (B, T), generator=torch.Generator().manual_seed(1))


def passes(model, scored=True):
    """Hidden states and logits of every kind of pass: whole rows, prompts of unequal length into a cache with their
    last tokens scored, then tokens one by one and two at a time, in rows that have become even."""
    idx = random_idx(len(LENGTHS), 12)
    h = model.hidden(idx)
    found = [h, model.head(h), model.head(h[:, -1])]
    cache = model.new_cache(len(LENGTHS), 20)
    last = torch.tensor([row * 12 + n - 1 for row, n in enumerate(LENGTHS)])
    found.append(model.hidden(idx, cache.begin(LENGTHS), cache, scored=last))
    for T in (1, 2, 1):
        found.append(model.hidden(idx[:, :T], cache.extend(T), cache))
    cache.keep([1])
    found.append(model.hidden(idx[:1, :1], cache.extend(), cache))
    return [each.detach() for each in found]


def force(monkeypatch, layout):
    """Every weight in this layout, where its dtype and this processor have it, else in the last that they have."""

    def choose(shapes, dtype, rows):
        names = available(dtype)
        return dict.fromkeys(shapes, layout if layout in names else names[-1])

    monkeypatch.setattr(weights, "SMALL", 0)
    monkeypatch.setattr(weights, "choose", choose)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_arranged_it_gives_the_plain_models_numbers(variant, dtype):
    """A bias, a norm, a rotation or a window left out, q and k changed about, the heads of a group in another order."""
    model = toy_model(dtype, **VARIANTS[variant])
    fast = DecodingModel(model)
    assert fast.kind == "fp32" and fast.new_cache(1, 4).k.dtype == dtype
    for found, expected in zip(passes(fast), passes(model), strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        assert difference(found, expected) < LIMITS[dtype]


@pytest.mark.parametrize("layout", ["rows", "columns", "blocks"])
@pytest.mark.parametrize("variant", ["learned", "untied", "parallel"])
def test_every_layout_gives_the_plain_models_numbers(monkeypatch, variant, layout):
    """Whatever the machine finds fastest, the numbers are the same."""
    force(monkeypatch, layout)
    model = toy_model(torch.float32, **VARIANTS[variant])
    for found, expected in zip(passes(DecodingModel(model)), passes(model), strict=True):
        assert difference(found, expected) < 1e-5


@pytest.mark.parametrize("layout", ["plain", "last"])
@pytest.mark.parametrize("kind, limit", [("bf16", 1.5e-2), ("int8", 4e-2)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fewer_bits_lose_what_their_rounding_costs_and_no_more(monkeypatch, variant, kind, limit, layout):
    """Toys of two layers: bf16 is off by up to 1%, int8 by up to 3%. A scale forgotten or applied twice, a residual
    stream or a softmax in 8 bits would be off by more."""
    if layout == "last":
        force(monkeypatch, "blocks")
    model = toy_model(torch.float32, **VARIANTS[variant])
    fast = DecodingModel(model, kind)
    assert fast.kind == kind
    for found, expected in zip(passes(fast), passes(model), strict=True):
        assert found.dtype == torch.float32
        assert difference(found, expected) < limit
    assert max(difference(*each) for each in zip(passes(fast), passes(model), strict=True)) > 1e-3  # it is lowered


@pytest.mark.parametrize("layout", ["pieces", "packed"])
def test_each_weight_in_8_bits_is_off_by_half_a_step_of_its_channel_at_most(monkeypatch, layout):
    """Multiplied with a unit matrix a product gives its weights: those of q, k and v, each row with a scale of its
    own."""
    force(monkeypatch, layout)
    model = toy_model(torch.float32, qkv_bias=False)
    attn = model.blocks[0].attn
    with torch.no_grad():
        attn.k.weight *= torch.logspace(-3, 3, 32)[:, None]
        weight = torch.cat([attn.q.weight, attn.k.weight, attn.v.weight])
    found = DecodingModel(model, "int8").layers[0].qkv(torch.eye(32)).T
    step = weight.abs().amax(1, keepdim=True) / 127
    error = (found - weight).abs()
    assert (error <= step / 2 * (1 + 1e-4)).all() and (error > step / 4).float().mean() > 0.3


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_best_logits_are_those_of_the_heads_weights_as_they_are(kind, tied):
    """Rounded to bf16 the two best logits of a real model are equal after one token in fifty."""
    model = toy_model(torch.float32, tie_embeddings=tied)
    h = torch.randn(70, 32, generator=torch.Generator().manual_seed(2))  # more than are done at a time
    exact = model.head(h).detach()
    logits = DecodingModel(model, kind).head(h)
    top = logits.topk(BEST // 2)  # at the edge another may be taken for one of the best
    assert torch.allclose(top.values, exact.gather(1, top.indices), rtol=1e-5, atol=1e-5)
    assert 1e-3 < difference(logits, exact) < 2e-2  # the others are as the kind has them
    assert torch.equal(logits.argmax(1), exact.argmax(1))


HELD = ["fp32", "bf16", "int8"]
ADAPTERS = {
    "none": None,
    "lora": {"targets": ("all",)},
    "dora": {"targets": ("all",), "dora": True, "rslora": True},
    "some": {"targets": ("q", "v", "down"), "dora": True},
}


@pytest.mark.parametrize("adapters", ADAPTERS)
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("variant", ["learned", "gated"])
def test_adapters_and_frozen_layers_are_computed_as_the_plain_model_does(variant, held, adapters):
    """Merged into rounded weights an adapter is lost, and a layer in 16 bits rounds what it is given."""
    model = toy_model(torch.float32, **VARIANTS[variant])
    if ADAPTERS[adapters]:
        add_lora(model, LoraConfig(4, alpha=8.0, **ADAPTERS[adapters]), frozen_as=held)
        with torch.no_grad():
            for name, tensor in lora_state(model).items():
                noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()))
                tensor.mul_(1 + 0.2 * noise) if name.endswith(".m") else tensor.add_(0.2 * noise)
    else:
        freeze_layers_as(model, held)
    fast, expected = DecodingModel(model), passes(model)
    assert fast.kind == ("bf16" if held == "bf16" else "fp32")  # who asks for its rounding must hear of it
    # a sum in another order falls, now and then, on the other side between two numbers of bf16
    limit = 2e-3 if held == "bf16" else 1e-5
    assert max(map(difference, passes(fast), expected)) < limit
    for kind in ("bf16", "int8"):
        assert max(map(difference, passes(DecodingModel(model, kind)), expected)) < 0.1


@pytest.mark.parametrize("held", ["bf16", "int8"])
def test_an_adapter_that_rounding_would_swallow_stands_beside_frozen_weights(held):
    """W + BA rounded to W's own 8 or 16 bits is W, wherever BA is below half a step: all that was learned is gone."""
    model, bare = toy_model(torch.float32), toy_model(torch.float32)
    freeze_layers_as(bare, held)
    add_lora(model, LoraConfig(4, alpha=4.0, targets=("all",)), frozen_as=held)
    with torch.no_grad():
        for tensor in lora_state(model).values():
            tensor.normal_(0, 0.002, generator=torch.Generator().manual_seed(tensor.numel()))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    adapted, alone = (DecodingModel(each, held).layers[0].down for each in (model, bare))
    layer, x = model.blocks[0].mlp.down, torch.cat([x] * 4, 1)
    with torch.no_grad():
        learned = x @ layer.A.T @ layer.B.T
        assert difference(adapted(x) - alone(x), learned) < 0.05  # what is left of fp32's digits
    assert learned.abs().max() < 2**-9 * alone(x).abs().max()  # half a step of bf16


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_plain_loop(kind):
    """Cached, in batches and by continuous batching; what is lowered gives its own ids, whatever the batch."""
    for seed in range(3):
        model = toy_model(torch.float64 if kind == "fp32" else torch.float32, seed, **GATED)
        fast = DecodingModel(model, kind, rows=2)
        prompts = [random_idx(1, n)[0].tolist() for n in (3, 9, 1, 14, 6)]
        expected = [decode_plain(model if kind == "fp32" else fast, prompt, 12, (), 61) for prompt in prompts]
        for loop, options in ((decode, {}), (decode_continuously, {"rows": 2})):
            answers = [[] for _ in prompts]
            for pairs in loop(fast, prompts, 12, (), 61, **options):
                for row, token in pairs:
                    answers[row].append(token)
            if kind == "fp32":
                assert answers == expected
            else:  # a token may depend on the batch where two logits lie within rounding
                same = sum(a == b for a, b in zip(answers, expected, strict=True))
                assert same >= 3


def test_a_norm_of_ones_own_and_a_longer_text_than_the_block():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NORMS, "counted", CountedNorm)
        model = toy_model(norm="counted", qk_norm=True)
        for found, expected in zip(passes(DecodingModel(model)), passes(model), strict=True):
            assert difference(found, expected) < 1e-12
    with pytest.raises(UserError, match="33 tokens are more than the model's block_size 32"):
        DecodingModel(toy_model()).hidden(random_idx(1, 33))


def test_the_model_is_left_as_it_was_unless_it_gives_its_weights_away():
    """It goes on training afterwards: same tensors, same strides, same mode, gradients asked for as before."""
    for kind in KINDS:
        model = toy_model(torch.float32).train()
        before = {name: (id(p), p.data_ptr(), p.stride(), p.clone()) for name, p in model.named_parameters()}
        fast = DecodingModel(model, kind)
        passes(fast)
        assert fast.eval() is fast.train(True) is fast and not fast.training and model.training
        for name, parameter in model.named_parameters():
            was = before[name]
            assert (id(parameter), parameter.data_ptr(), parameter.stride()) == was[:3] and parameter.requires_grad
            assert torch.equal(parameter, was[3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_taken_weights_are_nowhere_twice(monkeypatch, kind, tied):
    """A process that only generates would hold the model once as it was read and once as it is multiplied."""
    force(monkeypatch, "blocks")
    model = toy_model(torch.float32, **{**GATED, "tie_embeddings": tied})
    expected = passes(DecodingModel(model, kind))
    linear = {name: weakref.ref(p) for name, p in model.named_parameters() if p.dim() == 2 and "tok" not in name}
    fast = DecodingModel(model, kind, take=True)
    alive = {name for name, reference in linear.items() if reference() is not None}
    assert not alive and next(iter(model.parameters())) is not None  # the norms stay
    assert all(torch.equal(a, b) for a, b in zip(passes(fast), expected, strict=True))


def test_no_copy_is_held_where_it_does_not_pay(monkeypatch):
    """`copied_bytes` is what is held beside the model: where weights stay as they lie, only small ones are put together
    that are read together; in other layouts, and in fewer bits, all products have a copy."""
    model = toy_model(torch.float32, **GATED)
    n = {name: p.numel() for name, p in model.named_parameters() if p.dim() == 2}
    fused = sum(size for name, size in n.items() if name.split(".")[-2] in ("q", "k", "v", "gate", "up"))
    assert DecodingModel(model).copied_bytes == 4 * fused
    monkeypatch.setattr(weights, "LARGE", 0)
    fast = DecodingModel(model)
    assert fast.copied_bytes == 0 and isinstance(fast.layers[0].qkv, Apart)
    for found, expected in zip(passes(fast), passes(model), strict=True):
        assert difference(found, expected) < 1e-5
    assert DecodingModel(model, "bf16").copied_bytes == 2 * sum(n.values())
    assert DecodingModel(model, "int8").copied_bytes == sum(n.values())
    force(monkeypatch, "columns")
    assert DecodingModel(model).copied_bytes == 4 * sum(n.values())
    freeze_layers_as(model, "int8")  # it is multiplied as it is held
    monkeypatch.setattr(weights, "LARGE", 1 << 30)
    assert DecodingModel(model, "int8").copied_bytes == fused + n["tok.weight"]


class OtherModel(GPT):
    """As a model in parts is, of another class."""


def test_auto_never_lowers_and_takes_the_plain_model_where_it_must():
    """Fewer bits come by their name alone; and a hook, a layer of one's own or a model in parts is not passed by."""
    fp32 = toy_model(torch.float32)
    for dtype, kind in ((torch.float64, "fp32"), (torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        fast = arranged(toy_model(dtype))
        assert isinstance(fast, DecodingModel) and fast.kind == kind
        assert fast.stream == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert arranged(fast) is fast and arranged(fast, "plain") is fast
    assert arranged(fp32, "plain") is fp32
    for kind in KINDS:
        assert arranged(fp32, kind).kind == kind

    other = OtherModel(fp32.config)
    hooked = toy_model(torch.float32)
    hooked.blocks[1].mlp.register_forward_hook(lambda *_: None)
    strange = toy_model(torch.float32)
    strange.blocks[0].mlp.up = torch.nn.Sequential(strange.blocks[0].mlp.up)
    patched = toy_model(torch.float32)
    patched.hidden = lambda *_: None
    for model, why in ((other, "class"), (hooked, "hooks"), (strange, "layers"), (patched, "class")):
        assert arranged(model) is model
        with pytest.raises(UserError, match=f"decode 'int8': .*{why}.*; 'plain' takes it as it is"):
            arranged(model, "int8")
    with torch.autocast("cpu", torch.bfloat16):
        assert arranged(fp32) is fp32
    assert arranged(meta := fp32.to("meta")) is meta
    half = toy_model(torch.float32).half()
    assert arranged(half) is half
    with pytest.raises(UserError, match="decode must be one of auto, plain, fp32, bf16, int8, graph, not 'int4'"):
        arranged(toy_model(), "int4")


def test_auto_arranges_what_pays_in_time_and_memory(monkeypatch):
    """A copy of a large model for two tokens takes longer than the tokens; one that does not fit ends the run."""
    model = toy_model(torch.float32)
    monkeypatch.setattr(decoding_model, "SMALL", 0)
    assert arranged(model, passes=PASSES - 1) is model
    assert isinstance(arranged(model, passes=PASSES), DecodingModel)
    monkeypatch.setattr(decoding_model, "free_memory", lambda *_: 2 * weight_bytes(model))
    assert arranged(model) is model
    assert isinstance(arranged(model, "fp32"), DecodingModel)  # whoever asks for it gets it
    assert isinstance(arranged(model, take=True), DecodingModel)  # that is no copy
    monkeypatch.setattr(decoding_model, "free_memory", lambda *_: 2 * 49_000 + 10**6)
    frozen = freeze_layers_as(toy_model(torch.float32), "int8")
    assert arranged(frozen) is frozen  # in fp32 they take as long as they are
    assert arranged(frozen, "int8").kind == "int8"


def test_generate_decodes_as_it_is_told(monkeypatch):
    """The word reaches the weights, and what was trained goes on as it was."""
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=64).config, seed=1).train()
    told, make = [], DecodingModel.__init__
    monkeypatch.setattr(DecodingModel, "__init__", lambda *given: told.append(given[2:]) or make(*given))
    prompts = ["The dog", "One", "Two of them"]
    plain = generate(model, tokenizer, prompts, 6, raw=True, decode="plain")
    assert told == []
    assert generate(model, tokenizer, prompts, 6, raw=True) == plain
    assert generate(model, tokenizer, prompts, 6, raw=True, decode="fp32", batch_size=2) == plain
    assert generate(model, tokenizer, prompts, 6, raw=True, decode="fp32", lookup=True) == plain
    for kind in ("bf16", "int8"):
        assert len(generate(model, tokenizer, prompts, 6, raw=True, decode=kind)) == 3
    assert told == [
        (kind, rows, False) for kind, rows in (("fp32", 3), ("fp32", 2), ("fp32", 16), ("bf16", 3), ("int8", 3))
    ]
    assert model.training and type(model) is GPT
    with pytest.raises(UserError, match="decode must be one of"):
        generate(model, tokenizer, prompts, 6, raw=True, decode="fp8")


def test_in_8_bits_the_weights_are_those_of_frozen_layers():
    """One rounding in the house: what is trained beside 8 bits is what is decoded in 8 bits."""
    model, frozen = toy_model(torch.float32), freeze_layers_as(toy_model(torch.float32), "int8")
    a, b = (DecodingModel(each, "int8") for each in (model, frozen))
    assert all(torch.equal(x, y) for x, y in zip(passes(a), passes(b), strict=True))
    q, scale = in_int8(model.blocks[0].attn.out.weight.detach())
    found = a.layers[0].out(torch.eye(32)).T - model.blocks[0].attn.out.bias[:, None].detach()
    assert torch.allclose(found, q * scale[:, None], atol=1e-6)
