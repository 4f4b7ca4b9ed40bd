"""Where what was worked out about data files is kept, under keys made of their content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def cache_directory() -> Path:
    """$GPTFT_CACHE, else the user's cache folder."""
    base = os.environ.get("GPTFT_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptft"


def key_of(decides) -> str:
    """A short hash of all that decides what is kept, which JSON can hold."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]
