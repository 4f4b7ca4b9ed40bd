import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from toys import difference, toy_config

from gptft import checkpoint
from gptft.adapters.lora import LoraConfig, adapters_of, add_lora, lora_state
from gptft.architecture import GPTConfig
from gptft.checkpoint import model_id, newest, prune, save, verify
from gptft.errors import UserError
from gptft.generation import generate
from gptft.loading import base_of, load, merge, preset
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
    """Row 14: no space left: one clear error, the old checkpoint loads, nothing half-written stays."""
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
    with pytest.raises(UserError, match=r"model.pt: cannot be loaded as weights"):
        load(tmp_path / "a")
    assert not (tmp_path / "ran").exists()


# ---- adapters


@pytest.fixture
def adapted(tmp_path):
    """A base in tmp_path/base, and adapters for it in tmp_path/adapter -> (the model with both, its tokenizer)."""
    base, tokenizer = small()
    save(tmp_path / "base", base, tokenizer, 1)
    model, tokenizer = load(tmp_path / "base")
    tokenizer.template = TEMPLATES["phi3"]
    named = base_of(model, tokenizer, str(tmp_path / "base"))
    add_lora(model, LoraConfig(3, dora=True, rslora=True, targets=("attn", "down")), 5, named)
    with torch.no_grad():
        for tensor in lora_state(model).values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))
    save(tmp_path / "adapter", model, tokenizer, 9, {"x": 1})
    return model, tokenizer


IDX = torch.arange(20)[None]


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_adapters_know_their_base_in_every_dtype(tmp_path, adapted, dtype):
    """The id of the base is checked on what was read, also where it is never held in fp32."""
    model, tokenizer = adapted
    loaded, _ = load(tmp_path / "adapter", dtype=dtype)
    assert loaded.tok.weight.dtype == dtype
    assert difference(loaded(IDX).float(), model(IDX)) < (0.05 if dtype != torch.float64 else 1e-6)
    if dtype != torch.float64:
        assert model_id(loaded, tokenizer) == model_id(model, tokenizer) == verify(tmp_path / "adapter")["model_id"]
        assert {tensor.dtype for tensor in lora_state(loaded).values()} == {torch.float32}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_for_another_base_are_refused(tmp_path, adapted, dtype):
    """Row 18: on another base they give nonsense that looks like an answer. One line names both, and the way out."""
    wanted = model_id(*load(tmp_path / "base"), rounded=dtype)
    other, tokenizer = small(seed=1)
    save(tmp_path / "other", other, tokenizer, 1)
    found = model_id(other, tokenizer, dtype)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "adapter", dtype=dtype, base=tmp_path / "other")
    message = str(caught.value)
    assert "adapter holds adapters for another base" in message and "\n" not in message
    assert wanted in message and found in message and "name the right one with another --base" in message
    save(tmp_path / "base", other, tokenizer, 1)  # another model at the recorded place
    with pytest.raises(UserError, match=rf"another base: for .*base with model id {wanted}, but .*base has {found}"):
        load(tmp_path / "adapter", dtype=dtype)
    with pytest.raises(UserError, match="holds adapters for another base"):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_moved_can_be_named(tmp_path, adapted):
    model, _ = adapted
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"its base '.*base' cannot be loaded \(.*no such directory\); name .* --base"):
        load(tmp_path / "adapter")
    assert torch.equal(load(tmp_path / "adapter", base=tmp_path / "moved")[0](IDX), model(IDX))
    merge(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "moved")
    with pytest.raises(UserError, match=r"moved is a whole model; --base .* goes with adapters"):
        load(tmp_path / "moved", base=tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot be loaded|another base"):  # adapters are no base
        load(tmp_path / "adapter", base=tmp_path / "adapter")


def test_a_relative_base_is_found_from_everywhere(tmp_path, adapted, monkeypatch):
    """`--init base` recorded as it was typed would be looked for in whatever folder one happens to be."""
    monkeypatch.chdir(tmp_path)
    assert base_of(*load("base"), "base").name == str(tmp_path / "base")
    assert base_of(*load("base"), "someone/hub-id").name == "someone/hub-id"


def test_adapters_on_a_preset_find_its_weights_again(tmp_path):
    """Fresh weights depend on a seed, which must be recorded too."""
    model, tokenizer = preset("tiny", 7), embedded()
    add_lora(model, LoraConfig(2), base=base_of(model, tokenizer, "tiny", 7))
    save(tmp_path / "a", model, tokenizer, 1)
    assert torch.equal(load(tmp_path / "a")[0](IDX), model(IDX))


@pytest.mark.parametrize("name", ["adapter.pt", "config.json", "template.json"])
def test_damage_to_adapters_is_found(tmp_path, adapted, name):
    path = tmp_path / "adapter" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
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


def test_merging_writes_an_ordinary_checkpoint(tmp_path, adapted):
    """Row 18: enough by itself, equal to the adapters on their base, the embeddings tied and as they were."""
    model, tokenizer = adapted
    merge(tmp_path / "adapter", tmp_path / "out")
    shutil.rmtree(tmp_path / "base")
    merged, its_tokenizer = load(tmp_path / "out")
    assert difference(merged(IDX), model(IDX)) < 1e-5
    assert adapters_of(merged) is None and merged.lm_head is None
    assert torch.equal(merged.tok.weight, model.tok.weight)
    assert its_tokenizer.template == TEMPLATES["phi3"] and its_tokenizer.digest == tokenizer.digest
    assert verify(tmp_path / "out")["step"] == 9
    with pytest.raises(UserError, match="out is a whole model: there are no adapters to merge"):
        merge(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_merging_overwrites_nothing(tmp_path, adapted):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists already: name another place"):
        merge(tmp_path / "adapter", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="nowhere: no such directory"):
        merge(tmp_path / "nowhere", tmp_path / "new")


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
    with pytest.raises(UserError, match=r"'nobody/nothing-at-all' is no directory, not in the local cache"):
        load("nobody/nothing-at-all")
