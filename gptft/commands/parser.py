"""The parser of every command line: argparse, with fields of Config as flags and errors of one line.

Booleans take both forms (`--compile`, `--compile false`), lists may come in pieces (`--data a --data b`), values may be
attached (`--lr=1e-4`), and dashes in a name are as good as underscores.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import types
from collections.abc import Callable
from itertools import takewhile

from gptft.config import FIELDS, TYPES
from gptft.errors import UserError, hint
from gptft.settings.values import coerce


class OneLineHelp(argparse.RawDescriptionHelpFormatter):
    """--help with a line for every flag, however long, so that it can be searched."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=10_000)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return ", ".join(action.option_strings) or super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """Arguments of one command. Raises UserError, one line, for whatever is wrong, and nothing else."""

    def __init__(self, **options) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": OneLineHelp, **options})
        self.fields: list[str] = []
        self.groups: dict[str, argparse._ArgumentGroup] = {}

    def group(self, heading: str):
        """The group of flags under a heading of --help."""
        if heading not in self.groups:
            self.groups[heading] = self.add_argument_group(heading)
        return self.groups[heading]

    def add_fields(
        self, heading: str, *names: str, required: tuple[str, ...] = (), unset: tuple[str, ...] = (), **docs: str
    ) -> None:
        """Flags for fields of Config under a heading; `docs`: another sentence than the field's own. Those in `unset`
        have no default here, where a run has one."""
        for name in names:
            self.fields.append(name)
            if isinstance(TYPES[name], types.GenericAlias):
                shape = {"nargs": "+", "action": "extend"}
            else:
                bare = "true" if TYPES[name] is bool else "on" if "on" in FIELDS[name].metadata["choices"] else None
                shape = {"nargs": "?", "const": bare} if bare else {}
            self.group(heading).add_argument(
                f"--{name}",
                default=argparse.SUPPRESS,
                required=name in required,
                help=describe_field(name, docs.get(name, ""), name not in (*required, *unset)),
                **shape,
            )

    def parse_args(self, argv: list[str]) -> argparse.Namespace:
        """The arguments; fields of Config that were given stand in `settings`, {name: value of the field's type}."""
        flags, words = self._sort(argv)
        if words and not self._takes_words():
            raise UserError(f"unexpected argument {words[0]!r}: settings are given as --FIELD VALUE")
        options, rest = self.parse_known_args([*flags, "--", *words] if words else flags)
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}")
        given = {name: options.__dict__.pop(name) for name in self.fields if name in options}
        options.settings = {name: coerce(name, TYPES[name], value, f"--{name}") for name, value in given.items()}
        return options

    def _takes_words(self) -> bool:
        """Whether some arguments are given without a flag: a word after a flag and its value may be one of these."""
        return any(not action.option_strings for action in self._actions)

    def _sort(self, argv: list[str]) -> tuple[list[str], list[str]]:
        """(flags, each with its values; words that belong to none). argparse by itself takes `MODEL --raw PROMPT` for
        a model without prompts, and -1e-4 for a flag."""
        flags, words, position = [], [], 0
        while position < len(argv):
            word, position = argv[position], position + 1
            name, equals, value = word.partition("=")
            if word == "--":
                return flags, [*words, *argv[position:]]
            if word == "-h":
                flags.append(word)
            elif not word.startswith("--") or " " in name:
                if word[:1] == "-" and len(word) > 1 and " " not in word and not is_number(word):
                    raise UserError(f"unexpected argument {word!r}")
                words.append(word)
            else:
                name = self._known(name)
                after = list(takewhile(lambda other: not other.startswith("--"), argv[position:]))
                values = [value] if equals else self._values(name, after)
                position += 0 if equals else len(values)
                flags += [f"{name}={values[0]}"] if len(values) == 1 else [name, *values]
        return flags, words

    def _values(self, name: str, after: list[str]) -> list[str]:
        """Those of the words after a flag that are its values."""
        nargs, single = self._option_string_actions[name].nargs, (None, "?")
        if nargs in single and not self._takes_words() and len(after) > 1:
            raise UserError(f"{name} takes one value, found {len(after)}: {' '.join(after)}")
        if nargs == 0:
            return []
        if nargs == "?" and self._takes_words():  # what follows a switch is a value only where it can be no prompt
            return after[:1] if after and after[0].lower() in ("true", "false") else []
        return after[:1] if nargs in single else after

    def _known(self, name: str) -> str:
        """A flag by its own name. Raises UserError with the nearest one."""
        flags = self._option_string_actions
        for spelling in (name, "--" + name[2:].replace("-", "_")):
            if spelling in flags:
                return spelling
        kind = "argument" if self._takes_words() else "flag"
        valid = [flag[2:] for flag in flags if flag.startswith("--")]
        raise UserError(f"unknown {kind} {name}{hint(spelling[2:], valid, '--')}")

    def error(self, message: str) -> None:
        """argparse's messages in our words."""
        if wants := re.fullmatch(r"argument (--\w+): expected (one|at least one) argument", message):
            message = f"{wants[1]} needs a value"
        raise UserError(re.sub(r"^argument (--\w+): must ", r"\1 must ", message))


def describe_field(name: str, doc: str = "", with_default: bool = True) -> str:
    """A field of Config as --help shows it: its sentence with the unit, its legal words, its default."""
    item = FIELDS[name]
    value = {} if item.default is dataclasses.MISSING else item.default
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    words = f" ({', '.join(item.metadata['choices'])})" if item.metadata["choices"] else ""
    default = f" [{shown.lower()}]" if with_default and value not in ("", (), {}) else ""
    return f"{doc or item.metadata['doc']}{words}{default}".replace("%", "%%")


def is_number(word: str) -> bool:
    """Whether a word that begins with a dash is a number, and so no flag."""
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


def whole_number(at_least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `at_least`."""

    def convert(word: str) -> int:
        if not word.lstrip("-").isdecimal() or int(word) < at_least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {at_least}, not {word!r}")
        return int(word)

    return convert


def number(word: str) -> float:
    """An argparse type: a number."""
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {word!r}") from None


def true_or_false(word: str) -> bool:
    """An argparse type: a truth value."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {word!r}")
    return word.lower() == "true"
