"""Several runs side by side: their curves on one chart, the settings that differ, and their figures with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gptft.evaluation.compare import SIDES
from gptft.evaluation.metrics import describe_metric
from gptft.report.html import Element, element, table
from gptft.report.overfitting import find_course
from gptft.report.page import try_part, whole_page
from gptft.report.parts.training import LOSS, cost, pairs
from gptft.report.plot import smooth
from gptft.report.run_files import RunFiles
from gptft.report.story import tell
from gptft.report.svg import Line, line_chart
from gptft.run.tables import TOPIC, bounds, number, percent

# the settings that say what the validation loss is measured on
MEASURED_BY = ("init", "seed", "data", "val_data", "val_fraction", "fields", "template", "thinking", "mask_prompt")
MEASURED_BY += ("max_length", "truncation", "bad_records")


def page_of_several(runs: Sequence[RunFiles]) -> str:
    """One page for all, in the order in which they are named."""
    named = dict(zip(short_names(runs), runs, strict=True))
    parts = {
        "curves": ("Curves", curves),
        "metrics": ("After training, measured", metrics),
        "settings": ("Settings that differ", differing),
        "speed": ("Speed, memory, arithmetic", speed),
        "each": ("Each run", each),
    }
    sections = {anchor: (heading, part) for anchor, (heading, make) in parts.items() if (part := try_part(make, named))}
    lead = [
        element("p", try_part(best, named), " Each run's own page is the report.html in its folder.", class_="story")
    ]
    return whole_page(f"{len(runs)} runs", lead, sections)


def short_names(runs: Sequence[RunFiles]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    paths = [run.folder.resolve() for run in runs]
    deep = 1
    while len({path.parts[-deep:] for path in paths}) < len(paths):
        deep += 1
    return ["/".join(path.parts[-deep:]) for path in paths]


def best(named: dict[str, RunFiles]) -> str:
    """Which run has the lowest validation loss."""
    lowest = {name: course.lowest for name, run in named.items() if (course := find_course(run.steps, run.evaluations))}
    if not lowest:
        return "None of the runs has a validation loss."
    name = min(lowest, key=lambda name: lowest[name][1])
    step, loss = lowest[name]
    said = f"The lowest validation loss is that of {name}: {loss:.4g} nats a target, at step {step:,}"
    alike = all(len({json.dumps(run.config.get(key)) for run in named.values()}) == 1 for key in MEASURED_BY)
    return said + ("." if alike else "; but the runs differ in what it is measured on (below).")


def curves(named: dict[str, RunFiles]) -> list | None:
    """Losses over steps and over tokens, a line a run."""
    over_steps = [
        Line(name, pairs(run.evaluations, "eval_loss"), n, dots=True) for n, (name, run) in enumerate(named.items())
    ]
    over_tokens = []
    for line, run in zip(over_steps, named.values(), strict=True):
        read = {0: 0.0, **dict(run.tokens_by_step())}
        over_tokens.append(line._replace(points=[(read[step], loss) for step, loss in line.points if step in read]))
    trained = [Line(name, smooth(pairs(run.steps, "loss")), n) for n, (name, run) in enumerate(named.items())]
    charts = [
        line_chart("steps", "Validation loss over steps", over_steps, "step", LOSS),
        line_chart("tokens", "Validation loss over tokens", over_tokens, "token", LOSS),
        line_chart("training", "Training loss, smoothed", trained, "step", LOSS),
    ]
    return [element("div", charts, class_="charts")] if any(charts) else None


def metrics(named: dict[str, RunFiles]) -> list | None:
    """A row a figure, a column a run: after training, with the bounds of 95%."""
    kept = [run.evaluation for run in named.values()]
    rows = []
    for name in ("loss", "perplexity", "token_accuracy"):
        show = percent if name == "token_accuracy" else number
        found = [each.get("likelihood", {}).get(SIDES[1], {}).get(name) for each in kept]
        rows.append([describe_metric(name), *(bounds(one, show) if one else "" for one in found)])
    for name in dict.fromkeys(name for each in kept for name in each.get("metrics", {})):
        found = [each.get("metrics", {}).get(name, {}).get("all", {}).get(SIDES[1]) for each in kept]
        rows.append([describe_metric(name), *(bounds(one, percent) if one else "" for one in found)])
    for what, name in TOPIC.items():
        found = [each.get("topic", {}).get(what, {}).get(SIDES[1]) for each in kept]
        rows.append([name, *(bounds(one, percent) if one else "" for one in found)])
    rows = [row for row in rows if any(row[1:])]
    note = "Bounds that overlap leave it open which run is better, and only figures of the same test records compare."
    return (
        [table("Of the test split, with bounds of 95%", ["metric", *named], rows, "figures"), element("p", note)]
        if rows
        else None
    )


def differing(named: dict[str, RunFiles]) -> list:
    """The settings in which not all runs are alike."""
    rows = []
    for name in dict.fromkeys(name for run in named.values() for name in run.config):
        values = [run.config.get(name) for run in named.values()]
        if any(value != values[0] for value in values):
            rows.append([name, *("" if value is None else json.dumps(value, ensure_ascii=False) for value in values)])
    if not rows:
        return [element("p", "The runs have the same settings.")]
    return [table("A column a run; what is alike in all is left out", ["setting", *named], rows)]


def speed(named: dict[str, RunFiles]) -> list[Element] | None:
    """What each finished run took."""
    columns = [dict(cost(run.summary)) if run.summary else {} for run in named.values()]
    rows = [
        [what, *(column.get(what, "") for column in columns)]
        for what in dict.fromkeys(key for c in columns for key in c)
    ]
    return [table("What the training took", ["what", *named], rows)] if rows else None


def each(named: dict[str, RunFiles]) -> list[Element]:
    """What each run's own page begins with."""
    return [element("p", element("b", f"{name}: "), try_part(tell, run)) for name, run in named.items()]
