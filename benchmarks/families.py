"""How near every family of models comes to transformers: the largest differences that the tests see.

It runs `tests/formats/test_families.py`, which compares logits, the hidden states of each layer and the gradients of
every parameter on random weights, and collects what was found. A difference is the norm of the difference over the
norm of transformers' value.
"""

from __future__ import annotations

from benchmarks import common, results

TITLES = {
    "gpt2": "GPT-2",
    "neox": "GPT-NeoX, Pythia",
    "llama": "Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
EXERCISED = {
    "gpt2": "tied and untied, tanh and exact GELU, odd head size, own MLP width",
    "neox": "partial rotary 0.25, 0.6 and 1, parallel and sequential residual, biases or none, tied and untied",
    "llama": "1, 2 and all key-value heads, own head size, llama3 rope scaling, biases, tied and untied",
    "mistral": "sliding window of 9 on 40 tokens, none, grouped queries, own head size",
    "qwen2": "biases on q, k, v, grouped queries, sliding window in half of the layers, tied and untied",
    "qwen3": "q and k norms, own head sizes, sliding window in every other layer, biases, tied and untied",
    "smollm3": "layers without rotary positions, sliding window in those, grouped queries, tied and untied",
}
HUB_IDS = {
    "gpt2": ["gpt2", "gpt2-xl"],
    "neox": ["EleutherAI/pythia-70m", "EleutherAI/pythia-12b"],
    "llama": ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M"],
    "mistral": ["mistralai/Mistral-7B-v0.1"],
    "qwen2": ["Qwen/Qwen2.5-0.5B"],
    "qwen3": ["Qwen/Qwen3-0.6B"],
    "smollm3": ["HuggingFaceTB/SmolLM3-3B"],
}
FAMILY = {"pythia": "neox", "neox": "neox", "llama": "llama", "smollm2": "llama"}  # other first parts are families


def family_of(case: str) -> str:
    """`llama3.2`, `llama-biases` -> llama; `pythia` -> neox; `qwen2-window` -> qwen2."""
    first = case.partition("-")[0]
    return next((family for start, family in FAMILY.items() if first.startswith(start)), first)


def main(argv: list[str]) -> None:
    options = common.parser("families", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "transformers", "pytest")
    result = common.header("families", options, {"quick": options.quick}, ["torch", "transformers"])
    rows = common.run_tests(["tests/formats/test_families.py"], options)
    largest: dict[str, dict] = {}
    for row in rows:
        values = largest.setdefault(row["case"], {}).setdefault(row["dtype"], {})
        values[row["what"]] = max(values.get(row["what"], 0.0), row["difference"])
    result["rounds"], result["summary"] = [largest], summarise(largest)
    results.save(result, common.results_folder(options))


def summarise(largest: dict[str, dict]) -> dict:
    """{family: {dtype: {what: the largest difference of its cases}}}"""
    summary: dict[str, dict] = {family: {} for family in TITLES}
    for case, dtypes in largest.items():
        for dtype, values in dtypes.items():
            found = summary[family_of(case)].setdefault(dtype, {})
            for what, value in values.items():
                found[what] = max(found.get(what, 0.0), value)
    return summary


def table(result: dict) -> str:
    rows = []
    for family, dtypes in result["summary"].items():
        cells = [f"{dtypes[dtype][what]:.0e}" for dtype in ("float64", "float32") for what in ("logits", "gradients")]
        rows.append([TITLES[family], EXERCISED[family], *cells])
    head = ["family", "options exercised", "fp64: logits", "gradients", "fp32: logits", "gradients"]
    notes = (
        "The largest relative difference from transformers over a family's cases: logits, and the worst of all "
        "parameters' gradients; the hidden states of every layer are compared too, and the greedy ids of cached "
        "generation. transformers computes RMSNorm in fp32 by design, so that beyond GPT-2 and GPT-NeoX fp64 "
        "stops near 1e-7. 0e+00: the same bits."
    )
    return f"{notes}\n\n{results.markdown(head, rows)}"
