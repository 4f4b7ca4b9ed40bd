"""Several processes compute what one computes: the gradient of the whole window, its norm, the losses, the weights."""

import json
from pathlib import Path

import pytest
import torch
from torchrun import TRAIN, torchrun

from gptft.checkpoint import load_tensors

GRADIENTS = Path(__file__).parent / "gradients.py"


@pytest.mark.parametrize("ranks", [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_a_plain_sum_over_the_whole_window(tmp_path, ranks):
    """A mean of the ranks' means weighs a token by how many stand beside it on its rank (transformers#34242). Windows
    whose ranks have unequal targets, and a last one that leaves a rank with none; with accumulation; clipped by the
    norm over all; DDP and FSDP2; all weights, LoRA, DoRA, and a base in 8 bits, whose adapters are in fp32; packed, the
    head in chunks, sliding windows block by block."""
    status, said = torchrun(ranks, GRADIENTS, tmp_path / "found.json")
    assert status == 0, said
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["ranks"] == ranks
    for name, found in content["found"].items():
        exact = 1e-6 if "int8" in name else 1e-10
        assert found["gradient"] < exact and found["norm"] < exact, (name, found)
        assert found["loss"] < 1e-10 and found["evaluation"] < 1e-10, (name, found)
    idle = [found["idle"] for name, found in content["found"].items() if name.endswith("1")]
    assert all(idle) == (ranks > 1), "the last window must leave a rank empty"


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(folder, data, ranks, *words, **env):
    """A run of 50 steps of 12 examples, however many ranks there are -> its lines of metrics."""
    given = ["--init", "tiny", "--data", data, "--out_dir", folder, "--batch_size", "1", "--global_batch_size", "12"]
    given += ["--max_steps", "50", "--lr", "1e-3", "--eval_every", "10", "--test_samples", "6", "--max_new_tokens", "8"]
    status, said = torchrun(ranks, TRAIN, *given, "--precision", "fp32", *words, **env)
    assert status == 0, said
    return rows(folder)


def test_fifty_steps_have_the_losses_of_one_process(tmp_path, write_lines, pairs):
    """In fp32 the same terms are added up in another order: 1e-5 relative after 50 steps of AdamW. Ledger, examples,
    answers and files are the same too."""
    data = write_lines(pairs(90))
    one = train(tmp_path / "one", data, 1)
    for name, ranks, words in (("ddp", 2, ["--shard", "ddp"]), ("fsdp", 3, ["--shard", "fsdp"])):
        several = train(tmp_path / name, data, ranks, *words)
        assert [row["step"] for row in several] == [row["step"] for row in one]
        for a, b in zip(one, several, strict=True):
            for key in {"loss", "grad_norm", "eval_loss"} & a.keys():
                assert b[key] == pytest.approx(a[key], rel=1e-4 if key == "grad_norm" else 1e-5), (name, a, b)
            assert all(b.get(key) == a.get(key) for key in ("epoch", "learning_rate"))
        assert all(len(row["rank_memory_bytes"]) == ranks for row in several if "loss" in row)
        assert all(0 <= share <= 1 for row in several for share in row.get("rank_waiting", []))
        summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", name)]
        for key in ("steps", "train_tokens", "total_flos", "train_examples", "parameters", "test_token_f1", "ledger"):
            assert summaries[0][key] == summaries[1][key], key
        assert summaries[1]["test_loss"] == pytest.approx(summaries[0]["test_loss"], rel=1e-5)
        files = [{path.name for path in (tmp_path / run).iterdir()} for run in ("one", name)]
        assert files[0] == files[1]
        kept = [
            {(row["file"], row["line"]): row for row in read(tmp_path / run / "training_losses.jsonl")}
            for run in ("one", name)
        ]
        assert kept[0].keys() == kept[1].keys()
        assert all(kept[1][key]["losses"] == pytest.approx(kept[0][key]["losses"], rel=1e-4) for key in kept[0])
        weights = [load_tensors(tmp_path / run / "best" / "model.pt") for run in ("one", name)]
        assert all(torch.allclose(weights[0][key], weights[1][key], atol=2e-5) for key in weights[0])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
