"""The figures in the documents, made from the results: no number there is typed.

A document has `<!-- figures: NAME -->` ... `<!-- end -->` around what is made here, in a line for a sentence, on lines
of their own for a table. `python -m benchmarks document` writes all of them anew; a test finds any that differ.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import chart, results
from benchmarks.figures import FIGURES
from gptft.errors import UserError, nearest
from gptft.files import atomic_write

REPOSITORY = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"<!-- figures: ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)


def documents() -> list[Path]:
    """Every document that may hold figures."""
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(results.DOCS.glob("*.md"))]


def fill(text: str) -> str:
    """A document's text with its figures as the results have them. Raises UserError for a name that is not there."""

    def replace(found: re.Match) -> str:
        name, old = found.groups()
        if name not in FIGURES:
            raise UserError(f"there are no figures {name!r}{nearest(name, FIGURES)}")
        lines = "\n\n" if old.startswith("\n") else ""
        return f"<!-- figures: {name} -->{lines}{FIGURES[name]()}{lines}<!-- end -->"

    return MARKED.sub(replace, text)


def render() -> None:
    """Write the figures of every document anew, and draw the picture."""
    chart.render()
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := fill(text)) != text:
            with atomic_write(path) as file:
                file.write(new)
