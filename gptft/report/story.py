"""A run in a paragraph, written from its figures by rules."""

from __future__ import annotations

from pathlib import Path

from gptft.evaluation.metrics import describe_metric
from gptft.report.overfitting import Course, find_course
from gptft.report.run_files import RunFiles
from gptft.run.console import amount
from gptft.run.tables import describe_price, percent


def tell(run: RunFiles) -> str:
    """What was trained on what, how long, what became of the loss, whether it overfits and where, what changed in the
    answers and whether that is more than chance, and what it cost."""
    course = find_course(run.steps, run.evaluations)
    sentences = [begin(run), loss(course, run), answers(run), price(run.evaluation), mistakes(run), cost(run.summary)]
    return " ".join(sentence for sentence in sentences if sentence)


def begin(run: RunFiles) -> str:
    """Model, data and duration."""
    summary, start = run.summary, run.config.get("init", "")
    data = ", ".join(map(file_name, run.config.get("data", []))) or "its data"
    what = "A model from scratch" if start == "tiny" else f"A model that began as {model_name(start)}"
    if not summary:
        state = "is being trained" if run.going_on else "was trained"
        epoch = max((row["epoch"] for row in run.metrics), default=0.0)
        wanted = "" if run.config.get("max_steps") else f" of {run.config.get('epochs', 1.0):g}"
        reached = f"step {run.last_step:,}, epoch {epoch:.2f}{wanted}"
        tail = "" if run.going_on else "; it has not come to its end"
        return f"{what} {state} on {data} and has reached {reached}{tail}."
    parameters = f"{amount(summary['parameters'], '').strip()} parameters"
    if summary["trainable_parameters"] != summary["parameters"]:
        parameters += f", of them {amount(summary['trainable_parameters'], '').strip()} in adapters that were trained"
    over = ""  # how long a stream is, is not known
    if not run.config.get("stream"):
        seen = summary["train_samples_per_second"] * summary["train_runtime"]
        over = f" {count(seen / max(summary['train_examples'], 1), 'pass', 'passes')} over the data,"
    return (
        f"{what} ({parameters}) was trained on {summary['train_examples']:,} examples of {data}: "
        f"{summary['steps']:,} steps,{over} in "
        f"{duration(summary['train_runtime'])} on {summary['device']} in {summary['precision']}."
    )


def loss(course: Course | None, run: RunFiles) -> str:
    """Where the validation loss went, and whether the model learned by heart."""
    if course is None:
        return "No validation loss was measured, so nothing says whether it learned or learned by heart."
    (_, first), (step, lowest), (_, last) = course.first, course.lowest, course.last
    if course.first == course.last:
        return f"The validation loss was {first:.3g} nats a target."
    if step == course.first[0]:
        return f"No step lowered the validation loss: it was {first:.3g} at first and {last:.3g} at the end."
    fell = f"The validation loss fell from {first:.3g} to {lowest:.3g} nats a target, its lowest, at step {step:,}"
    if course.overfits:
        kept = "; the weights that are kept are those of before" if run.summary.get("best_step") == step else ""
        return f"{fell}; then it rose to {last:.3g} while the training loss fell: there the model overfits{kept}."
    if course.overfits is None:
        return f"{fell}; then it rose to {last:.3g}; too few steps were logged to say whether it overfits."
    if course.rose:
        return f"{fell}; then it rose to {last:.3g}, and so did the training loss: it is unsteady, not overfitting."
    ended = ", where it was still falling" if step == course.last[0] else ""
    return f"{fell}{ended}: no overfitting is seen."


def answers(run: RunFiles) -> str:
    """How many answers are right, or how near they come, and whether that is a change."""
    metrics = run.evaluation.get("metrics", {})
    exact, near = (metrics.get(name, {}).get("all") for name in ("exact_match", "token_f1"))
    if not exact or "difference" not in exact:
        return ""
    said, found = "{} were answered exactly as expected before", exact
    if near and not exact["before"]["value"] and not exact["after"]["value"]:
        said, found = "none was answered exactly; answers shared {} of their words with the expected ones before", near
    before, after, change = found["before"]["value"], found["after"], found["difference"]
    between = ""
    if after["low"] is not None:
        between = f" (with 95% confidence {percent(after['low'])} to {percent(after['high'])})"
    verdict = "as many got better as worse" if found["wins"] == found["losses"] else "no difference is shown"
    if not found["wins"] and not found["losses"]:
        verdict = "nothing changed"
    if change["differs"]:
        verdict = f"that is {'better' if change['value'] > 0 else 'worse'} by more than chance"
    return (
        f"Of {found['n']:,} test prompts {said.format(percent(before))} and {percent(after['value'])} after{between}: "
        f"{verdict}."
    )


def price(evaluation: dict) -> str:
    """Whether it has lost what it knew."""
    found = evaluation.get("forgetting")
    return describe_price(found, evaluation.get("likelihood")) if found else ""


def mistakes(run: RunFiles) -> str:
    """The mistake that is most frequent now."""
    found = run.evaluation.get("mistakes", {})
    counts = {name: row["after"] for name, row in found.items()}
    if not counts or not max(counts.values()):
        return ""
    name = max(counts, key=counts.get)
    before = found[name]["before"]
    return f"The most frequent mistake is now: {describe_metric(name)} ({counts[name]:,} answers, {before:,} before)."


def cost(summary: dict) -> str:
    """Arithmetic, its share of what the machine can do, and memory."""
    if not summary:
        return ""
    parts = [f"It took {amount(summary['total_flos'], 'FLOP')}"]
    if summary.get("machine_flops"):
        share = summary["total_flos"] / max(summary["train_runtime"], 1e-9) / summary["machine_flops"]
        parts.append(f"at {share:.0%} of the speed that the machine was measured to multiply matrices at")
    if summary.get("peak_memory_bytes"):
        parts.append(f"and {amount(summary['peak_memory_bytes'], 'B')} of memory at the peak")
    return ", ".join(parts) + "."


def model_name(init: str) -> str:
    """A word of --init; of a file or folder its name, of a checkpoint with that of its run."""
    path = Path(init)
    if not (path.is_absolute() or path.suffix == ".gguf" or path.exists()):
        return init
    inside = path.name in ("best", "last") or path.name.startswith("step-")
    return f"{path.parent.name}/{path.name}" if inside else path.name


def file_name(word: str) -> str:
    """A word of --data, without the folders."""
    return word if word.startswith("hf:") else Path(word.removeprefix("embedded:")).name


def count(value: float, one: str, many: str) -> str:
    """2.0, "pass", "passes" -> "2 passes"."""
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{shown} {one if shown == '1' else many}"


def duration(seconds: float) -> str:
    """Seconds as somebody says them."""
    if seconds < 90:
        return count(round(seconds, 1), "second", "seconds")
    if seconds < 5400:
        return count(round(seconds / 60, 1), "minute", "minutes")
    return count(round(seconds / 3600, 1), "hour", "hours")
