import json
import os
from pathlib import Path

import pytest
import torch
from toys import toy_config

from gptft import checkpoint
from gptft.checkpoint import load, model_id, newest, prune, save, verify
from gptft.decoding import generate
from gptft.files import UserError
from gptft.model import GPT
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded


def small(seed=0) -> tuple[GPT, object]:
    tokenizer = embedded()
    tokenizer.template = TEMPLATES["qa"]
    return GPT.create(toy_config(vocab_size=tokenizer.n_vocab, block_size=64), seed), tokenizer


def same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_checkpoint_alone_is_enough_to_generate(tmp_path):
    """Row 22: weights, architecture, tokenizer and template travel together; nothing else is read."""
    model, tokenizer = small()
    expected = generate(model, tokenizer, ["What is red?"], 8)
    save(tmp_path / "run" / "best", model, tokenizer, 7)
    (tmp_path / "run" / "best").rename(tmp_path / "elsewhere")
    loaded, its_tokenizer = load(tmp_path / "elsewhere")
    assert same(model, loaded) and not loaded.training
    assert its_tokenizer.template == TEMPLATES["qa"] and its_tokenizer.digest == tokenizer.digest
    assert generate(loaded, its_tokenizer, ["What is red?"], 8) == expected


def test_load_takes_a_runs_folder_and_a_dtype(tmp_path):
    model, tokenizer = small()
    save(tmp_path / "last", model, tokenizer, 1)
    best, _ = small(seed=1)
    save(tmp_path / "best", best, None, 1)
    loaded, no_tokenizer = load(tmp_path, dtype=torch.bfloat16)
    assert no_tokenizer is None
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.tok.weight, best.tok.weight.bfloat16())


