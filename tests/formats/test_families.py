"""Every family of models, compared with transformers on the same random weights, read from files that it wrote.

Differences are relative: the norm of the difference over the norm of the reference. In fp32 1e-5 is some hundred
roundings of 6e-8, over a few layers. In fp64 GPT-2 and GPT-NeoX leave only the order of summation, 1e-10; where the
reference computes RMSNorm in fp32 by design, fp64 stops at fp32's rounding, 1e-6.
"""

import json
import os

import pytest
import torch
from toys import difference

from gptft.architecture import PRESETS, GPTConfig
from gptft.decoding import decode
from gptft.errors import UserError
from gptft.formats.families import FAMILIES, all_places, config_from_hf, config_to_hf
from gptft.formats.hf import load_hf
from gptft.model import GPT

transformers = pytest.importorskip("transformers")

V, T = 97, 40
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
NEOX = {**SMALL, "intermediate_size": 128, "hidden_dropout": 0.0, "attention_dropout": 0.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# a name: the transformers classes, and what the config asks for; between them every option of every family
CASES = {
    "gpt2": ("GPT2", {"vocab_size": V, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "gpt2-untied": (
        "GPT2",
        {
            "vocab_size": V,
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
    ),
    "gpt2-inner": (
        "GPT2",
        {
            "vocab_size": V,
            "n_positions": 64,
            "n_embd": 28,
            "n_layer": 2,
            "n_head": 4,  # hs 7
            "n_inner": 52,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "pythia": ("GPTNeoX", {**NEOX, "rotary_pct": 0.25}),
    "neox-full-rotary": ("GPTNeoX", {**NEOX, "rotary_pct": 1.0, "use_parallel_residual": False}),
    "neox-tied": (
        "GPTNeoX",
        {
            **NEOX,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
            "attention_bias": False,
            "hidden_size": 40,
            "rotary_pct": 0.6,
            "layer_norm_eps": 1e-3,
        },
    ),  # hs 10, 6 rotated
    "llama2": ("Llama", {**SMALL, "rms_norm_eps": 1e-5}),
    "llama3-grouped": ("Llama", {**SMALL, "num_key_value_heads": 2, "rope_theta": 500000.0}),
    "llama3.2": (
        "Llama",
        {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 10, "rope_parameters": LLAMA3},
    ),
    "llama-biases": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**SMALL, "num_key_value_heads": 2, "sliding_window": 9}),
    "mistral-no-window": ("Mistral", {**SMALL, "num_key_value_heads": 2, "sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {**SMALL, "num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {**SMALL, "num_key_value_heads": 2, "head_dim": 14, "tie_word_embeddings": True}),
    "qwen3-window": (
        "Qwen3",
        {
            **SMALL,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "smollm2": (
        "Llama",
        {
            **SMALL,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 30,
            "tie_word_embeddings": True,
            "rope_theta": 100000.0,
        },
    ),
    "smollm3": ("SmolLM3", {**SMALL, "num_key_value_heads": 2}),
    "smollm3-window": (
        "SmolLM3",
        {
            **SMALL,
            "no_rope_layers": [1, 0, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": False,
        },
    ),
}
EXACT = ("GPT2", "GPTNeoX")  # computed in the precision of the weights throughout


def reference(case, dtype, directory):
    """transformers' model with random weights, biases and norms included, saved to `directory`."""
    name, values = CASES[case]
    values = dict(values)
    if name == "GPT2":
        values |= {"bos_token_id": 0, "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**values)
    head = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.save_pretrained(directory)
    return model


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


# as they stand in the hub's repositories, in the old spelling of the keys
HUB = {
    "EleutherAI/pythia-70m": (
        {
            "architectures": ["GPTNeoXForCausalLM"],
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "gelu",
            "hidden_size": 512,
            "initializer_range": 0.02,
            "intermediate_size": 2048,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neox",
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.24.0",
            "use_cache": True,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        },
        70_426_624,
    ),
    "meta-llama/Llama-2-7b-hf": (
        {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "meta-llama/Llama-3.2-1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 128000,
            "head_dim": 64,
            "eos_token_id": 128001,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        1_235_814_400,
    ),
    "mistralai/Mistral-7B-v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        7_241_732_096,
    ),
    "Qwen/Qwen2.5-0.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        494_032_768,
    ),
    "Qwen/Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        596_049_920,
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        },
        134_515_008,
    ),
}


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
