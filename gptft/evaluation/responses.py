"""Responses to held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptft.data.examples import Split
from gptft.data.shapes import Parts, recognise
from gptft.device import Precision
from gptft.errors import BadRecord
from gptft.evaluation.metrics import answer_in
from gptft.generation import Response, prompt_ids, respond
from gptft.model import GPT
from gptft.tokenizer import Tokenizer


def prompt_and_expected(record: dict, fields: dict[str, str] | None = None) -> tuple[Parts, str] | None:
    """A user's record -> (its prompt's parts, the response that is expected); None for plain text.

    Of a conversation everything but the assistant's last turn is the prompt.
    """
    parts = recognise(record, fields)
    if "text" in parts:
        return None
    if "messages" in parts:
        messages = parts["messages"]
        while messages[-1]["role"] != "assistant":
            messages = messages[:-1]
        return Parts(messages=messages[:-1]), messages[-1].get("content") or ""
    return Parts((part, text) for part, text in parts.items() if part != "response"), parts["response"]


def shown_prompt(parts: dict) -> str:
    """A prompt on one line, without the template around it."""
    if "messages" in parts:
        return parts["messages"][-1]["content"]
    return " / ".join(text for part, text in parts.items() if text and part != "system")


@dataclass(frozen=True)
class Question:
    """A held-out record as a model is asked it: the prompt's parts, and the response that is expected.

    `left_out`: why it is not asked and stays out of every score, naming file and line; empty where it is asked.
    """

    record: dict
    parts: Parts
    expected: str
    left_out: str = ""


def make_questions(
    model: GPT, tokenizer: Tokenizer, examples: Split, numbers: Iterable[int], fields: dict, max_new_tokens: int
) -> list[Question]:
    """The examples with these numbers as questions; plain text asks nothing and has none."""
    numbers = list(numbers)
    questions = []
    for number, record in zip(numbers, examples.records(numbers), strict=True):
        if record is not None and (pair := prompt_and_expected(record, fields)):
            why = lack_of_room(model, tokenizer, *pair, max_new_tokens)
            file, line = examples[number].record
            questions.append(Question(record, *pair, f"{file}, line {line}: {why}" if why else ""))
    return questions


def lack_of_room(model: GPT, tokenizer: Tokenizer, parts: Parts, expected: str, max_new_tokens: int) -> str:
    """Why a prompt cannot be asked fairly; empty where it can be.

    The rule: a prompt is asked as it is, never cut, and only where the model has room after it for as many tokens as
    the expected response has, or for max_new_tokens where that is less. A prompt of p tokens leaves room for
    block_size + 1 - p: the last token of a response is never read again.
    """
    if not answer_in(expected):
        return "its last answer has no text to compare with: it calls tools, or thinks, perhaps"
    try:
        p, block_size = len(prompt_ids(tokenizer, parts)), model.config.block_size
    except BadRecord as error:  # records that another model's template has a place for
        return str(error)
    needed, room = max(1, min(len(tokenizer.encode(expected)), max_new_tokens)), max(0, block_size + 1 - p)
    if needed <= room:
        return ""
    return f"its prompt of {p:,} tokens leaves room for {room:,} of {needed:,} within block_size {block_size:,}"


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    precision: Precision | None = None,
    decode: str = "auto",
) -> list[Response]:
    """Greedy responses to the questions; empty ones to those that are left out. `precision` and `decode`: as `generate`
    takes them."""
    asked = [question.parts for question in questions if not question.left_out]
    how = {"batch_size": batch_size, "precision": precision, "decode": decode}
    given = iter(respond(model, tokenizer, asked, max_new_tokens, **how))
    return [Response("", 0, False) if question.left_out else next(given) for question in questions]


def describe_left_out(questions: Sequence[Question], at_most: int) -> str:
    """Which questions are left out, at most so many of them by name; empty where none is."""
    reasons = [question.left_out for question in questions if question.left_out]
    if not reasons:
        return ""
    more = [f"  ... and {len(reasons) - at_most:,} more"] if len(reasons) > at_most else []
    first = f"{len(reasons):,} of {len(questions):,} prompts are left out of the score:"
    return "\n".join([first, *(f"  {reason}" for reason in reasons[:at_most]), *more])
