"""What `evaluate --tasks` is: EleutherAI's harness over a model of ours."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from gptft.commands.common import load_model
from gptft.commands.parser import Parser, whole_number
from gptft.config import resolve
from gptft.errors import UserError


def add_benchmarks(parser: Parser) -> None:
    """Which tasks, and how they are asked."""
    group = parser.group("benchmarks")
    group.add_argument(
        "--tasks",
        default="",
        help="tasks of EleutherAI's harness (extra eval) by name, with commas between; NAME=FILE takes the data from a "
        "file: hellaswag, truthfulqa_mc1, truthfulqa_mc2, gsm8k",
    )
    group.add_argument(
        "--limit", type=whole_number(at_least=0), default=0, help="of each task the first so many; 0: all"
    )
    group.add_argument(
        "--num_fewshot", type=whole_number(at_least=0), help="examples in the prompt; by default the task's own number"
    )
    group.add_argument(
        "--apply_chat_template", action="store_true", help="ask in the model's template, as a user would"
    )
    group.add_argument("--include_path", default="", help="a folder of your own tasks for the harness")


def run_benchmarks(options: Namespace, out: Path | None) -> None:
    """Print the harness's table, and keep its results."""
    for name in ("against", "metric", "mend", "data", "judge", "generations"):
        if getattr(options, name, None) or name in options.settings:
            raise UserError(f"--{name} and --tasks: measure one after the other")
    if options.decode != "auto":
        raise UserError("--decode and --tasks: the harness asks a model as it is")
    from gptft.evaluation.harness import harness_model
    from gptft.evaluation.tasks import run_tasks
    from gptft.files import atomic_write

    specs = [spec.strip() for spec in options.tasks.split(",") if spec.strip()]
    if not specs:
        raise UserError(f"--tasks {options.tasks}: there is no task in it")
    config = resolve("", {**options.settings, "init": options.model})
    model, tokenizer = load_model(options, config.device)
    results = run_tasks(
        harness_model(model, tokenizer, options.batch_size),
        specs,
        options.include_path,
        limit=options.limit or None,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=bool(options.apply_chat_template and tokenizer.template and tokenizer.template.multi_turn),
    )
    print(describe_results(results))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / "benchmarks.json") as file:
            json.dump(results, file, indent=1, default=str)


def describe_results(results: dict) -> str:
    """Every score of the harness in a line: the task, how its answers were filtered, examples in the prompt, the
    metric, and the value with its standard error, which the harness has of some."""
    from gptft.run.tables import columns

    lines = [["task", "version", "filter", "shots", "metric", "value", "standard error"]]
    for task, found in results["results"].items():
        about = [found.get("alias", task), str(results["versions"].get(task, ""))]
        for name, value in found.items():
            metric, comma, kind = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = found.get(f"{metric}_stderr,{kind}")
                cells = [f"{each:.4f}" if isinstance(each, float) else "" for each in (value, error)]
                shots = str(results.get("n-shot", {}).get(task, ""))
                lines.append([*about, kind, shots, metric, cells[0] or str(value), cells[1]])
    return columns(lines)
