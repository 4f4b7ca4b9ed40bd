"""The real model on two ranks: the steps of one process."""

import json
import shutil

import pytest
from test_smollm2 import PATH
from test_smollm2 import pytestmark as real
from torchrun import TRAIN, torchrun

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

pytestmark = [*real, pytest.mark.slow]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(ranks, *words) -> the losses and gradient norms of three steps of four examples."""
    folder = tmp_path_factory.mktemp("ranks")
    records = [
        {"instruction": f"What comes after {n}?" + " Think." * (n % 7), "output": f"It is {n + 1}." + " Yes." * (n % 9)}
        for n in range(24)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def run(ranks, *words):
        out = folder / "run"
        given = ["--init", PATH, "--data", folder / "data.jsonl", "--out_dir", out, "--max_steps", "3"]
        given += ["--batch_size", "2", "--global_batch_size", "4", "--val_fraction", "0", "--test_fraction", "0"]
        given += ["--test_samples", "0", "--save_every", "0", "--lr", "3e-5", "--precision", "fp32", *words]
        status, said = torchrun(ranks, TRAIN, *given, within=280)
        assert status == 0, said
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(out)
        return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]

    return run


def test_two_ranks_take_the_steps_of_one_process_with_the_whole_model_and_with_parts_of_it(train):
    """134,515,008 weights in fp32, where the same terms are added up in another order: 1e-5."""
    losses, norms = train(1)
    assert len(losses) == 3 and losses[-1] < losses[0]
    for shard in ("ddp", "fsdp"):
        found = train(2, "--shard", shard)
        assert found[0] == pytest.approx(losses, rel=1e-5), shard
        assert found[1] == pytest.approx(norms, rel=1e-4), shard


def test_adapters_on_a_frozen_base_in_8_bits_take_the_steps_of_one_process(train):
    words = ["--lora_rank", "4", "--lora_base", "int8", "--lr", "1e-3"]
    losses, _ = train(1, *words)
    found, _ = train(2, *words, "--shard", "fsdp")
    assert found == pytest.approx(losses, rel=1e-5)
