"""Models of every architecture that GGUF files are written and read of: toys with all the tensors and settings."""

V, BLOCK = 32, 48
BASE = {"vocab_size": V, "block_size": BLOCK, "n_embd": 64, "n_head": 4}
LLAMA = {
    **BASE,
    "norm": "rms",
    "activation": "silu",
    "gated_mlp": True,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "n_inner": 96,
}
LLAMA3 = {"rope_theta": 500.0, "rope_factor": 8.0, "rope_low": 1.0, "rope_high": 4.0, "rope_original": 32}
# a name: llama.cpp's architecture and ours; between them every tensor and every setting that it has
CASES = {
    "gpt2": ("gpt2", {**BASE, "position": "learned"}),
    "gpt2-untied": ("gpt2", {**BASE, "position": "learned", "tie_embeddings": False, "n_inner": 96, "norm_eps": 1e-3}),
    "pythia": (
        "gptneox",
        {**BASE, "activation": "gelu", "rope_fraction": 0.25, "parallel_residual": True, "tie_embeddings": False},
    ),
    "neox-sequential": ("gptneox", {**BASE}),
    "neox-no-bias": (
        "gptneox",
        {**BASE, "qkv_bias": False, "out_bias": False, "rope_theta": 500.0, "rope_fraction": 0.5, "norm_eps": 1e-3},
    ),
    "llama2": ("llama", {**LLAMA, "tie_embeddings": False}),
    "llama3-grouped": ("llama", {**LLAMA, "n_kv_head": 2, "rope_theta": 500000.0, "norm_eps": 1e-3}),
    "llama3.2-scaled": ("llama", {**LLAMA, "n_kv_head": 1, "head_size": 24, **LLAMA3}),
    "llama-biases": ("llama", {**LLAMA, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "n_inner": 80}),
    "mistral": ("llama", {**LLAMA, "n_kv_head": 2, "window": BLOCK}),
    "qwen2": ("qwen2", {**LLAMA, "n_kv_head": 2, "qkv_bias": True}),
    "qwen3": ("qwen3", {**LLAMA, "n_kv_head": 2, "head_size": 32, "qk_norm": True, "tie_embeddings": False}),
    "smollm3": ("smollm3", {**LLAMA, "n_layer": 5, "n_kv_head": 2, "no_rope_layers": (3,)}),
}
