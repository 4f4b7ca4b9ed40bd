"""Prompt templates: record -> segments of text. The only place that knows what a prompt looks like.

Terms: the **prompt** is everything the model is given, the **response** what it must produce. A **segment** is a
stretch of text of one kind; only responses, and the stop that ends each of them, are trained.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gptft.errors import BadRecord, UserError, nearest
from gptft.text.chat import THINKING, ChatTemplate
from gptft.text.segments import PARTS, Segment
from gptft.text.unwrapping import PLACEHOLDER, take_out


@dataclass(frozen=True)
class Template:
    """How a record becomes text. Placeholders: {instruction}, {input}, {prompt} (the instruction and, on the next
    line, the input where there is one), {system}, and any further part named with --fields.

    `lead` stands between a prompt and its response and belongs to the response, as `tail` does, which stands between
    it and its stop; `after` stands between one response's stop and the next turn. `multi_turn` says whether a
    conversation can be written in this template. `bos` names the beginning-of-text that every prompt starts with
    (empty: only the first one does, where the vocabulary has one), and `system_in_prompt` says that the system text
    belongs into the first prompt, before its first placeholder.
    """

    name: str
    prompt: str
    prompt_with_input: str = ""  # used where the record has an input; empty: `prompt` serves both
    system: str = ""  # written once at the start, where the record has a system text
    lead: str = ""
    stop: str = "<|endoftext|>"
    after: str = ""
    multi_turn: bool = True
    tail: str = ""
    bos: str = ""
    system_in_prompt: bool = False
    unwraps: tuple[str, ...] = ()  # prompts that an instruction may hold already, and which are then taken out of it

    def check(self, extra: Iterable[str] = (), where: str = "") -> Template:
        """Refuse unknown placeholders, naming the nearest; `extra` are further parts that may be named."""
        known = {"instruction", "input", "prompt", "system", *extra}
        for name in ("prompt", "prompt_with_input", "system"):
            for placeholder in PLACEHOLDER.findall(getattr(self, name)):
                if placeholder not in known:
                    raise UserError(
                        f"{where or f'template {self.name}'}: unknown placeholder {{{placeholder}}} in "
                        f"{name!r}{nearest(placeholder, known)}"
                    )
        if not PLACEHOLDER.search(self.prompt):
            raise UserError(f"{where or f'template {self.name}'}: 'prompt' has no placeholder: every prompt is alike")
        return self

    def check_fields(self, fields: Iterable[str]) -> None:
        """Refuse a part, named with --fields, that neither records nor this template know: a misspelt one, say."""
        patterns = (self.prompt, self.prompt_with_input, self.system)
        known = {*PARTS, *(name for pattern in patterns for name in PLACEHOLDER.findall(pattern))} - {"prompt"}
        for part in fields:
            if part not in known:
                raise UserError(
                    f"--fields {part}=...: the template {self.name!r} has no part {part!r}{nearest(part, known)}"
                )

    def places(self) -> set[str]:
        """The parts that a prompt has a place for; {prompt} is one for the instruction and its input."""
        named = {name for pattern in (self.prompt, self.prompt_with_input) for name in PLACEHOLDER.findall(pattern)}
        return (named - {"prompt"}) | ({"instruction", "input"} if "prompt" in named else set())

    def _fill(self, pattern: str, parts: dict) -> list[Segment]:
        """Fill placeholders. Done piece by piece, so that braces in the user's text stay what they are.

        Raises BadRecord for a part that has a text but no place in the pattern, which would be lost without a word, and
        for a place of the user's own that nothing fills.
        """
        places = set(PLACEHOLDER.findall(pattern))
        places |= {"instruction", "input"} if "prompt" in places else set()
        for part, text in parts.items():
            if part in PARTS and part not in places and text and text.strip():
                raise BadRecord(f"it has a text for {part!r}, for which the template {self.name!r} has no place")
        segments = []
        for number, piece in enumerate(PLACEHOLDER.split(pattern)):
            if number % 2 == 0:
                segments.append(Segment(piece, False, "template"))
            elif piece == "prompt":
                pair = [parts.get("instruction", ""), parts.get("input", "")]
                segments.append(Segment("\n".join(text for text in pair if text), False))
            else:
                if piece not in PARTS and piece not in parts:  # a part of the user's own
                    raise BadRecord(
                        f"it has no {piece!r}, for which the template {self.name!r} has a place: name its key with "
                        f"--fields {piece}=KEY"
                    )
                segments.append(Segment(parts.get(piece, ""), False))
        return [segment for segment in segments if segment.text]

    def prompt_segments(self, parts: dict) -> list[Segment]:
        """What the model is given to answer: the last turn of a conversation left open, or the prompt."""
        if "text" in parts:
            return [Segment(parts["text"], False)]
        if "messages" in parts:
            messages = parts["messages"]
            if messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            return self._conversation(messages)
        parts = take_out(parts, self.unwraps)
        pattern = self.prompt_with_input if parts.get("input") and self.prompt_with_input else self.prompt
        asked = {part: text for part, text in parts.items() if part not in ("system", "response")}
        return self._first_prompt(parts.get("system", ""), pattern, asked)

    def segments(self, parts: dict) -> list[Segment]:
        """A whole training example: prompt, response and stop; a `text` record is trained on whole."""
        if "text" in parts:
            return [Segment(parts["text"], True), Segment(self.stop, True, "stop")]
        if "messages" in parts:
            return self._conversation(parts["messages"])
        return self.prompt_segments(parts) + self._response(parts["response"])

    def _first_prompt(self, system: str, pattern: str, asked: dict) -> list[Segment]:
        """The system text, where there is one, and the first prompt, in the order in which the template has them."""
        start = self._fill(self.system, {"system": system}) if system.strip() else []
        begin = [Segment(self.bos, False, "bos")] if self.bos else []
        if not self.system_in_prompt:
            return begin + start + self._fill(pattern, asked)
        place = PLACEHOLDER.search(pattern).start()
        return begin + self._fill(pattern[:place], {}) + start + self._fill(pattern[place:], asked)

    def _response(self, text: str, trained: bool = True) -> list[Segment]:
        return [Segment(self.lead + text + self.tail, trained, apart=True), Segment(self.stop, trained, "stop")]

    def _conversation(self, messages: list[dict]) -> list[Segment]:
        """Every assistant turn is trained, but those with the weight 0; each ends with its own stop."""
        self._check_messages(messages)
        turns = [message for message in messages if message["role"] != "system"]
        if len(turns) > 2 and not self.multi_turn:
            raise BadRecord(f"the template {self.name!r} has no form for conversations of several turns")
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        segments = self._first_prompt(system, self.prompt, {"instruction": turns[0]["content"]})
        for turn in turns[1:]:
            if turn["role"] == "user":
                segments += [Segment(self.after, False, "template"), Segment(self.bos, False, "bos")]
                segments += self._fill(self.prompt, {"instruction": turn["content"]})
            else:
                segments += self._response(turn["content"], turn.get("weight") != 0)
        return [segment for segment in segments if segment.text]

    def _check_messages(self, messages: list[dict]) -> None:
        """Refuse what these templates do not write: they know a role, a content and a weight."""
        for number, message in enumerate(messages, 1):
            if message["role"] not in ("system", "user", "assistant"):
                raise BadRecord(f"message {number}: the template {self.name!r} has no form for a {message['role']}'s")
            for key, value in message.items():
                if key not in ("role", "content", "weight") and value is not None:
                    raise BadRecord(
                        f"message {number} has the key {key!r}, for which the template {self.name!r} has no place"
                    )

    @property
    def today(self) -> str:
        """The day of rendering, where it changes what is written; here it never does."""
        return ""

    def for_training(self, thinking: str = "auto") -> Template:
        """The template as a run trains with it. Reasoning is a matter of chat templates: here it is text like any."""
        if thinking not in ("auto", "keep"):
            raise UserError(f"--thinking {thinking} goes with a model's own chat template, not with {self.name!r}")
        return self

    def to_dict(self) -> dict:
        """What a checkpoint stores: `Template(**that)` gives the template back. What was added later and is not used
        is left out, so that a template has the keys, and data the cache key, that an earlier commit gave them."""
        later = ("tail", "bos", "system_in_prompt", "unwraps")
        values = {**dataclasses.asdict(self), "unwraps": list(self.unwraps)}
        return {key: value for key, value in values.items() if value or key not in later}


def hydrate(template: Template, parts: dict) -> dict:
    """A record as text: {"input": the whole prompt, "output": the response}, or {"text": ...}.

    Of a conversation everything but the assistant's last turn is the prompt.
    """
    if "text" in parts:
        return {"text": parts["text"]}
    if "messages" in parts and parts["messages"][-1]["role"] != "assistant":
        raise BadRecord("the conversation does not end with the assistant, so it has no response")
    *before, response, _stop = template.segments(parts)
    # a beginning-of-text is the tokenizer's to write
    return {"input": "".join(segment.text for segment in before if segment.kind != "bos"), "output": response.text}


ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "alpaca",  # github.com/tatsu-lab/stanford_alpaca
            prompt=ALPACA.format("") + "\n\n### Instruction:\n{instruction}\n\n### Response:\n",
            prompt_with_input=ALPACA.format(", paired with an input that provides further context")
            + "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            multi_turn=False,
        ),
        Template("qa", prompt="### Question:\n{prompt}\n\n### Answer:\n", after="\n\n"),
        Template(
            "phi3",
            prompt="<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
            system="<|system|>\n{system}<|end|>\n",
            stop="<|end|>",
            after="\n",
        ),
        Template(
            "llama2",  # as the chat template of meta-llama/Llama-2-7b-chat-hf writes it
            prompt="[INST] {prompt} [/INST]",
            system="<<SYS>>\n{system}\n<</SYS>>\n\n",
            system_in_prompt=True,
            lead=" ",
            tail=" ",
            stop="</s>",
            bos="<s>",
        ),
        Template(
            "chatml",
            prompt="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
            system="<|im_start|>system\n{system}<|im_end|>\n",
            stop="<|im_end|>",
            after="\n",
        ),
        Template("plain", prompt="{prompt}", multi_turn=False),
    )
}


def load_template(name: str, extra: Iterable[str] = ()) -> Template:
    """A template by name, or from the user's TOML file. `extra` are parts named with --fields."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".toml"):
        raise UserError(f"--template {name!r} is no template and no .toml file{nearest(name, TEMPLATES)}")
    try:
        values = tomllib.loads(Path(name).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--template {name}: {getattr(error, 'strerror', None) or error}") from None
    return template_from_dict({"name": Path(name).stem, **values}, name, extra)


def template_from_dict(values: dict, where: str, extra: Iterable[str] | None = ()) -> Template:
    """A template from a TOML table or a checkpoint's JSON; unknown keys and placeholders are refused.

    `extra` None: placeholders are taken as they are, since they were checked when the checkpoint's run began.
    """
    _check_values(values, Template, where)
    if "prompt" not in values:
        raise UserError(f"{where}: the key 'prompt' is missing")
    template = Template(**{**values, "unwraps": tuple(values.get("unwraps", ()))})
    return template if extra is None else template.check(extra, where)


def saved_template(values: dict, where: str) -> Template | ChatTemplate:
    """The template that a checkpoint stores: one of ours, or a chat template."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: the template must be an object, not {json.dumps(values)[:80]}")
    if "jinja" not in values:
        return template_from_dict(values, where, extra=None)
    _check_values(values, ChatTemplate, where)
    if values.get("thinking", "keep") not in THINKING:
        raise UserError(f"{where}: thinking must be one of {', '.join(THINKING)}, not {values['thinking']!r}")
    return ChatTemplate(**values | {key: tuple(values.get(key, ())) for key in ("specials", "unwraps")})


KINDS = {"bool": (bool, "true or false"), "str": (str, "text"), "dict[str, str]": (dict, "an object of texts")}


def _check_values(values: dict, kind: type, where: str) -> None:
    """Refuse a key that a template of this kind does not have, and a value that is not what it must be."""
    known = {f.name: f.type for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, known)}")
        expected, what = KINDS.get(known[key], (list, "a list of texts"))
        texts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not isinstance(value, expected) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: {key} must be {what}, not {json.dumps(value, default=str)[:80]}")
