"""What a run says on the console: the progress bar, and lines that go above it."""

from __future__ import annotations

import itertools
import math
import os
import sys

from tqdm import tqdm

from gptft.adapters.lora import adapters_of
from gptft.data.build import NAMED, NAMED_KEYS
from gptft.data.corpus import Stream
from gptft.data.examples import Dataset, Split
from gptft.model import GPT, count_parameters, weight_bytes
from gptft.parallel.ranks import here
from gptft.text.progress import progress
from gptft.training import Evaluation, Step

NOTES = ("note:", "passed over:")  # how lines begin that a rank may have to say for itself


class Bar:
    """A tqdm bar with loss, tokens a second and time left; evaluations are printed. No bar without a terminal."""

    def __init__(self, total: int, done: int) -> None:
        self.bar = progress(total=total, initial=done, unit="steps")

    def show(self, event: Step | Evaluation) -> None:
        if isinstance(event, Step):
            self.bar.set_postfix_str(f"loss {event.loss:.3f}, {event.tokens_per_second:,.0f} tok/s", refresh=False)
            self.bar.update()
        else:
            best = "  (best so far)" if event.improved else ""
            score = "" if event.score is None else f"  score {event.score:.1%}"
            say(f"  step {event.step:>6}  epoch {event.epoch:6.2f}  validation loss {event.eval_loss:.4f}{score}{best}")

    def close(self) -> None:
        self.bar.close()


def say(text: str = "") -> None:
    """Print to standard output, above a progress bar where there is one. Of several ranks the first speaks; what others
    would have said is kept."""
    here().notes.extend(line for line in text.splitlines() if line.startswith(NOTES))
    if not here().first:
        return
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along is gone; the training is not to end for that
        sys.stdout = open(os.devnull, "w")


def say_of_others() -> None:
    """Notes and warnings of other ranks that the first has not had itself. All ranks call it."""
    ranks = here()
    if ranks.size > 1:
        heard = ranks.gather(ranks.notes)
        for rank, notes in enumerate(heard[1:], 1):
            for note in dict.fromkeys(notes):
                if ranks.first and note not in heard[0]:
                    say(f"rank {rank}: {note}")
        ranks.notes[:] = heard[0]  # what was said once is not said again
        ranks.notes.extend(note for notes in heard[1:] for note in notes)


def print_data(datasets: dict[str, Dataset], train_set: Split, val_set: Split, test_set: Split) -> None:
    """Say what became of the records, name the first that were dropped, and say what an empty split means."""
    for name, dataset in datasets.items():
        say(describe_ledger(name, dataset.ledger))
        print_dropped(dataset, "; lost.jsonl will name them all")
    aside = datasets["data"].ledger.get("set_aside")
    note = f" ({aside['examples']:,} more are set aside by --data_fraction)" if aside else ""
    if isinstance(train_set, Stream):
        say(f"stream: this is its first shard; the others are made beside the training, in {train_set.corpus.folder}")
    say(f"split: {len(train_set):,} to train on{note}, {len(val_set):,} for validation, {len(test_set):,} for the test")
    if not len(val_set):
        say("  the validation split is empty: its loss is not measured, and the last weights are kept, not the best")
    if not len(test_set):
        say("  the test split is empty: test loss and exact match are not measured")


def print_dropped(dataset: Dataset, more: str = "") -> None:
    """Name the first records that were dropped; `more`: where the others are named."""
    dropped = (entry for entry in dataset.lost() if entry["what"] == "dropped")
    for entry in itertools.islice(dropped, NAMED):
        say(f"  dropped: {entry['file']}, line {entry['line']}: {entry['why']}")
    if (n_dropped := sum(dataset.ledger["records_dropped"].values())) > NAMED:
        say(f"  ... and {n_dropped - NAMED:,} more{more}")


def describe_ledger(name: str, ledger: dict) -> str:
    """A line on what became of the records, one for each key without a part, and before them the template with the
    keys that led to it, where the ledger knows them."""
    dropped = ledger["records_dropped"]
    reasons = f" ({', '.join(f'{n:,} {why}' for why, n in dropped.items())})" if dropped else ""
    unused = "".join(f"\n  not used: the key {key!r} of {n:,} records" for key, n in ledger["unused_keys"].items())
    if len(ledger["unused_keys"]) >= NAMED_KEYS:
        unused += f"\n  (of such keys the {NAMED_KEYS} that most records have)"
    return (describe_choice(ledger["template"]) + "\n" if "template" in ledger else "") + (
        f"{name}: {ledger['records_read']:,} records read, {ledger['records_kept']:,} kept, of these "
        f"{ledger['records_cut']:,} cut, {sum(dropped.values()):,} dropped{reasons}; {ledger['examples']:,} examples, "
        f"{ledger['tokens_read']:,} tokens read, {ledger['targets']:,} of them targets, {ledger['tokens_cut']:,} cut, "
        f"{ledger['tokens_dropped']:,} dropped" + unused
    )


def describe_choice(choice: dict) -> str:
    """A line on which template it is, why, and which keys of how many records fill it."""
    keys = ", ".join(key if key == part else f"{key} (as {part})" for key, part in choice["keys"].items())
    line = f"template: {choice['template']} ({choice['why']}); keys {keys or 'unknown'}; {choice['records']:,} records"
    line += "".join(f"\n  {count:,} by the keys {names}" for names, count in choice.get("readings", {}).items())
    if held := choice.get("held"):
        line += f"\n  all {held['records']:,} prompts already hold the template {held['template']}, which is taken out"
    return line


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
