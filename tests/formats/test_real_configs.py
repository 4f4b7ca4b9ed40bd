"""The real configurations of the course's models, random weights in them, tuned on the real instruction set through
the course's own three lines. What holds at toy sizes only, such as a vocabulary that is not padded, would show here."""

import json

import hf_families
import pytest
import torch
from hf_models import HUB

from gptft import BasicModelRunner, load
from gptft.formats.families import FAMILIES, all_places, config_from_hf
from gptft.model import GPT

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("tokenizers")


def write(directory, hub_id, kind, **changes):
    """The hub's own config.json, the tokenizer's files of its kind, and random weights in fp16 as the hub has them."""
    hf = {**HUB[hub_id][0], **changes}
    hf_families.write(directory, *hf_families.FAMILIES[kind]())
    (directory / "config.json").write_text(json.dumps(hf))
    config = config_from_hf(hf, hub_id)
    model, tensors = GPT.create(config, 0), {}
    ours = model.state_dict()
    for place in all_places(FAMILIES[hf["model_type"]], config):
        tensors[place.theirs] = place.join([ours[name] for name in place.ours]).half().contiguous()
    safetensors.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hub_id, kind, changes, settings",
    [
        ("EleutherAI/pythia-70m", "pythia", {}, {"lr": 3e-4}),
        # 7B would not fit: of 32 layers one is left, with its real width of 4,096, and adapters beside it
        ("meta-llama/Llama-2-7b-hf", "llama2", {"num_hidden_layers": 1}, {"lora_rank": 8, "lr": 3e-3}),
    ],
)
def test_the_courses_models_are_tuned_by_the_courses_three_lines(
    tmp_path, shared, monkeypatch, hub_id, kind, changes, settings
):
    """Loading, templates, masks, training, saving and asking, at the widths and vocabularies that users have."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    start = write(tmp_path / "start", hub_id, kind, **changes)
    records = json.loads((shared / "instruction-data.json").read_text())[:60]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    model = BasicModelRunner(
        start,
        max_steps=6,
        batch_size=4,
        warmup_steps=1,
        eval_every=3,
        test_samples=2,
        max_new_tokens=4,
        save_every=0,
        val_fraction=0.1,
        **settings,
    )
    model.load_data_from_jsonlines("data.jsonl")
    model_id = model.train()
    losses = [json.loads(line) for line in (model.path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row["eval_loss"] for row in losses if "eval_loss" in row]
    assert evaluations[-1] < evaluations[0] - 0.5  # of about ln(V), 10.4 to 10.8
    assert isinstance(model("Is a dog an animal?"), str)
    _, tokenizer = load(model.path)
    again, _ = load(model.path, dtype=torch.float32)
    assert model_id == model.model_id and again.config == model.model.config
    assert tokenizer.n_vocab < again.config.vocab_size  # padded beyond the tokenizer: those ids are never emitted
    torch.set_num_threads(1)
