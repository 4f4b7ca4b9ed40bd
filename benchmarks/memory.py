"""Resident memory while a dataset is tokenised, stored and split: a fresh process that does nothing else.

1,000,000 records of about 60 tokens as JSON lines, GPT-2's vocabulary, the alpaca template. The process has imported
all that a training run imports, torch included; the peak is the kernel's own record of it (VmHWM).
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import common, results


def work(task: dict) -> dict:
    """In a fresh process: bytes resident and seconds, step by step."""
    import gptft.finetuning  # noqa: F401 - everything that a run imports
    from gptft.data.examples import Recipe, load_dataset, split
    from gptft.prompts import TEMPLATES
    from gptft.tokenizer import gpt2

    imported = common.resident_memory()
    tokenizer = gpt2()
    began = time.perf_counter()
    dataset = load_dataset([Path(task["data"])], tokenizer, Recipe(TEMPLATES["alpaca"], 1024))
    loaded, loaded_peak = time.perf_counter(), common.peak_memory()
    parts = split(dataset, 0.05, 0.1, seed=123)
    return {
        "imported_bytes": imported,
        "load_peak_bytes": loaded_peak,
        "load_seconds": loaded - began,
        "split_seconds": time.perf_counter() - loaded,
        "peak_bytes": common.peak_memory(),
        "examples": sum(map(len, parts)),
        "tokens": dataset.ledger["tokens_read"],
    }


def main(argv: list[str]) -> None:
    parser = common.parser("memory", __doc__, rounds=1)
    parser.add_argument("--records", type=int, default=1_000_000, help="how many records [1000000]")
    options = parser.parse_args(argv)
    count = 2000 if options.quick else options.records
    source = common.instructions(options)
    settings = {"records": count, "rounds": options.rounds}
    result = common.header("memory", options, settings, ["torch", "numpy", "tiktoken"])
    with common.temporary() as folder:
        data = Path(folder, "records.jsonl")
        common.write_records(source, data, count)

        def measure(name: str, number: int) -> dict:
            cache = Path(folder, f"cache-{number}-{name}")
            env = common.environment(options) | {"GPTFT_CACHE": str(cache)}
            return common.call("memory", {"data": str(data)}, env)

        result["rounds"] = common.interleave(["tokenised"], options.rounds, measure, "load_seconds")
        # the second start finds the data in the cache of the first
        env = common.environment(options) | {"GPTFT_CACHE": str(Path(folder, "cache-0-tokenised"))}
        result["rounds"][0]["from the cache"] = common.call("memory", {"data": str(data)}, env)
    result["summary"] = {
        name: {key: outcome[key] for key in outcome} for name, outcome in result["rounds"][0].items()
    }  # a peak is no matter of chance: the first round stands for all
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    rows = []
    for name, values in result["summary"].items():
        gigabytes = [f"{values[key] / 1e9:.2f}" for key in ("imported_bytes", "load_peak_bytes", "peak_bytes")]
        seconds = f"{values['load_seconds']:.1f} + {values['split_seconds']:.1f}"
        rows.append([name, *gigabytes, seconds, results.verdict(values["peak_bytes"] / 1e9, 1, " GB")])
    head = ["data", "after imports, GB", "peak in load_dataset, GB", "peak with split, GB", "seconds, load + split"]
    values = next(iter(result["summary"].values()))
    note = f"{values['examples']:,} records of {values['tokens'] / values['examples']:.1f} tokens on average."
    return results.markdown([*head, "target"], rows) + "\n\n" + note


if __name__ == "__main__":
    common.answer(work)