def test_model_id_is_of_the_content(tmp_path):
    """The same wherever it is loaded; another for any other weight or tokenizer."""
    model, tokenizer = small()
    save(tmp_path / "a", model, tokenizer, 3)
    assert model_id(*load(tmp_path / "a")) == model_id(model, tokenizer) == verify(tmp_path / "a")["model_id"]
    with torch.no_grad():
        model.norm.bias[0] += 1e-6
    assert model_id(model, tokenizer) != verify(tmp_path / "a")["model_id"]
    assert model_id(model, None) != model_id(model, tokenizer)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that catches errors catches it."""


@pytest.mark.parametrize("number", range(24))
def test_a_kill_at_any_point_of_a_save_leaves_a_checkpoint(tmp_path, monkeypatch, number):
    """Row 14: die at the n-th call that touches the disk; what loads is the old checkpoint or the new, whole."""
    old, tokenizer = small(0)
    new, _ = small(1)
    save(tmp_path / "last", old, tokenizer, 1, {"x": 1})
    count = 0

    def dying(function):
        def call(*args, **options):
            nonlocal count
            count += 1
            if count > number:
                raise Killed
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (torch, "save"), (Path, "write_text"),
                             (checkpoint.shutil, "rmtree")):  # fmt: skip
            patch.setattr(module, name, dying(getattr(module, name)))
        try:
            save(tmp_path / "last", new, tokenizer, 2, {"x": 2})
            finished = True
        except Killed:
            finished = False
    assert finished == (number == 23), "the kills must reach every call, the renames too, and one save must end"
    loaded, _ = load(tmp_path / "last")
    assert same(loaded, new) if finished else (same(loaded, old) or same(loaded, new))
    path, problems = newest(tmp_path)
    assert path == tmp_path / "last" and not problems
    save(tmp_path / "last", new, tokenizer, 2, {"x": 2})  # and the next save cleans up
    assert same(load(tmp_path / "last")[0], new)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    """Row 14: no space left: one clear error, the old checkpoint loads, nothing half-written stays."""
    old, tokenizer = small(0)
    save(tmp_path / "last", old, tokenizer, 1, {})

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last could not be written \(No space left on device\); earlier ones are"):
        save(tmp_path / "last", small(1)[0], tokenizer, 2, {})
    assert same(load(tmp_path / "last")[0], old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_reported(tmp_path):
    """torch reports a write to a full device in its own way; the error must be ours all the same."""
    model, tokenizer = small()
    original = torch.save
    try:
        torch.save = lambda state, path: original(state, "/dev/full")
        with pytest.raises(UserError, match="could not be written"):
            save(tmp_path / "last", model, tokenizer, 1)
    finally:
        torch.save = original
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.pt", "config.json", "resume.pt", "vocab.tiktoken"])
def test_damage_is_found(tmp_path, name):
    """A flipped byte anywhere is found before the file is used, and going on picks the checkpoint before."""
    model, tokenizer = small()
    save(tmp_path / "step-000010", model, tokenizer, 10, {"a": torch.zeros(3)})
    save(tmp_path / "last", model, tokenizer, 20, {"a": torch.zeros(3)})
    path = tmp_path / "last" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        load(tmp_path / "last")
    found, problems = newest(tmp_path)
    assert found == tmp_path / "step-000010" and f"{name} is damaged" in problems[0]


def test_newest_is_by_steps_and_needs_a_state(tmp_path):
    model, tokenizer = small()
    for name, step, state in (("best", 90, None), ("last", 30, {}), ("step-000040", 40, {}), ("step-000020", 20, {})):
        save(tmp_path / name, model, tokenizer, step, state)
    assert newest(tmp_path)[0] == tmp_path / "step-000040"
    prune(tmp_path, keep=1, step=40)
    assert sorted(e.name for e in tmp_path.iterdir()) == ["best", "last", "step-000040"]


def test_pruning_spares_the_checkpoint_just_written(tmp_path):
    """A damaged checkpoint of a later step must not outlive the valid one that a resumed run writes before it, and
    step 1,000,000 comes after step 999,500."""
    for step in (500, 1000, 999500, 1000000):
        (tmp_path / f"step-{step:06}").mkdir()
    prune(tmp_path, keep=1, step=1000000)
    assert [e.name for e in tmp_path.iterdir()] == ["step-1000000"]
    (tmp_path / "step-000500").mkdir()
    prune(tmp_path, keep=1, step=500)
    assert [e.name for e in tmp_path.iterdir()] == ["step-000500"]


def test_another_architecture_is_refused_by_tensor(tmp_path):
    """Weights of another shape must not be loaded in part."""
    model, tokenizer = small()
    save(tmp_path / "a", model, tokenizer, 1)
    deeper = GPT.create(toy_config(vocab_size=tokenizer.n_vocab, block_size=64, n_layer=3))
    with pytest.raises(UserError, match=r"another architecture: it lacks the tensor 'blocks\.2"):
        checkpoint.load_weights(deeper, tmp_path / "a")
    wider = GPT.create(toy_config(vocab_size=tokenizer.n_vocab, block_size=64, n_inner=100))
    with pytest.raises(UserError, match=r"another architecture: 'blocks.\d.mlp.* has shape"):
        checkpoint.load_weights(wider, tmp_path / "a")


def test_a_checkpoint_is_never_code(tmp_path):
    """A pickle with a call in it is refused even where its checksum is right."""

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    model, tokenizer = small()
    save(tmp_path / "a", model, tokenizer, 1)
    torch.save({"tok.weight": Evil()}, tmp_path / "a" / "model.pt")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["sha256"]["model.pt"] = checkpoint.sha256_file(tmp_path / "a" / "model.pt")
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"model.pt cannot be loaded as tensors"):
        load(tmp_path / "a")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.mkdir(), "neither a checkpoint"),
        (lambda p: None, "no such directory"),
        (lambda p: p.write_text("x"), "no such directory"),
    ],
    ids=["empty", "absent", "file"],
)
def test_what_cannot_be_loaded_is_said(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "x")


def test_a_hub_id_without_a_network_is_one_clear_error():
    """Offline and not in the cache: the id is named. (The tests run with the hub switched off.)"""
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match=r"'nobody/nothing-at-all' is not in the local cache and the hub cannot be"):
        load("nobody/nothing-at-all")
