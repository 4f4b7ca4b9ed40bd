"""`python -m gptft consolidate`: an ordinary checkpoint of a sharded one, or nothing."""

import json
import os
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from cli import GPTFT, is_one_line, tiny
from toy_checkpoints import write_adapters

from gptft import checkpoint, generation, loading
from gptft.parallel.sharded import Writer, state_of


def write_parts(path, model, tokenizer, step):
    """A sharded checkpoint, as one rank would write it."""
    temporary = checkpoint.beside(path, "tmp")
    checkpoint.begin(temporary, model, tokenizer)
    checkpoint.write_tensors({"x": 1}, temporary / "resume.pt")
    state = {**state_of(model), "optimizer": {"tok.weight": {"step": torch.tensor(3.0)}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is one process
        dcp.save(state, storage_writer=Writer(temporary), no_dist=True)
    checkpoint.complete(temporary, path, {"step": step, "sharded": True}, {})
    return path


@pytest.fixture
def sharded(tmp_path):
    """(a run with sharded checkpoints of steps 8 and 10 and an ordinary `best`; the model of step 10; its tokenizer)"""
    model, tokenizer = tiny()
    checkpoint.save(tmp_path / "run" / "best", model, tokenizer, 4)
    write_parts(tmp_path / "run" / "step-000008", model, tokenizer, 8)
    with torch.no_grad():
        model.tok.weight.mul_(1.5)
    write_parts(tmp_path / "run" / "step-000010", model, tokenizer, 10)
    return tmp_path / "run", model, tokenizer


def test_consolidate_writes_a_model_that_everything_loads(ask, sharded, place):
    """The newest of the run, whole: its weights, its id, its tokenizer and template, and nothing of the optimizer."""
    run, model, tokenizer = sharded
    assert ask(GPTFT, "consolidate", run, "out/model") == (0, "out/model\n", "")
    manifest = checkpoint.verify(place / "out" / "model")
    assert manifest["model_id"] == checkpoint.model_id(model, tokenizer) and manifest["step"] == 10
    assert sorted(manifest["sha256"]) == ["config.json", "gptft_tokenizer.json", "model.pt", "vocab.tiktoken"]
    expected = generation.generate(model, tokenizer, ["Hello"], 12)[0]
    assert ask(GPTFT, "generate", "out/model", "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")
    assert os.listdir("out") == ["model"]
    os.mkdir("empty")
    assert ask(GPTFT, "consolidate", run / "step-000008", "empty")[0] == 0
    assert checkpoint.verify(place / "empty")["step"] == 8


def test_consolidate_takes_adapters_too(ask, tmp_path, place):
    """With their base's name and their template, though the base is not read."""
    model, tokenizer = write_adapters(tmp_path)
    path = write_parts(tmp_path / "run" / "last", model, tokenizer, 9)
    os.rename(tmp_path / "base", tmp_path / "moved")
    assert ask(GPTFT, "consolidate", path, "out") == (0, "out\n", "")
    ours, theirs = checkpoint.verify(place / "out"), checkpoint.verify(tmp_path / "adapter")
    assert ours["model_id"] == theirs["model_id"]
    assert ours["sha256"]["template.json"] == theirs["sha256"]["template.json"]
    assert ours["sha256"]["config.json"] == theirs["sha256"]["config.json"]
    os.rename(tmp_path / "moved", tmp_path / "base")
    assert loading.load(place / "out")[1].template == tokenizer.template


def test_what_takes_a_model_names_the_command_for_a_sharded_checkpoint(ask, sharded, place, write_lines, pairs):
    """It is no broken checkpoint: `model.pt is missing` would send people looking for it."""
    path, data = sharded[0] / "step-000010", write_lines(pairs(20))
    named = f"{path} is a sharded checkpoint, to go on from: make an ordinary one of it, by python -m gptft consolidate"
    for words in (
        ["generate", path, "Hello"],
        ["export", path, "out", "--format", "hf"],
        ["train", "--init", path, "--data", data, "--out_dir", "run"],
    ):
        status, _, err = ask(GPTFT, *words)
        assert status == 2 and not os.listdir(place)
        is_one_line(err, named)


def test_consolidate_says_what_is_wrong_and_writes_nothing(ask, sharded, place):
    run = sharded[0]
    (place / "taken").mkdir()
    (place / "taken" / "file").touch()
    (run / "broken").mkdir()
    part = run / "step-000010" / "__0_0.distcp"
    kept = part.read_bytes()
    part.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    for words, parts in (
        ([run, "taken"], ["taken exists already: name another place"]),
        ([run / "best", "out"], [f"{run / 'best'} is no sharded checkpoint: it is an ordinary one already"]),
        ([run / "broken", "out"], ["neither a sharded checkpoint nor a run with one"]),
        (["nowhere", "out"], ["nowhere: not a checkpoint of gptft"]),
        ([run, "out"], [f"{run / 'step-000010'}: __0_0.distcp is damaged: it is not what was saved"]),
        ([run], ["the following arguments are required: out"]),
    ):
        status, out, err = ask(GPTFT, "consolidate", *words)
        assert status == 2 and out == "" and os.listdir(place) == ["taken"]
        is_one_line(err, *parts)
    part.unlink()
    is_one_line(ask(GPTFT, "consolidate", run, "out")[2], "__0_0.distcp is missing")
    part.write_bytes(kept)
    manifest = json.loads((run / "step-000010" / "manifest.json").read_text())
    (run / "step-000010" / "manifest.json").write_text(json.dumps({**manifest, "sha256": {}}))
    is_one_line(ask(GPTFT, "consolidate", run, "out")[2], "manifest.json lists no config.json")
    assert os.listdir(place) == ["taken"]


def test_a_disk_that_fills_up_while_it_is_consolidated_is_told(ask, sharded, place):
    """The weights are put together in a file that is mapped into memory, where a full disk would be a SIGBUS."""
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in (10_000, 100_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            status, _, err = ask(GPTFT, "consolidate", sharded[0], "out")
            is_one_line(err, "the checkpoint out could not be written (File too large)")
            assert status == 1 and not os.listdir(place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
