"""The shapes that records have: which keys play which part."""

from __future__ import annotations

from gptft.errors import BadRecord

# The sets of keys that are recognised without --fields, and the part that each key plays.
RECOGNISED = (
    {"messages": "messages"},
    {"instruction": "instruction", "input": "input", "output": "response"},
    {"instruction": "instruction", "output": "response"},
    {"instruction": "instruction", "input": "input", "response": "response"},
    {"instruction": "instruction", "response": "response"},
    {"question": "instruction", "answer": "response"},
    {"prompt": "instruction", "completion": "response"},
    {"input": "instruction", "output": "response"},
    {"text": "text"},
)
ROLES = ("system", "user", "assistant")


def recognise(record: dict, fields: dict[str, str] | None = None) -> dict:
    """A user's record -> {part: text} with the parts of PARTS (plus any further part that `fields` names).

    `fields` maps parts to the record's keys; without it the keys decide. Raises BadRecord naming the key.
    """
    keys = used_keys(record, fields)
    for part, key in (fields or {}).items():
        if key not in record and part not in ("input", "system"):
            raise BadRecord(f"key {key!r} (for {part}) is missing; it has {_keys(record)}")
    if not keys:
        # the set that is nearest to being complete tells which key is missing
        names = max(RECOGNISED, key=lambda names: (len(names.keys() & record.keys()), -len(names)))
        missing = [name for name in names if name not in record]
        if len(missing) < len(names):
            raise BadRecord(f"key {missing[0]!r} is missing; it has {_keys(record)}; or name its keys with --fields")
        raise BadRecord(f"no known set of keys; it has {_keys(record)}; name them with --fields")
    if "messages" in keys.values():
        key = next(key for key, part in keys.items() if part == "messages")
        return {"messages": _check_messages(record[key], key)}
    parts = {}
    for key, part in keys.items():
        value = record.get(key, "")
        if value is None and part in ("input", "system"):
            value = ""
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


def used_keys(record: dict, fields: dict[str, str] | None = None) -> dict[str, str]:
    """The keys of a record that play a part, and which: {key: part}; {} where they are not recognised."""
    if fields:
        return {key: part for part, key in fields.items()}
    keys = next((names for names in RECOGNISED if names.keys() <= record.keys()), {})
    return {**keys, "system": "system"} if keys and "system" in record and "messages" not in keys else keys


def _keys(record: dict) -> str:
    return ", ".join(map(repr, record)) or "no keys"


def _check_messages(messages, key: str) -> list[dict]:
    if not isinstance(messages, list) or not messages:
        raise BadRecord(f"key {key!r} must hold a list of messages")
    expected = "user"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRecord(f"key {key!r}, message {number + 1}: it must have 'role' and 'content', both text")
        role = message.get("role")
        if role not in ROLES:
            raise BadRecord(f"key {key!r}, message {number + 1}: role {role!r} is none of {', '.join(ROLES)}")
        if role == "system" and number == 0:
            continue
        if role != expected:
            raise BadRecord(f"key {key!r}, message {number + 1}: role {role!r} where {expected!r} was due")
        if not message["content"].strip():
            raise BadRecord(f"key {key!r}, message {number + 1}: the {role}'s content is empty")
        expected = "assistant" if role == "user" else "user"
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRecord(f"key {key!r}: no assistant message, so nothing to learn from")
    return messages
