"""Saving, verifying and naming: what a checkpoint holds, and what kills, full disks and flipped bytes leave of it."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from toy_checkpoints import IDX, same, small, write_adapters
from toys import toy_config

from gptft import checkpoint
from gptft.adapters.lora import LoraConfig, add_lora, lora_state
from gptft.architecture import GPTConfig
from gptft.checkpoint import model_id, newest, prune, save, verify
from gptft.errors import UserError
from gptft.formats.tensors import read_bin
from gptft.generation import generate
from gptft.loading import base_of, load
from gptft.model import GPT
from gptft.prompts import TEMPLATES


def test_model_id_is_of_the_content(tmp_path):
    """The same wherever it is loaded; another for any other weight or tokenizer."""
    model, tokenizer = small()
    save(tmp_path / "a", model, tokenizer, 3)
    assert model_id(*load(tmp_path / "a")) == model_id(model, tokenizer) == verify(tmp_path / "a")["model_id"]
    with torch.no_grad():
        model.norm.bias[0] += 1e-6
    assert model_id(model, tokenizer) != verify(tmp_path / "a")["model_id"]
    assert model_id(model, None) != model_id(model, tokenizer)


def test_model_id_does_not_depend_on_the_dtype_it_is_loaded_in(tmp_path):
    """Weights kept in bf16 once had one id in bf16 and another in fp32; and the id of rounding is known beforehand."""
    model, tokenizer = small()
    rounded = model_id(model, tokenizer, torch.bfloat16)
    assert rounded != model_id(model, tokenizer)
    save(tmp_path / "a", model.bfloat16(), tokenizer, 1)
    ids = {model_id(*load(tmp_path / "a", dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)}
    assert ids == {rounded} == {verify(tmp_path / "a")["model_id"]}


def test_model_id_is_of_every_number_and_name(monkeypatch):
    """Hashed in pieces: one number anywhere, a transposed tensor, or two that changed places, is another model."""
    monkeypatch.setattr(checkpoint, "HASHED_AT_ONCE", 100)
    model, tokenizer = small()
    ids = {model_id(model, tokenizer)}
    q, k = model.blocks[0].attn.q.weight, model.blocks[0].attn.k.weight
    with torch.no_grad():
        for change in (
            lambda: q[-1, -1].add_(1e-3),
            lambda: q[0, 0].mul_(2),
            lambda: q.copy_(q.T.clone()),
            lambda: (q.copy_(k), k.copy_(q + 1e-3)),
            lambda: model.to(torch.float64),
        ):
            change()
            ids.add(model_id(model, tokenizer))
    assert len(ids) == 6
    assert model_id(small()[0], tokenizer) in ids
    monkeypatch.undo()
    assert model_id(small()[0], tokenizer) in ids, "the size of the pieces must not matter"


def test_a_field_added_to_the_architecture_keeps_every_id():
    """Adapters name their base by its id: a later version with one more field must still know it."""
    model, tokenizer = small()
    before = model_id(model, tokenizer)
    Later = dataclasses.make_dataclass("Later", [("new_feature", int, 0)], bases=(GPTConfig,), frozen=True)
    values = dataclasses.asdict(model.config)
    model.config = Later(**values)
    assert model_id(model, tokenizer) == before
    model.config = Later(**values, new_feature=1)
    assert model_id(model, tokenizer) != before


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that catches errors catches it."""


@pytest.mark.parametrize("number", range(24))
def test_a_kill_at_any_point_of_a_save_leaves_a_checkpoint(tmp_path, monkeypatch, number):
    """Die at the n-th call that touches the disk; what loads is the old checkpoint or the new, whole."""
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
        for module, name in (
            (os, "rename"),
            (os, "replace"),
            (os, "fsync"),
            (torch, "save"),
            (Path, "write_text"),
            (checkpoint.shutil, "rmtree"),
        ):
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
    """No space left: one clear error, the old checkpoint loads, nothing half-written stays."""
    old, tokenizer = small(0)
    save(tmp_path / "last", old, tokenizer, 1, {})

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last could not be written \(No space left on device\); what was there is"):
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


