"""The shapes that records have: which keys play which part."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from gptft.errors import BadRecord
from gptft.prompts import Template
from gptft.text.chat import ChatTemplate
from gptft.text.segments import PARTS


class Reading(NamedTuple):
    """A set of keys that makes a record without --fields: the part that each key plays, and the template that such
    records ask for under --template auto."""

    parts: dict[str, str]
    template: str
    further: bool = False  # it counts where none of the others is complete, but for one whose keys it contains

    def __str__(self) -> str:
        return ", ".join(map(repr, self.parts))


READINGS = (
    Reading({"messages": "messages"}, "chatml"),
    Reading({"instruction": "instruction", "input": "input", "output": "response"}, "alpaca"),
    Reading({"instruction": "instruction", "output": "response"}, "alpaca"),
    Reading({"instruction": "instruction", "input": "input", "response": "response"}, "alpaca"),
    Reading({"instruction": "instruction", "response": "response"}, "alpaca"),
    Reading({"question": "instruction", "answer": "response"}, "qa"),
    Reading({"prompt": "instruction", "completion": "response"}, "alpaca"),
    Reading({"input": "instruction", "output": "response"}, "alpaca"),
    Reading({"instruction": "instruction", "context": "input", "response": "response"}, "alpaca", True),  # Dolly
    Reading({"query": "instruction", "response": "response"}, "alpaca", True),
    Reading({"context": "input", "question": "instruction", "answers": "response"}, "qa", True),  # SQuAD
    Reading({"conversations": "messages"}, "chatml", True),  # ShareGPT
    Reading({"prompt": "messages", "completion": "messages", "[messages]": "messages"}, "chatml"),  # TRL's other kind
    Reading({"text": "text"}, "plain"),
)
LISTS = "[messages]"  # stands among the keys of a record whose prompt and completion are lists of messages
# Every key that decides how a record is read.
KNOWN = frozenset(key for reading in READINGS for key in reading.parts) - {LISTS} | {"system"}
# Who speaks in a ShareGPT conversation -> the role
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
ROLES = ("system", "user", "assistant", "tool")


class Parts(dict):
    """{part: text} of a record that is recognised already; whoever is given it need not look for keys again."""


def recognise(record: dict, fields: dict[str, str] | None = None) -> Parts:
    """A user's record -> {part: text} with the parts of PARTS (plus any further part that `fields` names).

    `fields` maps parts to the record's keys; without it the keys decide. Raises BadRecord naming the key.
    """
    keys = used_keys(record, fields)
    for part, key in (fields or {}).items():
        if key not in record and part not in ("input", "system"):
            raise BadRecord(f"key {key!r} (for {part}) is missing; it has {_keys(record)}")
    if not keys:
        raise BadRecord(_why_unread(record))
    if LISTS in keys:
        return Parts(messages=_check_messages(_joined(record), "keys 'prompt' and 'completion'"))
    if "messages" in keys.values():
        key = next(key for key, part in keys.items() if part == "messages")
        return Parts(messages=_check_messages(record[key], f"key {key!r}"))
    parts = Parts()
    for key, part in keys.items():
        value = record.get(key, "")
        if value is None and part in ("input", "system"):
            value = ""
        if part == "response" and isinstance(value, dict) and isinstance(value.get("text"), list):  # SQuAD's answers
            if not value["text"]:
                raise BadRecord(f"key {key!r} has no answer: the question cannot be answered from its context")
            value = value["text"][0]
        if not isinstance(value, str):
            raise BadRecord(f"key {key!r} must hold text, not {type(value).__name__}")
        if part in ("response", "text") and not value.strip():
            raise BadRecord(f"key {key!r} is empty: there is nothing to learn from it")
        parts[part] = value
    if "text" not in parts and "response" not in parts:
        raise BadRecord("there is no response: name its key with --fields response=KEY")
    if "response" in parts:
        asked = [key for key, part in keys.items() if part not in ("response", "system")]
        if not asked:
            raise BadRecord("there is no prompt: name its key with --fields instruction=KEY")
        if not any(record.get(key, "") and record[key].strip() for key in asked):
            raise BadRecord(f"key {asked[0]!r} is empty: there is no prompt")
    return parts


def prompt_parts(template: Template | ChatTemplate, prompt: str | list | dict) -> Parts:
    """What somebody asks a model -> the parts that its template renders.

    `Parts` are given back as they are. A dict that names parts of the template itself (its instruction, or the
    placeholders of somebody's own) is taken as parts, any other as a user's record. A text is the instruction, or,
    where the template has a single place and it is another, what stands there; a list is a conversation.
    """
    if isinstance(prompt, Parts):
        return prompt
    if isinstance(prompt, list):
        return Parts(messages=asked_messages(prompt))
    places = template.places() if isinstance(template, Template) else {"instruction"}
    if isinstance(prompt, str):
        only = next(iter(places)) if len(places) == 1 else "instruction"
        return Parts({only: prompt})
    if not places <= set(PARTS):
        if missing := sorted(places - {"input"} - prompt.keys()):
            raise BadRecord(f"the template {template.name!r} needs a {missing[0]!r}; the prompt has {_keys(prompt)}")
        return Parts(prompt)
    if "instruction" not in prompt:
        keys = used_keys(prompt)
        if len(keys) == 1 and "messages" in keys.values():
            return Parts(messages=asked_messages(prompt[next(iter(keys))]))
        return recognise(prompt)
    # a record as it was trained on may hold its answer, and the whole of it as `text`: neither is asked
    asked = {*places, "instruction", "input", "system"}
    parts = Parts((part, text or "") for part, text in prompt.items() if part in asked)
    # as such a record is read when it is trained on
    if "context" in prompt and not {"input", "context"} & parts.keys():
        parts["input"] = prompt["context"] or ""
    return parts


def asked_messages(messages) -> list[dict]:
    """A conversation that is asked to be gone on with, each message in its usual form."""
    if not isinstance(messages, list) or not messages:
        raise BadRecord("a conversation must be a list of messages")
    messages = [_as_message(message, f"message {n}") for n, message in enumerate(messages, 1)]
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRecord(f"message {number}: it must have 'role' and 'content', both text")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise BadRecord(f"message {number}: it must have 'role' and 'content', both text")
    return messages


def used_keys(record: Iterable[str], fields: dict[str, str] | None = None) -> dict[str, str]:
    """The keys of a record that play a part, and which: {key: part}; {} where it cannot be read."""
    if fields:
        return {key: part for part, key in fields.items()}
    readings = readings_of(record)
    return parts_of(readings[0], "system" in record) if len(readings) == 1 else {}


def known_keys(record: Iterable[str]) -> frozenset[str]:
    """The keys of a record that decide how it is read, and LISTS where the types do."""
    keys = KNOWN.intersection(record)
    if not isinstance(record, dict):
        return keys | ({LISTS} & set(record))
    lists = {"prompt", "completion"} <= keys and any(isinstance(record[k], list) for k in ("prompt", "completion"))
    return keys | {LISTS} if lists else keys


def parts_of(reading: Reading, system: bool) -> dict[str, str]:
    """{key: part} of a reading, of records with or without a `system` text; messages and texts have no place for it."""
    if system and not {"messages", "text"} & reading.parts.keys():
        return {**reading.parts, "system": "system"}
    return reading.parts


def readings_of(keys: Iterable[str]) -> tuple[Reading, ...]:
    """The ways to read a record with these keys: none, the one, or several between which only the user can choose.

    A reading with a response goes before plain text, and one whose keys contain another's before that one.
    """
    return _readings_of(known_keys(keys))


@cache  # there are no more sets of keys than subsets of KNOWN
def _readings_of(keys: frozenset[str]) -> tuple[Reading, ...]:
    complete = [reading for reading in READINGS if reading.parts.keys() <= keys]
    answered = [reading for reading in complete if "text" not in reading.parts]
    complete = answered or complete
    largest = [
        reading for reading in complete if not any(reading.parts.keys() < other.parts.keys() for other in complete)
    ]
    return tuple([reading for reading in largest if not reading.further] or largest)


def _why_unread(record: dict) -> str:
    """Why the keys of a record do not say how to read it."""
    if readings := readings_of(record):
        open_ways = " and ".join(f"by {reading}" for reading in readings)
        return f"it can be read {open_ways}: name the keys to use with --fields"
    if {"chosen", "rejected"} <= record.keys():
        return (
            "a pair of preferences (chosen, rejected), which is data for another kind of training; to learn the chosen "
            "answers, name the keys: --fields instruction=PROMPT response=chosen"
        )
    # the set that is nearest to being complete tells which key is missing
    nearest = max(READINGS, key=lambda reading: (len(reading.parts.keys() & record.keys()), -len(reading.parts)))
    missing = [key for key in nearest.parts if key not in record]
    if len(missing) < len(nearest.parts):
        return f"key {missing[0]!r} is missing; it has {_keys(record)}; or name its keys with --fields"
    return f"no known set of keys; it has {_keys(record)}; name them with --fields"


def _keys(record: dict) -> str:
    return ", ".join(map(repr, record)) or "no keys"


def _check_messages(messages, whole: str) -> list[dict]:
    """A conversation: perhaps a system text, then user and assistant in turn; tools answer an assistant's calls.

    Which further keys of a message have a place is for the template to say; `weight` means the same in all of them.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRecord(f"{whole} must hold a list of messages")
    messages = [_as_message(message, f"{whole}, message {n}") for n, message in enumerate(messages, 1)]
    expected: tuple[str, ...] = ("user",)
    for number, message in enumerate(messages):
        where = f"{whole}, message {number + 1}"
        calls = isinstance(message, dict) and bool(message.get("tool_calls"))
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str) and not (calls and text is None):
            raise BadRecord(f"{where}: it must have 'role' and 'content', both text")
        role = message.get("role")
        if role not in ROLES:
            raise BadRecord(f"{where}: role {role!r} is none of {', '.join(ROLES)}")
        _check_weight(message, where)
        if role == "system" and number == 0:
            continue
        if role not in expected:
            raise BadRecord(f"{where}: role {role!r} where {expected[0]!r} was due")
        if not calls and not text.strip():
            raise BadRecord(f"{where}: the {role}'s content is empty")
        expected = ("tool",) if calls else {"user": ("assistant",), "tool": ("assistant", "tool")}.get(role, ("user",))
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRecord(f"{whole}: no assistant message, so nothing to learn from")
    if all(message.get("weight") == 0 for message in answers):
        raise BadRecord(f"{whole}: every assistant message has the weight 0, so there is nothing to learn from")
    return messages


