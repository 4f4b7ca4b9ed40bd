"""Benchmarks that can be tried in little: their gates, their fits, and each once with `--quick`."""

import importlib
import json
from types import SimpleNamespace

import pytest
import torch
from toys import toy_examples, toy_model

from benchmarks import answers, ceiling, common, dense, growth, lookup, real, results, sft
from benchmarks.__main__ import main
from gptft.adapters.lora import LoraConfig, add_lora
from gptft.collate import collate
from gptft.errors import UserError
from gptft.loss import Objective


def quick(name, shared, tmp_path, *more):
    """Run a benchmark with --quick -> its result as it was saved."""
    words = ["--quick", "--threads", "1", "--rounds", "1", "--shared", str(shared), "--results", str(tmp_path)]
    importlib.import_module(f"benchmarks.{name}").main([*words, *more])
    (saved,) = tmp_path.glob(f"{name}*.json")
    return json.loads(saved.read_text())


@pytest.fixture
def toy(shared, tmp_path):
    """A directory of a small GPT-2 with random weights, in the place of a real model."""
    pytest.importorskip("transformers")
    from benchmarks import gpt2

    gpt2.make(tmp_path / "toy", quick=True)
    return tmp_path / "toy"


@pytest.mark.slow
def test_answers_to_the_test_prompts(shared, tmp_path, toy):
    result = quick("answers", shared, tmp_path, "--model", str(toy))
    assert result["summary"]["same"]["gptft"] == 4 or result["gate"]["near_ties"]
    assert {*result["rounds"][0]} == {answers.PEER, *common.in_what_it_has(answers.KINDS)}
    assert {*result["settings"]["tried"]} == {"1", "2"}
    assert "transformers, " in results.section(result)


@pytest.mark.slow
def test_lookup_beside_plain_decoding(shared, tmp_path, toy):
    result = quick("lookup", shared, tmp_path, "--model", str(toy))
    same = result["gate"]["same"]
    assert same[lookup.LOOKUP] == same[lookup.SAME] == result["gate"]["answers"] == 2
    assert result["summary"]["kinds"]["copying"]["per_pass"][lookup.PLAIN] == 1
    assert "| copies its prompt | gptft --lookup" in results.section(result)


@pytest.mark.slow
def test_full_rows(shared, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    result = quick("dense", shared, tmp_path)
    assert result["gate"]["largest_difference"] <= dense.NEAR
    pairs = [pair for pair in dense.TARGETS if common.in_what_it_has(pair) == [*pair]]
    assert [tuple(ratio[1:3]) for ratio in result["summary"]["ratios"]] == pairs
    assert "| 2 x 16 | classical loop" in results.section(result)


@pytest.mark.slow
def test_growth_and_its_picture(shared, tmp_path):
    result = quick("growth", shared, tmp_path)
    assert len(result["summary"]["cells"]) == 8 and min(result["summary"]["terms"].values()) >= 0
    assert (tmp_path / "growth.svg").read_text().startswith("<svg xmlns=")
    assert "seconds = " in results.section(result)


@pytest.mark.slow
def test_the_head_by_itself(shared, tmp_path):
    result = quick("head", shared, tmp_path)
    assert result["rounds"] and "gptft chunks" in results.section(result)


@pytest.mark.slow
def test_what_is_for_a_gpu_in_little(shared, tmp_path):
    """The loop had come to ask its examples for more: on a GPU the benchmark would have ended at once."""
    pytest.importorskip("transformers")
    result = quick("gpu", shared, tmp_path, "--device", "cpu")
    assert all(
        {"gptft full", "transformers full"} <= {*run["rounds"][0]} for run in result["training"]["Llama 1B"].values()
    )
    assert "| Llama 1B" in results.section(result)


@pytest.mark.slow
def test_without_a_name_all_are_run_and_what_has_no_result_is_named(shared, tmp_path, monkeypatch, capfd):
    """It listed the names: a fresh checkout had no one command for the suite."""
    monkeypatch.setattr(results, "NAMES", {"against": "needs another checkout", "startup": "seconds"})
    words = ["--quick", "--rounds", "1", "--shared", str(shared), "--results", str(tmp_path)]
    with pytest.raises(UserError, match=r"without a result: against$"):
        main(words)
    assert [path.name for path in tmp_path.glob("*.json")] == ["startup.json"]
    assert "== startup: seconds" in capfd.readouterr().err


def test_terms_that_made_the_times_are_found():
    shapes = [(length, batch) for length in (64, 256, 1024) for batch in (1, 4, 16)]
    for terms in ([0.01, 2e-5, 3e-9], [0.0, 2e-5, 3e-9], [0.01, 2e-5, 0.0]):
        times = [sum(x * y for x, y in zip(terms, growth.parts_of(*shape), strict=True)) for shape in shapes]
        assert growth.fit(shapes, times) == pytest.approx(terms, rel=1e-6, abs=1e-12)


def test_a_term_that_would_be_negative_is_none():
    """Time that grows slower than the tokens: the squares would have to be taken away."""
    shapes = [(length, 1) for length in (64, 256, 1024, 4096)]
    found = growth.fit(shapes, [0.01 + 1e-5 * length**0.9 for length, _ in shapes])
    assert min(found) == 0 and found[1] > 0


SHAPES = [{}, {"tie_embeddings": False, "gated_mlp": True, "n_kv_head": 2}]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_of_a_step_that_are_replayed_are_those_of_the_closed_form(shape):
    """Each weight is in one product forward and two backward, each 2 * rows * weights operations. Where a product went
    unseen the ceiling would be too high, and so the share of it too low."""
    model = toy_model(torch.float32, **shape)
    batch = collate(toy_examples([9, 9, 9], prompt=1), 0)
    with (notes := ceiling.Notes()):
        Objective(model)(batch)[0].backward()
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2) + model.tok.weight.numel()  # the head
    rows = 3 * 8
    assert batch.n_targets == rows
    assert sum(product.flops for product in notes.found) == 3 * 2 * rows * weights
    assert ceiling.replay(notes.found) > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_of_adapters_are_seen_too(shape):
    """One of an adapter's is added into the frozen layer's output in place. Of frozen weights no gradient is taken,
    nor of the embeddings' output, which the first layers read."""
    model = add_lora(toy_model(torch.float32, **shape), LoraConfig(4, targets=("all",)))
    batch = collate(toy_examples([9, 9, 9], prompt=1), 0)
    with (notes := ceiling.Notes()):
        Objective(model)(batch)[0].backward()
    frozen = {id(p): p.numel() for p in model.blocks.parameters() if p.dim() == 2 and not p.requires_grad}
    adapters = sum(p.numel() for p in model.blocks.parameters() if p.requires_grad)
    first = model.blocks[0].attn
    read = sum(layer.base.weight.numel() + layer.A.numel() for layer in (first.q, first.k, first.v))
    expected = 2 * (sum(frozen.values()) + model.tok.weight.numel()) + 3 * adapters - read
    assert sum(product.flops for product in notes.found) == 2 * 24 * expected


