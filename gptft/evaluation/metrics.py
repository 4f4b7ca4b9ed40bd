"""Metrics of the answers. Another one is one function here: every table, `evaluate` and a run's files then have it.

A metric takes (response, expected response) and gives a score, 0 at worst and 1 at best, or None where it says nothing
about such a record (whether JSON is valid matters where JSON is expected). Over many records it is the mean, but for
BLEU and chrF, which are defined over a corpus. What a model thinks aloud before its answer, up to `</think>`, is no
part of either text.
"""

from __future__ import annotations

import ast
import json
import numbers
import re
import runpy
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path

import numpy as np

from gptft.errors import UserError
from gptft.text.conversation import split_reasoning
from gptft.text.subsequence import longest_common

Metric = Callable[[str, str], float | None]
METRICS: dict[str, Metric] = {}


def metric(function: Metric) -> Metric:
    """Register a metric under its function's name."""
    METRICS[function.__name__] = function
    return function


def answer_in(text: str) -> str:
    """A response without the reasoning before it; nothing where it was cut off in the middle of that."""
    answer = split_reasoning({"content": text})[1].strip()
    return "" if answer.startswith("<think>") else answer


@metric
def exact_match(response: str, expected: str) -> float:
    """1.0 where the texts are equal but for white space at the ends, else 0.0."""
    return float(answer_in(response) == answer_in(expected))


@metric
def normalised_match(response: str, expected: str) -> float:
    """1.0 where the texts are equal but for case, punctuation, white space and English articles, as the SQuAD script
    has it (Rajpurkar et al. 2016); so `<` is `>`, for nothing is left of either."""
    return float(normalised(response) == normalised(expected))


@metric
def token_f1(response: str, expected: str) -> float:
    """The F1 of the words that both have, after the same normalisation (Rajpurkar et al. 2016, 2018)."""
    said, wanted = normalised(response).split(), normalised(expected).split()
    if not said or not wanted:
        return float(said == wanted)
    return f1(sum((Counter(said) & Counter(wanted)).values()), len(said), len(wanted))


@metric
def rouge_l(response: str, expected: str) -> float:
    """The F1 of the longest common subsequence of words (Lin 2004). Words are runs of letters and digits of any
    script, in lower case; of English that is what the package rouge-score counts."""
    said, wanted = words_of(response), words_of(expected)
    if not said and not wanted:
        return exact_match(response, expected)
    return f1(longest_common(said, wanted), len(said), len(wanted))


@metric
def number_match(response: str, expected: str) -> float | None:
    """1.0 where the numbers are equal, of records that expect one: behind `####`, as GSM8K writes it, or alone. Of the
    response the number behind `####` counts, and without one the last."""
    wanted = expected_number(expected)
    if wanted is None:
        return None
    return float(said_number(response) == wanted)


@metric
def valid_json(response: str, expected: str) -> float | None:
    """1.0 where the response is JSON, of records that expect an object or a list."""
    if not isinstance(parsed_json(answer_in(expected)), dict | list):
        return None
    return float(parsed_json(answer_in(response)) is not NOT_JSON)


@metric
def valid_code(response: str, expected: str) -> float | None:
    """1.0 where the response is code that Python can parse, of records that expect such; a block fenced by ``` is
    looked into where the expected is fenced, too."""
    wanted, said = answer_in(expected), answer_in(response)
    fenced = wanted.startswith("```")
    if fenced:
        wanted, said = unfenced(wanted), unfenced(said)
    if not is_code(wanted, fenced):
        return None
    return float(bool(parsed_code(said)))


class OfCorpus:
    """A metric of sacrebleu's (extra `eval`): of a record its sentence score, of many that of the corpus."""

    def __init__(self, name: str, **settings) -> None:
        self.name, self.settings = name, settings

    @cached_property
    def theirs(self):
        import sacrebleu.metrics

        return getattr(sacrebleu.metrics, self.name)(**self.settings)

    def __call__(self, response: str, expected: str) -> float:
        return self.combine_all([self.statistics(response, expected)])[0].item()

    def statistics(self, response: str, expected: str) -> list[float]:
        """What a record adds to the corpus."""
        return self.theirs._extract_corpus_statistics([answer_in(response)], [[answer_in(expected)]])[0]

    def combine_all(self, sums: Sequence[Sequence[float]], count: int = 1) -> np.ndarray:
        """The scores of corpora, 0 to 1, from the sums of their records' statistics. How many records there are is no
        part of it."""
        scores = [self.theirs._compute_score_from_stats([int(x) for x in each]).score / 100 for each in sums]
        return np.round(scores, 12)  # sacrebleu's 100 may be a little more


METRICS["bleu"] = OfCorpus("BLEU", effective_order=True)
METRICS["chrf"] = OfCorpus("CHRF")


