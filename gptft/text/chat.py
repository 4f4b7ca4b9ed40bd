"""A checkpoint's own chat template: Jinja source -> the same segments that our templates give.

A chat template is somebody else's program that turns messages into text (rendering.py). Which of that text is the
user's is found by rendering it with placeholders (aligning.py); here it is decided what of it is trained: each answer,
from where its prompt ends to what ends the turn.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from gptft.errors import BadRecord, UserError, nearest
from gptft.text.aligning import (
    PLACEHOLDER,
    Piece,
    Source,
    cut,
    extent,
    mask,
    next_message,
    pieces_after,
    text_of,
)
from gptft.text.conversation import REASONING, exchange, split_reasoning
from gptft.text.rendering import RenderedTemplate
from gptft.text.segments import PARTS, Segment

THINKING = ("keep", "strip", "mask")
OPENED_THOUGHT = re.compile(r"<think>\s*\Z")  # a prompt that begins the reasoning itself
EMPTY_THOUGHT = re.compile(r"\s*(<think>\s*</think>)?\s*")
# The day that a template is told from training on: that which Llama 3's own templates name where they have no clock.
DAY = "2024-07-26"


@dataclass(frozen=True)
class ChatTemplate(RenderedTemplate):
    """A Jinja chat template with what it is rendered with; it stands wherever a `prompts.Template` does."""

    # ---- what the rest of the project asks of a template

    @cached_property
    def stop(self) -> str:
        """The special token that ends a response in the template; the end-of-text where none does."""
        return self.ending[-1] if self.ending else self.eot

    @cached_property
    def ending(self) -> list[str]:
        """The special tokens that the template writes, one at the other, to end an answer, be it the last or not: what
        only the last has belongs to the end of the text. Where both have nothing in common, those of the last."""
        ask, answer = exchange("q", "a"), exchange("r", "b")
        last, middle = self._run(ask, 1), self._run([*ask, *answer], 1)
        return _common(last, middle) or last

    tail = ""  # what stands between a response and its stop is left in the response

    @cached_property
    def lead(self) -> str:
        """The text, without special tokens, that the template writes between a prompt and its response."""
        for messages in self._trials(exchange("q", "a")):
            try:
                pieces, start = self._answered(messages)
            except BadRecord:
                continue
            end = extent(pieces, len(messages) - 1, answer=True)
            if end:
                return self._special.sub("", text_of(pieces)[start : end[0]])
        return ""

    @cached_property
    def multi_turn(self) -> bool:
        try:
            self._render([*exchange("a", "b"), {"role": "user", "content": "c"}], True)
        except BadRecord:
            return False
        return True

    @property
    def today(self) -> str:
        """The day of rendering where the template asks for it and is told no fixed one, else "": what is kept of such
        renderings must be kept under their day."""
        return datetime.now().date().isoformat() if "strftime_now" in self.jinja and not self.day else ""

    def for_training(self, thinking: str = "auto") -> ChatTemplate:
        """The template as a run trains with it and its checkpoint keeps it; `thinking` "auto" leaves that as it is.

        One that asks for the day is told the same day ever after: a prompt must have the ids that were trained, not
        those of the day on which it is asked, and data must have the same ids when a run is gone on with.
        """
        mode = self.thinking if thinking == "auto" else thinking
        return dataclasses.replace(self, thinking=mode, day=DAY if self.today else self.day)

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
        messages = self._prepared({part: text for part, text in parts.items() if part != "response"})
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        # templates leave out the reasoning of earlier turns when they ask for the next
        pieces = self._pieces(messages, True, range(len(messages)))
        answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        return cut(pieces, {edge for n in answers for edge in self._edges(pieces, messages, n)})

    def segments(self, parts: dict) -> list[Segment]:
        """A whole training example: every assistant turn is trained, from where a prompt ends to what ends the turn.

        Raises BadRecord with the template's own words where it refuses the messages; where it leaves out or changes a
        text by more than the white space around it: which of the text is the user's would be unknown; and where it
        asks for an answer otherwise than it writes one: inference would not send what was trained.
        """
        if "text" in parts:
            return [Segment(parts["text"], True), Segment(self.eot, True, "stop")]
        return self._segments(self._prepared(parts))

    def to_dict(self) -> dict:
        """What a checkpoint stores; `saved_template` gives the template back. What was added later is left out where
        it says nothing, so that the template has the form, and data the cache key, that an earlier commit gave."""
        values = {**dataclasses.asdict(self), "specials": list(self.specials), "unwraps": list(self.unwraps)}
        later = {"thinking": "keep", "day": "", "unwraps": []}
        return {key: value for key, value in values.items() if later.get(key) != value}

    # ---- what is trained

    def _run(self, messages: list[dict], n: int) -> list[str]:
        """The special tokens that follow the answer in message `n`, one at the other."""
        for trial in self._trials(messages):
            masked = mask(trial, False, False)
            try:
                text = self._render(masked.messages, False)
            except BadRecord:
                continue
            number = n + len(trial) - len(messages)
            found = [match for match in PLACEHOLDER.finditer(text) if int(match[1]) == number]
            if found:
                return [text[start:end] for start, end in self._specials_after(text, found[-1].end(), len(text))]
        return []

    def _specials_after(self, text: str, start: int, limit: int) -> list[tuple[int, int]]:
        """Where the first special token after `start` stands, and those that follow at once, as [start, end)."""
        spans: list[tuple[int, int]] = []
        found = self._special.search(text, start, limit)
        while found:
            spans.append(found.span())
            found = self._special.match(text, found.end(), limit)
        return spans

    def _ends(self, rendered: str, n: int, message: dict, end: int, limit: int) -> list[tuple[int, int]]:
        """The special tokens that end message `n`, whose texts end at `end`, before the next one's begin at `limit`."""
        if not self.ending:
            return []
        if message.get("tool_calls") and (ended := re.compile(re.escape(self.ending[0])).search(rendered, end, limit)):
            end = ended.start()  # calls of tools have special tokens of their own to close with
        found = self._specials_after(rendered, end, limit)
        names = [rendered[start:stop] for start, stop in found]
        if common := _common(names, self.ending):
            return found[: len(common)]
        if limit == len(rendered):  # the last
            return []
        if found and found[0][0] == end:  # what the template ends an answer with that is not the last
            return found[:1]
        raise BadRecord(
            f"the chat template ends message {n + 1} (the assistant's) with no special token, so where it ends cannot "
            "be learned"
        )

    def _segments(self, messages: list[dict]) -> list[Segment]:
        last, answered = len(messages) - 1, messages[-1]["role"] == "assistant"
        pieces, begin = (
            self._answered(messages) if answered else (self._pieces(messages, False, self._unseen(messages)), 0)
        )
        rendered, edges = text_of(pieces), set()
        spans, stops = [], []  # what is trained, and the special tokens that end it, as [start, end) in `rendered`
        for n, message in enumerate(messages):
            asked = rendered[:begin] if answered and n == last else None
            if message["role"] == "assistant" and message.get("weight") == 0:
                edges |= self._edges(pieces, messages, n, asked)
            elif message["role"] == "assistant":
                start, first, end, ends = self._answer_in(pieces, messages, n, asked)
                edges |= {start, first, end}
                spans.append((first, end))
                stops += [(a, b) for a, b in ends if rendered[a:b] in self.ending]
        segments = cut(pieces, edges, spans, stops)
        if answered and messages[last].get("weight") != 0 and (not stops or stops[-1][0] < spans[-1][0]):
            # the template ends no answer: ours is ended here, so that generation stops
            while not segments[-1].trained:
                segments.pop()
            segments.append(Segment(self.stop, True, "stop"))
        return segments

    def _answer_in(
        self, pieces: list[Piece], messages: list[dict], n: int, asked: str | None = None
    ) -> tuple[int, int, int, list[tuple[int, int]]]:
        """Message `n`, an answer, in the rendering: where its prompt ends, where its targets begin, where they end, and
        the special tokens that end it. `asked`: its prompt, where that is known."""
        rendered = text_of(pieces)
        prompt = self._render(messages[:n], True) if asked is None else asked
        start, end = extent(pieces, n) or (len(prompt), len(prompt))  # an empty turn
        if len(prompt) > start or not rendered.startswith(prompt):
            raise BadRecord(
                f"the chat template writes message {n + 1} (the assistant's) otherwise than it asks for one, so "
                'inference would not send what was trained; give it "weight": 0, or each answer a record of its own'
            )
        ends = self._ends(rendered, n, messages[n], end, next_message(pieces, end))
        first = self._first_target(pieces, n, len(prompt), messages[n])
        return len(prompt), first, ends[-1][1] if ends else end, ends

    def _edges(self, pieces: list[Piece], messages: list[dict], n: int, asked: str | None = None) -> set[int]:
        """Where the text is cut around an answer that is no target: where it is cut when it is one."""
        try:
            return set(self._answer_in(pieces, messages, n, asked)[:3])
        except BadRecord:
            return set(extent(pieces, n) or ())

    def _first_target(self, pieces: list[Piece], n: int, start: int, message: dict) -> int:
        """Where training begins in message `n`, whose prompt ends at `start`: behind the reasoning if that is masked,
        be it an empty one."""
        answer = extent(pieces, n, answer=True)
        if self.thinking != "mask" or not answer:
            return start
        thought = split_reasoning(message)[0] or "</think>" in text_of(pieces)[start : answer[0]]
        return answer[0] if thought else start

    def _unseen(self, messages: list[dict]) -> Collection[int]:
        """The messages whose reasoning the template may leave out of a training example: where it is no target anyway,
        but not that of the answer which the example ends with."""
        return [n for n, each in enumerate(messages[:-1]) if self.thinking == "mask" or each.get("weight") == 0]

    def _answered(self, messages: list[dict]) -> tuple[list[Piece], int]:
        """A conversation that ends with an answer in pieces, and where its prompt ends: that is what inference sends.

        Some templates ask for an answer with the beginning of a thought (`<think>`) and yet write answers without.
        What they would have to be given back is the rest of the thought, perhaps an empty one, and the answer.
        """
        last = len(messages) - 1
        try:
            pieces = self._pieces(messages, False, self._unseen(messages))
            prompt = self._render(messages[:-1], True)
            start = (extent(pieces, last) or (len(prompt),))[0]
            if len(prompt) <= start and text_of(pieces).startswith(prompt):
                return pieces, len(prompt)
            problem = BadRecord(
                "the chat template asks for an answer otherwise than it writes one, so inference "
                "would not send what was trained; choose another by --template"
            )
        except BadRecord as error:
            problem = error
        try:
            return self._thought_out(messages)
        except BadRecord:
            raise problem from None

    def _thought_out(self, messages: list[dict]) -> tuple[list[Piece], int]:
        """`_answered` where the prompt opens a thought and the template writes the answer without it."""
        last = len(messages) - 1
        prompt = self._render(messages[:-1], True)
        reasoning, answer = split_reasoning(messages[last])
        bare = {key: value for key, value in messages[last].items() if key not in REASONING}
        whole = self._pieces([*messages[:-1], {**bare, "content": answer}], False, self._unseen(messages))
        opened, found = OPENED_THOUGHT.search(prompt), extent(whole, last)
        before = prompt[: opened.start()] if opened else prompt
        between = text_of(whole)[len(before) : found[0]] if found else ""
        if not (
            opened
            and found
            and found[0] >= len(before)
            and text_of(whole).startswith(before)
            and EMPTY_THOUGHT.fullmatch(between)
        ):
            raise BadRecord("its prompt opens no thought, or its answer is no end of one")
        thought = [(reasoning, Source(last, "reasoning_content", True))] if reasoning else []
        asked = self._pieces(messages[:-1], True, range(last))
        return [*asked, *thought, (self._closing, None), *pieces_after(whole, found[0])], len(prompt)

    @cached_property
    def _closing(self) -> str:
        """What the template writes between reasoning and answer; where it writes none, what DeepSeek-R1 does."""
        for messages in self._trials(exchange("q", "a")):
            masked = mask([*messages[:-1], {**messages[-1], "reasoning_content": "r"}], False, True)
            try:
                text = self._render(masked.messages, False)
            except BadRecord:
                continue
            places = {masked.sources[int(match[1])]: match.span() for match in PLACEHOLDER.finditer(text)}
            last = len(messages) - 1
            thought, answer = places.get(Source(last, "reasoning_content", True)), places.get(Source(last, "content"))
            if thought and answer and "</think>" in text[thought[1] : answer[0]]:
                return text[thought[1] : answer[0]]
        return "\n</think>\n\n"


def _common(a: list[str], b: list[str]) -> list[str]:
    """What both lists begin with."""
    return [x for x, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]
