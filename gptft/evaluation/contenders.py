"""Whoever is ranked: models that are asked the prompts of a data file, and files of answers to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptft.data.compressed import kind_of
from gptft.data.shapes import READINGS, SPEAKERS, Parts, asked_messages
from gptft.data.sources import find, parse, raw_records
from gptft.errors import BadRecord, Unreadable, UserError, nearest
from gptft.evaluation.judge import Asked, prompt_text
from gptft.evaluation.responses import prompt_and_expected
from gptft.generation import prompt_ids, respond
from gptft.loading import load
from gptft.text.conversation import messages_of
from gptft.text.segments import PARTS
from gptft.tokenizer import Tokenizer

PROBES = "probes"  # the set that gptft carries
ANSWERS = ("answer", "response", "output", "after")  # the keys under which a file may hold its answers
PROMPTS = ("instruction", "question", "prompt", "query", "input")  # those under which it may hold a prompt
RESPONSES = {key for reading in READINGS for key, part in reading.parts.items() if part == "response"}
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Prompt:
    """A record as contenders are asked it. `expected`: "" where none is."""

    record: dict
    parts: Parts
    expected: str

    @property
    def asked(self) -> Asked:
        """As a judge is shown it."""
        return Asked(prompt_text(self.parts), self.expected)


def read_prompts(words: Sequence[str], fields: dict[str, str], at_most: int = 0) -> list[Prompt]:
    """The prompts of data files, with or without expected responses, the first `at_most`; 0: all. Raises UserError."""
    found = []
    for path in find(["embedded:probes.jsonl" if word == PROBES else word for word in words]):
        for line, raw in raw_records(path):
            if at_most and len(found) == at_most:
                return found
            try:
                record = parse(raw)
                pair = prompt_of(record, fields)
            except (BadRecord, Unreadable) as error:
                raise UserError(f"{path}, line {line}: {error}") from None
            if pair is None:
                raise UserError(f"{path}, line {line}: plain text asks nothing")
            found.append(Prompt(record, *pair))
    return found


def prompt_of(record: dict, fields: dict[str, str]) -> tuple[Parts, str] | None:
    """As prompt_and_expected has it, of records that may be prompts alone: then "" is expected. Raises BadRecord."""
    try:
        if pair := prompt_and_expected(record, fields):
            return pair
    except BadRecord:
        if is_answered(record, fields) or not (parts := bare(record, fields)):
            raise
        return parts, ""
    parts = bare(record, fields)  # plain text may have its prompt beside it
    return (parts, "") if parts else None


def is_answered(record: dict, fields: dict[str, str]) -> bool:
    """Whether a record holds a response, or an assistant's turn."""
    responses = [record.get(key) for key in ([fields.get("response")] if fields else RESPONSES)]
    said = [value.get("text") if isinstance(value, dict) else value for value in responses]  # SQuAD's answers
    if any(value.strip() if isinstance(value, str) else value for value in said):
        return True
    talks = [record.get(key) for key in ([fields.get("messages")] if fields else ("messages", "conversations"))]
    turns = [turn for talk in talks if isinstance(talk, list) for turn in talk if isinstance(turn, dict)]
    return any("assistant" in (turn.get("role"), SPEAKERS.get(str(turn.get("from")))) for turn in turns)


def bare(record: dict, fields: dict[str, str]) -> Parts:
    """The parts of a prompt, whatever answers it; none where there is no prompt. Raises BadRecord."""
    for key in [fields.get("messages")] if fields else ("messages", "conversations", "prompt"):
        if isinstance(record.get(key), list):
            return Parts(messages=asked_messages(record[key]))
    parts = Parts()
    for part, key in (fields or keys_of_prompt(record)).items():
        if part in ("response", "text") or not record.get(key):
            continue
        if not isinstance(record[key], str):
            raise BadRecord(f"key {key!r} must hold text, not {type(record[key]).__name__}")
        parts[part] = record[key]
    return parts if any(text.strip() for part, text in parts.items() if part != "system") else Parts()


def keys_of_prompt(record: dict) -> dict[str, str]:
    """{part: key} of a prompt by the usual names of keys."""
    full = [key for key in record if isinstance(record[key], str) and record[key].strip()]
    asked = next((key for key in PROMPTS if key in full), None)
    if asked is None:
        return {}
    beside = next((key for key in ("input", "context") if key != asked and record.get(key)), None)
    return {"instruction": asked} | ({"input": beside} if beside else {}) | {"system": "system"}


