"""A checkpoint's own chat template: Jinja source -> the same segments that our templates give, and our templates as
Jinja source.

A chat template is somebody else's program that turns messages into text. To know which of that text the template wrote
and which the user did, it is rendered twice: once as it is, and once with a placeholder for each message. What stands
around the placeholders is the template's.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from gptft.errors import BadRecord, UserError, nearest, need_extra
from gptft.text.sandbox import Refused, TooMuch, environment, one_line
from gptft.text.segments import PARTS, Segment

# Characters of Unicode's private plane: no template looks for them, and no strip() takes them away.
SENTINEL = re.compile("\U000f0001(\\d+)\U000f0002")
TAG = re.compile(r"(</?[A-Za-z_]+>)")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template with what it is rendered with; it stands wherever a `prompts.Template` does.

    `variables` are the named special tokens (bos_token, eos_token, ...), `specials` the names of all special tokens,
    `eot` the one that ends a text.
    """

    jinja: str
    variables: dict[str, str] = field(default_factory=dict)
    specials: tuple[str, ...] = ()
    eot: str = "<|endoftext|>"
    name: str = "chat"

    # ---- what the rest of the project asks of a template

    @cached_property
    def stop(self) -> str:
        """The special token that follows a response in the template; the end-of-text where none does."""
        text, end = self._trial[0], self._trial[2]
        found = self._special.search(text, end)
        return found.group() if found else self.eot

    @cached_property
    def lead(self) -> str:
        """The text, without special tokens, that the template writes between a prompt and its response."""
        text, start, _, prompt = self._trial
        return self._special.sub("", text[len(prompt) : start]) if text[:start].startswith(prompt) else ""

    @cached_property
    def multi_turn(self) -> bool:
        try:
            self._render([*_messages({"instruction": "a", "response": "b"}), {"role": "user", "content": "c"}], True)
        except BadRecord:
            return False
        return True

    def check(self, extra: Iterable[str] = (), where: str = "") -> ChatTemplate:
        self._compiled  # noqa: B018  (a syntax error is said now)
        return self

    def check_fields(self, fields: Iterable[str]) -> None:
        """Refuse a part, named with --fields, that records do not know: a chat template has no parts of its own."""
        for part in fields:
            if part not in PARTS:
                raise UserError(f"--fields {part}=...: a chat template has no part {part!r}{nearest(part, PARTS)}")

    def prompt_segments(self, parts: dict) -> list[Segment]:
        """What the model is given to answer: the last turn of a conversation left open, or the prompt."""
        if "text" in parts:
            return [Segment(parts["text"], False)]
        messages = _messages({part: text for part, text in parts.items() if part != "response"})
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return self._segments(messages, True)

    def segments(self, parts: dict) -> list[Segment]:
        """A whole training example: every assistant turn is trained, from where a prompt ends to its stop.

        Raises BadRecord with the template's own words where it refuses the messages, and where it changes one by more
        than the white space around it: which of the text is the user's would be unknown.
        """
        if "text" in parts:
            return [Segment(parts["text"], True), Segment(self.eot, True, "stop")]
        return self._segments(_messages(parts), False)

    def to_dict(self) -> dict:
        """What a checkpoint stores; `saved_template` gives the template back."""
        return {**dataclasses.asdict(self), "specials": list(self.specials)}

    # ---- rendering

    @cached_property
    def _special(self) -> re.Pattern:
        names = sorted(self.specials or (self.eot,), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    @cached_property
    def _compiled(self):
        try:
            import jinja2
        except ImportError:
            raise need_extra("jinja2", "hf", "the checkpoint's chat template") from None
        try:
            return environment().from_string(self.jinja)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template, line {error.lineno}: {one_line(error.message)}") from None
        except RecursionError:
            raise UserError("the chat template cannot be read: what is in it is nested too deeply") from None
        except Exception as error:  # Python has limits of its own, on blocks inside one another for one
            raise UserError(f"the chat template cannot be read: {type(error).__name__}: {one_line(error)}") from None

    def _render(self, messages: list[dict], opened: bool) -> str:
        """The messages as text; `opened`: with the beginning of an answer."""
        compiled = self._compiled
        from jinja2.exceptions import SecurityError

        given = [{"role": message["role"], "content": message["content"]} for message in messages]
        compiled.environment.budget.begin(sum(len(message["content"]) for message in messages))
        try:
            return compiled.render(
                messages=given, tools=None, documents=None, add_generation_prompt=opened, **self.variables
            )
        except Refused as error:
            raise BadRecord(f"the chat template says: {error}") from None
        except SecurityError as error:
            raise UserError(f"the chat template does what templates must not: {one_line(error)}") from None
        except TooMuch as error:
            raise UserError(f"the chat template {error}; choose another by --template") from None
        except Exception as error:  # whatever a stranger's program runs into
            raise BadRecord(f"the chat template fails on it: {type(error).__name__}: {one_line(error)}") from None

    @cached_property
    def _trial(self) -> tuple[str, int, int, str]:
        """(a text with one answer, where the answer starts and ends in it, the prompt alone)."""
        for system in ({}, {"system": "s"}):
            messages = _messages({**system, "instruction": "q", "response": "a"})
            masked, _, _ = _mask(messages, lambda content: [content])
            try:
                text, prompt = self._render(masked, False), self._render(masked[:-1], True)
            except BadRecord:
                continue
            found = [match for match in SENTINEL.finditer(text) if int(match[1]) == len(messages) - 1]
            if found:
                return text, found[0].start(), found[-1].end(), prompt
        return "", 0, 0, ""

    def _pieces(self, messages: list[dict], opened: bool) -> list[tuple[str, int | None]]:
        """The rendered text in pieces: (text, which message it is from; None: the template's own)."""
        rendered = self._render(messages, opened)
        tags_kept = lambda content: TAG.split(content)  # noqa: E731
        # a template may look for tags such as <think> in a message: where that changes what it writes, keep them
        for split in (lambda content: [content], tags_kept):
            masked, texts, owners = _mask(messages, split, self.specials)
            try:
                return _align(self._render(masked, opened), texts, owners, rendered)
            except _Changed as changed:
                n, what = changed.args
        role = messages[n]["role"]
        raise BadRecord(f"the chat template {what} message {n + 1} (the {role}'s), so its text cannot be told apart")

    def _segments(self, messages: list[dict], opened: bool) -> list[Segment]:
        pieces = self._pieces(messages, opened)
        rendered = "".join(text for text, _ in pieces)
        spans, ends = [], []  # what is trained, and the stops that end it, as [start, end) in `rendered`
        for n, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self._render(messages[:n], True)
                start, end = _extent(pieces, n) or (len(prompt), len(prompt))  # an empty turn
                if len(prompt) <= start and rendered.startswith(prompt):
                    start = len(prompt)
                elif message is messages[-1]:
                    raise BadRecord(
                        "the chat template asks for an answer otherwise than it writes one, so inference "
                        "would not send what was trained; choose another by --template"
                    )
                limit = next((at for at, owner in _starts(pieces) if at >= end and owner is not None), len(rendered))
                stop = self._special.search(rendered, end, limit)
                if stop and stop.group() == self.stop:
                    ends.append(stop.span())
                    end = stop.end()
                spans.append((start, end))
        segments, at = [Segment("", False, "chat")], 0
        for text, owner in pieces:
            kind = "chat" if owner is None else "text"
            edges = {at, at + len(text)} | {
                edge for pair in spans + ends for edge in pair if at < edge < at + len(text)
            }
            cuts = sorted(edges)
            for start, end in itertools.pairwise(cuts):
                trained = any(a <= start and end <= b for a, b in spans)
                is_stop = owner is None and (start, end) in ends
                segments.append(Segment(rendered[start:end], trained, "stop" if is_stop else kind))
            at += len(text)
        if not opened and messages[-1]["role"] == "assistant" and (not ends or ends[-1][0] < spans[-1][0]):
            # the template ends no answer: ours is ended here, so that generation stops
            while not segments[-1].trained:
                segments.pop()
            segments.append(Segment(self.stop, True, "stop"))
        return segments


class _Changed(Exception):
    """A template's rendering is not its skeleton with the messages filled in: (message, what it does to it)."""


def _messages(parts: dict) -> list[dict]:
    """A record's parts as messages."""
    if "messages" in parts:
        return parts["messages"]
    asked = "\n".join(text for text in (parts.get("instruction", ""), parts.get("input", "")) if text)
    messages = [{"role": "user", "content": asked}]
    if parts.get("system", "").strip():
        messages.insert(0, {"role": "system", "content": parts["system"]})
    if "response" in parts:
        messages.append({"role": "assistant", "content": parts["response"]})
    return messages


def _mask(messages: list[dict], split: Callable, specials=()) -> tuple[list[dict], list[str], list[int]]:
    """Messages with placeholders for their texts -> (those, the texts, which message each is from)."""
    masked: list[dict] = []
    texts: list[str] = []
    owners: list[int] = []
    for n, message in enumerate(messages):
        parts = split(message["content"])
        kept = [not text.strip() or (k % 2 == 1 and text not in specials) for k, text in enumerate(parts)]
        if all(kept):  # nothing but tags
            parts, kept = [message["content"]], [not message["content"].strip()]
        content = ""
        for text, keep in zip(parts, kept, strict=True):
            content += text if keep else f"\U000f0001{len(texts)}\U000f0002"
            if not keep:
                texts.append(text)
                owners.append(n)
        masked.append({"role": message["role"], "content": content})
    return masked, texts, owners


def _align(skeleton: str, texts: list[str], owners: list[int], rendered: str) -> list[tuple[str, int | None]]:
    """The rendering in pieces, as the skeleton has them. A text may have lost the white space around it."""
    first, *rest = SENTINEL.split(skeleton)  # template, number, template, number, ...
    missing = set(range(len(texts))) - {int(number) for number in rest[::2]}
    if missing:
        raise _Changed(
            owners[min(missing)], "leaves out" if len(set(owners)) == len(owners) else "leaves out a part of"
        )
    if not rendered.startswith(first):
        raise _Changed(0, "changes with")
    pieces: list[tuple[str, int | None]] = [(first, None)]
    at = len(first)
    for k in range(0, len(rest), 2):
        text, owner, follows = texts[int(rest[k])], owners[int(rest[k])], rest[k + 1]
        last = k + 2 == len(rest)
        for variant in (
            text,
            text.strip(),
            text.lstrip(),
            text.rstrip(),
            *(strip("\n") for strip in (text.strip, text.lstrip, text.rstrip)),
        ):
            end = at + len(variant) + len(follows)
            if rendered.startswith(variant + follows, at) and (not last or end == len(rendered)):
                break
        else:
            raise _Changed(owner, "changes")
        pieces += [(variant, owner), (follows, None)]
        at = end
    return [piece for piece in pieces if piece[0]]


def _starts(pieces: list[tuple[str, int | None]]) -> list[tuple[int, int | None]]:
    out, at = [], 0
    for text, owner in pieces:
        out.append((at, owner))
        at += len(text)
    return out


def _extent(pieces: list[tuple[str, int | None]], n: int) -> tuple[int, int] | None:
    """Where message n's text starts and ends; None where it has none."""
    mine = [(at, at + len(piece[0])) for (at, owner), piece in zip(_starts(pieces), pieces, strict=True) if owner == n]
    return (mine[0][0], mine[-1][1]) if mine else None
