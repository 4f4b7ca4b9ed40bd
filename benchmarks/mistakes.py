"""Mistakes in a real model's answers: how many of those that are planted are found, and of those that a reader found in
100 answers.

It runs tests/evaluation/test_planted_mistakes.py, which asks no model: the answers are in tests/evaluation, by SmolLM2
as it came and after a short tuning. With --answers they are made anew first; what a reader says of them is made anew by
nobody then.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks import common, real, results
from gptft.evaluation.metrics import describe_metric
from gptft.files import write_json_lines

ASKED, TRAINED, NEW = 150, 300, 60  # records asked, others trained on, tokens of an answer
TESTS = "tests/evaluation/test_planted_mistakes.py"
TUNING = {"epochs": 1, "batch_size": 8, "lora_rank": 16, "lr": 1e-3, "precision": "fp32", "seed": 0}
NOTHING_MORE = {"val_fraction": 0.05, "test_fraction": 0.0, "test_samples": 0, "eval_every": 100}


def work(task: dict) -> dict:
    """In a fresh process: the answers of the model as it came, and after the tuning."""
    import gptft
    from gptft.generation import respond

    records = json.loads(Path(task["data"]).read_text(encoding="utf-8"))
    numbers = list(range(len(records)))
    random.Random(0).shuffle(numbers)
    asked, trained = sorted(numbers[:ASKED]), sorted(numbers[ASKED : ASKED + TRAINED])
    folder = Path(task["folder"])
    write_json_lines(folder / "train.jsonl", [records[n] for n in trained])
    gptft.finetune(
        init=task["model"], data=folder / "train.jsonl", out_dir=folder / "run", threads=1, **TUNING, **NOTHING_MORE
    )
    prompts = [{key: records[n][key] for key in ("instruction", "input")} for n in asked]
    rows = []
    for side, name in (("before", task["model"]), ("after", folder / "run/best")):
        given = respond(*gptft.load(name), prompts, NEW)
        for n, response in zip(asked, given, strict=True):
            said = {"answer": response.text, "tokens": response.tokens, "finished": response.finished}
            rows.append({"record": n, "side": side, **said})
    return {"rows": sorted(rows, key=lambda row: row["record"])}


def main(argv: list[str]) -> None:
    parser = common.parser("mistakes", __doc__, rounds=1)
    parser.add_argument(
        "--answers", action="store_true", help="ask the model anew: minutes, and labels that fit no more"
    )
    options = parser.parse_args(argv)
    data = common.instructions(options)
    if options.answers:
        with common.temporary() as folder:
            task = {"do": "ask", "data": str(data), "folder": folder, "model": str(real.model_path(Path("smollm2")))}
            rows = common.call("mistakes", task, common.environment(options))["rows"]
        write_json_lines(common.REPOSITORY / "tests/evaluation/answers.jsonl", rows)
    found = {row["what"]: row["figures"] for row in common.run_tests([TESTS], options)}
    result = common.header("mistakes", options, {"asked": ASKED, "new": NEW}, [])
    results.save({**result, "summary": found}, common.results_folder(options))


def share(part: int, whole: int) -> str:
    """In per cent; nothing where there is nothing to have a share in."""
    return f"{part / whole:.0%}" if whole else ""


def describe_clean(result: dict) -> str:
    return " and ".join(f"{result['summary'][name]['clean']:,}" for name in ("development", "held out"))


def planted_table(result: dict) -> str:
    """Recall and precision by kind, on both halves."""
    halves = [result["summary"][name] for name in ("development", "held out")]
    rows = []
    for name in halves[0]:
        if name != "clean":
            cells = []
            for half in halves:
                row = half[name]
                cells += [str(row["planted"]), share(row["found"], row["planted"])]
                cells.append(share(row["found"], row["found"] + row["wrong"]))
            rows.append([describe_metric(name), *cells])
    return results.markdown(["mistake", "planted", "recall", "precision", "held out", "recall", "precision"], rows)


def labelled_table(result: dict) -> str:
    """What a reader found in real answers, and how much of that the detector does."""
    rows = [
        [
            describe_metric(name),
            str(row["labelled"]),
            str(row["reported"]),
            share(row["both"], row["labelled"]),
            share(row["both"], row["reported"]),
        ]
        for name, row in result["summary"]["labelled"].items()
    ]
    return results.markdown(["mistake", "by the reader", "by the detector", "recall", "precision"], rows)


def real_table(result: dict) -> str:
    """Mistakes of the model as it came, and of the tuned one, over all its answers."""
    rows = [
        [describe_metric(name), *(str(row[key]) for key in ("n", "before", "after", "mended", "new"))]
        for name, row in result["summary"]["real"].items()
        if row["examples"]
    ]
    return results.markdown(["mistake", "answers", "before", "after", "mended", "new"], rows)


def table(result: dict) -> str:
    return "\n\n".join([planted_table(result), labelled_table(result), real_table(result)])


if __name__ == "__main__":
    common.answer(work)