def split_key(word: str) -> tuple[Path | None, str]:
    """(the file of answers that a word names, the key behind its last colon); (None, "") for a model."""
    for name, key in ((word, ""), word.rsplit(":", 1) if ":" in word else ("", "")):
        if name and kind_of(Path(name)) in FILES:
            return Path(name), key
    return None, ""


def read_answers(path: Path, key: str, prompts: Sequence[Prompt], fields: dict[str, str]) -> list[str | None]:
    """The answers in a file, a record an answer, under `key` or the first of ANSWERS that the records have.

    A record that says what it answers, by a `record` as responses.jsonl has it or by its prompt, is taken for that;
    where none does, they stand in the order of the prompts, as many. Raises UserError with the line.
    """
    rows = read_rows(path, key)
    named = [(line, names_of(row, fields), text) for line, row, text in rows]
    if not any(names for _, names, _ in named):
        if len(rows) != len(prompts):
            raise UserError(f"{path}: {len(rows)} answers to {len(prompts)} prompts, and none says which it answers")
        return [text for _, _, text in rows]
    answers: dict[str, dict[str | None, int]] = {}  # {what is answered: {each answer to it: the line}}
    for line, names, text in named:
        if not names:
            raise UserError(f"{path}, line {line}: it does not say what it answers, as others do")
        for name in names:
            answers.setdefault(name, {}).setdefault(text, line)
    found: list[str | None] = []
    for prompt in prompts:
        names = names_of({"record": prompt.record}, fields)
        said = next((answers[name] for name in names if name in answers), {None: 0})
        if len(said) > 1:
            raise UserError(f"{path}, line {max(said.values())}: another answer to the same prompt")
        found += said
    if found and not any(text is not None for text in found):
        raise UserError(f"{path}: it answers none of the prompts")
    return found


def read_rows(path: Path, key: str) -> list[tuple[int, dict, str | None]]:
    """(line, record, its answer) of a file of answers; None for an answer that was left out."""
    rows = []
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    for line, raw in raw_records(path):
        try:
            row = parse(raw)
        except Unreadable as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        used = key or next((name for name in ANSWERS if name in row), "")
        if used not in row:
            wanted = f"no key {key!r}{nearest(key, row)}" if key else f"no answer under any of {', '.join(ANSWERS)}"
            raise UserError(f"{path}, line {line}: there is {wanted}; name it as {path}:KEY")
        if not isinstance(row[used], str):
            raise UserError(f"{path}, line {line}: key {used!r} must hold text, not {type(row[used]).__name__}")
        rows.append((line, row, None if "left_out" in row else row[used]))
    return rows


def names_of(row: dict, fields: dict[str, str]) -> list[str]:
    """What tells which prompt a record of answers is about, the surest first: the `record` in it, word for word, then
    the conversation that this, or the row itself, asks to be gone on with."""
    record = row["record"] if isinstance(row.get("record"), dict) else row
    names, asked = [] if record is row else [record], []
    for given in (fields, {}):  # others may have answered who name their keys otherwise
        with suppress(BadRecord):
            asked.append(bare(record, given))
        with suppress(BadRecord):
            asked += (prompt_and_expected(record, given) or ())[:1]
    for parts in filter(None, asked):
        names.append([messages_of(parts), {part: text for part, text in parts.items() if part not in PARTS}])
    return list(dict.fromkeys(json.dumps(name, sort_keys=True, default=str) for name in names))


def ask_model(name: str, prompts: Sequence[Prompt], device, max_new_tokens: int, batch_size: int) -> list[str | None]:
    """A model's greedy answers; a prompt that leaves no room for max_new_tokens, or that its template has no place for,
    has none. A model without a template is given the text as it is."""
    model, tokenizer = load(name, device)
    if tokenizer is None:
        raise UserError(f"{name} has no tokenizer")
    raw = tokenizer.template is None
    given = [prompt_text(prompt.parts) if raw else prompt.parts for prompt in prompts]
    room = model.config.block_size + 1 - max_new_tokens
    fits = [fits_in(tokenizer, each, raw, room) for each in given]
    asked = [each for each, fit in zip(given, fits, strict=True) if fit]
    said = iter(respond(model, tokenizer, asked, max_new_tokens, raw, batch_size=batch_size) if asked else ())
    return [next(said).text if fit else None for fit in fits]


def fits_in(tokenizer: Tokenizer, prompt, raw: bool, room: int) -> bool:
    """Whether a prompt can be asked, in so many tokens."""
    try:
        return len(prompt_ids(tokenizer, prompt, raw)) <= room
    except BadRecord:
        return False
