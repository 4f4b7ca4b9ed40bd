"""Adapters in PEFT's files, both ways, with PEFT itself as the reference."""

import json

import pytest
import torch
from hf_models import reference
from toys import difference

from gptft.adapters.lora import LoraConfig, add_lora, lora_state
from gptft.errors import UserError
from gptft.export.peft import save_peft
from gptft.formats.hf import load_hf
from gptft.formats.peft import read_peft

peft = pytest.importorskip("peft")

IDX = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))
# toy cases of hf_models; what PEFT is asked to adapt; what we are
MODELS = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "pythia": ["query_key_value", "dense_h_to_4h"],
    "llama3.2": ["q_proj", "v_proj", "down_proj"],
    "qwen3": "all-linear",
}
OPTIONS = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def noisy_(parameters):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def attach(model, directory):
    config, state = read_peft(directory, model)
    add_lora(model, config)
    ours = lora_state(model)
    assert ours.keys() == state.keys()
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(state[name])
    return model.eval()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", MODELS)
def test_what_peft_saved_computes_the_same_here(tmp_path, case, options):
    """A fused q, k, v divided the wrong way, a scale by another rule, or DoRA's norm over the wrong axis."""
    theirs = reference(case, torch.float32, tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=MODELS[case],
        task_type="CAUSAL_LM",
        fan_in_fan_out=case == "gpt2",
        alpha_pattern={"c_attn": 20, "v_proj": 6},
        **OPTIONS[options],
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    noisy_(p for name, p in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path / "adapters")
    ours = attach(load_hf(tmp_path / "base", torch.float32), tmp_path / "adapters")
    with torch.no_grad():
        assert difference(ours(IDX), theirs(IDX).logits) < 1e-5  # fp32's rounding over a few layers


@pytest.mark.parametrize("targets", [("attn", "mlp"), ("q", "v"), ("k", "down")], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", MODELS)
def test_peft_computes_the_same_from_what_we_saved(tmp_path, case, options, targets):
    """Three A's of ours beside one matrix of theirs, and a k without an adapter between q and v."""
    theirs = reference(case, torch.float32, tmp_path / "base")
    ours = load_hf(tmp_path / "base", torch.float32)
    add_lora(ours, LoraConfig(4, 12.0, targets, rslora=options == "rslora", dora=options == "dora"))
    noisy_(lora_state(ours).values())
    ours.eval()
    save_peft(ours, tmp_path / "adapters", base=str(tmp_path / "base"))
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters").eval()
    with torch.no_grad():
        assert difference(loaded(IDX).logits, ours(IDX)) < 1e-5
    again = attach(load_hf(tmp_path / "base", torch.float32), tmp_path / "adapters")
    with torch.no_grad():
        assert difference(again(IDX), ours(IDX)) < 1e-6  # in and out again: only scales may round
    assert all(len(p) == 4 for name, p in lora_state(again).items() if name.endswith(".A"))  # the rank does not grow


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bias": "all"}, "bias = 'all' is not supported; only 'none' is"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"r": 3}, "has rank 4, the settings say another"),
        ({"use_dora": True}, "lacks its m"),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path, change, message):
    """A trained bias that is left out is a wrong model without a word."""
    _, directory = saved(tmp_path)
    values = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=message):
        read_peft(directory, load_hf(tmp_path / "base", torch.float32))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(extra=torch.ones(1)), "unexpected tensor 'extra'"),
        (lambda s: s.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"), "lacks its B"),
        (
            lambda s: s.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 5)}),
            "do not fit a layer of 32 to 40",
        ),
        (
            lambda s: s.update({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 5)}),
            "'model.layers.9.self_attn.q_proj', which is no linear layer of this model's blocks",
        ),
    ],
)
def test_a_wrong_tensor_fails_by_name(tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    _, directory = saved(tmp_path)
    state = load_file(directory / "adapter_model.safetensors")
    change(state)
    save_file(state, directory / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        read_peft(directory, load_hf(tmp_path / "base", torch.float32))


def saved(tmp_path):
    reference("llama3.2", torch.float32, tmp_path / "base")
    ours = add_lora(load_hf(tmp_path / "base", torch.float32), LoraConfig(4, 8.0, ("q", "v")))
    save_peft(ours, tmp_path / "adapters")
    return ours, tmp_path / "adapters"


@pytest.mark.parametrize(
    "options",
    [
        {"layers_to_transform": [0, 2]},
        {"exclude_modules": r".*\.1\..*"},
        {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {"q_proj": 3}},
    ],
    ids=str,
)
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_some_layers_and_of_other_ranks(tmp_path, options, dora):
    """PEFT may leave layers alone, and give some another rank: what is not there once ended in a KeyError."""
    from gptft.loading import load

    theirs = reference("llama3.2", torch.float32, tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], use_dora=dora, **options)
    theirs = peft.get_peft_model(theirs, config).eval()
    noisy_(p for name, p in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path / "adapters")
    ours, _ = load(tmp_path / "adapters", base=tmp_path / "base")
    with torch.no_grad():
        assert difference(ours(IDX), theirs(IDX).logits) < 1e-5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),  # it changes the base
        ({"r": None}, "r must be a number, not None"),
        ({"lora_alpha": "x"}, "lora_alpha must be a number, not 'x'"),
        ({"rank_pattern": {"((": 4}}, r"rank_pattern: '\(\(' is no regular expression"),
        ({"rank_pattern": [1]}, r"rank_pattern must be an object, not \[1\]"),
        ({"alpha_pattern": {"q_proj": "x"}}, "q_proj must be a number, not 'x'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path, change, message):
    _, directory = saved(tmp_path)
    values = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=message):
        read_peft(directory, load_hf(tmp_path / "base", torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_pefts_are_saved_and_loaded_again_as_ours(tmp_path, dtype):
    """A base that was only seen in bf16 is known again when it is loaded in fp32."""
    from gptft import checkpoint, loading

    _, directory = saved(tmp_path)
    model, tokenizer = loading.load(directory, dtype=dtype, base=tmp_path / "base")
    checkpoint.save(tmp_path / "ours", model, tokenizer, step=0)
    for wanted in (torch.float32, torch.bfloat16):
        again, _ = loading.load(tmp_path / "ours", dtype=wanted)
        if wanted == dtype:
            assert torch.equal(again(IDX), model(IDX))
    with pytest.raises(UserError, match="adapters for another base"):
        reference("llama2", torch.float32, tmp_path / "other")
        loading.load(tmp_path / "ours", base=tmp_path / "other")


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    ours, directory = saved(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        save_peft(ours, directory)
    monkeypatch.setattr("gptft.files.sync_tree", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_peft(ours, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "base"]


def test_a_model_without_adapters_is_not_written_as_such(tmp_path):
    reference("llama2", torch.float32, tmp_path / "base")
    with pytest.raises(UserError, match="no adapters"):
        save_peft(load_hf(tmp_path / "base", torch.float32), tmp_path / "adapters")
