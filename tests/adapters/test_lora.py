"""Adapters: what they compute, what they leave alone, and what is left when they are merged."""

import copy
import dataclasses

import pytest
import torch
from allocations import Allocations
from torch import nn
from toys import difference, toy_config, toy_examples, toy_model

import gptft.adapters.frozen
from gptft.adapters.frozen import DENSE_AT_ONCE, HalfLinear, Int8Linear, dense, linear_layers
from gptft.adapters.lora import (
    LoraConfig,
    LoraLinear,
    adapters_of,
    add_lora,
    lora_state,
    merge_lora,
)
from gptft.collate import collate
from gptft.config import Config
from gptft.decoding import decode, decode_plain
from gptft.device import Precision
from gptft.errors import UserError
from gptft.loss import Objective
from gptft.model import GPT, count_parameters, flops_of_head, flops_per_token, training_flops, weight_bytes
from gptft.optim import make_optimizer

CPU = torch.device("cpu")
IDX = torch.arange(1, 31).view(2, 15)
KINDS = {
    "lora": {},
    "rslora": {"rslora": True, "rank": 9},
    "dora": {"dora": True},
    "dropout": {"dropout": 0.5},
    "everything": {"dora": True, "rslora": True, "dropout": 0.2, "targets": ("all",)},
    "attn": {"targets": ("attn",)},
    "mlp": {"targets": ("mlp",)},
    "q,v": {"targets": ("q", "v")},
    "down": {"targets": ("down",)},
}
SHAPES = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "gated": {
        "gated_mlp": True,
        "activation": "silu",
        "norm": "rms",
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "n_kv_head": 2,
        "tie_embeddings": False,
    },
    "learned": {"position": "learned"},
}


def settings(**changes) -> LoraConfig:
    return LoraConfig(**{"rank": 4, "alpha": 8.0, **changes})


def trained(model: GPT, seed=0) -> GPT:
    """Adapters as they may be after training: every part of them matters to the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in lora_state(model).items():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            tensor.mul_(1 + 0.2 * noise) if name.endswith(".m") else tensor.add_(0.2 * noise)
    return model


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def steps(model, n=3, precision="fp32", **changes):
    """A few steps of the real objective and optimizer."""
    config = Config(**{"lr": 1e-2, "weight_decay": 0.1, **changes})
    optimizer, objective, mode = make_optimizer(model, config), Objective(model), Precision(precision, CPU)
    batch = collate(toy_examples([9, 14, 5, 11]), 0)
    losses = []
    model.train()
    for _ in range(n):
        with mode.autocast():
            loss, _ = objective(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


# ---- the identity, and what is trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype, precision",
    [(torch.float64, "fp32"), (torch.float32, "fp32"), (torch.float32, "bf16"), (torch.bfloat16, "fp32")],
    ids=str,
)
def test_training_starts_from_exactly_the_model_that_was_given(kind, dtype, precision):
    """B random, or DoRA's norm computed in another way than its magnitude, would start from another model."""
    model = toy_model(dtype)
    with torch.no_grad(), Precision(precision, CPU).autocast():
        before = model(IDX)
        add_lora(model, settings(**KINDS[kind]))
        assert torch.equal(model(IDX), before)
        assert torch.equal(model.train()(IDX), before)  # the adapters' dropout concerns the adapters only


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["lora", "everything"])
@pytest.mark.parametrize("held", ["fp32", "bf16", "int8"])
def test_training_changes_the_adapters_and_nothing_else(checkpointed, kind, held):
    """Checkpointed blocks whose input needs no gradient have trained nothing elsewhere, and a frozen norm or
    embedding has moved."""
    model = add_lora(toy_model(torch.float32), settings(**KINDS[kind]), frozen_as=held)
    model.checkpoint_activations = checkpointed
    names, before = set(lora_state(model)), tensors(model)
    losses = steps(model, 4)
    assert losses[-1] < losses[0]
    for name, tensor in model.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (name in names), f"{name} {'moved' if moved else 'was not trained'}"


