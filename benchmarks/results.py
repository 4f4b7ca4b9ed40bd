"""What was measured: one JSON file a benchmark in `benchmarks/results`, and all of them as tables in RESULTS.md.

A result holds `name`, `date`, `machine`, `versions`, `settings`, the raw `rounds` and the `summary` over them. Each
benchmark's module has `table(result)`, which makes Markdown of its own. One that was made with --model or --data holds
`real` too (benchmarks/real.py says what); it is kept beside the benchmark's own, as `NAME-MODEL-DATA.json`. So is, as
`NAME-without-bf16.json`, one whose contenders differ by precision, where the processor has no bf16.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from gptft.files import atomic_write

NAMES = {
    "default": "the embedded default, python train.py: exact match, losses, seconds, by three seeds",
    "sft": "fine-tuning GPT-2 124M, examples a second: gptft against TRL's SFTTrainer",
    "families": "every family of models: the largest difference from transformers",
    "llamacpp": "exports to GGUF in the real llama.cpp: the same greedy ids, and how near the logits come",
    "head": "the head and the loss by themselves: seconds and memory, all logits at once against chunks",
    "dense": "full rows without a mask, tokens a second: gptft against a classical loop and transformers' Trainer",
    "growth": "seconds a step by rows, lengths and batches, and memory by records: how gptft grows",
    "lora": "LoRA against full fine-tuning and against PEFT with TRL: speed, memory, validation loss",
    "lora_real": "what LoRA loses on a real model: learning rates swept, three seeds at the best",
    "decode": "greedy decoding GPT-2 124M, tokens a second: gptft against transformers",
    "answers": "the answers of a real model to 110 test prompts, answers a second: gptft against transformers",
    "lookup": "prompt lookup on a real model, where answers copy and where not: gptft against plain and transformers",
    "decode_bits": "decoding a real model in fewer bits: what it loses on real data",
    "gpu": "training and decoding on one GPU: gptft against transformers, and TRL where it is installed",
    "ranks": "1, 2 and 4 processes: what DDP and FSDP2 cost, move and hold, against the theory",
    "threads": "steps a second of a small model alone and beside a busy process, by how long threads spin",
    "against": "this checkout against another of the project: fine-tuning, LoRA, decoding",
    "startup": "seconds until gptft is imported and until train.py --help has answered",
    "tokenize": "seconds to tokenise 50,000 records, and to find them in the cache",
    "mislabelled": "wrong answers planted in real data: how near the top the losses of training bring them",
    "smollm2": "a real model on real data: tuned, asked before and after, exported, asked in llama.cpp",
    "gguf_memory": "memory while a GGUF file in 4 bits is opened: fp32, bf16, and frozen for LoRA",
    "scaling": "the forecast from growing amounts of data, checked on real records",
    "judge": "a small real model as a judge: its own answers against good ones",
    "harness": "HellaSwag by EleutherAI's harness, tasks a second: gptft against the harness's own model",
    "lint": "the linter: planted faults in real data, what is in real data as it is, seconds for 52,000 records",
    "mistakes": "mistakes in answers: planted in those of a real model, and found in 100 that somebody has read",
    "stream": "a million records as a stream: memory, tokens a second, how long the loop waits for its data",
    "memory": "resident memory while 1,000,000 records are tokenised and split",
}
TITLES = {
    "default": "The embedded default",
    "sft": "Fine-tuning",
    "families": "Families of models",
    "llamacpp": "GGUF in llama.cpp",
    "head": "The head and the loss",
    "dense": "Full rows",
    "growth": "How it grows",
    "lora": "LoRA",
    "lora_real": "LoRA on a real model",
    "decode": "Greedy decoding",
    "answers": "Answers to test prompts",
    "lookup": "Prompt lookup",
    "decode_bits": "Decoding in fewer bits",
    "gpu": "One GPU",
    "ranks": "Several processes",
    "threads": "Threads and a busy neighbour",
    "against": "Against an earlier checkout",
    "startup": "Start-up",
    "tokenize": "Tokenising",
    "mislabelled": "Wrong answers in real data",
    "smollm2": "SmolLM2 on real instructions",
    "gguf_memory": "Opening a GGUF file",
    "scaling": "Growing amounts of data",
    "judge": "A small model as a judge",
    "harness": "HellaSwag",
    "lint": "The linter",
    "mistakes": "Mistakes in answers",
    "stream": "A million records as a stream",
    "memory": "Memory of a large dataset",
}
BY_PRECISION = {"sft", "dense", "head", "lora", "decode", "answers"}  # whose contenders differ by it
WITHOUT = "without-bf16"  # in the name of a result's file
FOLDER = Path(__file__).resolve().parent / "results"
DOCS = FOLDER.parent.parent / "docs"
HEAD = """# Results

