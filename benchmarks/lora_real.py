"""What LoRA loses on a real pretrained model: SmolLM2-135M-Instruct on instruction-data.json, whole and by adapters.

400 records train for two epochs, 100 choose, 300 others are the test; batch 8, AdamW with cosine to 0, in fp32. The
learning rates are swept at one seed, and further outwards while the best lies at an edge; at the rate with the lowest
validation loss two more seeds follow. A seed draws order and adapters; the splits stay. Every finished run is kept at
once in the results, and a run that is there is not made again: the sweep may take several sittings.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
from pathlib import Path

from benchmarks import common, real, results
from gptft.errors import UserError

SIZES = {"train": 400, "val": 100, "test": 300}
EPOCHS = 2
SEEDS = (123, 1, 2)
HOW = {"full": {}, **{f"LoRA, rank {rank}": {"lora_rank": rank} for rank in (4, 16, 64)}}
RATES = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
FIRST = {"full": (1e-5, 3e-5, 1e-4), "LoRA": (3e-4, 1e-3, 3e-3)}  # of the rates, where the sweep begins


def work(task: dict) -> dict:
    """In a fresh process: measure the model as it came, or make one run."""
    import gptft
    from gptft.config import resolve

    config = resolve("", task["settings"])
    if task["do"] == "as it came":
        return as_it_came(config)
    summary = gptft.finetune(config).summary
    kept = (
        "eval_loss",
        "test_loss",
        "best_step",
        "steps",
        "trainable_parameters",
        "train_runtime",
        "peak_memory_bytes",
    )
    return {key: summary[key] for key in kept}


def as_it_came(config) -> dict:
    """Validation and test loss of a model that is not trained."""
    from functools import partial

    from gptft.collate import collate
    from gptft.device import Precision
    from gptft.finetuning import load_data, load_start
    from gptft.loss import Objective
    from gptft.training import evaluate_loss

    model, tokenizer = load_start(config)
    _, (_, val_set, test_set) = load_data(config, model, tokenizer)
    to_batch, precision = partial(collate, pad_id=tokenizer.eot), Precision("fp32", model.device)
    losses = [evaluate_loss(Objective(model), part, 16, to_batch, precision) for part in (val_set, test_set)]
    return dict(zip(("eval_loss", "test_loss"), losses, strict=True))


# this side


def write_splits(data: Path, folder: str, quick: bool) -> dict[str, str]:
    """The three files, drawn once for all runs; -> the settings that name them."""
    sizes = dict.fromkeys(SIZES, 16) if quick else SIZES
    records = real.read_records(data)
    if len(records) < sum(sizes.values()):
        raise UserError(f"--data {data} has {len(records)} records, and {sum(sizes.values())} are needed")
    random.Random(0).shuffle(records)
    settings, at = {}, 0
    for name, size in sizes.items():
        path = Path(folder, f"{name}.json")
        path.write_text(json.dumps(records[at : at + size]), encoding="utf-8")
        settings["data" if name == "train" else f"{name}_data"] = str(path)
        at += size
    return settings


def key_of(how: str, rate: float, seed: int) -> str:
    return f"{how}; lr {rate:g}; seed {seed}"


def next_run(how: str, runs: dict[str, dict], quick: bool) -> tuple[float, int] | None:
    """The rate and seed that this way of training needs next, None where it has all."""

    def loss(rate: float) -> float:
        return runs[key_of(how, rate, SEEDS[0])]["eval_loss"]

    first = FIRST[how.split(",")[0]][:1] if quick else FIRST[how.split(",")[0]]
    for rate in first:
        if key_of(how, rate, SEEDS[0]) not in runs:
            return rate, SEEDS[0]
    tried = [rate for rate in RATES if key_of(how, rate, SEEDS[0]) in runs]
    best = min(tried, key=loss)
    at = RATES.index(best)
    beyond = [RATES[n] for n in (at - 1, at + 1) if 0 <= n < len(RATES) and RATES[n] not in tried]
    if beyond and not quick:
        return beyond[0], SEEDS[0]
    for seed in SEEDS[:2] if quick else SEEDS:
        if key_of(how, best, seed) not in runs:
            return best, seed
    return None


def main(argv: list[str]) -> None:
    parser = common.parser("lora_real", __doc__, rounds=1)
    real.add_options(parser)
    parser.add_argument("--at-most", type=int, default=0, help="stop after so many runs; 0: when all are made [0]")
    options = parser.parse_args(argv)
    common.need("torch", "gguf")
    model = real.model_path(options.model or Path("smollm2"))
    data = options.data or common.instructions(options)
    kept = common.results_folder(options)
    settings = {"model": model.stem, "data": data.name, **SIZES, "epochs": EPOCHS, "batch": 8, "quick": options.quick}
    result = common.header("lora_real", options, settings, ["torch"]) | {"runs": {}}
    file = kept / "lora_real.json" if kept else None
    if file and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            raise UserError(f"{file} is of other settings: move it away, or name another --results")
        result["runs"] = before["runs"]
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache"}
        base = {"init": str(model), "test_samples": 0, "save_every": 0, "log_every": 50, "precision": "fp32"}
        base |= write_splits(data, folder, options.quick) | {"epochs": 0.5 if options.quick else EPOCHS}
        if "as it came" not in result["runs"]:
            task = {"do": "as it came", "settings": base}
            result["runs"]["as it came"] = common.call("lora_real", task, env)
        made = 0
        for how, adapters in HOW.items():
            while wanted := next_run(how, result["runs"], options.quick):
                if options.at_most and made == options.at_most:
                    break
                rate, seed = wanted
                more = {**adapters, "lr": rate, "seed": seed, "out_dir": f"{folder}/run", "eval_every": 25}
                task = {"do": "run", "settings": base | more}
                result["runs"][key_of(how, rate, seed)] = done = common.call("lora_real", task, env)
                shutil.rmtree(f"{folder}/run")
                print(f"{key_of(how, rate, seed):<36} validation {done['eval_loss']:.4f}", flush=True)
                made += 1
                save_what_is_there(result, kept)
    save_what_is_there(result, kept)
    print(results.section(result))


def save_what_is_there(result: dict, kept: Path | None) -> None:
    """Keep the runs; the table is printed at the end."""
    result["summary"] = summarise(result["runs"])
    if kept:
        results.save(result, kept, quietly=True)


def summarise(runs: dict[str, dict]) -> dict[str, dict]:
    """For each way of training: the rates that were tried, the best, and there each seed's test loss."""
    found = {}
    for how in HOW:
        tried = {rate: runs[key] for rate in RATES if (key := key_of(how, rate, SEEDS[0])) in runs}
        if not tried:
            continue
        best = min(tried, key=lambda rate: tried[rate]["eval_loss"])
        at_best = [runs[key] for seed in SEEDS if (key := key_of(how, best, seed)) in runs]
        found[how] = {
            "rates": {f"{rate:g}": run["eval_loss"] for rate, run in tried.items()},
            "best": best,
            "trained": at_best[0]["trainable_parameters"],
            "peak_bytes": statistics.median(run["peak_memory_bytes"] for run in at_best),
            "test_losses": [run["test_loss"] for run in at_best],
        }
    return found