def test_checkpointing_gives_the_same_gradients():
    """Recomputed activations, the adapters' dropout among them, are those of the forward pass."""
    found = []
    for checkpointed in (False, True):
        model = trained(add_lora(toy_model(), settings(dropout=0.3, dora=True))).train()
        model.checkpoint_activations = checkpointed
        torch.manual_seed(5)
        loss, _ = Objective(model)(collate(toy_examples([9, 14, 5]), 0))
        loss.backward()
        found.append(torch.cat([tensor.grad.flatten() for tensor in lora_state(model).values()]))
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert difference(*found) < 1e-12


def test_the_optimizer_holds_adapters_only():
    """State for frozen weights would cost the memory that LoRA saves; DoRA's magnitudes are vectors: no decay."""
    model = add_lora(toy_model(torch.float32), settings(dora=True))
    decayed, vectors = make_optimizer(model, Config(weight_decay=0.1)).param_groups
    state = lora_state(model)
    assert {id(p) for p in decayed["params"]} == {id(t) for name, t in state.items() if name[-1] in "AB"}
    assert {id(p) for p in vectors["params"]} == {id(t) for name, t in state.items() if name[-1] == "m"}
    assert (decayed["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert len(make_optimizer(add_lora(toy_model(), settings()), Config()).param_groups) == 1


def test_the_models_dropout_does_not_overwrite_the_adapters():
    """`set_dropout` sets every nn.Dropout to the run's --dropout; the adapters have a probability of their own."""
    model = trained(add_lora(toy_model(), settings(dropout=0.5))).train()
    model.set_dropout(0.0)
    torch.manual_seed(0)
    assert not torch.equal(model(IDX), model(IDX))
    assert torch.equal(model.eval()(IDX), model(IDX))
    plain = trained(add_lora(toy_model(), settings())).train()
    plain.set_dropout(0.0)
    assert torch.equal(plain(IDX), plain.eval()(IDX))


def test_a_seed_decides_the_adapters():
    first, same, other = (add_lora(toy_model(), settings(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.blocks[0].attn.q.A, other.blocks[0].attn.q.A)


# ---- what they compute


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(kind, bias):
    """The in-place sum, the scale folded into B and DoRA's norm without the full product against W + sBA written out;
    autograd on one and the other."""
    torch.manual_seed(1)
    config = settings(**KINDS[kind])
    plain = nn.Linear(7, 5, bias=bias, dtype=torch.float64).requires_grad_(False)
    layer = LoraLinear(plain, config, torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.B.normal_()
        if layer.m is not None:
            layer.m.mul_(1.3)
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 5, dtype=torch.float64)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    scale = 8.0 / (3.0 if config.rslora else 4.0)
    weight = plain.weight + scale * layer.B @ layer.A
    if config.dora:
        weight = (layer.m / torch.linalg.norm(weight, dim=1).detach())[:, None] * weight
    expected = x @ weight.T + (plain.bias if bias else 0.0)
    y = layer(x)
    assert difference(y, expected) < 1e-14
    gradients = torch.autograd.grad(y, wanted, upstream)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, wanted, upstream), strict=True):
        assert difference(ours, theirs) < 1e-13


def peft_twin(kind):
    """A toy Llama of ours, and the same under transformers and PEFT, with the same adapters."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = settings(**KINDS[kind])
    ours = toy_model(**SHAPES["gated"])
    llama = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(llama).double().eval()
    names = {
        "tok.": "model.embed_tokens.",
        "blocks.": "model.layers.",
        "attn.out": "attn.o",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }

    def rename(name):
        for our_part, their_part in names.items():
            name = name.replace(our_part, their_part)
        for letter in "qkvo":
            name = name.replace(f"attn.{letter}", f"self_attn.{letter}_proj")
        return "model.norm.weight" if name == "norm.weight" else name

    theirs.load_state_dict({rename(name): tensor for name, tensor in ours.state_dict().items()})
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = (
        peft.get_peft_model(
            theirs,
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=layers,
                use_rslora=config.rslora,
                use_dora=config.dora,
            ),
        )
        .double()
        .eval()
    )
    trained(add_lora(ours, config))
    pairs = {}
    parameters = dict(theirs.named_parameters())
    for name, tensor in lora_state(ours).items():
        layer, part = name.rsplit(".", 1)
        where = {
            "A": "lora_A.default.weight",
            "B": "lora_B.default.weight",
            "m": "lora_magnitude_vector.default.weight",
        }[part]
        pairs[name] = parameters["base_model.model." + rename(layer + ".") + where]
        with torch.no_grad():
            pairs[name].copy_(tensor)
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    return ours, theirs, pairs


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_logits_and_gradients_are_those_of_peft(kind):
    """Another scale, or another norm in DoRA, trains all the same and cannot be told by the loss."""
    ours, theirs, pairs = peft_twin(kind)
    logits, expected = ours(IDX), theirs(IDX).logits
    assert difference(logits, expected) < 1e-6  # their rotary tables are cast, so not 1e-10
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (logits * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for name, tensor in lora_state(ours).items():
        assert difference(tensor.grad, pairs[name].grad) < 1e-5, name


def test_adapters_begin_as_pefts_do():
    """A is uniform within 1/sqrt(in), as kaiming_uniform_(a=sqrt(5)) draws it."""
    A = add_lora(toy_model(), settings(rank=32)).blocks[0].mlp.down.A.detach()
    reference = nn.init.kaiming_uniform_(torch.empty(A.shape), a=5**0.5)
    assert A.abs().max().item() == pytest.approx(A.size(1) ** -0.5, rel=0.01)
    assert A.std().item() == pytest.approx(reference.std().item(), rel=0.05)


# ---- merging


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged(kind, shape):
    """In fp64: the merged model is an ordinary one that computes the same, and only the targets changed."""
    model = toy_model(**SHAPES[shape])
    before, config = tensors(model), settings(**KINDS[kind])
    trained(add_lora(model, config))
    expected, layers = model(IDX), config.layers()
    assert difference(model(IDX), toy_model(**SHAPES[shape])(IDX)) > 1e-3
    assert merge_lora(model) is model
    assert difference(model(IDX), expected) < 1e-10
    assert adapters_of(model) is None and not any(isinstance(m, LoraLinear) for m in model.modules())
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in after.items():
        path = name.removesuffix(".weight")
        changed = name.endswith(".weight") and "norm" not in path and path.split(".")[-1] in layers
        assert torch.equal(tensor, before[name]) != changed, name
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged_in_fp32(kind):
    model = trained(add_lora(toy_model(torch.float32), settings(**KINDS[kind])))
    expected = model(IDX)
    assert difference(merge_lora(model)(IDX), expected) < 1e-5


def test_merging_twice_is_merging_once():
    """Elsewhere every further merge added to the weights, or to the norms, again."""
    model = merge_lora(trained(add_lora(toy_model(), settings(dora=True))))
    once = tensors(model)
    merge_lora(merge_lora(model))
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_tied_embeddings_survive_merging():
    """Elsewhere a merge into the head changed the embedding, or untied the two."""
    model = toy_model()
    embedding = model.tok.weight.clone()
    merge_lora(trained(add_lora(model, settings(targets=("all",)))))
    assert model.lm_head is None and torch.equal(model.tok.weight, embedding)
    h = torch.randn(3, 32, dtype=torch.float64)
    assert torch.equal(model.head(h), h @ embedding.T)


@pytest.mark.parametrize("held", ["bf16", "int8"])
def test_rounded_weights_are_not_merged_into(held):
    """Merging into quantised weights has ruined models: the rounding would be kept for good."""
    model = add_lora(toy_model(torch.float32), settings(), frozen_as=held)
    with pytest.raises(
        UserError, match=f"held in {held}: adapters are merged into exact weights; `python -m gptft mer"
    ):
        merge_lora(model)
    assert adapters_of(model)


def test_a_model_of_bf16_stays_one_when_merged():
    """The sum is rounded once; a layer of another dtype than its neighbours would fail at the next product."""
    model = trained(add_lora(toy_model(torch.bfloat16), settings()))
    exact = {
        path: dense(layer.base, torch.float32) + 2.0 * layer.B @ layer.A for path, _, _, layer in linear_layers(model)
    }
    merge_lora(model)
    for path, _, _, layer in linear_layers(model):
        assert torch.equal(layer.weight, exact[path].bfloat16())
    assert model(IDX).dtype == torch.bfloat16


# ---- the frozen weights


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("held", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_goes_with_every_way_to_hold_the_base(kind, held, precision):
    """Products of unequal dtypes crash, with or without autocast, in training or with the cache; or silently give
    another dtype than an ordinary layer would."""
    model = trained(add_lora(toy_model(torch.float32), settings(**KINDS[kind], targets=("attn",)), frozen_as=held))
    reference = trained(add_lora(toy_model(torch.float32), settings(**KINDS[kind], targets=("attn",))))
    with Precision(precision, CPU).autocast():
        logits = model(IDX)
        assert logits.dtype == toy_model(torch.float32)(IDX).dtype
    exact = held == precision == "fp32"
    assert difference(logits.float(), reference(IDX)) <= (0 if exact else 0.04)
    assert {tensor.dtype for tensor in lora_state(model).values()} == {torch.float32}
    if precision != "fp16":
        losses = steps(model, 4, precision)
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "held, dtype",
    [("fp32", torch.float64), ("bf16", torch.float32), ("int8", torch.float32), ("fp32", torch.bfloat16)],
    ids=str,
)
def test_adapters_generate_with_and_without_the_cache(held, dtype):
    """The cache's dtype, one-token inputs and the pruned last block go through the adapters too."""
    model = trained(add_lora(toy_model(dtype), settings(dora=True), frozen_as=held))
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6], [5]]
    together: list[list[int]] = [[] for _ in prompts]
    for pairs in decode(model, prompts, 6, {0}, 61):
        for row, token in pairs:
            together[row].append(token)
    assert all(together) and len({tuple(ids) for ids in together}) > 1
    if dtype != torch.bfloat16:  # there two logits may be equal after rounding
        assert together == [decode_plain(model, prompt, 6, {0}, 61) for prompt in prompts]