Made by `python -m benchmarks NAME`; the raw rounds are in `benchmarks/results/NAME.json`. Contenders run in fresh
processes, interleaved round by round, so that a busy moment of the machine meets all of them. A figure is the median
over the rounds, with the smallest and the largest in brackets; a ratio is formed within each round first. Where the
rest of the time goes, and what was tried, is in [docs/performance.md](../docs/performance.md).

![how many times as fast as its peer gptft is](../docs/speed.svg)
"""


def save(result: dict, folder: Path | None, quietly: bool = False) -> None:
    """Print the table, unless `quietly`; write the JSON and, in the repository's own folder, RESULTS.md and the
    documents' figures.

    `folder` None: only print.
    """
    if not quietly:
        print("\n" + section(result))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        parts = [result["name"], result.get("real", {}).get("slug"), WITHOUT if is_without(result) else None]
        with atomic_write(folder / f"{'-'.join(filter(None, parts))}.json") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
        if folder.resolve() == FOLDER:
            render()
            importlib.import_module("benchmarks.document").render()


def section(result: dict) -> str:
    """One benchmark's part of RESULTS.md."""
    machine, name = result["machine"], result["name"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    where = f"{describe_cpu(machine)}, {cores}; {versions}; {result['date']}."
    where = f"{machine['gpu']}; {where}" if "gpu" in machine else where
    table = importlib.import_module(f"benchmarks.{name}").table(result)
    title, command = TITLES[name], name
    if given := result.get("real"):  # on the model and the records that a person named
        title, command = f"{title}: {describe_given(given)}", given["command"]
    title += ", on a processor without bf16" * is_without(result)
    return f"## {title}\n\n`python -m benchmarks {command}`: {where}\n\n{table}\n"


def describe_cpu(machine: dict) -> str:
    """The processor's name, and whether it lacks bf16."""
    return machine["cpu"] + " without bf16" * (not machine.get("bf16", True))


def is_without(result: dict) -> bool:
    """Whether a processor without bf16 made a result that would have contenders in it."""
    return result["name"] in BY_PRECISION and not result["machine"].get("bf16", True)


def describe_given(given: dict) -> str:
    """A real result's model and records in a few words."""
    model = given["model"] or "GPT-2 124M of random weights"
    return f"{model} on {given['data']}" if given["data"] else model


def read(name: str) -> dict:
    """The saved result of one benchmark."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def read_given(name: str) -> list[dict]:
    """The saved results of one benchmark on models and records that a person named."""
    return [result for result in read_beside(name) if "real" in result]


def read_beside(name: str) -> list[dict]:
    """The saved results that are kept beside a benchmark's own."""
    return [read(path.stem) for path in sorted(FOLDER.glob(f"{name}-*.json"))]


def all_tables() -> str:
    """The text of RESULTS.md, from the JSON files that are there."""
    parts = []
    for name in NAMES:
        own = [read(name)] if (FOLDER / f"{name}.json").exists() else []
        found = [*own, *read_beside(name)]
        parts += map(section, found) if found else [f"## {TITLES[name]}\n\n`python -m benchmarks {name}`: not run.\n"]
    return "\n".join([HEAD, *parts])


def render() -> None:
    """Write RESULTS.md."""
    with atomic_write(FOLDER.parent / "RESULTS.md") as file:
        file.write(all_tables())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that it reads as well on a console."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (head, *rows)
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def shown(values: dict, digits: int = 2) -> str:
    """A spread as text: median (smallest - largest)."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} - {values['max']:.{digits}f})"


def verdict(value: float, limit: float, unit: str = "", at_least: bool = False) -> str:
    """A target and whether the value meets it."""
    met = value >= limit if at_least else value <= limit
    return f"at {'least' if at_least else 'most'} {limit:g}{unit}: {'met' if met else 'MISSED'}"
