"""Values as users give them, turned into the type of a field."""

from __future__ import annotations

import math
import types
from pathlib import Path

from gptft.errors import UserError


def type_name(kind) -> str:
    """A type as a user reads it."""
    if isinstance(kind, types.GenericAlias):
        if kind.__origin__ is dict:
            return "a table of KEY=VALUE"
        return "a list" if kind.__args__[-1] is Ellipsis else f"{len(kind.__args__)} numbers"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def coerce(name: str, kind, value, where: str):
    """Turn a value from TOML, Python or the command line (text, list of texts) into `kind`, the type of field `name`.

    Raises UserError naming `where` and the type that is wanted.
    """
    try:
        if isinstance(kind, types.GenericAlias) and kind.__origin__ is dict:
            if isinstance(value, dict):
                pairs = value
            else:
                pairs = dict(item.split("=", 1) for item in ([value] if isinstance(value, str) else value))
            if not all(isinstance(k, str) and isinstance(v, str) for k, v in pairs.items()):
                raise ValueError
            return pairs
        if isinstance(kind, types.GenericAlias):
            items = [value] if isinstance(value, str | Path) else list(value)
            if name == "lora_targets":  # a path may hold a comma, the name of a layer does not
                items = [word for item in items for word in _scalar(str, item).split(",") if word]
            if kind.__args__[-1] is Ellipsis:
                return tuple(_scalar(kind.__args__[0], item) for item in items)
            if len(items) != len(kind.__args__):
                raise ValueError
            return tuple(_scalar(k, item) for k, item in zip(kind.__args__, items, strict=True))
        return _scalar(kind, value)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise UserError(f"{where} must be {type_name(kind)}, not {value!r}") from None


def _scalar(kind: type, value):
    """One text, number or truth value as `kind`; ValueError or TypeError where it is none."""
    if isinstance(value, list | tuple):
        (value,) = value
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}[_lower(value)]
    if isinstance(value, bool):
        raise ValueError
    if kind is str:
        if not isinstance(value, str | Path):
            raise ValueError
        str(value).encode()  # a path whose bytes are no UTF-8 could not be written to config.toml
        return str(value)
    number = kind(value)
    if not math.isfinite(number) or (isinstance(value, float) and number != value):  # 2.5 is no whole number
        raise ValueError
    return number


def _lower(value) -> str:
    return value.lower() if isinstance(value, str) else ""
