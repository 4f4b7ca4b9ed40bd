"""How well wrong answers surface in real data: SmolLM2-135M-Instruct on instruction-data.json.

400 records train for three epochs; one in twenty of them has been given the answer of another. The losses that the run
keeps are sorted, and the area under the ROC curve is the chance that a planted record stands above another (Mann and
Whitney 1947): by the loss of the first pass, when nothing is learned yet, by that of the last, and by `stubborn`, the
mean without the first.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from benchmarks import common, real, results

RECORDS, PLANTED, EPOCHS = 400, 20, 3


def work(task: dict) -> list[dict]:
    """In a fresh process: make the run -> what it kept of its training records."""
    import gptft

    run = gptft.finetune(**task["settings"])
    return [json.loads(line) for line in (run.path / "training_losses.jsonl").read_text().splitlines()]


def plant(records: list[dict], count: int) -> set[int]:
    """Give so many records the answer of another -> their lines."""
    rng = random.Random(1)
    chosen = rng.sample(range(len(records)), count)
    answers = {n: records[n]["output"] for n in range(len(records))}
    for n in chosen:
        others = [other for other, answer in answers.items() if answer != answers[n]]
        records[n] = {**records[n], "output": answers[rng.choice(others)]}
    return {n + 1 for n in chosen}


def area(scores: np.ndarray, planted: np.ndarray) -> float:
    """The chance that a planted one scores above another."""
    above = scores[planted][:, None] - scores[~planted][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def bounds(scores: np.ndarray, planted: np.ndarray) -> list[float]:
    """The area's bounds of 95%: records of both kinds drawn again and again."""
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        some = np.concatenate([rng.choice(np.flatnonzero(kind), kind.sum()) for kind in (planted, ~planted)])
        found.append(area(scores[some], planted[some]))
    return np.quantile(found, [0.025, 0.975]).tolist()


def main(argv: list[str]) -> None:
    options = common.parser("mislabelled", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "gguf")
    data, model = common.instructions(options), real.model_path(Path("smollm2"))
    count, planted_count = (16, 2) if options.quick else (RECORDS, PLANTED)
    settings = {"model": model.stem, "data": data.name, "records": count, "planted": planted_count, "epochs": EPOCHS}
    result = common.header("mislabelled", options, settings | {"quick": options.quick}, ["torch", "gguf"])
    records = real.read_records(data)
    random.Random(0).shuffle(records)
    records = records[:count]
    lines = plant(records, planted_count)
    with common.temporary() as folder:
        path = Path(folder, "planted.jsonl")
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        run = {"init": str(model), "data": str(path), "out_dir": f"{folder}/run", "epochs": EPOCHS, "save_every": 0}
        run |= {"val_fraction": 0.0, "test_fraction": 0.0, "precision": "fp32", "lr": 3e-5}
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache"}
        rows = common.call("mislabelled", {"settings": run}, env)
    planted = np.array([row["line"] in lines for row in rows])
    columns = {
        "first pass": np.array([row["losses"][0] for row in rows]),
        "last pass": np.array([row["losses"][-1] for row in rows]),
        "stubborn": np.array([row["stubborn"] for row in rows]),
    }
    result["summary"] = {
        "areas": {name: [area(scores, planted), *bounds(scores, planted)] for name, scores in columns.items()},
        "in_the_worst": int(planted[:planted_count].sum()),
    }
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    return describe(result) + "."


def describe(result: dict) -> str:
    summary, settings = result["summary"], result["settings"]
    areas = {name: f"{value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in summary["areas"].items()}
    return (
        f"{settings['planted']} of {settings['records']} records of {settings['data']} with the answer of another, "
        f"{settings['model']}, {settings['epochs']} epochs: area under the ROC curve {areas['first pass']} by the loss "
        f"of the first pass, {areas['last pass']} by that of the last, {areas['stubborn']} by `stubborn`; of the "
        f"{settings['planted']} worst {summary['in_the_worst']} are planted"
    )


if __name__ == "__main__":
    common.answer(work)