def test_the_frozen_weights_take_less_memory():
    """`lora_base` that only rounds, and holds what it rounded in fp32, saves nothing."""
    sizes = {}
    for held in ("fp32", "bf16", "int8"):
        model = add_lora(toy_model(torch.float32), settings(), frozen_as=held)
        assert count_parameters(model) == count_parameters(add_lora(toy_model(torch.float32), settings()))
        sizes[held] = weight_bytes(model) - weight_bytes(toy_model(torch.float32))
        kinds = {type(layer.base) for _, _, _, layer in linear_layers(model)}
        assert kinds == {{"fp32": nn.Linear, "bf16": HalfLinear, "int8": Int8Linear}[held]}
    n_weights = 2 * (4 * 32 * 32 + 2 * 4 * 32 * 32)
    assert sizes["fp32"] - sizes["bf16"] >= 2 * n_weights
    assert sizes["fp32"] - sizes["int8"] >= 2.8 * n_weights  # a scale a row of 32 weights is an eighth of a byte each


def test_small_steps_are_not_swallowed_by_a_bf16_base():
    """Adapters in the base's bf16 would not move at a small learning rate: 0.1 + 1e-6 is 0.1 in 8 bits."""
    model = add_lora(toy_model(torch.float32), settings(), frozen_as="bf16")
    before = {name: tensor.detach().clone() for name, tensor in lora_state(model).items()}
    steps(model, 3, "bf16", lr=1e-6, weight_decay=0.0)
    for name, tensor in lora_state(model).items():
        assert tensor.dtype == torch.float32
        assert (tensor != before[name]).float().mean() > 0.9, name


