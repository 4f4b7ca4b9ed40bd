"""The command `export`: which writer, with what it needs to know of the run that made the model."""

from __future__ import annotations

import math
import tomllib
from argparse import Namespace
from pathlib import Path

import torch

from gptft.adapters.lora import adapters_of, merge_lora
from gptft.errors import UserError, nearest
from gptft.export.hf import export_hf
from gptft.export.llamacpp import KINDS, export_gguf, kind_of_file
from gptft.export.peft import save_peft
from gptft.files import read_json
from gptft.formats.gguf_file import is_gguf, read_gguf
from gptft.loading import load

DTYPE_OPTIONS = {"": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(options: Namespace) -> list[str]:
    """Write what the options ask for; -> notes for the user. Raises UserError, with nothing written."""
    out, dtype = Path(options.out), options.dtype
    kinds = {"hf": tuple(DTYPE_OPTIONS), "gguf": ("", *KINDS), "peft": ("",)}[options.format]
    if options.format == "peft" and dtype:
        raise UserError("--dtype: adapters are written in fp32, as they are; --format peft takes none")
    if dtype not in kinds:
        raise UserError(
            f"--dtype {dtype}: with --format {options.format} it is one of "
            f"{', '.join(kinds[1:])}{nearest(dtype, kinds)}"
        )
    if not 0 < options.shard_gb < math.inf:
        raise UserError(f"--shard_gb must be above 0, not {options.shard_gb}")
    model, tokenizer = load(options.model, base=options.base or None)
    if options.format == "peft":
        template = tokenizer.template if tokenizer else None
        save_peft(model, out, options.base_name, template and template.to_dict())
        return []
    notes = []
    if adapters_of(model):
        merge_lora(model)
        notes.append("the adapters were merged into their base")
    if options.format == "gguf":
        return notes + export_gguf(model, tokenizer, out, dtype or kind_that_came_in(options.model), options.name)
    card = {**card_of(Path(options.model)), **{k: v for k in ("name", "license") if (v := getattr(options, k))}}
    return notes + export_hf(model, tokenizer, out, int(options.shard_gb * 1e9), card, DTYPE_OPTIONS[dtype])


def kind_that_came_in(model: str) -> str:
    """How a GGUF file is written where nobody says it: as the file is that the model came from, else in fp16."""
    path = Path(model)
    if path.suffix != ".gguf" or not is_gguf(path):
        return "fp16"
    return kind_of_file(read_gguf(path).types) or "fp16"


def card_of(model: Path) -> dict:
    """What a run's own files say of the model: what it started from, its data and its losses."""
    run = next((path for path in (model, model.parent) if (path / "summary.json").exists()), None)
    if run is None or not (run / "config.toml").exists():
        return {}
    settings = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    summary = read_json(run / "summary.json")
    named = {"validation loss": "eval_loss", "test loss": "test_loss"}
    for key in summary:  # every other figure of the test is a metric of the answers
        if key.startswith("test_") and key != "test_loss":
            named[f"{key.removeprefix('test_').replace('_', ' ')} on the test split"] = key
    figures = {name: round(value, 4) for name, key in named.items() if (value := summary.get(key)) is not None}
    init = settings.get("init", "")
    return {
        "base": Path(init).name if Path(init).exists() else init,  # a path of this machine says nothing elsewhere
        "data": ", ".join(Path(path).name for path in settings.get("data", ())),
        "figures": figures,
    }