def test_steps_whose_products_were_not_seen_have_no_ceiling():
    with pytest.raises(RuntimeError, match="no products"):
        ceiling.of_training(iter([None]), 10)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_a_pass_over_all_weights_has_every_product_once(kind, monkeypatch):
    monkeypatch.setattr(ceiling, "PASSES", 2)
    found = ceiling.of_decoding(toy_model(torch.float32), kind, 2)
    assert sum(found["layouts"].values()) == 2 * 4 + 1  # of a layer q k v, out, up and down; the head
    assert found["seconds"] > 0 and {*found["layouts"]} <= {"rows", "columns", "blocks", "pieces", "packed"}


def test_a_processor_without_bf16_leaves_it_out_and_keeps_its_result_apart(tmp_path, monkeypatch, capsys):
    """A step in bf16 took minutes there, and what one machine cannot measure would replace what another has."""
    monkeypatch.setattr("gptft.device.cpu_has_bf16", lambda: False)
    options = SimpleNamespace(precisions=None, quick=False, model=None, data=None, results=None, threads=1)
    assert real.precisions(options) == ["fp32"]
    assert common.in_what_it_has(sft.CONTENDERS) == ["gptft fp32", "TRL fp32"]
    assert "does not multiply bf16" in capsys.readouterr().err
    result = common.header("decode", options, {}, ["torch"])
    for given in ({}, {"real": {"slug": "toy-records"}}):
        results.save(result | given, tmp_path, quietly=True)
        results.save(result | given | {"name": "startup"}, tmp_path, quietly=True)  # has nothing in bf16
    monkeypatch.setattr("gptft.device.cpu_has_bf16", lambda: True)
    results.save(result | {"machine": common.machine(1)}, tmp_path, quietly=True)
    names = {"decode-without-bf16", "decode-toy-records-without-bf16", "decode", "startup", "startup-toy-records"}
    assert {path.stem for path in tmp_path.iterdir()} == names
    assert common.in_what_it_has(sft.CONTENDERS) == [*sft.CONTENDERS] and real.precisions(options) == ["fp32", "bf16"]


def test_losses_that_differ_shut_the_gate():
    once = {f"{name}, 256": {"losses": [10.9, 10.8, 10.7]} for name in dense.CONTENDERS}
    assert dense.check_losses([once], [256]) == 0
    once["gptft bf16, 256"] = {"losses": [11.0, 10.8, 10.7]}  # in fewer bits it may
    once["Trainer fp32, 256"] = {"losses": [10.9, 10.80005, 10.9]}  # near enough, and later steps are not asked
    assert dense.check_losses([once], [256]) == pytest.approx(5e-5)
    for loss in (10.801, float("nan")):
        once["gptft fp32, 256"] = {"losses": [10.9, loss, 10.7]}
        with pytest.raises(UserError, match="gptft fp32, rows of 256"):
            dense.check_losses([once], [256])


def test_an_id_that_differs_shuts_the_gate_of_lookup():
    outcomes = {lookup.SAME: {"ids": [[1, 2], [3]]}, lookup.LOOKUP: {"ids": [[1, 2], [3]]}}
    lookup.check_same(outcomes)
    outcomes[lookup.LOOKUP] = {"ids": [[1, 2], [3, 4]]}
    with pytest.raises(UserError, match="prompt 2"):
        lookup.check_same(outcomes)


def test_an_absent_real_model_is_one_line(monkeypatch):
    monkeypatch.setattr(real.importlib.util, "find_spec", lambda name: None)
    for benchmark in (answers, lookup):
        with pytest.raises(UserError, match=r"^--model smollm2 needs a package: pip install .*$"):
            benchmark.main(["--quick"])
