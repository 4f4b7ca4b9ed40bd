"""The token viewer: what is masked, what is a target, read from the very tensors that the loss receives."""

from __future__ import annotations

import html
from collections.abc import Sequence

from gptft.evaluation.tokens import KINDS, Token
from gptft.text.printable import printable

COLOURS = {"target": "\x1b[30;42m", "masked": "\x1b[90m", "padding": "\x1b[31m"}
MARKS = {"target": ("[", "]"), "masked": ("", ""), "padding": ("~", "~")}  # where there is no colour


def as_text(tokens: Sequence[Token], colour: bool) -> str:
    """The row as text: neighbouring tokens are told apart by their colour's start, or by brackets around targets."""
    out = []
    for token in tokens:
        shown = printable(token.text).replace("\n", "\\n\n")
        if colour:
            # colour each line by itself: pagers and terminals end it at a line break
            lines = [f"{COLOURS[token.kind]}{part}\x1b[0m" if part else "" for part in shown.split("\n")]
            out.append("\n".join(lines))
        else:
            left, right = MARKS[token.kind]
            out.append("\n".join(left + part + right if part else "" for part in shown.split("\n")))
    return "".join(out)


def as_table(tokens: Sequence[Token]) -> str:
    """A line a token: position, id, kind, text."""
    lines = [f"{'position':>8} {'id':>7}  {'kind':<8} token"]
    lines += [f"{token.position:>8} {token.id:>7}  {token.kind:<8} {token.text!r}" for token in tokens]
    return "\n".join(lines)


def legend(colour: bool) -> str:
    """What the colours, or the marks, mean."""
    parts = []
    for kind, meaning in KINDS.items():
        sample = f"{COLOURS[kind]}{kind}\x1b[0m" if colour else f"{MARKS[kind][0]}{kind}{MARKS[kind][1]}"
        parts.append(f"{sample}: {meaning.partition(': ')[2]}")
    return "   ".join(parts)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What is trained</title>
<style>
body {{ font: 15px/1.7 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }}
pre {{ white-space: pre-wrap; font: 14px/1.8 ui-monospace, monospace; border: 1px solid #ccc; padding: 1em; }}
span {{ border-radius: 3px; box-shadow: inset 0 0 0 1px #0002; }}
.target {{ background: #b7e4c7; color: #081c15; }} .masked {{ color: #888; }} .padding {{ color: #c1121f; }}
</style>
<h1>What is trained</h1>
<p>{legend}. Hover over a token for its position and id.</p>
{rows}
</html>
"""


def as_html(rows: Sequence[tuple[str, Sequence[Token]]]) -> str:
    """A page by itself: (title, tokens) for every row."""
    legend_html = ", ".join(f'<span class="{kind}">{kind}</span> is {meaning}' for kind, meaning in KINDS.items())
    parts = []
    for title, tokens in rows:
        spans = "".join(
            f'<span class="{t.kind}" title="position {t.position}, id {t.id}, {t.kind}">{_visible(t.text)}</span>'
            for t in tokens
        )
        parts.append(f"<h2>{html.escape(title)}</h2>\n<pre>{spans}</pre>")
    return PAGE.format(legend=legend_html, rows="\n".join(parts))


def _visible(text: str) -> str:
    return html.escape(printable(text)).replace("\n", "&#8629;\n")
