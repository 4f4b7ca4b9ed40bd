"""A small real model as a judge: SmolLM2-135M-Instruct says which is better, its own answers or good ones.

The prompts are those that gptft carries, and so are the good answers. A judge that could see planted differences would
be said to be better than chance; this one need not be, and then the ranking below says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import common, real, results
from gptft.errors import UserError
from gptft.files import resource

PROMPTS, PLANTED = 8, 12
NAME = "smollm2.gguf"


def main(argv: list[str]) -> None:
    options = common.parser("judge", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "gguf")
    model = real.model_path(Path("smollm2"))
    prompts, planted = (1, 1) if options.quick else (PROMPTS, PLANTED)
    settings = {"model": model.stem, "prompts": prompts, "planted": planted, "quick": options.quick}
    result = common.header("judge", options, settings, ["torch", "gguf"])
    words = ["rank", NAME, "good.jsonl", "--data", "probes", "--judge", NAME, "--samples", str(prompts)]
    words += ["--judge_check", str(planted)]
    with common.temporary() as name:
        folder = Path(name)
        (folder / NAME).symlink_to(model)
        shutil.copy(resource("data/probes.jsonl"), folder / "good.jsonl")
        env = {**os.environ, **common.environment(options), "PYTHONPATH": str(common.REPOSITORY)}
        command = [sys.executable, "-m", "gptft", *words, "--out", "out"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}", 1)
        replies = [json.loads(line) for line in (folder / "out.verdicts.jsonl").read_text().splitlines()]
    result["command"] = f"python -m gptft {' '.join(words)}"
    result["console"] = done.stdout.splitlines()
    result["replies"] = [{"reply": row.get("reply"), "finished": row.get("finished")} for row in replies]
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    """The command and what it printed."""
    return "\n".join(["```", f"$ {result['command']}", *result["console"], "```"])


def describe_replies(result: dict) -> str:
    """What the judge says, the most frequent first."""
    said = [" ".join((row["reply"] or "").split()) for row in result["replies"]]
    often = sorted(set(said), key=lambda text: (-said.count(text), text))[:3]
    return ", ".join(f"“{text}” ({said.count(text)} of {len(said)})" for text in often)