def measurable() -> tuple[dict[str, Metric], dict[str, str]]:
    """-> the metrics that can be measured here, and of the others why they cannot."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        absent = {name: "it needs sacrebleu (pip install 'gptft[eval]')" for name in METRICS if is_of_corpus(name)}
        return {name: metric for name, metric in METRICS.items() if name not in absent}, absent
    return dict(METRICS), {}


def is_of_corpus(name: str) -> bool:
    return isinstance(METRICS[name], OfCorpus)


def load_metric(place: str) -> None:
    """Register a metric of the user's own, `file.py:function`. It is run as it stands: only a person names one, on the
    command line, and no config or checkpoint can. Raises UserError where there is no such function."""
    path, _, name = place.rpartition(":")
    if not path or not name.isidentifier():
        raise UserError(f"--metric {place}: name a function, as file.py:function")
    if not Path(path).is_file():
        raise UserError(f"--metric {place}: {path}: no such file")
    try:
        function = runpy.run_path(path).get(name)
    except Exception as error:
        raise UserError(f"--metric {place}: {path} cannot be run: {type(error).__name__}: {error}") from None
    if not callable(function):
        raise UserError(f"--metric {place}: {path} has no function {name!r}")
    if name in METRICS:
        raise UserError(f"--metric {place}: there is a metric {name!r} already: name it otherwise")

    def checked(response: str, expected: str) -> float | None:
        try:
            value = function(answer_in(response), answer_in(expected))
        except Exception as error:
            raise UserError(
                f"--metric {place}: {type(error).__name__}: {error}, for the response {response!r}"
            ) from None
        if value is None or (isinstance(value, numbers.Real) and 0 <= value <= 1):
            return value if value is None else float(value)
        raise UserError(f"--metric {place}: it must give a number from 0 to 1, or None, and gave {value!r}")

    METRICS[name] = checked


def describe_metric(name: str) -> str:
    """A metric's name as people read it."""
    return name.replace("_", " ")


# what the metrics share

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
# what no sentence and no formula looks like, and what some do
STATEMENTS = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.AugAssign, ast.For),
    *(ast.While, ast.If, ast.With, ast.Return, ast.Try),
)
WEAKER = (ast.Assign, ast.AnnAssign, ast.Call)
NOT_JSON = object()


def f1(common: int, said: int, wanted: int) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * common / (said + wanted) if common else 0.0


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and the marks upon them."""
    text = answer_in(text).lower()
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text)
    return "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text).split()


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, white space as single blanks."""
    text = "".join(character for character in answer_in(text).lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def expected_number(text: str) -> Decimal | None:
    """The number that a record expects: behind the last `####`, or what the whole text is; None for any other text."""
    text = answer_in(text)
    if "####" in text:  # in Markdown that is a heading, too
        found = NUMBER.fullmatch(text.rpartition("####")[2].strip())
        return value_of(found.group()) if found else None
    return value_of(text) if NUMBER.fullmatch(text) else None


def said_number(text: str) -> Decimal | None:
    """The number that a response comes to: the first behind the last `####`, else the last of all; None for none."""
    said = answer_in(text)
    behind = said.rpartition("####")[2] if "####" in said else ""
    found = NUMBER.findall(behind)[:1] or NUMBER.findall(said)[-1:]
    return value_of(found[0]) if found else None


def value_of(number: str) -> Decimal | None:
    try:
        return Decimal(number.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def parsed_json(text: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOT_JSON


def unfenced(text: str) -> str:
    """What stands between the first two lines that begin with ```; all of a text without them."""
    found = re.search(r"^```[^\n]*\n(.*?)^```", text + "\n", flags=re.DOTALL | re.MULTILINE)
    return found.group(1) if found else text


def is_code(text: str, fenced: bool) -> bool:
    """Whether a text that Python can parse is meant as code: `x = 5` and `Paris (France)` need not be, alone."""
    nodes = parsed_code(text)
    # `Fruit: Apple` is an annotation to Python, and a table in words to anybody else
    noted = {id(node) for node in nodes if isinstance(node, ast.AnnAssign) and node.value is None}
    weaker = [node for node in nodes if isinstance(node, WEAKER) and id(node) not in noted]
    calls = [node for node in weaker if isinstance(node, ast.Call) and node.func.end_lineno == 1]
    called = any(text.encode()[node.func.end_col_offset :][:1] == b"(" for node in calls)  # without a gap
    return any(isinstance(node, STATEMENTS) for node in nodes) or called or len(weaker) > (0 if fenced else 1)


def parsed_code(text: str) -> list[ast.AST]:
    """The nodes of Python's syntax tree; none where it is no Python, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is the answer's, and nobody asked Python about it
            tree = ast.parse(text)
            return list(ast.walk(tree)) if tree.body else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
