"""Responses to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

from gptft.data.shapes import Parts, recognise
from gptft.generation import generate
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
        return Parts(messages=messages[:-1]), messages[-1]["content"]
    return Parts((part, text) for part, text in parts.items() if part != "response"), parts["response"]


def shown_prompt(parts: dict) -> str:
    """A prompt on one line, without the template around it."""
    if "messages" in parts:
        return parts["messages"][-1]["content"]
    return " / ".join(text for name in ("instruction", "input") if (text := parts.get(name)))


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Parts],
    max_new_tokens: int,
    max_input_tokens: int,
    batch_size: int,
) -> list[str]:
    """Greedy responses to prompts given as parts."""
    return generate(model, tokenizer, prompts, max_new_tokens, max_input_tokens=max_input_tokens, batch_size=batch_size)
