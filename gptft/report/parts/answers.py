"""The answers before and after, with filters by outcome, family and mistake: radio buttons and style, no script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from gptft.errors import BadRecord, UserError
from gptft.evaluation.metrics import METRICS, describe_metric
from gptft.evaluation.responses import prompt_and_expected, shown_prompt
from gptft.report.html import Element, element
from gptft.report.run_files import RunFiles

ROWS, LETTERS = 500, 400_000  # that the page carries at most
LONGEST = 800  # letters of one text
GROUPS = 24  # families, or mistakes, that have a button each
OUTCOMES = {
    "mended": "wrong before, right now",
    "kept": "right before and now",
    "spoilt": "right before, wrong now",
    "nearer": "wrong, but nearer to the expected words",
    "further": "wrong, and further from them",
    "same": "wrong, and as far from them",
    "left-out": "left out: no room for its response",
}
# the style that hides what a chosen button leaves out
RULES = "\n".join(
    f".filtered:has(#{kind}-{n}:checked) tbody tr:not(.{kind}{n}) {{ display: none; }}"
    for kind, count in (("outcome", len(OUTCOMES)), ("family", GROUPS), ("mistake", GROUPS))
    for n in range(count)
)
# how the names of a group are shown
WORDS = {"outcome": lambda name: name.replace("-", " "), "family": str, "mistake": describe_metric}


class Answer(NamedTuple):
    """A row of responses.jsonl as the page shows it, and the `line` on which it stands there. `mistakes` are those of
    the answer after, by which the filter goes, `earlier` those of the one before."""

    line: int
    prompt: str
    expected: str
    before: str
    after: str
    outcome: str
    family: str
    mistakes: tuple[str, ...]
    earlier: tuple[str, ...]
    note: str


def answers(run: RunFiles) -> list | None:
    """The table, its filters before it."""
    shown, number = shown_answers(run), len(run.responses)
    if not shown:
        return None
    groups = {
        "outcome": [name for name in OUTCOMES if any(each.outcome == name for each in shown)],
        "family": most_common(each.family for each in shown if each.family),
        "mistake": most_common(name for each in shown for name in each.mistakes),
    }
    rows = [answer_row(each, groups) for each in shown]
    head = element("tr", [element("th", word, scope="col") for word in ("", "prompt", "expected", "before", "after")])
    part = f"The first {len(shown):,} of {number:,}" if len(shown) < number else f"All {number:,}"
    caption = element("caption", f"{part} test prompts; responses.jsonl holds all of them, and whole")
    body = element("table", caption, element("thead", head), element("tbody", rows))
    filters = [fieldset(kind, names, shown) for kind, names in groups.items() if len(names) > (kind != "mistake")]
    frame = element(
        "div", body, class_="scroll answers", role="region", aria_label="Answers before and after", tabindex=0
    )
    count = element("p", class_="count", role="status")
    return [element("form", filters, frame, count, class_="filtered")]


def read_answer(line: int, row: dict, fields: dict) -> Answer:
    """What the row says, and what became of it."""
    record = row.get("record") or {}
    try:
        pair = prompt_and_expected(record, fields)
        prompt = shown_prompt(pair[0]) if pair else ""
    except (BadRecord, UserError, KeyError, IndexError, TypeError, AttributeError):  # a row that somebody wrote himself
        prompt = json.dumps(record, ensure_ascii=False)
    family, mistakes = record.get("family"), row.get("mistakes") or {}
    return Answer(
        line,
        str(prompt),
        *(str(row.get(key, "")) for key in ("expected", "before", "after")),
        outcome_of(row),
        family if isinstance(family, str) else "",
        *(tuple(dict.fromkeys(mistakes.get(side, ()))) for side in ("after", "before")),
        str(row.get("left_out", "")),
    )


def outcome_of(row: dict) -> str:
    """A key of OUTCOMES: right is what equals the expected response, near is by token F1."""
    if "left_out" in row:
        return "left-out"
    expected, before, after = (str(row.get(key, "")) for key in ("expected", "before", "after"))
    was, now = (bool(METRICS["exact_match"](answer, expected)) for answer in (before, after))
    if was or now:
        return "kept" if was and now else "mended" if now else "spoilt"
    far, near = (METRICS["token_f1"](answer, expected) or 0.0 for answer in (before, after))
    return "same" if far == near else "nearer" if near > far else "further"


def shown_answers(run: RunFiles) -> list[Answer]:
    """The first answers, as many as the page may carry; none before the run's end, which asks again."""
    shown, letters = [], 0
    for line, row in enumerate(run.responses[:ROWS] if run.summary else (), 1):
        each = read_answer(line, row, run.config.get("fields") or {})
        letters += sum(min(len(text), LONGEST) for text in (*each[1:5], each.family))
        if letters > LETTERS and shown:
            break
        shown.append(each)
    return shown


def most_common(names) -> list[str]:
    return [name for name, _ in Counter(names).most_common(GROUPS)]


def marks_of(each: Answer, kind: str) -> tuple[str, ...]:
    """The names that an answer has in one of the groups."""
    return {"outcome": (each.outcome,), "family": (each.family,), "mistake": each.mistakes}[kind]


def answer_row(each: Answer, groups: dict[str, list[str]]) -> Element:
    """A row; its classes, which the filters go by, are numbers: a name of the user's stands in no selector."""
    classes = " ".join(
        f"{kind}{names.index(name)}" for kind, names in groups.items() for name in marks_of(each, kind) if name in names
    )
    about = [
        element("b", WORDS["outcome"](each.outcome), class_=f"outcome {each.outcome}"),
        element("small", each.note or cut(each.family)),
    ]
    about += [element("small", WORDS["mistake"](name), class_="mistake") for name in each.mistakes]
    about += [element("small", f"before: {WORDS['mistake'](name)}") for name in each.earlier]
    texts = {"prompt": each.prompt, "expected": each.expected, "before": each.before, "after": each.after}
    cells = [
        element("td", cut(text), dir="auto", data_label=label) for label, text in texts.items() if label != "prompt"
    ]
    lead = element("th", cut(each.prompt), scope="row", dir="auto", data_label="prompt")
    return element("tr", element("td", about), lead, cells, class_=classes, id=f"answer-{each.line}")


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more letters)"


def fieldset(kind: str, names: Sequence[str], shown: Sequence[Answer]) -> Element:
    """Radio buttons of one group: all, or one of the names."""
    counts = Counter(name for each in shown for name in marks_of(each, kind))
    choices = [("all", f"all ({len(shown):,})", "")]
    choices += [
        (str(n), f"{cut(WORDS[kind](name))} ({counts[name]:,})", OUTCOMES[name] if kind == "outcome" else "")
        for n, name in enumerate(names)
    ]
    buttons = []
    for value, words, about in choices:
        radio = element("input", type="radio", name=kind, id=f"{kind}-{value}", value=value, checked=value == "all")
        buttons += [element("label", radio, element("span", words), title=about or None)]
    if len(counts) > len(names):
        buttons.append(element("small", f"and {len(counts) - len(names):,} more, without a button"))
    return element("fieldset", element("legend", f"by {kind}"), buttons)