def table(result: dict) -> str:
    before, settings = result["runs"]["as it came"], result["settings"]
    rows = [["as it came", "0", "", "", f"{before['test_loss']:.4f}", "", ""]]
    summary = result["summary"]
    for how, found in summary.items():
        losses = found["test_losses"]
        spread = f"{statistics.mean(losses):.4f} ({min(losses):.4f} - {max(losses):.4f})"
        kept = ""
        if how != "full" and "full" in summary:
            full = statistics.mean(summary["full"]["test_losses"])
            share = (before["test_loss"] - statistics.mean(losses)) / (before["test_loss"] - full)
            kept = f"{share:.0%}"
        swept = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in found["rates"].items())
        peak = f"{found['peak_bytes'] / 1e9:.2f}"
        rows.append([how, f"{found['trained']:,}", f"{found['best']:g}", swept, spread, kept, peak])
    head = ["how", "trained parameters", "best rate", "validation loss by rate", "test loss, mean over seeds"]
    text = results.markdown([*head, "of full's gain", "peak memory, GB"], rows)
    notes = (
        f"{settings['model']}, {settings['train']} records of {settings['data']} for {settings['epochs']} epochs, "
        f"{settings['val']} to choose by, {settings['test']} to test on; seeds {', '.join(map(str, SEEDS))}."
    )
    unfinished = [how for how in HOW if next_run(how, result["runs"], settings["quick"])]
    more = f"\n\nNot finished, further runs are to come: {', '.join(unfinished)}." if unfinished else ""
    return f"{notes}\n\n{text}{more}"


if __name__ == "__main__":
    common.answer(work)
