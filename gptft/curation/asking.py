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
        return _filled(self.question, file=file, text=text)

    def answer_to(self, question: str, file: str, text: str) -> str:
        """The prompt for its answer."""
        return _filled(self.answer, file=file, text=text, question=question)


PROMPTS = {
    "qa": Prompts(
        "Here is a passage from {file}:\n\n{text}\n\nWrite one question that a reader may ask and that this passage "
        "answers. Write the question alone.",
        "Here is a passage from {file}:\n\n{text}\n\nAnswer the question from this passage, in one to three "
        "sentences.\n\nQuestion: {question}",
    )
}
NEEDED = {"question": ("text",), "answer": ("question", "text")}  # without which nothing can be made of a passage


def _filled(prompt: str, **values: str) -> str:
    """In one go, and these names alone: a passage may hold braces, and so may a prompt."""
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
    try:
        values = tomllib.loads(Path(word).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--template {word}: {getattr(error, 'strerror', None) or error}") from None
    for key in values:
        if key not in NEEDED:
            raise UserError(f"--template {word}: there is no key {key!r}{nearest(key, NEEDED)}")
    for key, names in NEEDED.items():
        if not isinstance(values.get(key), str):
            raise UserError(f"--template {word}: the key {key!r} must hold a text")
        for name in names:
            if f"{{{name}}}" not in values[key]:
                raise UserError(f"--template {word}: {key!r} must hold {{{name}}}")
    return Prompts(values["question"].strip(), values["answer"].strip())
