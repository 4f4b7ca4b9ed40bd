"""The configuration, the versions, and how to repeat the run."""

from __future__ import annotations

import json
import shlex

from gptft.config import FIELDS
from gptft.report.html import details, element, table
from gptft.report.run_files import RunFiles


def setup(run: RunFiles) -> list:
    """What differs from the defaults, everything, the versions, and the command."""
    changed = {name: value for name, value in run.config.items() if name not in FIELDS or value != plain_default(name)}
    commands = (
        f"python train.py --config {shlex.quote(str(run.folder / 'config.toml'))} --out_dir NEW",
        f"python -m gptft report {shlex.quote(str(run.folder))}",
    )
    return [
        table("Settings that are not the default", ["setting", "value", "default"], settings(changed)),
        details("All settings", table("Every setting", ["setting", "value", "default"], settings(run.config))),
        table("Model and versions", ["what", "which"], versions(run.summary)) if run.summary else None,
        element("p", "The same run again, on the CPU bit for bit; and this page again, from the files of the folder:"),
        element("pre", "\n".join(commands)),
    ]


def plain_default(name: str):
    """A field's default as TOML gives it back."""
    item = FIELDS[name]
    value = item.default_factory() if callable(item.default_factory) else item.default
    return list(value) if isinstance(value, tuple) else value


def settings(values: dict) -> list[list[str]]:
    """A row a setting; those under one heading of --help stand together, as they do there."""
    rows = []
    for name, value in values.items():
        default = json.dumps(plain_default(name), ensure_ascii=False) if name in FIELDS else ""
        rows.append([name, json.dumps(value, ensure_ascii=False), default])
    return rows


def versions(summary: dict) -> list[list[str]]:
    """The model's id, the device, and what was installed."""
    rows = [["model id", summary["model_id"]], ["weights of step", f"{summary['best_step']:,}"]]
    rows += [["device", summary["device"]], ["precision", summary["precision"]]]
    return rows + [[name, str(value)] for name, value in summary.get("versions", {}).items()]
