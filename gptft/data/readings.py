"""How the records of all files are read: the one reading that they agree on, and the template that it asks for.

The keys of every record are counted in a pass of its own before anything is tokenised, since the template decides the
ids. The pass keeps no record, and what it found is cached under the hash of the file's content.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gptft.data.build import NAMED_KEYS
from gptft.data.cache import cache_directory, key_of
from gptft.data.compressed import kind_of
from gptft.data.held import ASKED, Finder, Prompts, candidates, held_template, prompts_of
from gptft.data.shapes import KNOWN, LISTS, Reading, known_keys, parts_of, readings_of
from gptft.data.sources import parse, raw_records
from gptft.errors import Unreadable, UserError
from gptft.files import atomic_write, sha256_file
from gptft.prompts import TEMPLATES, Template, load_template
from gptft.text.chat import ChatTemplate


@dataclass(frozen=True)
class Kind:
    """Records of one file whose keys are alike, as far as they decide the reading."""

    path: Path
    line: int  # of the first of them
    count: int
    keys: frozenset[str]

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}"


class Survey(NamedTuple):
    """The kinds of records in a file, how many records have each other key, and which prompts hold a template."""

    kinds: list[Kind]
    others: Counter[str]
    prompts: list[Prompts]


def survey(path: Path, asked: Collection[str] = ASKED, templates: dict[str, Template] | None = None) -> Survey:
    """What the records of a file are. What cannot be parsed is passed over. `asked` are the keys whose texts may be
    prompts, `templates` those that they are looked through for.

    A second survey of the same content reads a small file in the cache instead.
    """
    if kind_of(path) == ".txt":
        return Survey([Kind(path, 1, 1, frozenset({"text"}))], Counter(), [])
    templates = candidates(None) if templates is None else templates
    forms = [[each.to_dict(), prompts_of(each)] for each in templates.values()]
    decides = [kind_of(path), sha256_file(path), sorted(KNOWN), sorted(asked), forms]
    cached = cache_directory() / f"keys-{key_of(decides)}.json"
    try:
        kinds, others, prompts = json.loads(cached.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        finder = Finder(asked, templates.values())
        kinds, others = _count_keys(path, finder)
        prompts = finder.found()
        with contextlib.suppress(OSError), atomic_write(cached) as file:  # whoever tokenises next says what is wrong
            json.dump([kinds, others, prompts], file)
    kinds = [Kind(path, line, count, frozenset(keys)) for line, count, keys in kinds]
    return Survey(kinds, Counter(others), [Prompts(path, *found) for found in prompts])


def _count_keys(path: Path, finder: Finder) -> tuple[list, Counter[str]]:
    counts: Counter[frozenset[str]] = Counter()
    first: dict[frozenset[str], int] = {}
    others: Counter[str] = Counter()
    for line, raw in raw_records(path):
        try:
            record = parse(raw)
        except Unreadable:
            continue
        keys = known_keys(record)
        finder.look(line, record)
        counts[keys] += 1
        first.setdefault(keys, line)
        if len(keys) < len(record) or LISTS in keys:
            others.update(record.keys() - keys)
    return [(first[keys], count, sorted(keys)) for keys, count in counts.items()], others


def choose_template(
    name: str, fields: dict[str, str], trained_with: Template | ChatTemplate | None, paths: Sequence[Path]
) -> tuple[Template | ChatTemplate, dict]:
    """The template of a run, and how it came to be that one.

    `name` is --template. `auto` takes the template that the model was `trained_with`; where there is none, or it is
    `plain`, which is what training on text alone leaves in a checkpoint, the records' keys choose.

    -> {"template": its name, "why", "keys": {key: part}, "records": how many have them, "readings": {keys: records},
    "unused_keys": {key: records}}, and "held": {"template", "records"} where the prompts hold one already.
    Raises UserError with file and line where records can be read in several ways, or do not agree with each other.
    """
    for part in ("text", "messages"):
        if part in fields and len(fields) > 1:
            others_named = ", ".join(name for name in fields if name != part)
            raise UserError(f"--fields {part}=...: it makes a record by itself; {others_named} would not be used")
    known = candidates(load_template(name, fields) if name != "auto" else trained_with)
    kinds, others, prompts = [], Counter(), []
    for path in paths:
        found = survey(path, ASKED.union(fields.values()), known)
        kinds, others, prompts = kinds + found.kinds, others + found.others, prompts + found.prompts
    kinds_read = [] if fields else list(_read(kinds))
    if name != "auto":
        template, why = load_template(name, fields), f"--template {name}"
    elif trained_with is not None and trained_with.name != "plain":
        template, why = trained_with, "the model was trained with it"
    elif fields:
        template, why = TEMPLATES[_asked_by_fields(fields)], "by --fields"
    else:
        template, why = TEMPLATES[_asked_by_records(kinds_read)], "by the records' keys"
    keys = {key: part for part, key in fields.items()}
    counts: Counter[str] = Counter()
    for kind, reading in kinds_read:
        parts = parts_of(reading, "system" in kind.keys)
        keys |= parts
        counts[str(reading)] += kind.count
        others.update(dict.fromkeys(kind.keys - parts.keys(), kind.count))
    if fields:
        for kind in kinds:
            others.update(dict.fromkeys(kind.keys, kind.count))
    asked = [found for found in prompts if keys.get(found.key) == "instruction"]
    as_it_is = name != "auto" and isinstance(template, Template) and template.prompt == "{prompt}"
    inside = None if as_it_is else held_template(asked, known)
    if inside and name == "auto" and template is not trained_with:  # nobody chose another
        template, why = inside.as_there, "all prompts hold it"
    held = {}
    if inside:
        template = dataclasses.replace(template, unwraps=inside.forms)
        held = {"held": {"template": inside.as_there.name, "records": inside.records}}
    template.check_fields(fields)
    keys.pop(LISTS, None)
    unused = [(key, count) for key, count in others.most_common() if key not in fields.values()]
    return template, {
        "template": template.name,
        "why": why,
        "keys": keys,
        "records": sum(kind.count for kind in (kinds if fields else (kind for kind, _ in kinds_read))),
        **({"readings": dict(counts)} if len(counts) > 1 else {}),
        **held,
        "unused_keys": dict(unused[:NAMED_KEYS]),
    }


def _read(kinds: list[Kind]) -> Iterator[tuple[Kind, Reading]]:
    """Each kind that can be read, with its reading. A key must play the same part, or none, wherever it appears."""
    played: dict[str, tuple[str | None, Kind]] = {}
    for kind in kinds:
        readings = readings_of(kind.keys)
        if len(readings) > 1:
            ways = "".join(f"\n  by the keys {reading}" for reading in readings)
            raise UserError(f"{kind.place}: it can be read in several ways; name the keys to use with --fields:{ways}")
        for reading in readings:
            parts = parts_of(reading, "system" in kind.keys)
            for key in sorted(kind.keys):
                part, earlier = played.setdefault(key, (parts.get(key), kind))
                if part != parts.get(key):
                    raise UserError(
                        f"the key {key!r} would not play the same part in all records; name the keys to use with "
                        f"--fields:\n  {earlier.place}: {part or 'not used'}, read by the keys "
                        f"{readings_of(earlier.keys)[0]}\n  {kind.place}: {parts.get(key) or 'not used'}, read by the "
                        f"keys {reading}"
                    )
            yield kind, reading


def _asked_by_records(kinds_read: list[tuple[Kind, Reading]]) -> str:
    """The template that all records ask for."""
    asked: dict[str, tuple[Kind, Reading]] = {}
    for kind, reading in kinds_read:
        asked.setdefault(reading.template, (kind, reading))
    if len(asked) > 1:
        lines = "".join(f"\n  {kind.place}: {name}, by the keys {reading}" for name, (kind, reading) in asked.items())
        raise UserError(f"the records ask for different templates; choose one with --template:{lines}")
    return next(iter(asked), "alpaca")


def _asked_by_fields(fields: dict[str, str]) -> str:
    if "messages" in fields:
        return "chatml"
    if "text" in fields:
        return "plain"
    return "qa" if fields.get("instruction") == "question" else "alpaca"
