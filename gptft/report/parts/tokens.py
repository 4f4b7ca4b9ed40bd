"""A few examples token by token: what was masked, and how likely the model found each target, before and after."""

from __future__ import annotations

import math

from gptft.report.html import Element, details, element, table
from gptft.report.run_files import RunFiles

TOKENS = 400  # of an example, that are shown
LEAD = 100  # of them before the first target, of a prompt that is long
SHADES = {"below 2%": 0.0, "2% to 20%": 0.02, "20% to 50%": 0.2, "50% to 90%": 0.5, "90% and more": 0.9}  # in page.css


def tokens(run: RunFiles) -> list | None:
    """The examples of tokens.jsonl."""
    rows = [row for row in run.tokens if "after" in row]
    if not rows:
        return None
    about = (
        "Grey is read and not scored (masked, -100). What is scored is the greener the likelier the model found it "
        "after training, the right text before it given; underlined is what it found less likely than before."
    )
    scale = [element("span", words, class_=f"shade{n}") for n, words in enumerate(SHADES)]
    legend = element(
        "p", element("span", "masked", class_="masked"), " ", [[each, " "] for each in scale], class_="tokens"
    )
    return [element("p", about), legend, [example(row) for row in rows]]


def example(row: dict) -> Element:
    """One example: its text, coloured, and a line a token, folded."""
    columns = zip(row["tokens"], row["kinds"], row.get("before") or row["after"], row["after"], strict=True)
    spans, lines = [], []
    first = next((number for number, loss in enumerate(row["after"]) if loss is not None), 0)
    begin = max(0, first - LEAD) if len(row["tokens"]) > TOKENS else 0
    if begin:
        spans.append(element("span", f"({begin:,} tokens before) ... ", class_="masked"))
    for number, (text, kind, before, after) in enumerate(columns):
        if number < begin:
            continue
        if number == begin + TOKENS:
            more = len(row["tokens"]) - begin - TOKENS
            spans.append(element("span", f" ... ({more:,} more tokens)", class_="masked"))
            break
        if after is None:
            said, classes = f"{kind}", "masked"
        else:
            said = f"{percent(before)} before, {percent(after)} after; loss {before:.3f}, {after:.3f}"
            classes = f"shade{shade(after)}" + (" fell" if after > before else "")
            lines.append([text, percent(before), percent(after), f"{before:.4f}", f"{after:.4f}"])
        spans.append(element("span", text.replace("\n", "\u21b5\n"), class_=classes, title=said))
    title = f"{row['split']} example {row['example']}: {row['file']}, line {row['line']}"
    head = ["target", "likelihood before", "after", "loss before", "after"]
    losses = table("Each target with its likelihood and its loss, nats", head, lines, "targets")
    return element(
        "article",
        element("h3", title),
        element("pre", spans, class_="tokens", dir="auto"),
        details("Its targets, a line each", losses),
    )


def percent(loss: float) -> str:
    return f"{math.exp(-loss):.1%}"


def shade(loss: float) -> int:
    """Which of the shades a likelihood has."""
    return sum(math.exp(-loss) >= least for least in SHADES.values()) - 1