@pytest.mark.parametrize("size", [20_000, 150_000, 240_000])
def test_a_disk_that_fills_up_in_the_middle_of_the_weights_is_told(tmp_path, size):
    """torch answers a failed write with errors of its own format; what the disk said is what the user needs."""
    resource = pytest.importorskip("resource")  # not on Windows
    model, tokenizer = small()
    save(tmp_path / "last", model, tokenizer, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(UserError, match=r"last could not be written \(File too large\); what was there is intact"):
            save(tmp_path / "last", small(1)[0], None, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]
    assert same(load(tmp_path / "last")[0], model)


def test_a_save_reads_nothing_large_back_and_hashes_each_byte_as_often_as_it_must(tmp_path, monkeypatch):
    """Once all files were read again for their sums. Two sums of the weights remain, of the file and of the numbers
    (the model id), which are of different bytes; what resuming needs is hashed once, while it is written."""
    model, tokenizer = small()
    state = {"moments": torch.randn(100_000)}
    model_id(model, tokenizer)  # the tokenizer's own sum is kept from here on
    reread, hashed, original = [], [0], checkpoint.hashlib.sha256

    class Counted:
        def __init__(self, data=b""):
            self.sum = original()
            self.update(data)

        def update(self, data):
            hashed[0] += memoryview(data).nbytes
            self.sum.update(data)

        def hexdigest(self):
            return self.sum.hexdigest()

    sha256_file = checkpoint.sha256_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.hashlib, "sha256", Counted)
        patch.setattr(checkpoint, "sha256_file", lambda path: reread.append(path.name) or sha256_file(path))
        save(tmp_path / "last", model, tokenizer, 1, state)
    assert sorted(reread) == ["config.json", "gptft_tokenizer.json", "vocab.tiktoken"]
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    files = sum((tmp_path / "last" / name).stat().st_size for name in ("model.pt", "resume.pt"))
    assert files + weights <= hashed[0] < files + weights + 5_000
    assert verify(tmp_path / "last")["model_id"] == model_id(model, tokenizer)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.pt", "config.json", "resume.pt", "vocab.tiktoken"])
def test_damage_is_found(tmp_path, name):
    """A flipped byte anywhere is found before the file is used, and going on picks the checkpoint before."""
    model, tokenizer = small()
    save(tmp_path / "step-000010", model, tokenizer, 10, {"a": torch.zeros(3)})
    save(tmp_path / "last", model, tokenizer, 20, {"a": torch.zeros(3)})
    flip_a_byte(tmp_path / "last" / name)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        load(tmp_path / "last")
    found, problems = newest(tmp_path)
    assert found == tmp_path / "step-000010" and f"{name} is damaged" in problems[0]


def test_weights_are_verified_before_they_are_read(tmp_path):
    """A flipped byte in `best` once gave a test loss of nan at the end of a run. The model stays as it was."""
    model, tokenizer = small()
    save(tmp_path / "best", model, tokenizer, 1)
    flip_a_byte(tmp_path / "best" / "model.pt")
    other, _ = small(seed=1)
    with pytest.raises(UserError, match=r"best: model.pt is damaged: it is not what was saved"):
        checkpoint.load_weights(other, tmp_path / "best")
    assert same(other, small(seed=1)[0])


def test_what_was_verified_is_not_hashed_again(tmp_path, monkeypatch):
    """Loading hashes every file once, resuming, which verified all, none, and weights alone are hashed alone."""
    model, tokenizer = small()
    save(tmp_path / "last", model, tokenizer, 1, {"a": torch.zeros(3)})
    hashed, original = [], checkpoint.sha256_file
    monkeypatch.setattr(checkpoint, "sha256_file", lambda path: hashed.append(path.name) or original(path))
    load(tmp_path / "last")
    names = {path.name for path in (tmp_path / "last").iterdir()} - {"manifest.json"}
    assert sorted(hashed) == sorted(names)
    hashed.clear()
    assert checkpoint.load_weights(model, tmp_path / "last", verified=True)["model_id"] == model_id(model, tokenizer)
    assert not hashed
    checkpoint.load_weights(model, tmp_path / "last")
    assert hashed == ["model.pt"]


def unlist(path, name):
    """Take a file out of a checkpoint's manifest, as one that something else put there."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"][name]
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("verified", [False, True])
def test_weights_that_the_manifest_does_not_list_are_not_read(tmp_path, verified):
    model, tokenizer = small()
    save(tmp_path / "a", model, tokenizer, 1)
    unlist(tmp_path / "a", "model.pt")
    with pytest.raises(UserError, match=r"manifest.json lists no model.pt, and what it does not list is not read"):
        checkpoint.load_weights(model, tmp_path / "a", verified=verified)


def test_a_state_that_the_manifest_does_not_list_is_not_gone_on_from(tmp_path):
    """Left behind by another run, it would go on with that run's optimizer."""
    model, tokenizer = small()
    save(tmp_path / "last", model, tokenizer, 30)
    torch.save({"state": 1}, tmp_path / "last" / "resume.pt")
    assert newest(tmp_path) == (None, [])


def test_the_step_of_a_checkpoint_is_known_where_it_is_whole(tmp_path):
    model, tokenizer = small()
    assert checkpoint.step_of(tmp_path / "best") is None
    save(tmp_path / "best", model, tokenizer, 40)
    assert checkpoint.step_of(tmp_path / "best") == 40
    flip_a_byte(tmp_path / "best" / "model.pt")
    assert checkpoint.step_of(tmp_path / "best") is None


