"""The prompts by which questions and answers are made of a document's passages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from gptft.errors import UserError, nearest


class Prompts(NamedTuple):
    """What asks for a question about a passage, and what asks for its answer. `{file}` stands for the document's name,
    `{text}` for the passage, and in `answer` `{question}` for what was asked."""

    question: str
    answer: str

    def ask(self, file: str, text: str) -> str:
        """The prompt for a question."""
        return fill(self.question, file=file, text=text)

    def answer_to(self, question: str, file: str, text: str) -> str:
        """The prompt for its answer."""
        return fill(self.answer, file=file, text=text, question=question)


PROMPTS = {
    "qa": Prompts(
        "Here is a passage from {file}:\n\n{text}\n\nWrite one question that a reader may ask and that this passage "
        "answers. Write the question alone.",
        "Here is a passage from {file}:\n\n{text}\n\nAnswer the question from this passage, in one to three "
        "sentences.\n\nQuestion: {question}",
    )
}
NEEDED = {"question": ("text",), "answer": ("question", "text")}  # without which nothing can be made of a passage


def fill(prompt: str, /, **values: str) -> str:
    """A prompt with its fields filled in, in one go, and these names alone: a passage may hold braces, and so may a
    prompt."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda found: values[found[1]], prompt)


def read_prompts(word: str) -> Prompts:
    """Prompts by their name, or from a .toml file with the keys `question` and `answer`. Raises UserError."""
    if word in PROMPTS:
        return PROMPTS[word]
    if not word.endswith(".toml"):
        known = ", ".join(PROMPTS)
        raise UserError(
            f"--template {word}: it is neither known ({known}) nor a .toml file with a question and an answer"
        )
    return Prompts(**read_texts(word, "--template", NEEDED))


def read_texts(path: str, flag: str, needed: dict[str, tuple[str, ...]], given: dict[str, str] | None = None) -> dict:
    """The texts of a .toml file: {key: text} for each key of `needed`, whose fields it must hold. `given`: the texts of
    keys that the file may leave out. Raises UserError naming the flag, the file and the key."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None
    for key in values:
        if key not in needed:
            raise UserError(f"{flag} {path}: there is no key {key!r}{nearest(key, needed)}")
    values = {**(given or {}), **values}
    for key, names in needed.items():
        if not isinstance(values.get(key), str):
            raise UserError(f"{flag} {path}: the key {key!r} must hold a text")
        for name in names:
            if f"{{{name}}}" not in values[key]:
                raise UserError(f"{flag} {path}: {key!r} must hold {{{name}}}")
    return {key: values[key].strip() for key in needed}
