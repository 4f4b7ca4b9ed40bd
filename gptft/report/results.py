"""What a run has come to: its last files written, and said on the console."""

from __future__ import annotations

import json
from pathlib import Path

from gptft.data.examples import Dataset
from gptft.evaluation.responses import Question, shown_prompt
from gptft.files import atomic_write, write_json_lines
from gptft.report.page import write_report
from gptft.report.plot import plot_losses
from gptft.run import console
from gptft.run.console import say
from gptft.run.metrics_file import read_metrics
from gptft.run.record_losses import describe_stubborn, write_training_losses
from gptft.run.tables import describe_evaluation, response_table, score_table


def write_results(
    out_dir: Path,
    rows: list[dict],
    questions: list[Question],
    summary: dict,
    evaluation: dict,
    datasets: dict[str, Dataset],
) -> None:
    """Write the run's files, and print what they hold and where they are."""
    lost = [{"split": name, **entry} for name, dataset in datasets.items() for entry in dataset.lost()]
    if lost:
        write_json_lines(out_dir / "lost.jsonl", lost)
    if rows:
        say("\n" + response_table(rows, [shown_prompt(question.parts) for question in questions]))
        if "exact_match" in summary:
            say("\n" + score_table("exact_match", summary["exact_match"]))
    if evaluation:
        say("\n" + describe_evaluation(evaluation))
    for name, content in (("evaluation", evaluation), ("summary", summary)):
        if content:
            with atomic_write(out_dir / f"{name}.json") as file:
                json.dump(content, file, indent=1)
    made = {"lost.jsonl": lost, "responses.jsonl": rows, "evaluation.json": evaluation}
    made |= {"losses.jsonl": "likelihood" in evaluation, "forgetting.jsonl": "forgetting" in evaluation}
    for name in (name for name, content in made.items() if not content):
        (out_dir / name).unlink(missing_ok=True)  # of an earlier end, from which the run was gone on with
    if stubborn := describe_stubborn(write_training_losses(out_dir)):
        say("\n" + stubborn)
    if not plot_losses(read_metrics(out_dir / "metrics.jsonl"), out_dir / "loss.png"):
        say("no loss.png: drawing it needs matplotlib (pip install 'gptft[plot]')")
    write_report(out_dir)
    for name in ("eval_loss", "test_loss"):
        if summary[name] is not None:
            say(f"{name.replace('_', ' ')} {summary[name]:.4f}" + (" (best)" if name == "eval_loss" else ""))
    say(
        f"{summary['steps']:,} steps in {console.clock(summary['train_runtime'])} (m:ss), "
        f"{summary['train_samples_per_second']:.1f} examples a second"
    )
    for path in visible(out_dir):
        inside = f"/{{{', '.join(entry.name for entry in visible(path))}}}" if path.is_dir() else ""
        say(f"  {path}{inside}")


def visible(folder: Path) -> list[Path]:
    """What is in a folder, but for hidden files: locks, and what is being written."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