def _joined(record: dict) -> list[dict]:
    """Prompt and completion as one conversation, of which, as TRL has it, the completion alone is learned."""
    for key in ("prompt", "completion"):
        if not isinstance(record[key], list):
            raise BadRecord(f"key {key!r} must hold a list of messages, as the other of 'prompt' and 'completion' does")
    prompt = [_as_message(message, f"key 'prompt', message {n}") for n, message in enumerate(record["prompt"], 1)]
    answered = (isinstance(message, dict) and message.get("role") == "assistant" for message in prompt)
    return [{**m, "weight": 0} if a else m for m, a in zip(prompt, answered, strict=True)] + record["completion"]


def _as_message(message, where: str):
    """A message in its usual form, from ShareGPT's `from` and `value`, and from content as a list of text parts."""
    if not isinstance(message, dict):
        return message
    if message.get("from") is not None and message.get("role") is None:
        speaker = message["from"]
        if message.get("content") is not None:
            raise BadRecord(f"{where}: it has a 'value' and a 'content': which is its text?")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise BadRecord(f"{where}: it is from {speaker!r}, who is none of {', '.join(SPEAKERS)}")
        rest = {key: value for key, value in message.items() if key not in ("from", "value", "role", "content")}
        message = {"role": SPEAKERS[speaker], "content": message.get("value"), **rest}
    if isinstance(parts := message.get("content"), list):
        for part in parts:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise BadRecord(f"{where}: its content has a part of the type {kind!r}; only text can be read")
        message = {**message, "content": "".join(part["text"] for part in parts)}
    return message


def _check_weight(message: dict, where: str) -> None:
    """`weight` 0 leaves an assistant's turn untrained, 1 is what it has without; nothing else is trained anyway."""
    weight = message.get("weight")
    if weight is not None and weight not in (0, 1):
        raise BadRecord(f"{where}: weight must be 0 (not trained) or 1, not {weight!r}")
    if weight and message["role"] != "assistant":
        raise BadRecord(f"{where}: weight {weight!r} asks to train on the {message['role']}'s text; only answers are")
