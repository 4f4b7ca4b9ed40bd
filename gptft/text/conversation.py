"""Messages as a chat template is given them: a record's parts as messages, and the reasoning in a message."""

from __future__ import annotations

from gptft.errors import BadRecord

# The names that a message's reasoning goes by. transformers fills in the first two from whichever is there.
REASONING = ("reasoning_content", "thinking", "reasoning")
OPENING, CLOSING = "<think>", "</think>"


def messages_of(parts: dict) -> list[dict]:
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


def exchange(asked: str, answer: str) -> list[dict]:
    """A question and its answer as messages."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def split_reasoning(message: dict) -> tuple[str, str]:
    """(the reasoning of an assistant's message, its answer); the reasoning is "" where there is none."""
    content = message.get("content") or ""
    for key in REASONING:
        if isinstance(message.get(key), str):
            return message[key], content
    start = answer_start(content)
    if not start:
        return "", content
    # R1's own outputs lack the opening tag, for it stood in the prompt
    thought = content[: content.index(CLOSING)].lstrip().removeprefix(OPENING).strip("\n")
    return thought, content[start:]


def answer_start(content: str) -> int:
    """Where the answer begins in a text that holds the reasoning too; 0 where it holds none."""
    place = content.find(CLOSING)
    return 0 if place < 0 else len(content) - len(content[place + len(CLOSING) :].lstrip())


def without_reasoning(messages: list[dict]) -> list[dict]:
    """The same conversation as if the assistant had not thought aloud. Raises BadRecord where no answer is left."""
    out = []
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            answer = split_reasoning(message)[1]
            if not answer.strip() and (message.get("content") or "").strip():
                raise BadRecord(f"message {number} has reasoning and no answer, and --thinking strip takes it away")
            message = {key: value for key, value in message.items() if key not in REASONING}
            if answer != (message.get("content") or ""):
                message["content"] = answer
        out.append(message)
    return out


def as_transformers_gives(messages: list[dict], in_blocks: bool) -> list[dict]:
    """Whole messages, as `apply_chat_template` hands them to a template: the reasoning under each name that templates
    look for. `weight` is ours, and a key without a value (tables have the same keys in every row) is no key.
    `in_blocks`: texts as lists of typed blocks, which templates of models that see images ask for."""
    given = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key != "weight" and value is not None}
        if message.get("content") is None and "content" in message:
            kept["content"] = None  # of a message that only calls tools
        reasoning = next((kept[key] for key in REASONING if key in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        if in_blocks and isinstance(kept.get("content"), str):
            kept["content"] = [{"type": "text", "text": kept["content"]}]
        given.append(kept)
    return given


def size_of(value) -> int:
    """Characters of all texts in messages."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(size_of(key) + size_of(item) for key, item in value.items())
    return sum(map(size_of, value)) if isinstance(value, (list, tuple)) else 0
