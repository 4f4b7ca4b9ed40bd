"""How many lines of code the core has: the files that somebody reads to learn how a GPT is fine-tuned.

Lines that hold nothing but a comment, a docstring or white space are not counted, so that explaining costs nothing.
`python -m benchmarks document` writes the table into CONTRIBUTING.md, and a test holds the total below `LIMIT`.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

from benchmarks.results import markdown

PACKAGE = Path(__file__).resolve().parent.parent / "gptft"
# in the order in which they call one another, from the top down
CORE = (
    "finetuning",
    "training",
    "decoding",
    "checkpoint",
    "loss",
    "collate",
    "tokenizer",
    "prompts",
    "optim",
    "model",
    "attention",
    "config",
)
LIMIT = 2000
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count_lines(source: str) -> int:
    """The lines of Python `source` that hold code; a string over several lines counts as all of them."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                lines.difference_update(range(first.lineno, first.end_lineno + 1))
    return len(lines)


def count_core() -> dict[str, int]:
    """{file name: lines of code} of the core."""
    return {f"{name}.py": count_lines((PACKAGE / f"{name}.py").read_text(encoding="utf-8")) for name in CORE}


def table() -> str:
    """The core's files, their lines of code and the total, as Markdown."""
    counts = count_core()
    rows = [[f"`{name}`", f"{count:,}"] for name, count in counts.items()]
    return markdown(["file", "lines of code"], [*rows, ["all", f"{sum(counts.values()):,}"]])
