"""Which template the prompts of records already hold, as those of the course's own file do (`### Question:` ...)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gptft.data.shapes import READINGS
from gptft.errors import UserError
from gptft.prompts import TEMPLATES, Template
from gptft.text.chat import ChatTemplate
from gptft.text.unwrapping import PLACEHOLDER, pattern_of, take_out

# the keys whose text may be a prompt
ASKED = frozenset(key for reading in READINGS for key, part in reading.parts.items() if part == "instruction")
NAMED = 5  # kinds of prompts that are named in an error


class Prompts(NamedTuple):
    """Prompts of one file that are alike: under which key, the name of the template that they hold ("" for none) with
    the white space that ends them, how many there are, and the line of the first."""

    path: Path
    key: str
    template: str
    tail: str
    count: int
    line: int


def candidates(template: Template | ChatTemplate | None) -> dict[str, Template]:
    """The templates that prompts are looked through for: that of the run or of the checkpoint first, then ours."""
    own = {template.name: template} if isinstance(template, Template) else {}
    return {name: each for name, each in {**own, **TEMPLATES, **own}.items() if prompts_of(each)}


def prompts_of(template: Template) -> tuple[str, ...]:
    """The forms that a prompt of the template has, those that hold more first; those alone that begin with words of
    their own, since any text would fit into another."""
    forms = [form for form in (template.prompt_with_input, template.prompt) if form]
    if template.system and not template.system_in_prompt:
        forms = [template.system + form for form in forms] + forms
    return tuple(form for form in forms if PLACEHOLDER.search(form) and PLACEHOLDER.split(form)[0].strip())


class Held(NamedTuple):
    """The template that all prompts of a run hold: as it stands there, its ending the prompts' own; the forms that are
    taken out of them; and how many prompts there are."""

    as_there: Template
    forms: tuple[str, ...]
    records: int


class Finder:
    """Counts, record by record, which prompts hold which template."""

    def __init__(self, keys: Collection[str], templates: Iterable[Template]) -> None:
        self.keys = keys
        self.forms = [(template, prompts_of(template)) for template in templates]
        # before its first placeholder every prompt of a template has the same words
        self.starts = tuple({PLACEHOLDER.split(form)[0] for _, forms in self.forms for form in forms})
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.first: dict[tuple[str, str, str], int] = {}

    def look(self, line: int, record: dict) -> None:
        for key in self.keys & record.keys():
            if isinstance(text := record[key], str) and text.strip():
                found = (key, *self.held_by(text))
                self.counts[found] += 1
                self.first.setdefault(found, line)

    def held_by(self, text: str) -> tuple[str, str]:
        """(the template that a prompt holds, the white space that ends it), ("", "") for none."""
        if text.startswith(self.starts):
            for template, forms in self.forms:
                for form in forms:
                    if pattern_of(form).fullmatch(text) and _writes(template, forms, text):
                        return template.name, text[len(text.rstrip()) :]
        return "", ""

    def found(self) -> list[list]:
        """[key, template, tail, count, line of the first] of each kind."""
        return [[*kind, count, self.first[kind]] for kind, count in self.counts.items()]


def _writes(template: Template, forms: Sequence[str], text: str) -> bool:
    """Whether the template makes that very text of what is taken out of it, up to white space at the end."""
    segments = template.prompt_segments(take_out({"instruction": text}, forms))
    return "".join(segment.text for segment in segments if segment.kind != "bos").rstrip() == text.rstrip()


def held_template(found: list[Prompts], templates: dict[str, Template]) -> Held | None:
    """The template that all these prompts hold, None where none holds one. Raises UserError, with counts and lines,
    where only some hold it, or not all the same."""
    kinds: dict[tuple[str, str], list[Prompts]] = {}
    for prompts in found:
        kinds.setdefault((prompts.template, prompts.tail), []).append(prompts)
    if not any(name for name, _ in kinds):
        return None
    if len(kinds) > 1:
        lines = []
        for (name, tail), alike in list(kinds.items())[:NAMED]:
            what = f"hold the template {name!r}, ending in {tail!r}" if name else "hold none"
            count = sum(prompts.count for prompts in alike)
            lines.append(f"\n  {alike[0].path}, line {alike[0].line}: the first of {count:,} that {what}")
        raise UserError(
            "some prompts already hold a template, and not all the same, so that it cannot be said what is the user's: "
            f"make them alike, or send the text as it is by --template plain{''.join(lines)}"
        )
    ((name, tail),) = kinds
    template = templates[name]
    ending = {
        field: prompt.rstrip() + tail
        for field in ("prompt", "prompt_with_input")
        if (prompt := getattr(template, field))
    }
    # white space at a prompt's end stands before the answer already
    lead = "" if tail and template.lead.isspace() else template.lead
    as_there = dataclasses.replace(template, **ending, lead=lead)
    forms = tuple(dict.fromkeys(form.rstrip() for form in prompts_of(template)))
    return Held(as_there, forms, sum(prompts.count for prompts in found))