def test_what_is_set_aside_is_kept_and_taken_for_nothing_else(tmp_path):
    """A run that starts anew once deleted the best model of the run before it."""
    tokenizer = small()[1]
    assert checkpoint.set_aside(tmp_path / "best") is None and not list(tmp_path.iterdir())
    for seed, name in enumerate(["best-set-aside", "best-set-aside-2", "best-set-aside-3"]):
        save(tmp_path / "best", small(seed)[0], tokenizer, seed, {})
        if seed == 2:  # a save was cut off between its two renames
            (tmp_path / "best").rename(tmp_path / ".best.old")
        assert checkpoint.set_aside(tmp_path / "best") == tmp_path / name
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == [
        "best-set-aside",
        "best-set-aside-2",
        "best-set-aside-3",
    ]
    for seed, entry in enumerate(sorted(tmp_path.iterdir())):
        assert same(load(entry)[0], small(seed)[0])
    assert newest(tmp_path) == (None, [])
    with pytest.raises(UserError, match="neither a checkpoint"):
        load(tmp_path)


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


def test_a_file_of_many_small_tensors_is_opened_a_few_times(tmp_path, monkeypatch):
    """Opening takes as long as there are tensors: the adapters of 30 layers took half a minute to read."""
    torch.save({f"t{n}": torch.full((3, 4), float(n)) for n in range(400)}, tmp_path / "t.pt")
    calls, plainly = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(1) or plainly(*args, **options))
    read = {stored.name: stored.read_all() for stored in read_bin(tmp_path / "t.pt")}
    assert len(read) == 400 and all(torch.equal(read[f"t{n}"], torch.full((3, 4), float(n))) for n in range(400))
    assert len(calls) <= 3


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
    with pytest.raises(UserError, match=r"model.pt: cannot be loaded as weights"):
        load(tmp_path / "a")
    assert not (tmp_path / "ran").exists()


# ---- adapters


@pytest.fixture
def adapted(tmp_path):
    return write_adapters(tmp_path)


def test_an_adapter_checkpoint_holds_adapters_and_names_its_base(tmp_path, adapted):
    """Weights or vocabulary of the base in it would make every step-NNNNNN as large as the model."""
    model, tokenizer = adapted
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter.pt", "config.json", "template.json", "resume.pt", "manifest.json"}
    numbers = sum(tensor.numel() for tensor in lora_state(model).values())
    assert (tmp_path / "adapter" / "adapter.pt").stat().st_size < 4 * numbers + 20_000
    values = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert values["lora"]["rank"] == 3 and values["base"]["name"] == str(tmp_path / "base")
    assert values["base"]["model_id"]["fp32"] == verify(tmp_path / "base")["model_id"]
    loaded, its_tokenizer = load(tmp_path / "adapter")
    assert torch.equal(loaded(IDX), model(IDX)) and not loaded.training
    assert its_tokenizer.template == TEMPLATES["phi3"] and its_tokenizer.digest == tokenizer.digest
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == lora_state(loaded).keys()
    assert generate(loaded, its_tokenizer, ["Hi"], 5) == generate(model, tokenizer, ["Hi"], 5)


def test_the_id_of_adapters_is_of_base_settings_and_adapters(tmp_path, adapted):
    model, tokenizer = adapted
    ids = {model_id(model, tokenizer), verify(tmp_path / "base")["model_id"]}
    for change in ({"dora": False}, {"alpha": 3.0}, {}):
        other, _ = load(tmp_path / "base")
        add_lora(other, dataclasses.replace(model.lora.config, **change), 5, model.lora.base)
        ids.add(model_id(other, tokenizer))
    assert len(ids) == 5
    same = model_id(model, tokenizer)
    model.lora.base = dataclasses.replace(model.lora.base, name="elsewhere")
    assert model_id(model, tokenizer) == same
    model.lora.base = dataclasses.replace(model.lora.base, model_id={"fp32": "another", "bf16": "another"})
    assert model_id(model, tokenizer) != same


@pytest.mark.parametrize("name", ["adapter.pt", "config.json", "template.json"])
def test_damage_to_adapters_is_found(tmp_path, adapted, name):
    flip_a_byte(tmp_path / "adapter" / name)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        load(tmp_path / "adapter")


def test_adapters_of_another_shape_are_refused_by_tensor(tmp_path, adapted):
    """Loading in part would leave the rest at the identity."""
    for config, message in (
        (LoraConfig(4, targets=("attn", "down"), dora=True), "has shape"),
        (LoraConfig(3, dora=True), r"lacks the tensor 'blocks\.\d\.mlp\.up\.[ABm]"),
        (LoraConfig(3, targets=("attn", "down")), r"unexpected tensor '.*\.m'"),
    ):
        model, tokenizer = load(tmp_path / "base")
        add_lora(model, config, base=base_of(model, tokenizer, "base"))
        with pytest.raises(UserError, match=message):
            checkpoint.load_weights(model, tmp_path / "adapter")


def test_adapters_without_a_base_are_not_saved(tmp_path):
    model, tokenizer = small()
    with pytest.raises(UserError, match="adapters are saved with the name of their base"):
        save(tmp_path / "a", add_lora(model, LoraConfig(2)), tokenizer, 1)
    assert not list(tmp_path.iterdir())
