"""How long tokenising 50,000 records takes, and how long the second start, which finds them in the cache.

GPT-2's vocabulary, the alpaca template. Every measurement is a fresh process; a round has a cold start and a second
one with the same cache folder.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from benchmarks import common, results


def work(task: dict) -> dict:
    """In a fresh process: seconds for the tokenizer and for `load_dataset`."""
    from gptft.data.examples import Recipe, load_dataset
    from gptft.prompts import TEMPLATES
    from gptft.tokenizer import gpt2

    began = time.perf_counter()
    tokenizer = gpt2()
    loaded = time.perf_counter()
    dataset = load_dataset([Path(task["data"])], tokenizer, Recipe(TEMPLATES["alpaca"], 1024))
    seconds = time.perf_counter() - loaded
    return {
        "seconds": seconds,
        "tokenizer_seconds": loaded - began,
        "examples": len(dataset),
        "tokens": dataset.ledger["tokens_read"],
    }


def main(argv: list[str]) -> None:
    parser = common.parser("tokenize", __doc__, rounds=5)
    parser.add_argument("--records", type=int, default=50_000, help="how many records [50000]")
    options = parser.parse_args(argv)
    count, rounds = (500, 2) if options.quick else (options.records, options.rounds)
    source = common.instructions(options)
    result = common.header("tokenize", options, {"records": count, "rounds": rounds}, ["tiktoken"])
    with common.temporary() as folder:
        data, cache = Path(folder, "records.jsonl"), Path(folder, "cache")
        common.write_records(source, data, count)
        env = common.environment(options) | {"GPTFT_CACHE": str(cache)}

        def measure(name: str, _: int) -> dict:
            if name == "cold":
                shutil.rmtree(cache, ignore_errors=True)
            return common.call("tokenize", {"data": str(data)}, env)

        result["rounds"] = common.interleave(["cold", "cached"], rounds, measure, "seconds")
    result["summary"] = {
        "seconds": common.spreads(result["rounds"], "seconds"),
        "examples": result["rounds"][0]["cold"]["examples"],
        "tokens": result["rounds"][0]["cold"]["tokens"],
    }
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    summary, count = result["summary"], result["settings"]["records"]
    cold, cached = summary["seconds"]["cold"], summary["seconds"]["cached"]
    pace = f"{summary['tokens'] / cold['median'] / 1e6:.2f} million tokens a second"
    what = f"{count:,} records, {summary['tokens']:,} tokens"
    rows = [
        [what, results.shown(cold, 3), results.verdict(cold["median"], 10, " s")],
        ["the same from the cache", results.shown(cached, 3), ""],
    ]
    return results.markdown(["`load_dataset`", "seconds", "target"], rows) + f"\n\n{pace[0].upper()}{pace[1:]}."


if __name__ == "__main__":
    common.answer(work)
