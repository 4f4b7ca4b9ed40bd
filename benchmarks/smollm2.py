"""A real model on real data, as a user does it: SmolLM2-135M-Instruct out of its file in 4 bits, tuned on
instruction-data.json, asked before and after, exported, and asked again in llama.cpp.

Every step is a command of gptft in a fresh process. llama.cpp decodes the exported file in fp32, where a Python that
has llama-cpp-python is there (extra llamacpp, or named in GPTFT_LLAMACPP_PYTHON), and must give the same ids.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path

from benchmarks import common, real, results
from benchmarks.default import python

ASKED, SHOWN, NEW = 100, 6, 40
RUN = "smollm2-instructions"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURE = (1100, 1900)  # of the report: what of it is shown, in pixels
TRAIN = [
    "--epochs",
    "1",
    "--precision",
    "fp32",
    "--eval_every",
    "30",
    "--test_samples",
    str(ASKED),
    "--max_new_tokens",
    str(NEW),
]
QUICK = ["--max_steps", "2", "--test_samples", "2", "--max_new_tokens", "4"]


def work(task: dict) -> dict:
    """In a fresh process: the ids of the prompts, and gptft's greedy answers to them, ids too."""
    import torch

    import gptft
    from gptft.decoding import decode
    from gptft.generation import prompt_ids

    model, tokenizer = gptft.load(task["model"])
    prompts = [prompt_ids(tokenizer, prompt) for prompt in task["prompts"]]
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            for pairs in decode(model, [prompt], task["new"], (), model.config.vocab_size):
                answers[row] += [token for _, token in pairs]
    return {"prompts": prompts, "answers": answers}


def main(argv: list[str]) -> None:
    options = common.parser("smollm2", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "gguf")
    data, model = common.instructions(options), real.model_path(Path("smollm2"))
    settings = {"model": model.stem, "data": data.name, "asked": ASKED, "quick": options.quick}
    result = common.header("smollm2", options, settings, ["torch", "gguf"])
    with common.temporary() as name:
        folder = Path(name)
        words = ["--init", str(model), "--data", str(data), "--out_dir", RUN, *(QUICK if options.quick else TRAIN)]
        console = python(options, folder, str(common.REPOSITORY / "train.py"), *words).splitlines()
        result["summary"] = summarise(folder / RUN, console)
        if common.results_folder(options) == results.FOLDER:
            shutil.copy(folder / RUN / "loss.png", results.DOCS / "loss-smollm2.png")
            take_picture(folder / RUN / "report.html", results.DOCS / "report-smollm2.png")
        python(
            options, folder, "-m", "gptft", "export", f"{RUN}/best", "tuned.gguf", "--format", "gguf", "--dtype", "fp32"
        )
        prompts = [row["prompt"] for row in result["summary"]["answers"]][: 2 if options.quick else SHOWN]
        new = 4 if options.quick else NEW
        task = {"do": "answer", "model": str(folder / RUN / "best"), "prompts": prompts, "new": new}
        ours = common.call("smollm2", task, common.environment(options))
        if real.llamacpp_python():
            file = str(folder / "tuned.gguf")
            theirs = [real.run_llamacpp(file, prompt, new, options.threads) for prompt in ours["prompts"]]
            same = sum(a == b["ids"][0] for a, b in zip(ours["answers"], theirs, strict=True))
            result["llamacpp"] = {"version": theirs[0]["version"], "same": same, "asked": len(theirs), "new": new}
    results.save(result, common.results_folder(options))


def take_picture(page: Path, to: Path) -> None:
    """What a browser shows of the beginning of a page. Without a browser there is no new picture."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser:
        size = f"--window-size={PICTURE[0]},{PICTURE[1]}"
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={to}"]
        subprocess.run([browser, *words, page.as_uri()], check=True, capture_output=True, timeout=120)


def summarise(run: Path, console: list[str]) -> dict:
    """The scores of a run, its first answers, and the lines that it printed."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [row["eval_loss"] for row in metrics if "eval_loss" in row]
    rows = [json.loads(line) for line in (run / "responses.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = ("steps", "train_runtime", "train_samples_per_second", "test_loss", "parameters", "peak_memory_bytes")
    return {
        **{key: summary[key] for key in kept},
        "eval_loss": [evaluated[0], min(evaluated)],
        "exact_match": summary["exact_match"]["all"],
        "answers": [
            {"prompt": question_of(row["record"])} | {key: row[key] for key in ("expected", "before", "after")}
            for row in rows
            if "left_out" not in row
        ],
        "evaluation": evaluation_lines(console),
        "lint": next((line for line in console if line.startswith("lint: ")), ""),
        "template": next((line for line in console if line.startswith("template: ")), ""),
    }


def evaluation_lines(console: list[str]) -> list[str]:
    """Of what a run printed the table of its evaluation, and what it says under it."""
    first = next(number for number, line in enumerate(console) if line.startswith("  metric "))
    lines = [line[2:].rstrip() for line in takewhile(lambda line: line[:2] in ("", "  "), console[first:])]
    while not lines[-1]:
        lines.pop()
    return lines


def question_of(record: dict) -> str:
    """What the chat template writes of a record: the instruction, and its input on the next line."""
    return "\n".join(filter(None, (record["instruction"], record["input"])))


def cell(text: str) -> str:
    """A text in a cell of a table."""
    text = " / ".join(text.split("\n"))
    return (text if len(text) <= 160 else f"{text[:157]}...").replace("|", "\\|")


def answers_table(result: dict) -> str:
    """The first questions with the expected answer, that before and that after."""
    rows = [[cell(text) for text in row.values()] for row in result["summary"]["answers"][:SHOWN]]
    return results.markdown(["question", "expected", "before", "after"], rows)


def describe_scores(result: dict) -> str:
    summary = result["summary"]
    before, after = summary["eval_loss"]
    match = summary["exact_match"]
    minutes = summary["train_runtime"] / 60
    return (
        f"validation loss {before:.3f} before, {after:.3f} after, test loss {summary['test_loss']:.3f}; exact match "
        f"{match['before']:.0%} before, {match['after']:.0%} after, over {result['settings']['asked']} questions; "
        f"{summary['steps']} steps in {minutes:.0f} minutes, {summary['peak_memory_bytes'] / 1e9:.1f} GB at the peak"
    )


def describe_llamacpp(result: dict) -> str:
    if "llamacpp" not in result:
        return "not run in llama.cpp: it was not there"
    found = result["llamacpp"]
    return (
        f"llama-cpp-python {found['version']} gave the same {found['new']} greedy ids as gptft for {found['same']} of "
        f"{found['asked']} questions"
    )


def table(result: dict) -> str:
    return "\n\n".join([describe_scores(result) + ".", answers_table(result), describe_llamacpp(result) + "."])


if __name__ == "__main__":
    common.answer(work)
