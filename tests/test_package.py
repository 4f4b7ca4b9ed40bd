"""What is shipped: the wheel, the README's commands, the licence, and a light import."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(*words, cwd=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_embedded_default_outside_the_repository(tmp_path):
    """Data, vocabulary and configs travel in the wheel; nothing is read from the checkout."""
    pytest.importorskip("hatchling")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("_resources/data/vocab.tiktoken") for name in names)
    assert not any(name.startswith(("tests", "benchmarks", "checkpoints")) for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # a pure wheel is installed by unpacking it
    out = python(
        "-m",
        "gptft",
        "train",
        "--max_steps",
        "3",
        "--test_samples",
        "3",
        "--max_new_tokens",
        "4",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
        PYTHONSAFEPATH="1",
    )
    assert "exact match" in out and (tmp_path / "checkpoints" / "default" / "summary.json").exists()
    home = python("-c", "import gptft; print(gptft.__file__)", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert Path(home.strip()).is_relative_to(tmp_path)


def test_the_embedded_data_is_what_its_script_writes():
    """Rerunning data/make.py reproduces every file byte for byte."""
    python("data/make.py", "--check")


def test_the_embedded_test_split_shares_no_prompt_with_training():
    """A model that memorises must fail the test: no (instruction, input) pair stands on both sides."""

    def read(name):
        return [json.loads(line) for line in (ROOT / "data" / name).read_text(encoding="utf-8").splitlines()]

    training, test = read("instructions.jsonl"), read("instructions-test.jsonl")
    keys = {(record["instruction"], record["input"]) for record in training}
    assert len(keys) == len(training) >= 5000
    assert not keys & {(record["instruction"], record["input"]) for record in test}
    families = {record["family"] for record in test}
    assert len(families) >= 8 and families == {record["family"] for record in training}
    assert {bool(record["input"]) for record in training} == {True, False}


def test_importing_gptft_is_light():
    """`import gptft` loads neither torch nor tiktoken: names are resolved on first use."""
    out = python("-c", "import gptft, sys; print([m for m in ('torch', 'tiktoken', 'numpy') if m in sys.modules])")
    assert out.strip() == "[]"


def test_public_names_are_what_they_say():
    """gptft.generate and gptft.finetune stay functions, whatever has been imported before."""
    code = "import gptft.finetuning, gptft.decoding, gptft; print(callable(gptft.generate), callable(gptft.finetune))"
    assert python("-c", code).split() == ["True", "True"]
    import gptft

    for name in gptft.__all__:
        assert getattr(gptft, name).__module__.startswith("gptft.")
    with pytest.raises(AttributeError):
        _ = gptft.nothing


def test_readme_begins_with_the_two_commands():
    """.ci/run reads them from there; both do all of their own set-up under the pinned versions."""
    block = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    lines = "\n".join(block).splitlines()[:2]
    assert all(line.startswith("pip install -c constraints.txt ") for line in lines)
    assert lines[0].endswith("python train.py") and lines[1].endswith("python -m pytest -n auto --dist loadfile")
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()


def test_files_and_functions_stay_readable():
    """No file far above 350 lines, no function far above 60 (the loop may take 120), docstrings not counted."""
    for path in (ROOT / "gptft").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                limit = 120 if (path.name, node.name) == ("training.py", "train") else 70
                assert node.end_lineno - node.lineno < limit, f"{path}: {node.name}"
