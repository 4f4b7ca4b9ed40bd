"""Every family of models, compared with transformers on the same random weights, read from files that it wrote.

Differences are relative: the norm of the difference over the norm of the reference. In fp32 1e-5 is some hundred
roundings of 6e-8, over a few layers. In fp64 GPT-2 and GPT-NeoX leave only the order of summation, 1e-10; where the
reference computes RMSNorm in fp32 by design, fp64 stops at fp32's rounding, 1e-6.
"""

import json
import os

import pytest
import torch
from hf_models import CASES, EXACT, HUB, LLAMA3, SMALL, T, V, reference
from toys import difference

from gptft.architecture import PRESETS, GPTConfig
from gptft.decoding import decode
from gptft.errors import UserError
from gptft.formats.families import FAMILIES, all_places, config_from_hf, config_to_hf
from gptft.formats.hf import load_hf
from gptft.model import GPT

transformers = pytest.importorskip("transformers")


def record(case, dtype, what, value):
    """For the README's table: `python -m benchmarks families` runs these tests with GPTFT_DIFFERENCES set."""
    if path := os.environ.get("GPTFT_DIFFERENCES"):
        with open(path, "a") as file:
            row = {"case": case, "dtype": str(dtype).removeprefix("torch."), "what": what, "difference": value}
            file.write(json.dumps(row) + "\n")
    return value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_logits_hidden_states_and_gradients_equal_transformers(tmp_path, case, dtype):
    """For each family: a wrong pairing of rotary channels, an approximated GELU, a window off by one, or heads
    mixed up in a fused matrix would be off by 1e-3 and more."""
    theirs = reference(case, dtype, tmp_path)
    ours = load_hf(tmp_path, dtype)
    limit = 1e-5 if dtype == torch.float32 else 1e-10 if CASES[case][0] in EXACT else 1e-6
    idx = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(1))
    layers = []
    for block in ours.blocks:
        block.register_forward_hook(lambda module, args, out: layers.append(out))
    out = theirs(idx, output_hidden_states=True)
    logits = ours(idx)
    layers[-1] = ours.norm(layers[-1])  # their last hidden state is behind the final norm
    assert len(layers) + 1 == len(out.hidden_states)
    for layer, (our_state, their_state) in enumerate(zip(layers, out.hidden_states[1:], strict=True)):
        assert record(case, dtype, "hidden states", difference(our_state, their_state)) < limit, f"layer {layer}"
    assert record(case, dtype, "logits", difference(logits, out.logits)) < limit

    weight = torch.randn(logits.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    (out.logits * weight).sum().backward()
    (logits * weight).sum().backward()
    gradients, parameters = {}, dict(theirs.named_parameters())
    family = FAMILIES[theirs.config.model_type]
    for place in all_places(family, ours.config):
        name = place.theirs if place.theirs in parameters else "lm_head.weight"  # GPT-NeoX's head
        gradients |= zip(place.ours, place.split(parameters[name].grad), strict=True)
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        if not name.endswith("attn.k.bias"):  # moves every score of a query alike: its gradient is 0 but for rounding
            found = difference(parameter.grad, gradients[name])
            assert record(case, dtype, "gradients", found) < limit, name


@pytest.mark.parametrize("case", CASES)
def test_generation_with_the_cache_gives_transformers_greedy_ids(tmp_path, case):
    """Two prompts of unequal length side by side, past the window, against each alone in transformers."""
    theirs = reference(case, torch.float64, tmp_path)
    ours = load_hf(tmp_path, torch.float64).eval()
    prompts = [list(range(5, 19)), [3, 50, 7]]
    found = [[], []]
    for pairs in decode(ours, prompts, 20, stops=(), n_vocab=V):
        for row, token in pairs:
            found[row].append(token)
    for prompt, ids in zip(prompts, found, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert ids == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_every_config_survives_the_way_out_and_in(tmp_path, case):
    """Export writes the config that import reads: no setting is lost on the way."""
    reference(case, torch.float32, tmp_path)
    config = load_hf(tmp_path, torch.float32).config
    family, hf = config_to_hf(config)
    assert config_from_hf(json.loads(json.dumps(hf)), "x") == config
    names = {name for place in all_places(family, config) for name in place.ours}
    with torch.device("meta"):
        assert names == dict(GPT(config).named_parameters()).keys()


def test_the_presets_are_models_that_transformers_has():
    """What is trained from scratch can be exported."""
    for values in PRESETS.values():
        assert config_to_hf(GPTConfig(vocab_size=300, **values))[0].model_type == "gpt_neox"


def test_an_architecture_of_no_family_is_not_exported():
    """An export that drops a setting would be a wrong model with a normal loss."""
    config = GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=1, n_embd=8, norm="rms")  # learned positions
    with pytest.raises(UserError, match="none that transformers has"):
        config_to_hf(config)


BASE = {**SMALL, "hidden_act": "silu"}


@pytest.mark.parametrize(
    "model_type, changes, message",
    [
        ("mixtral", {}, "model_type = 'mixtral' is not supported; supported: gpt2, gpt_neox, llama"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_scaling.rope_type = 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, r"rope_parameters.rope_type = 'dynamic'"),
        ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling.rope_type = 'linear'"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"hidden_act": "relu2"}, "hidden_act = 'relu2'"),
        ("llama", {"num_local_experts": 8}, "num_local_experts = 8"),
        ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config = "),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["chunked_attention"] * 4},
            "layer_types = 'chunked_attention'",
        ),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers must have a 0 or 1 for each of 4 layers"),
        ("llama", {"hidden_size": "32"}, "hidden_size must be a whole number above 0, not '32'"),
        ("llama", {"num_key_value_heads": 3}, "n_head 4 is no multiple of n_kv_head 3"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one set of values for all layers"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ("llama", {"num_key_value_heads": -1}, "num_key_value_heads must be a whole number, not -1"),
        ("llama", {"head_dim": -8}, "head_dim must be a whole number, not -8"),
        ("llama", {"hidden_size": 10**30}, "hidden_size must be a whole number above 0"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0, not nan"),
        ("llama", {"rope_theta": -5}, "rope_theta must be a number above 0, not -5"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act = "),
        ("llama", {"rope_scaling": {**LLAMA3, "factor": 0}}, "factor must be a number above 0, not 0"),
        ("gpt_neox", {"partial_rotary_factor": 3}, "partial_rotary_factor = 3.0 is not supported; only a share"),
        ("qwen3", {"layer_types": "x"}, "layer_types must have an entry for each of 4 layers, not 'x'"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers must be a whole number"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be a whole number above 0"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be a whole number above 0, not 0"),
        ("mistral", {"layer_types": 5}, "layer_types = 5 is not supported"),
        (["llama"], {}, r"model_type = \['llama'\] is not supported"),
    ],
)
def test_what_is_not_computed_is_refused(model_type, changes, message):
    """Refused, naming the key and its value; an ignored rope type gives a fluent model that forgets its context."""
    with pytest.raises(UserError, match=message):
        config_from_hf({"model_type": model_type, **BASE, **changes}, "config.json")


@pytest.mark.parametrize("hub_id", HUB)
def test_the_hubs_own_configs_give_models_of_the_published_size(hub_id):
    """Each config.json as the hub has it, and the number of weights that transformers makes of it."""
    hf, size = HUB[hub_id]
    config = config_from_hf(hf, hub_id)
    with torch.device("meta"):
        ours = GPT(config).n_parameters()
        kind = transformers.AutoConfig.for_model(**hf)
        theirs = transformers.AutoModelForCausalLM.from_config(kind)
    assert ours == sum(p.numel() for p in theirs.parameters()) == size


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    """Mistral's and Qwen's window is 4096 where the key is absent; a null means none. Other names of the tanh GELU."""
    for model_type, changes in (("mistral", {}), ("qwen2", {"use_sliding_window": True, "max_window_layers": 2})):
        assert config_from_hf({"model_type": model_type, **BASE, **changes}, "x").window == 4096
    assert config_from_hf({"model_type": "mistral", **BASE, "sliding_window": None}, "x").window == 0
    assert config_from_hf({"model_type": "gpt_neox", **BASE, "hidden_act": "gelu_fast"}, "x").activation == "gelu_tanh"
    config = config_from_hf({"model_type": "llama", **BASE, "hidden_act": "gelu_pytorch_tanh"}, "x")
    assert config_from_hf(config_to_hf(config)[1], "x") == config


def test_more_layers_than_tensors_are_refused_at_once(tmp_path):
    """A thousand million layers would be built for hours before the first tensor is missed."""
    reference("llama2", torch.float32, tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"num_hidden_layers": 10**9}, "1000000000 layers in config.json"),
        (
            {"vocab_size": 2**31 - 1},
            r"has shape \(97, 32\); the config asks for \(2147483647, 32\)",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **changes}))
        with pytest.raises(UserError, match=message):
            load_hf(tmp_path, torch.float32)
