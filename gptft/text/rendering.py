"""A chat template's source and messages -> text, in the sandbox, and which of that text the template wrote; and whose
fault it is where that fails."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property

from gptft.errors import BadRecord, UserError, need_extra
from gptft.text.aligning import PLACEHOLDER, PLAIN, Changed, Piece, Source, align, mask, text_of
from gptft.text.conversation import REASONING, as_transformers_gives, exchange, messages_of, size_of, without_reasoning
from gptft.text.sandbox import Refused, TooMuch, environment, one_line
from gptft.text.unwrapping import take_out


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


@dataclass(frozen=True)
class RenderedTemplate:
    """A Jinja chat template, rendered so that it is known which of the text is the user's.

    `variables` are the named special tokens (bos_token, eos_token, ...), `specials` the names of all special tokens,
    `eot` the one that ends a text. `thinking` is what becomes of the reasoning in the assistant's messages: "keep"
    trains it, "strip" takes it away and has the template ask for answers without (enable_thinking), "mask" shows it
    and does not train it. `day` is the day that the template is told; empty: today. `unwraps` are prompts that an
    instruction may hold already, and which are then taken out of it.
    """

    jinja: str
    variables: dict[str, str] = field(default_factory=dict)
    specials: tuple[str, ...] = ()
    eot: str = "<|endoftext|>"
    name: str = "chat"
    thinking: str = "keep"
    day: str = ""
    unwraps: tuple[str, ...] = ()

    @cached_property
    def _special(self) -> re.Pattern:
        names = sorted(self.specials or (self.eot,), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    @cached_property
    def _compiled(self):
        return compile_template(self.jinja)

    @cached_property
    def _in_blocks(self) -> bool:
        """Whether the template shows contents only as lists of typed blocks, as those of some models that see do."""
        for in_blocks in (False, True):
            for messages in self._trials(exchange("q", "a")):
                masked = mask(messages, False, False)
                try:
                    text = self._render(masked.messages, False, in_blocks)
                except BadRecord:
                    continue
                if len(PLACEHOLDER.findall(text)) >= len(messages):
                    return in_blocks
        return False

    def _render(self, messages: list[dict], opened: bool, in_blocks: bool | None = None) -> str:
        """The messages as text; `opened`: with the beginning of an answer."""
        switch = {"enable_thinking": False} if self.thinking == "strip" else {}
        blocks = self._in_blocks if in_blocks is None else in_blocks
        return render(self._compiled, messages, opened, blocks, self.day, **self.variables, **switch)

    def _prepared(self, parts: dict) -> list[dict]:
        messages = messages_of(take_out(parts, self.unwraps))
        return without_reasoning(messages) if self.thinking == "strip" else messages

    def _pieces(self, messages: list[dict], opened: bool, may_lack: Collection[int] = ()) -> list[Piece]:
        """The rendered text in pieces with their sources. `may_lack`: messages whose reasoning may be left out."""
        rendered = self._render(messages, opened)
        further = any(key not in PLAIN for message in messages for key in message)
        problem: Exception | None = None
        # a template may look for tags such as <think> in a message, or choose by what stands under a key: where a
        # placeholder changes what it writes, they are kept
        for tags, keys in itertools.product((False, True), (True, False) if further else (False,)):
            masked = mask(messages, tags, keys, self.specials)
            try:
                pieces = align(self._render(masked.messages, opened), masked, rendered, may_lack)
            except Changed as changed:
                problem = self._refusal(messages, *changed.args) if keys or not further else problem
            except BadRecord as error:
                if not keys:
                    raise
                problem = error
            else:
                self._check_keys(messages, opened, pieces, may_lack)
                return pieces
        raise problem

    def _refusal(self, messages: list[dict], source: Source, what: str) -> BadRecord:
        role = messages[source.message]["role"]
        whose = f"message {source.message + 1} (the {role}'s)"
        if source.key != "content":
            whose = f"{source.key!r} of {whose}"
        remedy = "; --thinking strip trains without reasoning, mask on the answers alone" if source.reasoning else ""
        return BadRecord(f"the chat template {what} {whose}, so its text cannot be told apart{remedy}")

    def _check_keys(self, messages: list[dict], opened: bool, pieces: list[Piece], may_lack: Collection[int]) -> None:
        """Refuse a key of a message that changes nothing, and one whose text would be read as the template's own."""
        shown = {source[:2] for _, source in pieces if source}
        for n, message in enumerate(messages):
            for key, value in message.items():
                if key in PLAIN or value in (None, "", [], {}) or (key in REASONING and n in may_lack):
                    continue
                without = {other: kept for other, kept in message.items() if other != key}
                if (n, key) not in shown:
                    others = [*messages[:n], without, *messages[n + 1 :]]
                    if self._render(others, opened) == text_of(pieces):
                        raise self._refusal(messages, Source(n, key, key in REASONING), "leaves out")
                texts = _names(value) if (n, key) in shown else [str(value)]
                if any(self._special.search(text) for text in texts):
                    raise BadRecord(
                        f"message {n + 1} has a special token under {key!r}, which the template would take for its own"
                    )

    @staticmethod
    def _trials(messages: list[dict]) -> Iterator[list[dict]]:
        """A conversation to try a template on, also with the system text that some insist on."""
        yield messages
        yield [{"role": "system", "content": "s"}, *messages]


def _names(value) -> list[str]:
    """The names of all keys in a value: a template writes them as they are."""
    if isinstance(value, dict):
        return [*value, *(name for item in value.values() for name in _names(item))]
    return [name for item in value for name in _names(item)] if isinstance(value, list) else []
