"""Memory while a GGUF file is opened: a llama of random weights, 1.1 billion parameters in 4 bits (q4_1).

Each way of holding it is a fresh process. Measured is the most that was resident beyond what was before the file was
opened, over the bytes of the model's own tensors: opened in fp32 and in bf16, and for LoRA with the linear layers
frozen in bf16 and int8 as they are read, so that they never stand in memory at full width.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import common, results

SHAPE = {"n_layer": 22, "n_embd": 2048, "n_head": 32, "n_kv_head": 4, "n_inner": 5632, "vocab_size": 32000}
QUICK = {"n_layer": 2, "n_embd": 256, "n_head": 4, "n_kv_head": 2, "n_inner": 512, "vocab_size": 1000}
LIMIT = 1.15
WAYS = {
    "fp32": {"dtype": "float32", "freeze": "fp32"},
    "bf16": {"dtype": "bfloat16", "freeze": "fp32"},
    "LoRA, base bf16": {"dtype": "float32", "freeze": "bf16"},
    "LoRA, base int8": {"dtype": "float32", "freeze": "int8"},
}


def work(task: dict) -> dict:
    """In a fresh process: write the file, or open it in one way."""
    import torch

    if task["do"] == "make":
        from gptft.architecture import GPTConfig
        from gptft.export.llamacpp import export_gguf
        from gptft.model import GPT

        config = GPTConfig(**task["shape"], block_size=2048, position="rotary", **LLAMA)
        torch.manual_seed(0)
        model = GPT(config)
        export_gguf(model, None, Path(task["file"]), "q4_1")
        return {"parameters": model.n_parameters(), "file_bytes": Path(task["file"]).stat().st_size}
    from gptft.loading import load

    before = common.resident_memory()
    model, _ = load(Path(task["file"]), dtype=getattr(torch, task["dtype"]), freeze=task["freeze"])
    held = {t.data_ptr(): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    return {
        "model_bytes": sum(held.values()),
        "peak_bytes": common.peak_memory() - before,
        "left_bytes": common.resident_memory() - before,
    }


LLAMA = {
    "norm": "rms",
    "activation": "silu",
    "gated_mlp": True,
    "mlp_bias": False,
    "qkv_bias": False,
    "out_bias": False,
    "tie_embeddings": False,
}


def main(argv: list[str]) -> None:
    options = common.parser("gguf_memory", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "gguf")
    settings = {"shape": QUICK if options.quick else SHAPE, "quick": options.quick}
    result = common.header("gguf_memory", options, settings, ["torch", "gguf"])
    env = common.environment(options)
    with common.temporary() as folder:
        file = f"{folder}/big.gguf"
        settings |= common.call("gguf_memory", {"do": "make", "file": file, "shape": settings["shape"]}, env)
        result["rounds"] = common.interleave(
            list(WAYS),
            options.rounds,
            lambda name, _: common.call("gguf_memory", {"do": name, "file": file, **WAYS[name]}, env),
            "peak_bytes",
        )
    keys = ("model_bytes", "peak_bytes", "left_bytes")
    result["summary"] = {key: common.spreads(result["rounds"], key) for key in keys}
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    summary, settings = result["summary"], result["settings"]
    rows = []
    for name in summary["model_bytes"]:
        model, peak = (summary[key][name]["median"] for key in ("model_bytes", "peak_bytes"))
        verdict = results.verdict(peak / model, LIMIT, "x") if name in ("fp32", "bf16") else ""
        rows.append([name, f"{model / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{peak / model:.2f}", verdict])
    head = ["opened in", "model, GB", "peak beyond the start, GB", "peak over model", "target"]
    what = f"{settings['parameters'] / 1e9:.2f} billion parameters, a file of {settings['file_bytes'] / 1e9:.2f} GB."
    return f"{what}\n\n{results.markdown(head, rows)}"


if __name__ == "__main__":
    common.answer(work)
