"""The embedded default: what `python train.py` runs when it is given nothing to train on."""

from __future__ import annotations

from pathlib import Path

from gptft.config import resolve, shipped, to_toml
from gptft.errors import UserError
from gptft.files import atomic_write


def embedded_default(given: dict):
    """The course's story in miniature: pretrain on plain text, then tune on instructions. Two ordinary runs -> the Run
    of the second.

    With `resume` in `given`, whatever was finished is kept and the rest is gone on with.
    """
    from gptft.finetuning import finetune
    from gptft.run.console import say
    from gptft.run.folder import holds_run, numbered
    from gptft.run.lock import claim
    from gptft.run.signals import Interruption

    out_dir = Path(given.pop("out_dir", "") or numbered(Path("checkpoints/default")))
    first, resumed = out_dir / "pretrain", given.get("resume", False)
    if (holds_run(out_dir) or holds_run(first)) and not resumed:
        raise UserError(f"--out_dir {out_dir} already holds a run: choose another, or go on with it by --resume")
    # both stages' settings are fixed at the start, so that whatever goes on later goes on with them
    saved = first / "config.toml", out_dir / "instruct.toml"
    sources = [
        str(path) if resumed and path.exists() else shipped(name)
        for path, name in zip(saved, ("pretrain.toml", "instruct.toml"), strict=True)
    ]
    # adapters need a model to stand beside
    without_adapters = {name: value for name, value in given.items() if not name.startswith("lora_")}
    pretraining = resolve(sources[0], {**without_adapters, "out_dir": str(first)})
    tuning = resolve(sources[1], {**given, "init": str(first / "best"), "out_dir": str(out_dir)})
    with claim(out_dir, ".stages.lock"):  # beside the lock that each stage takes of its own folder
        with atomic_write(saved[1]) as file:
            file.write(to_toml(tuning))
        try:
            say(f"1. pretraining from scratch on plain text, in {first}\n")
            if (first / "summary.json").exists():
                say("already done")
            else:
                finetune(pretraining)
            say(f"\n2. tuning on instructions, in {out_dir}\n")
            return finetune(tuning)
        except Interruption as stopped:  # both stages go on by one command
            raise Interruption(stopped.what, stopped.number, out_dir) from None
