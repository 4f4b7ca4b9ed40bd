"""Models of each family as transformers makes them, for what is compared with it: toys with random weights, and the
configs of models on the hub."""

import pytest
import torch

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


def hf_gpt2(directory, dtype=torch.float32, seed=0, save=True, **changes):
    """A transformers GPT-2 with random weights, biases and norms included, saved to `directory`."""
    torch.manual_seed(seed)
    values = {"vocab_size": 97, "n_positions": 48, "n_embd": 32, "n_layer": 3, "n_head": 4}
    config = transformers.GPT2Config(
        **{**values, **changes}, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    if save:
        model.save_pretrained(directory)
    return model


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
