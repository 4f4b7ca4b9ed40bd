"""A million records as a stream: memory of the process that makes the shards and of the one that goes over them, tokens
a second, and how long GPT-2 124M waits for its data while shards are made beside it.

The records are those of instruction-data.json over and over, a number in each, as JSON lines that gptft reads and as
Parquet that the library `datasets` streams. Every example is batched, none is trained on. Then GPT-2 124M of random
weights trains on the stream, and on the same records tokenised before, interleaved.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from benchmarks import common, gpt2, results

RECORDS = 1_000_000
STEPS = 12
TRAINED = 200_000  # records of the stream that is trained on
WAYS = ("JSON lines", "Parquet by datasets")


def work(task: dict) -> dict:
    """In a fresh process."""
    return go_over(task) if task["do"] == "go over" else train(task)


def go_over(task: dict) -> dict:
    """Every example of the stream once, in batches."""
    import re

    from gptft import prompts, tokenizer
    from gptft.collate import collate, plan
    from gptft.data.build import Recipe
    from gptft.data.corpus import Corpus

    gpt2_vocabulary = tokenizer.gpt2()
    gpt2_vocabulary.template = prompts.TEMPLATES["alpaca"]
    began = time.perf_counter()
    corpus = Corpus([task["data"]], (), task["shard_tokens"])
    shard = corpus.begin(Recipe(gpt2_vocabulary.template, 1024), gpt2_vocabulary)
    first, number, tokens, examples, maker = time.perf_counter() - began, 0, 0, 0, 0
    while shard is not None:
        for window in plan(shard.ledger and (shard.offsets[1:] - shard.offsets[:-1]), 64, 1, 0, number):
            for chosen in window:
                batch = collate([shard[i] for i in chosen], gpt2_vocabulary.eot)
                examples += len(batch.records)
        tokens += len(shard.ids)
        if corpus.maker and corpus.maker.poll() is None:
            status = Path(f"/proc/{corpus.maker.pid}/status").read_text()
            maker = max([maker, *(int(peak) * 1024 for peak in re.findall(r"VmHWM:\s+(\d+) kB", status))])
        number += 1
        shard = corpus.shard(number)
    seconds = time.perf_counter() - began
    corpus.close()
    return {
        "examples": examples,
        "tokens": tokens,
        "shards": number,
        "seconds": seconds,
        "first_shard_seconds": first,
        "maker_peak_bytes": maker,
        "reader_peak_bytes": common.peak_memory(),
    }


def train(task: dict) -> dict:
    """Steps of GPT-2 124M; what it waited for its data."""
    import gptft

    began = time.perf_counter()
    run = gptft.finetune(**task["settings"])
    summary = run.summary
    return {
        "data_share": summary["data_share"],
        "tokens_per_second": summary["train_tokens"] / summary["train_runtime"],
        "seconds": time.perf_counter() - began,
    }


# this side


def write_parquet(lines: Path, folder: Path, files: int) -> None:
    """The same records as Parquet files."""
    import pyarrow.json
    import pyarrow.parquet

    table = pyarrow.json.read_json(lines)
    folder.mkdir()
    size = -(-table.num_rows // files)
    for number in range(files):
        path = folder / f"train-{number:05}-of-{files:05}.parquet"
        pyarrow.parquet.write_table(table.slice(number * size, size), path, row_group_size=10_000)


def main(argv: list[str]) -> None:
    parser = common.parser("stream", __doc__, rounds=3)
    parser.add_argument("--training-only", action="store_true", help="keep what was measured of going over the stream")
    options = parser.parse_args(argv)
    common.need("torch", "datasets", "transformers")
    source = common.instructions(options)
    count, trained, steps = (3000, 1000, 2) if options.quick else (RECORDS, TRAINED, STEPS)
    settings = {"records": count, "steps": steps, "trained_from": trained, "data": source.name, "quick": options.quick}
    result = common.header("stream", options, settings, ["torch", "datasets", "transformers"])
    with common.temporary() as name:
        folder = Path(name)
        env = common.environment(options)
        os.environ.update(env)
        lines = folder / "records.jsonl"
        common.write_records(source, lines, count)
        write_parquet(lines, folder / "parquet", 8)
        words = dict(zip(WAYS, (str(lines), f"hf:{folder / 'parquet'}"), strict=True))
        result["went_over"] = {}
        if options.training_only:
            before = (options.results or results.FOLDER) / "stream.json"
            result["went_over"], words = json.loads(before.read_text(encoding="utf-8"))["went_over"], {}
        for way, word in words.items():
            task = {"do": "go over", "data": word, "shard_tokens": 50_000 if options.quick else 4_000_000}
            result["went_over"][way] = common.call("stream", task, env | {"GPTFT_CACHE": f"{folder}/cache-{way}"})
            print(f"{way}: {json.dumps(result['went_over'][way])}", flush=True)
        gpt2.make(folder / "gpt2", options.quick)
        few = folder / "few.jsonl"
        with open(lines, encoding="utf-8") as whole, open(few, "w", encoding="utf-8") as part:
            part.writelines(line for _, line in zip(range(trained), whole, strict=False))
        base = {"init": f"{folder}/gpt2", "data": str(few), "max_steps": steps, "precision": "fp32", "save_every": 0}
        base |= {"test_samples": 0, "val_fraction": 0.0, "test_fraction": 0.0, "max_length": 256}
        kinds = {"stream": {"stream": True}, "files": {}}
        if options.quick:
            kinds["stream"]["shard_tokens"] = 20_000

        def measure(who: str, number: int) -> dict:
            out_dir, cache = f"{folder}/{who}-{number}", f"{folder}/cache-{who}-{number}"
            task = {"do": "train", "settings": base | kinds[who] | {"out_dir": out_dir}}
            return common.call("stream", task, env | {"GPTFT_CACHE": cache})

        result["rounds"] = common.interleave(tuple(kinds), options.rounds, measure, "tokens_per_second")
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    rows = []
    for way, found in result["went_over"].items():
        peaks = [found["maker_peak_bytes"], found["reader_peak_bytes"]]
        rows.append(
            [
                way,
                f"{found['examples']:,}",
                f"{found['tokens'] / 1e6:.1f}",
                f"{found['tokens'] / found['seconds']:,.0f}",
                f"{found['first_shard_seconds']:.0f}",
                *(f"{peak / 1e6:,.0f}" for peak in (*peaks, sum(peaks))),
            ]
        )
    head = ["read as", "examples", "million tokens", "tokens a second", "first shard, s"]
    head += ["peak of the maker, MB", "of the reader, MB", "together, MB"]
    return results.markdown(head, rows) + f"\n\n{describe_waiting(result)}"


def describe_waiting(result: dict) -> str:
    """How long the loop waited."""
    shares = {who: common.spreads(result["rounds"], "data_share")[who] for who in ("stream", "files")}
    waits = {
        who: f"{each['median']:.2%} of its time ({each['min']:.2%} to {each['max']:.2%})"
        for who, each in shares.items()
    }
    return (
        f"GPT-2 124M, {result['settings']['steps']} steps in fp32 while further shards are made: it waits for its data "
        f"{waits['stream']}, on files that were tokenised before {waits['files']}, and makes "
        f"{results.shown(common.ratios(result['rounds'], 'stream', 'files', 'tokens_per_second'))} times the steps "
        "that it makes on those."
    )


if __name__ == "__main__":
    common.answer(work)
