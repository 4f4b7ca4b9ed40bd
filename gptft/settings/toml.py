"""Settings in TOML: a file read, a value written."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from gptft.errors import UserError


def read_toml(path: str) -> dict:
    """What a TOML file holds, as it stands there. Raises UserError where it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config: no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}") from None


def toml_value(value) -> str:
    """A value of a field as TOML; read again, it is the same."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, once every character beyond ASCII's controls stands for itself
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
