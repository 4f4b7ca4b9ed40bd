"""HellaSwag by EleutherAI's harness: gptft beside the harness's own Hugging Face model, on the same weights.

SmolLM2-135M-Instruct in fp32, tasks of the validation split out of a file, each contender a fresh process. The time is
that of the harness from the prompts to the scores, without loading; what both must have in common is every task's
log-likelihoods and the scores. Their batch size is the fastest of three on the first tasks; then both run all of them.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import common, real, results
from gptft.errors import UserError

TARGET = 2.0
THEIRS = (1, 4, 16)  # batch sizes of the harness's own model: the fastest on TRIAL tasks counts
TRIAL = 60


def work(task: dict) -> dict:
    """In a fresh process: open the model, run the tasks -> seconds, scores, every log-likelihood."""
    from gptft.evaluation.harness import harness_model
    from gptft.evaluation.tasks import run_tasks

    path = Path(task["model"])
    if task["who"] == "gptft":
        from gptft.loading import load

        model = harness_model(*load(path))
    else:
        import tokenizers
        import torch
        import transformers
        from lm_eval.models.huggingface import HFLM

        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # out of a GGUF file transformers leaves out that digits stand alone, as in the model's own tokenizer.json
        steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
        tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
        model = HFLM(pretrained=theirs.eval(), tokenizer=tokenizer, batch_size=task["batch"])
    began = time.perf_counter()
    found = run_tasks(model, [f"hellaswag={task['data']}"], limit=task["tasks"], bootstrap_iters=0, log_samples=True)
    seconds = time.perf_counter() - began
    samples = found["samples"]["hellaswag"]
    return {
        "tasks_per_second": len(samples) / seconds,
        "peak_bytes": common.peak_memory(),
        **{name: found["results"]["hellaswag"][f"{name},none"] for name in ("acc", "acc_norm")},
        "values": [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples],
    }


def main(argv: list[str]) -> None:
    parser = common.parser("harness", __doc__, rounds=1)
    parser.add_argument("--tasks", type=int, default=1000, help="tasks of HellaSwag a round [1000]")
    parser.add_argument("--data", type=Path, help="hellaswag_val_full.txt.bz2 [beside instruction-data.json]")
    options = parser.parse_args(argv)
    common.need("torch", "transformers", "lm_eval", "gguf")
    model = real.model_path(Path("smollm2"))
    data = options.data or common.instructions(options).parent / "benchmarks" / "hellaswag_val_full.txt.bz2"
    if not data.is_file():
        raise UserError(f"--data {data} does not exist")
    count = 8 if options.quick else options.tasks
    settings = {"model": model.stem, "data": data.name, "tasks": count, "quick": options.quick}
    result = common.header("harness", options, settings, ["torch", "transformers", "lm_eval"])
    who = {f"lm-eval's own, batch {size}": {"who": "theirs", "batch": size} for size in THEIRS}
    shared = {"model": str(model), "data": str(data.resolve())}

    def measure(tasks: int, names: list[str], rounds: int) -> list[dict]:
        def call(name: str, _: int) -> dict:
            return common.call("harness", {**shared, **who[name], "tasks": tasks}, common.environment(options))

        return common.interleave(names, rounds, call, "tasks_per_second")

    trial = measure(min(TRIAL, count), list(who), 1)[0]
    result["trial"] = {name: found["tasks_per_second"] for name, found in trial.items()}
    best = max(result["trial"], key=result["trial"].get)
    who["gptft"] = {"who": "gptft"}
    result["rounds"] = measure(count, ["gptft", best], options.rounds)
    values = {name: found.pop("values") for name, found in result["rounds"][0].items()}
    tried = {name: found["values"] for name, found in trial.items()}
    for later in result["rounds"][1:]:
        for found in later.values():
            del found["values"]
    speeds = common.spreads(result["rounds"], "tasks_per_second")
    result["summary"] = {
        "tasks_per_second": speeds,
        "peak_bytes": common.spreads(result["rounds"], "peak_bytes"),
        "scores": {name: [found["acc"], found["acc_norm"]] for name, found in result["rounds"][0].items()},
        "best": best,
        "ratio": common.ratios(result["rounds"], "gptft", best, "tasks_per_second"),
        "largest_difference": largest(values["gptft"], values[best]),
        # how far their own sums go apart by the batch size alone, on the tasks of the trial
        "in_trial": {name: largest(found, tried[best]) for name, found in tried.items() if name != best}
        | {"gptft": largest(values["gptft"][: len(tried[best])], tried[best])},
    }
    results.save(result, common.results_folder(options))


def largest(some: list[list[float]], others: list[list[float]]) -> float:
    """The largest relative difference of two contenders' log-likelihoods of the same endings."""
    pairs = (pair for a, b in zip(some, others, strict=True) for pair in zip(a, b, strict=True))
    return max(abs(a - b) / abs(b) for a, b in pairs)


def table(result: dict) -> str:
    summary = result["summary"]
    rows = []
    for name, speed in summary["tasks_per_second"].items():
        acc, normalised = summary["scores"][name]
        memory = f"{summary['peak_bytes'][name]['median'] / 1e9:.2f}"
        rows.append([name, results.shown(speed), memory, f"{acc:.4f}", f"{normalised:.4f}"])
    head = ["who", "tasks a second", "peak memory, GB", "acc", "acc_norm"]
    verdict = results.verdict(summary["ratio"]["median"], TARGET, "x", at_least=True)
    trial = ", ".join(f"{name} {speed:.2f}" for name, speed in result["trial"].items())
    apart = ", ".join(f"{name} {value:.1e}" for name, value in summary["in_trial"].items())
    ratio, difference = results.shown(summary["ratio"]), summary["largest_difference"]
    return (
        f"{results.markdown(head, rows)}\n\nHellaSwag, {result['settings']['tasks']:,} tasks: gptft makes {ratio} "
        f"times the tasks of {summary['best']} ({verdict}); the largest relative difference of a log-likelihood is "
        f"{difference:.1e} (on the tasks of the trial {apart}: fp32 adds up in another order). Tasks a second in the "
        f"trial of batch sizes: {trial}."
    )


if __name__ == "__main__":
    common.answer(work)