def test_bf16_training_follows_fp32():
    """The low-rank product in 8 bits of mantissa is close, and DoRA's gain near 1 is not rounded to 1."""
    losses = {}
    for held, precision in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "fp32")):
        model = add_lora(toy_model(torch.float32), settings(dora=True), frozen_as=held)
        losses[held] = steps(model, 10, precision, lr=3e-3)
    assert losses["fp32"][-1] < 0.9 * losses["fp32"][0]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["int8"] == pytest.approx(losses["fp32"], rel=0.02)


def test_a_magnitude_near_1_is_not_rounded_away():
    """In bf16 the next number after 1 is 1.0078: a gain of 1.003 applied as it is would be none at all."""
    layer = nn.Linear(16, 8, bias=False)
    adapted = LoraLinear(HalfLinear(layer), settings(dora=True), torch.Generator().manual_seed(0))
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    before = adapted(x).float()
    with torch.no_grad():
        adapted.m.mul_(1.003)
    assert (adapted(x).float() / before).mean().item() == pytest.approx(1.003, abs=5e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("held", ["fp32", "bf16", "int8"])
def test_dora_makes_no_dense_copy_of_the_frozen_weights(held, precision):
    """Its norm once took them at full width, twice over, in every forward pass: the memory that a base in fewer bits
    saves. A piece of them is at full width at a time."""
    n_out, n_in = 2048, 1024
    piece = 4 * DENSE_AT_ONCE
    assert piece < 4 * n_out * n_in
    largest = {}
    for kind in ("lora", "dora"):
        layer = {"fp32": lambda x: x, "bf16": HalfLinear, "int8": Int8Linear}[held](nn.Linear(n_in, n_out))
        layer = LoraLinear(layer.requires_grad_(False), settings(**KINDS[kind]), torch.Generator().manual_seed(0))
        x = torch.randn(3, n_in)
        with Allocations() as made:
            with Precision(precision, CPU).autocast():
                y = layer(x)
            y.sum().backward()
        largest[kind] = max(made.sizes)
    assert largest["dora"] <= max(largest["lora"], piece)
    if held == precision == "fp32":
        assert largest["dora"] < piece / 10


@pytest.mark.parametrize("held", ["bf16", "int8"])
def test_doras_norm_in_pieces_is_the_norm(monkeypatch, held):
    """Of whole weights and of pieces that do not divide them."""
    torch.manual_seed(0)
    frozen = {"bf16": HalfLinear, "int8": Int8Linear}[held](nn.Linear(40, 23))
    layer = LoraLinear(frozen, settings(dora=True), torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.B.normal_()
        weight = dense(frozen, torch.float64)
        expected = weight.norm(dim=1) / (weight + 2.0 * layer.B.double() @ layer.A.double()).norm(dim=1)
        for numbers in (1, 100, 1000):
            monkeypatch.setattr(gptft.adapters.frozen, "DENSE_AT_ONCE", numbers)
            assert difference(layer.gain().double(), expected) < 1e-6
            again = LoraLinear(frozen, settings(dora=True), torch.Generator().manual_seed(0))
            assert difference(again.squares, layer.squares) < 1e-6


# ---- targets, accounts, errors


def test_targets_are_what_they_say():
    for targets, wanted in (
        (("attn",), {"q", "k", "v", "out"}),
        (("mlp",), {"up", "down"}),
        (("all",), {"q", "k", "v", "out", "up", "down"}),
        (("q", "v"), {"q", "v"}),
        (("attn", "down"), {"q", "k", "v", "out", "down"}),
    ):
        model = add_lora(toy_model(), settings(targets=targets))
        assert {name for _, _, name, layer in linear_layers(model) if isinstance(layer, LoraLinear)} == wanted
    gated = add_lora(toy_model(**SHAPES["gated"]), settings(targets=("mlp",)))
    assert {name.split(".")[3] for name in lora_state(gated)} == {"gate", "up", "down"}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: settings(targets=("atn",)), r"lora: there is no target 'atn'; did you mean 'attn'\?"),
        (lambda: settings(rank=0), "rank must be at least 1"),
        (lambda: settings(alpha=0.0), "alpha above 0"),
        (lambda: settings(alpha=float("nan")), "alpha above 0"),
        (lambda: settings(dropout=1.0), "dropout from 0 to below 1"),
        (
            lambda: add_lora(toy_model(), settings(targets=("attn", "gate"))),
            "--lora_targets gate: this model has no such layer; it has down, k, out, q, up, v",
        ),
        (lambda: add_lora(add_lora(toy_model(), settings()), settings()), "has adapters already"),
    ],
)
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_refused_target_leaves_the_model_alone():
    model = toy_model()
    with pytest.raises(UserError):
        add_lora(model, settings(targets=("gate",)))
    assert all(p.requires_grad for p in model.parameters()) and adapters_of(model) is None


