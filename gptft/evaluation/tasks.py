"""Tasks of EleutherAI's harness over files that lie here, for where no hub can be reached: its prompts, its scores, and
somebody's data. `NAME=FILE` names one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptft.data.compressed import opened
from gptft.errors import UserError, nearest


def read_text(path: Path) -> str:
    with opened(path) as file:
        return file.read().decode("utf-8")


def hellaswag(path: Path) -> Iterator[dict]:
    """Six lines a task: the context, the number of the right ending, four endings."""
    lines = read_text(path).removesuffix("\n").split("\n") if path.stat().st_size else []
    if len(lines) % 6:
        raise ValueError(f"{len(lines):,} lines are no tasks of six lines each")
    for start in range(0, len(lines), 6):
        context, label, *endings = (line.removesuffix("\r") for line in lines[start : start + 6])
        if label not in {"0", "1", "2", "3"}:
            raise ValueError(f"line {start + 2}: {label[:40]!r} is no number of an ending")
        yield {"query": context, "choices": endings, "label": int(label)}


def truthfulqa(path: Path) -> Iterator[dict]:
    """The table of the authors: question, best, correct and incorrect answers, these parted by semicolons."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    for row in rows:
        if None in row.values():
            raise ValueError(f"line {rows.line_num}: a row has fewer fields than the first line names")
        right, wrong = (
            [answer.strip() for answer in row[key].split(";") if answer.strip()]
            for key in ("Correct Answers", "Incorrect Answers")
        )
        best = row["Best Answer"].strip()
        yield {
            "question": row["Question"].strip(),
            "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
            "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
        }


def gsm8k(path: Path) -> Iterator[dict]:
    """A JSON line a task: question and answer."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # other ends of lines may stand in a text
        if line.strip():
            try:
                row = json.loads(line)
                yield {"question": row["question"], "answer": row["answer"]}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number}: {error}") from None


# The harness's task -> how its file is read, and the split that it measures
LOCAL: dict[str, tuple[Callable[[Path], Iterator[dict]], str]] = {
    "hellaswag": (hellaswag, "validation"),
    "truthfulqa_mc1": (truthfulqa, "validation"),
    "truthfulqa_mc2": (truthfulqa, "validation"),
    "gsm8k": (gsm8k, "test"),
}


def task_of(spec: str) -> str | dict:
    """What the harness is asked for: the name of one of its tasks, or for NAME=FILE that task over the file.

    Raises UserError where there is no such file, where it is none for the task, and where the task has no such form.
    """
    name, equals, file = spec.partition("=")
    if not equals:
        return name
    if name not in LOCAL:
        raise UserError(f"--tasks {spec}: of files there are {', '.join(LOCAL)}")
    read, split = LOCAL[name]
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--tasks {spec}: {file}: no such file")
    splits, more = {split: read_rows(spec, read, path)}, {}
    if name == "hellaswag":  # the texts of such a file are cleaned already
        more = {"process_docs": None, "training_split": None}
    if name == "gsm8k":  # its prompt has examples out of the training file, which lies beside that of the test
        beside = path.with_name(path.name.replace("test", "train"))
        if beside != path and beside.is_file():
            splits["train"] = read_rows(spec, read, beside)
        else:
            more = {"training_split": None, "fewshot_split": None, "num_fewshot": 0}

    def load(**_) -> dict:
        import datasets

        return {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}

    return harness_config(name) | more | {"custom_dataset": load}


def read_rows(spec: str, read: Callable[[Path], Iterator[dict]], path: Path) -> list[dict]:
    """The tasks of a file. Raises UserError where it is no such file."""
    try:
        rows = list(read(path))
    except KeyError as error:
        raise UserError(f"--tasks {spec}: {path} has no {error}: it is no file of such tasks") from None
    except (ValueError, TypeError, AttributeError, OSError, EOFError, csv.Error) as error:
        raise UserError(f"--tasks {spec}: {path} is no file of such tasks: {error}") from None
    if not rows:
        raise UserError(f"--tasks {spec}: {path}: there is no task in it")
    return rows


def harness_config(name: str) -> dict:
    """What the harness itself says of a task: its prompt, its metrics."""
    from lm_eval import tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(tasks.__file__).parent / name.partition("_")[0]
    config = load_yaml(folder / f"{name}.yaml")
    return {key: value for key, value in config.items() if key not in ("tag", "dataset_path", "dataset_name")}


def run_tasks(lm, specs: Sequence[str], include_path: str = "", **how) -> dict:
    """The harness's results of a model (harness.harness_model) on its tasks; `how`: as its `simple_evaluate` has it.

    Raises UserError for an unknown task, and for one whose data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = [task_of(spec) for spec in specs]
    named = any(isinstance(task, str) for task in tasks)  # to look through all that the harness has takes long
    manager = TaskManager(include_path=include_path or None, include_defaults=named)
    for task in tasks:
        if isinstance(task, str) and task not in manager.all_tasks:
            raise UserError(f"--tasks {task}: the harness has no such task{nearest(task, manager.all_tasks)}")
    try:
        return simple_evaluate(lm, tasks=tasks, task_manager=manager, **how)
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and "Couldn't find" not in str(error):  # no matter of the data
            raise
        files = ", ".join(f"{name}=FILE" for name in LOCAL)
        raise UserError(f"--tasks {','.join(specs)}: {error}; without a network there are {files}", 1) from error
