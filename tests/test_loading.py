"""What can be loaded, and what is said where it cannot."""

import json
import shutil

import pytest
import torch
from toy_checkpoints import IDX, same, small, write_adapters
from toys import difference

from gptft.adapters.lora import LoraConfig, adapters_of, add_lora, lora_state
from gptft.checkpoint import model_id, save, verify
from gptft.errors import UserError
from gptft.generation import generate
from gptft.loading import base_of, load, merge, preset
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded


@pytest.fixture
def adapted(tmp_path):
    return write_adapters(tmp_path)


def test_a_checkpoint_alone_is_enough_to_generate(tmp_path):
    """Weights, architecture, tokenizer and template travel together; nothing else is read."""
    model, tokenizer = small()
    expected = generate(model, tokenizer, ["What is red?"], 8)
    save(tmp_path / "run" / "best", model, tokenizer, 7)
    (tmp_path / "run" / "best").rename(tmp_path / "elsewhere")
    loaded, its_tokenizer = load(tmp_path / "elsewhere")
    assert same(model, loaded) and not loaded.training
    assert its_tokenizer.template == TEMPLATES["qa"] and its_tokenizer.digest == tokenizer.digest
    assert generate(loaded, its_tokenizer, ["What is red?"], 8) == expected


def unlist(path, name):
    """Take a file out of a checkpoint's manifest, as one that something else put there."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"][name]
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["model.pt", "config.json", "vocab.tiktoken"])
def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path, name):
    """Nobody vouches for it: it may be of another model, or cut off."""
    save(tmp_path / "a", *small(), 1)
    unlist(tmp_path / "a", name)
    with pytest.raises(UserError, match=rf"a: manifest.json lists no {name}, and what it does not list is not read"):
        load(tmp_path / "a")


def test_a_tokenizer_that_the_manifest_does_not_list_is_none(tmp_path):
    model, tokenizer = small()
    save(tmp_path / "a", model, None, 1)
    tokenizer.save(tmp_path / "a")
    assert load(tmp_path / "a")[1] is None


def test_a_template_that_the_manifest_does_not_list_is_not_taken(tmp_path, adapted):
    """Prompts would be sent in another form than the adapters were trained on."""
    unlist(tmp_path / "adapter", "template.json")
    (tmp_path / "adapter" / "template.json").write_text(json.dumps(TEMPLATES["chatml"].to_dict()))
    assert load(tmp_path / "adapter")[1].template == load(tmp_path / "base")[1].template == TEMPLATES["qa"]


def test_load_takes_a_runs_folder_and_a_dtype(tmp_path):
    model, tokenizer = small()
    save(tmp_path / "last", model, tokenizer, 1)
    best, _ = small(seed=1)
    save(tmp_path / "best", best, None, 1)
    loaded, no_tokenizer = load(tmp_path, dtype=torch.bfloat16)
    assert no_tokenizer is None
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.tok.weight, best.tok.weight.bfloat16())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_for_another_base_are_refused(tmp_path, adapted, dtype):
    """On another base they give nonsense that looks like an answer. One line names both, and the way out."""
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


def test_merging_writes_an_ordinary_checkpoint(tmp_path, adapted):
    """Enough by itself, equal to the adapters on their base, the embeddings tied and as they were."""
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
        (lambda p: p.write_text("x"), "a file, and no GGUF file"),
    ],
    ids=["empty", "absent", "file"],
)
def test_what_cannot_be_loaded_is_said(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "x")


def test_an_absent_gguf_file_is_no_hub_id():
    with pytest.raises(UserError, match=r"^model\.gguf: no such file$"):
        load("model.gguf")


def test_a_hub_id_without_a_network_is_one_clear_error():
    """Offline and not in the cache: the id is named. (The tests run with the hub switched off.)"""
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match=r"'nobody/nothing-at-all' is no directory, not in the local cache"):
        load("nobody/nothing-at-all")