def test_parameters_are_counted_as_the_formula_counts_them():
    """r (in + out) a layer, and out more with DoRA; the frozen ones are counted once."""
    model = toy_model()
    whole = model.n_parameters()
    expected = 2 * (4 * 4 * (32 + 32) + 2 * 4 * (32 + 128) + 4 * 32 + 128 + 32)
    assert count_parameters(model) == (whole, whole)
    add_lora(model, settings(dora=True))
    assert count_parameters(model) == (expected, whole + expected)


def test_frozen_weights_cost_two_forward_passes():
    """Counted as three, a run with adapters would seem to compute faster than the machine can."""
    config = toy_config()
    model, lengths, n_targets = GPT.create(config), [10, 20], 7
    body = sum(length * flops_per_token(config, (length + 1) / 2) for length in lengths)
    assert training_flops(model, lengths, n_targets) == 3.0 * (body + n_targets * flops_of_head(config))
    add_lora(model, settings(rank=4, targets=("q",)))
    linear = 30 * 2 * 2 * (4 * 32 * 32 + 2 * 32 * 128)  # tokens, 2 FLOP, 2 layers
    attention = 2 * 4 * 32 * (10 * 5.5 + 20 * 10.5)
    adapters = 30 * 2 * 2 * 4 * (32 + 32)
    expected = 2 * (linear + n_targets * flops_of_head(config)) + 3 * (attention + adapters)
    assert training_flops(model, lengths, n_targets) == pytest.approx(expected)
    assert flops_per_token(config, 0) * 30 == linear


def test_a_copy_of_a_model_with_adapters_is_one():
    model = trained(add_lora(toy_model(), settings(dora=True)))
    other = copy.deepcopy(model)
    assert torch.equal(merge_lora(other)(IDX), merge_lora(model)(IDX))


def test_settings_survive_json():
    config = settings(targets=("q", "mlp"), dora=True)
    values = dataclasses.asdict(config)
    assert LoraConfig(**{**values, "targets": list(values["targets"])}) == config


@pytest.mark.parametrize("held", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_a_batch_without_targets_changes_nothing(held, dora):
    """With adapters too: nothing is asked of the last block, and a shape of (0, -1) once had two meanings."""
    model = add_lora(toy_model(torch.float32), LoraConfig(2, dora=dora), frozen_as=held).train()
    examples = [dataclasses.replace(example, spans=[]) for example in toy_examples([6, 4])]
    total, losses = Objective(model)(collate(examples, 0))
    total.backward()
    assert total.item() == 0 and not len(losses)
    assert all(p.grad is None or not p.grad.any() for p in lora_state(model).values())


def test_the_rank_is_below_the_width():
    with pytest.raises(UserError, match="--lora_rank 33 is above the model's width 32"):
        add_lora(toy_model(), LoraConfig(33))
