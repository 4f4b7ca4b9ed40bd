"""A place to run commands in, the commands inside this process, and models to ask."""

import io
from functools import partial

import pytest
import torch
from cli import TRAIN, tiny

from gptft import checkpoint, loading
from gptft.__main__ import main
from gptft.adapters.lora import LoraConfig, add_lora, lora_state
from gptft.commands import train
from gptft.commands.common import run, run_command


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to work in and a cache elsewhere, so that whatever is left behind shows."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def ask(capsys, monkeypatch):
    """The same in this process, without the seconds that importing torch takes: `run` is all that train.py does."""

    def call(command, *words, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = 0
        try:
            run(partial(run_command, train) if command is TRAIN else main, [str(word) for word in words])
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def saved(tmp_path):
    """saved(**settings of tiny) -> the path of a checkpoint, which is enough by itself."""

    def save(name="model", **settings):
        model, tokenizer = tiny(**settings)
        checkpoint.save(tmp_path / name, model, tokenizer, step=0)
        return tmp_path / name

    return save


@pytest.fixture
def adapted(tmp_path, saved):
    """(adapters for a checkpoint, that checkpoint, the model with both, its tokenizer)"""
    base = saved("base")
    model, tokenizer = loading.load(base)
    named = loading.base_of(model, tokenizer, str(base))
    add_lora(model, LoraConfig(4, alpha=64.0, targets=("all",)), base=named)
    with torch.no_grad():
        for tensor in lora_state(model).values():
            tensor.normal_(generator=torch.Generator().manual_seed(tensor.numel()))
    checkpoint.save(tmp_path / "adapter", model, tokenizer, 3)
    return tmp_path / "adapter", base, model, tokenizer
