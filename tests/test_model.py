import math

import pytest
import torch
from toys import difference, toy_config, toy_model

from gptft.architecture import GPTConfig
from gptft.attention import Layout
from gptft.errors import UserError
from gptft.model import GPT, NORMS, flops_of_head, flops_per_token

VARIANTS = {
    "gpt2": {"position": "learned"},
    "rotary": {},
    "grouped": {"n_kv_head": 2},
    "one_kv_head": {"n_kv_head": 1},
    "rms_gated": {
        "norm": "rms",
        "gated_mlp": True,
        "activation": "silu",
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
    },
    "parallel": {"parallel_residual": True, "rope_fraction": 0.25, "activation": "gelu", "tie_embeddings": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_sees_nothing_after_it(name):
    """Causality: changing a later token leaves every earlier logit as it was."""
    model = toy_model(**VARIANTS[name])
    idx = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    changed = idx.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 61
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_rotary_logits_depend_on_order():
    """Without positions a bag of words would do: two orders of the same prefix must differ."""
    model = toy_model()
    first, second = torch.tensor([[5, 9, 7, 3]]), torch.tensor([[9, 5, 7, 3]])
    assert difference(model(first)[:, -1], model(second)[:, -1]) > 1e-3


def test_rotary_scores_depend_on_distance_alone():
    """Positions shifted by a constant change nothing (arXiv 2104.09864, section 3.1)."""
    model = toy_model(block_size=512)
    idx = torch.randint(0, 61, (1, 10), generator=torch.Generator().manual_seed(2))
    pos = torch.arange(10)[None]
    near, far = model(idx, Layout(pos)), model(idx, Layout(pos + 100))
    # fp32 angles of about 100 radians are right to about 1e-5; nothing else is rounded here
    assert difference(far, near) < 1e-4


def test_packed_documents_equal_those_alone():
    """Documents side by side in one row must not see each other, and each starts at position 0."""
    for variant in ("gpt2", "rotary", "grouped"):
        model = toy_model(**VARIANTS[variant])
        documents = [torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 9, 3)]
        pos = torch.cat([torch.arange(len(d)) for d in documents])[None]
        doc = torch.cat([torch.full((len(d),), n) for n, d in enumerate(documents)])[None]
        packed = model(torch.cat(documents)[None], Layout(pos, doc))[0]
        alone = torch.cat([model(d[None])[0] for d in documents])
        assert difference(packed, alone) < 1e-12


def test_initialisation_follows_its_table():
    """The standard deviations of the docstring of init_weights, and the same weights for the same seed."""
    model = GPT.create(toy_config(n_embd=256, n_layer=8, position="learned"), seed=3)
    weights = dict(model.named_parameters())
    assert weights["tok.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["blocks.0.attn.q.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.3.attn.out.weight", "blocks.3.mlp.down.weight"):
        assert weights[name].std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    assert all((p == 0).all() for name, p in weights.items() if name.endswith("bias"))
    assert all((p == 1).all() for name, p in weights.items() if "norm" in name and name.endswith("weight"))
    again = GPT.create(model.config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_weights_are_drawn_in_the_order_of_the_parameters():
    """A seed's weights are what they always were: runs that start from a preset are compared by them."""
    for changes in ({"position": "learned"}, {"norm": "rms", "qk_norm": True, "tie_embeddings": False}):
        model = GPT.create(toy_config(**changes), seed=5)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 / math.sqrt(4) if name.endswith(("attn.out.weight", "mlp.down.weight")) else 0.02
                assert torch.equal(parameter, torch.empty_like(parameter).normal_(0.0, std, generator=generator)), name


class CountedNorm(torch.nn.Module):
    """A norm that is nobody's: no scale of its own but one number, which starts at 3."""

    def __init__(self, size, eps):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.empty(1, 1))  # a matrix by its shape: no rule by `dim` would know it

    def reset_parameters(self):
        self.gain.fill_(3.0)

    def forward(self, x):
        return self.gain * x / x.norm(dim=-1, keepdim=True)


def test_another_norm_is_one_class_and_one_entry(monkeypatch):
    monkeypatch.setitem(NORMS, "counted", CountedNorm)
    model = GPT.create(toy_config(norm="counted", qk_norm=True))
    norms = [module for module in model.modules() if isinstance(module, CountedNorm)]
    assert len(norms) == 2 * 4 + 1  # per layer: two, and q's and k's; the last
    assert all(norm.gain.item() == 3.0 for norm in norms)
    assert model(torch.arange(9)[None]).isfinite().all()
    with pytest.raises(UserError, match=r"norm is 'batch', it must be one of \('layer', 'rms', 'counted'\)"):
        GPT.create(toy_config(norm="batch"))


def test_parameter_count_of_gpt2():
    """GPT-2 small has 124,439,808 parameters with its tied head, as transformers counts them."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768))
    assert model.n_parameters() == 124_439_808


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_agree_with_pytorchs_counter(name):
    """The stated FLOPs are those that PyTorch counts, with attention's causal half counted as the half it is."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, T = toy_model(dtype=torch.float32, **VARIANTS[name]), 24
    idx = torch.zeros(1, T, dtype=torch.long)
    # the counter knows the plain attention's products, not the fused CPU kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(idx)
    # the counter counts all T keys for every query, so the context is T here
    ours = T * (flops_per_token(model.config, T) + flops_of_head(model.config))
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_activation_checkpointing_changes_no_gradient():
    """Recomputed activations give the same gradients, dropout included: the random state is replayed."""
    results = []
    for on in (False, True):
        model = toy_model(dtype=torch.float64).train()
        model.set_dropout(0.2)
        model.checkpoint_activations = on
        torch.manual_seed(0)
        model(torch.arange(20)[None]).square().mean().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def test_dropout_acts_in_training_alone():
    """Dropout > 0 must change training passes and no evaluation pass (nanoGPT's flash path once dropped in both)."""
    model = toy_model()
    model.set_dropout(0.5)
    idx = torch.arange(16)[None]
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def test_beyond_block_size_is_refused():
    with pytest.raises(UserError, match="33 tokens are more than the model's block_size 32"):
        toy_model()(torch.zeros(1, 33, dtype=torch.long))


def test_config_refuses_what_it_cannot_be():
    with pytest.raises(UserError, match="n_head 4 is no multiple of n_kv_head 3"):
        toy_config(n_kv_head=3)
    with pytest.raises(UserError, match="position is 'rotery'"):
        toy_config(position="rotery")
    with pytest.raises(UserError, match=r"x.json: unknown key 'n_layers'; did you mean 'n_layer'"):
        GPTConfig.from_dict({"n_layers": 3}, "x.json")


def test_state_dict_names_survive_compile():
    """`_orig_mod.` in saved names made other projects run from random weights: compiled blocks keep their names."""
    model = toy_model()
    names = list(model.state_dict())
    for block in model.blocks:
        block.compile()
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", VARIANTS)
def test_hidden_states_at_some_places_are_those_of_all(name):
    """The last block may skip the tokens that nobody asks for; the others' states do not change."""
    model = toy_model(**VARIANTS[name])
    idx = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(4))
    scored = torch.tensor([2, 5, 8, 9, 26])
    assert difference(model.hidden(idx, scored=scored), model.hidden(idx).flatten(0, 1)[scored]) < 1e-14
