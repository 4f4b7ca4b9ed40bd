"""A chat template's source and messages -> text, in the sandbox; and whose fault it is where that fails."""

from __future__ import annotations

import re
from datetime import date

from gptft.errors import BadRecord, UserError, need_extra
from gptft.text.conversation import as_transformers_gives, size_of
from gptft.text.sandbox import Refused, TooMuch, environment, one_line

TELLS_THE_DAY = re.compile(r"\bstrftime_now\b")


def compile_template(source: str):
    """A template ready to be rendered. Raises UserError naming the line of an error in it."""
    try:
        import jinja2
    except ImportError:
        raise need_extra("jinja2", "hf", "the checkpoint's chat template") from None
    try:
        return environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template, line {error.lineno}: {one_line(error.message)}") from None
    except RecursionError:
        raise UserError("the chat template cannot be read: what is in it is nested too deeply") from None
    except Exception as error:  # Python has limits of its own, on blocks inside one another for one
        raise UserError(f"the chat template cannot be read: {type(error).__name__}: {one_line(error)}") from None


def render(compiled, messages: list[dict], opened: bool, in_blocks: bool, day: str = "", **variables) -> str:
    """Messages as text, as transformers' `apply_chat_template` gives it; `opened`: with the beginning of an answer.

    `in_blocks`: contents as lists of typed blocks. `day`: the day that a template which asks for it is told
    (2024-07-26); empty: today. Raises BadRecord where the template refuses the messages, or fails on them, and
    UserError where it does what templates must not.
    """
    from jinja2.exceptions import SecurityError

    if day:
        variables["strftime_now"] = date.fromisoformat(day).strftime
    given = as_transformers_gives(messages, in_blocks)
    compiled.environment.budget.begin(size_of(given))
    try:
        return compiled.render(messages=given, tools=None, documents=None, add_generation_prompt=opened, **variables)
    except Refused as error:
        raise BadRecord(f"the chat template says: {error}") from None
    except SecurityError as error:
        raise UserError(f"the chat template does what templates must not: {one_line(error)}") from None
    except TooMuch as error:
        raise UserError(f"the chat template {error}; choose another by --template") from None
    except Exception as error:  # whatever a stranger's program runs into
        raise BadRecord(f"the chat template fails on it: {type(error).__name__}: {one_line(error)}") from None
