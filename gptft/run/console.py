"""What a run shows and keeps: the progress bar, metrics.jsonl, loss.png and the tables on the console."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gptft.adapters.lora import adapters_of
from gptft.evaluation.responses import is_exact
from gptft.files import atomic_write
from gptft.model import GPT, count_parameters, weight_bytes
from gptft.training import Evaluation, Progress, Step


class Metrics:
    """`metrics.jsonl`: a line a logged step, a line an evaluation; each step stands there once, resumed or not."""

    def __init__(self, path: Path, progress: Progress, log_every: int) -> None:
        self.path, self.log_every = path, log_every
        kept = [row for row in read_metrics(path) if row["step"] <= _last(row, progress)]
        with atomic_write(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self.file = open(path, "a", encoding="utf-8")

    def write(self, event: Step | Evaluation) -> None:
        if isinstance(event, Evaluation):
            row = {"step": event.step, "epoch": event.epoch, "eval_loss": event.eval_loss}
        elif event.step % self.log_every:
            return
        else:
            row = vars(event)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _last(row: dict, progress: Progress) -> int:
    """A killed run may have logged more than it saved: what comes after this step will come again."""
    return progress.evaluated if "eval_loss" in row else progress.step


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Bar:
    """A tqdm bar with loss, tokens a second and time left; evaluations are printed. No bar without a terminal."""

    def __init__(self, total: int, done: int) -> None:
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty(), leave=False)

    def show(self, event: Step | Evaluation) -> None:
        if isinstance(event, Step):
            self.bar.set_postfix_str(f"loss {event.loss:.3f}, {event.tokens_per_second:,.0f} tok/s", refresh=False)
            self.bar.update()
        else:
            best = "  (best so far)" if event.improved else ""
            say(f"  step {event.step:>6}  epoch {event.epoch:6.2f}  validation loss {event.eval_loss:.4f}{best}")

    def close(self) -> None:
        self.bar.close()


def say(text: str = "") -> None:
    """Print to standard output, above a progress bar where there is one."""
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along is gone; the training is not to end for that
        sys.stdout = open(os.devnull, "w")


def describe_ledger(name: str, ledger: dict) -> str:
    """A line on what became of the records, one for each key without a part, and before them the template with the
    keys that led to it, where the ledger knows them."""
    dropped = ledger["records_dropped"]
    reasons = f" ({', '.join(f'{n:,} {why}' for why, n in dropped.items())})" if dropped else ""
    unused = "".join(f"\n  not used: the key {key!r} of {n:,} records" for key, n in ledger["unused_keys"].items())
    return (describe_choice(ledger["template"]) + "\n" if "template" in ledger else "") + (
        f"{name}: {ledger['records_read']:,} records read, {ledger['records_kept']:,} kept, of these "
        f"{ledger['records_cut']:,} cut, {sum(dropped.values()):,} dropped{reasons}; {ledger['examples']:,} examples, "
        f"{ledger['tokens_read']:,} tokens read, {ledger['targets']:,} of them targets, {ledger['tokens_cut']:,} cut, "
        f"{ledger['tokens_dropped']:,} dropped" + unused
    )


def describe_choice(choice: dict) -> str:
    """A line on which template it is, why, and which keys of how many records fill it."""
    keys = ", ".join(key if key == part else f"{key} (as {part})" for key, part in choice["keys"].items())
    return f"template: {choice['template']} ({choice['why']}); keys {keys or 'unknown'}; {choice['records']:,} records"


def describe_model(model: GPT, optimizer_bytes: int) -> str:
    """A line on the size of model and optimizer; with adapters a second one on them."""
    config, lora = model.config, adapters_of(model)
    trained, parameters = count_parameters(model)
    line = (
        f"model: {parameters:,} parameters ({config.n_layer} layers, {config.n_embd} wide, {config.n_head} "
        f"heads, {config.vocab_size:,} ids, {config.position} positions, block of {config.block_size}); "
        f"weights {amount(weight_bytes(model), 'B')}, optimizer {amount(optimizer_bytes, 'B')}"
    )
    if lora:
        kind = ("DoRA" if lora.config.dora else "LoRA") + (", rank-stabilised" if lora.config.rslora else "")
        line += (
            f"\nadapters: {kind} of rank {lora.config.rank} on {', '.join(lora.config.targets)}; {trained:,} parameters"
            f" ({trained / parameters:.2%}) are trained, the others frozen, their linear layers in {lora.frozen_as}"
        )
    return line


def amount(value: float, unit: str) -> str:
    """1234567, "B" -> "1.23 MB"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000 or prefix == "P":
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def response_table(rows: Sequence[dict], prompts: Sequence[str]) -> str:
    """Held-out prompts with the expected response and those before and after training, a line each.

    `=` marks a response that is exactly the expected one.
    """
    width = max(24, (shutil.get_terminal_size((160, 40)).columns - 12) // 4)

    def cell(text: str) -> str:
        text = " ".join(text.split())
        return (text if len(text) <= width else text[: width - 3] + "...").ljust(width)

    lines = [f"   {cell('prompt')} | {cell('expected')} | {cell('before')} | {cell('after')}"]
    for row, prompt in zip(rows, prompts, strict=True):
        mark = "=" if is_exact(row["after"], row["expected"]) else " "
        lines.append(
            f" {mark} {cell(prompt)} | {cell(row['expected'])} | {cell(row['before'])} | {cell(row['after'])}".rstrip()
        )
    return "\n".join(lines)


def match_table(table: dict[str, dict]) -> str:
    """Exact match by family."""
    width = max(map(len, table))
    lines = [f"  {'exact match'.ljust(width)}     n   before    after"]
    lines += [
        f"  {name.ljust(width)} {row['n']:>5}   {row['before']:6.1%}   {row['after']:6.1%}"
        for name, row in table.items()
    ]
    return "\n".join(lines)
