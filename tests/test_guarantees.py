"""docs/guarantees.md: every promise has its tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest

from gptft.errors import nearest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(text):
    """{number: the row's text}: a row begins with its number in bold, and ends at the next row or heading."""
    parts = re.split(r"^(?=\*\*\d+\. |## )", text, flags=re.M)
    return {int(found.group(1)): part for part in parts if (found := re.match(r"\*\*(\d+)\. ", part))}


def names_of_tests(path):
    """The names of a file's test functions; those that are marked as never run or expected to fail are no proof."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not any(re.match(r"pytest\.mark\.(skip$|skip\(|xfail)", ast.unparse(mark)) for mark in node.decorator_list)
    }


def all_tests():
    """{file: the names of its tests}"""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return {path.relative_to(ROOT).as_posix(): names_of_tests(path) for path in paths}


def where_now(test, known):
    """A hint for whoever moved or renamed a test."""
    if places := [name for name, tests in known.items() if test in tests]:
        return f"; it is in {places[0]}"
    return nearest(test, set().union(*known.values()))


def problems(text):
    """What is wrong with a list of promises, a line each."""
    found, known = [], all_tests()
    for number, row in rows(text).items():
        named = TEST.findall(row)
        if not named:
            found.append(f"row {number} has no test")
        for line in row.splitlines():
            if line.startswith("- ") and not TEST.fullmatch(line.removeprefix("- ")):
                found.append(f"row {number}: {line!r} names no test")
        for name, test in named:
            if test not in known.get(name, ()):
                found.append(f"row {number}: there is no {name}::{test}{where_now(test, known)}")
    return found


def test_every_promise_has_tests_that_are_there():
    assert problems(TEXT) == []


def test_no_promise_is_missing():
    assert list(rows(TEXT)) == list(range(1, 54))


@pytest.mark.parametrize(
    "text, problem",
    [
        ("**1. A.** b\n\n**2. C**\n- `tests/test_loss.py::test_the_shift_happens_once`\n", "row 1 has no test"),
        (
            "**1. A.**\n- `tests/test_loss.py::zzz`\n",
            "row 1: there is no tests/test_loss.py::zzz",
        ),
        (
            "**1. A.**\n- `tests/test_gone.py::test_the_shift_happens_once`\n",
            "row 1: there is no tests/test_gone.py::test_the_shift_happens_once; it is in tests/test_loss.py",
        ),
        (
            "**1. A.**\n- `tests/test_loss.py::test_the_shift_happened_once`\n",
            "row 1: there is no tests/test_loss.py::test_the_shift_happened_once; did you mean "
            "'test_the_shift_happens_once'?",
        ),
        ("**3. A.** `tests/test_loss.py::test_the_shift_happens_once`\n- all\n", "row 3: '- all' names no test"),
    ],
)
def test_a_row_without_its_test_is_found(text, problem):
    """This file would prove nothing if it passed on any text."""
    assert problems(text) == [problem]


def test_a_test_that_never_runs_is_no_proof(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import pytest\ndef test_a():\n    pass\n@pytest.mark.skip\ndef test_b():\n    pass\n"
        "@pytest.mark.xfail(strict=True)\ndef test_c():\n    pass\n@pytest.mark.skipif(False, reason='')\n"
        "def test_d():\n    pass\n@pytest.mark.parametrize('x', [1])\ndef test_e(x):\n    pass\n"
    )
    assert names_of_tests(tmp_path / "test_x.py") == {"test_a", "test_d", "test_e"}
