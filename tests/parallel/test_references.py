"""Two ranks of ours beside two of loops that are not ours, step by step."""

import importlib.util
import json
from pathlib import Path

import pytest
from torchrun import torchrun

transformers = pytest.importorskip("transformers")
REFERENCES = Path(__file__).parent / "references.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    shape = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
    shape |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**shape)
    transformers.set_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


def losses(who, folder, tmp_path):
    out = tmp_path / f"{who}.json"
    status, said = torchrun(2, REFERENCES, who, folder, out, ACCELERATE_USE_CPU="true")
    assert status == 0, said
    return json.loads(out.read_text())


def test_two_ranks_have_the_losses_of_a_plain_loop_around_transformers_model(folder, tmp_path):
    """DDP's own loop, with the division by all targets written out: 1e-5 in fp32, where terms are added up in another
    order."""
    mine = losses("ours", folder, tmp_path)
    assert len(mine) == 6 and mine[-1] < mine[0]
    assert mine == pytest.approx(losses("plain", folder, tmp_path), rel=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="no TRL: pip install 'gptft[bench]'")
def test_two_ranks_have_the_losses_of_trl_on_two_processes(folder, tmp_path):
    """TRL's SFTTrainer under accelerate, on the same rows: 1e-5 in fp32, as above."""
    mine = losses("ours", folder, tmp_path)
    assert mine == pytest.approx(losses("trl", folder, tmp_path), rel=1e-5)
