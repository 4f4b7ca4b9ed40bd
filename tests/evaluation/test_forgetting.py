"""What a model has lost: against its own logits, a text at a time, and against models that lost nothing, or much."""

import json
import math

import numpy as np
import pytest
import torch
from cli import tiny

from gptft import checkpoint
from gptft.device import Precision
from gptft.evaluation.forgetting import (
    ANSWER_TOKENS,
    looked_at,
    measure_forgetting,
    own_answers,
    probes,
    remember,
)
from gptft.finetuning import finetune
from gptft.generation import generate, prompt_ids
from gptft.prompts import TEMPLATES, Template
from gptft.run.tables import describe_forgetting

FP32 = Precision("fp32", torch.device("cpu"))


@pytest.fixture
def base():
    return tiny(n_layer=1)


def changed(model, much):
    other, _ = tiny(n_layer=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * much)
    return other


def test_a_model_that_did_not_change_has_lost_nothing(base):
    model, tokenizer = base
    found, rows = measure_forgetting(remember(model, tokenizer, FP32), model, FP32)
    assert found["kl"]["value"] == 0.0
    for kind in ("general", "own_answers"):
        assert found[kind]["difference"]["loss"]["value"] == 0.0 and not found[kind]["difference"]["loss"]["differs"]
    assert all(row["before"] == row["after"] for row in rows)
    assert "elsewhere" not in describe_forgetting(found, None)


def test_every_figure_is_that_of_the_logits(base):
    """KL against torch's own, at each token; the losses text by text; and the figures from the rows."""
    model, tokenizer = base
    remembered, other = remember(model, tokenizer, FP32), changed(model, 0.02)
    found, rows = measure_forgetting(remembered, other, FP32)
    total, tokens = 0.0, 0
    for kind, examples in remembered.examples.items():
        for example, row in zip(examples, [row for row in rows if row["kind"] == kind], strict=True):
            ids = torch.from_numpy(example.ids.astype(np.int64))
            with torch.no_grad():
                q, p = (each(ids[None, :-1])[0].log_softmax(-1) for each in (model, other))
            ((start, end),) = example.spans
            assert row["targets"] == end - start
            for side, log_probs in (("before", q), ("after", p)):
                expected = -sum(log_probs[t - 1, ids[t]].item() for t in range(start, end)) / (end - start)
                assert row[side] == pytest.approx(expected, rel=1e-4)
            if kind == "own_answers":
                places = torch.from_numpy(looked_at(example)) - 1
                kl = torch.nn.functional.kl_div(q[places], p[places], log_target=True, reduction="sum").item()
                assert row["kl"] * row["looked_at"] == pytest.approx(kl, rel=1e-3, abs=1e-5)
                total, tokens = total + kl, tokens + len(places)
    assert found["kl"]["tokens"] == tokens and found["kl"]["value"] == pytest.approx(total / tokens, rel=1e-3)
    for kind in remembered.examples:
        some = [row for row in rows if row["kind"] == kind]
        mean = sum(row["after"] * row["targets"] for row in some) / sum(row["targets"] for row in some)
        assert found[kind]["after"]["loss"]["value"] == pytest.approx(mean)


def test_a_template_that_is_no_place_for_a_question_leaves_the_general_text(base):
    model, tokenizer = base
    tokenizer.template = Template("mine", prompt="C: {context} Q: {question} A:", prompt_with_input="")
    found, rows = measure_forgetting(remember(model, tokenizer, FP32), model, FP32)
    assert set(found) == {"general"} and {row["kind"] for row in rows} == {"general"}
    assert "general text" in describe_forgetting(found, None)


def test_a_vocabulary_padded_in_another_way_is_the_same(base):
    """The rows beyond the tokenizer's ids have no part in it."""
    model, tokenizer = base
    other, _ = tiny(n_layer=1, vocab_size=tokenizer.n_vocab + 63)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            known = dict(model.named_parameters())[name]
            parameter[: len(known)].copy_(known) if parameter.shape != known.shape else parameter.copy_(known)
    found, _ = measure_forgetting(remember(model, tokenizer, FP32), other, FP32)
    assert abs(found["kl"]["value"]) < 1e-5


def test_its_own_answers_are_what_it_says(base):
    """Scored are the ids of the prompt as it is asked, and the response's; its end is a target where it came to one."""
    model, tokenizer = base
    prompts = probes()
    examples, texts = own_answers(model, tokenizer, prompts, FP32, ANSWER_TOKENS)
    said = generate(model, tokenizer, prompts, ANSWER_TOKENS)
    assert len(examples) > 15
    for example, text in zip(examples, texts, strict=True):
        number = example.record[1] - 1
        asked = prompt_ids(tokenizer, prompts[number])
        assert example.ids[: len(asked)].tolist() == asked and text == said[number]
        assert example.spans == [(len(asked), len(example.ids))]
        answered = example.ids[len(asked) :].tolist()
        ended = answered[-1] == tokenizer.stop
        assert tokenizer.decode(answered[: len(answered) - ended], after=asked[-1]) == text
        assert 1 <= len(looked_at(example)) <= 6 and set(looked_at(example)) <= set(range(*example.spans[0]))


def test_a_run_says_what_was_lost_and_keeps_every_text(tmp_path, write_lines, pairs, capsys):
    """From a checkpoint; a run from scratch has nothing to forget."""
    model, tokenizer = tiny()
    tokenizer.template = TEMPLATES["qa"]
    checkpoint.save(tmp_path / "start", model, tokenizer, step=0)
    settings = {"data": write_lines(pairs(30)), "max_steps": 3, "lr": 0.05, "max_new_tokens": 4, "threads": 1}
    settings |= {"precision": "fp32", "val_fraction": 0.1, "test_fraction": 0.2, "init": str(tmp_path / "start")}
    run = finetune(**settings, out_dir=tmp_path / "run")
    said = capsys.readouterr().out
    found = json.loads((run.path / "evaluation.json").read_text())["forgetting"]
    rows = [json.loads(line) for line in (run.path / "forgetting.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["kind"] == "own_answers"]
    kl = sum(row["kl"] * row["looked_at"] for row in own) / sum(row["looked_at"] for row in own)
    assert found["kl"]["value"] == pytest.approx(kl) and kl > 0.01 and found["kl"]["n"] == len(own)
    assert "perplexity, general text" in said and "KL from what it was" in said
    again = finetune(**settings, out_dir=tmp_path / "run", resume=True)
    assert json.loads((again.path / "evaluation.json").read_text())["forgetting"] == found
    scratch = finetune(**{**settings, "init": "tiny"}, out_dir=tmp_path / "scratch")
    assert "forgetting" not in json.loads((scratch.path / "evaluation.json").read_text())


def test_a_gain_that_costs_the_rest_is_said():
    def side(loss):
        return {"perplexity": {"value": math.exp(loss), "low": None, "high": None}}

    def compared(by, differs):
        difference = {"value": by, "low": by - 0.01, "high": by + 0.01, "differs": differs}
        return {"n": 24, "before": side(3.0), "after": side(3.0 + by), "difference": {"loss": difference}}

    def said(general, gained):
        kl = {"n": 20, "value": 0.5, "low": 0.4, "high": 0.6}
        found = {"general": compared(*general), "own_answers": compared(0.3, True), "kl": kl}
        return describe_forgetting(found, compared(*gained))

    assert "paid for elsewhere: the perplexity on the general text went from 20.0855 to 24.5325" in said(
        (0.2, True), (-0.5, True)
    )
    assert "It has lost elsewhere, too:" in said((0.2, True), (0.5, True))
    assert "It has lost elsewhere:" in said((0.2, True), (-0.5, False))  # nothing says that it lost on the test set
    for general in ((0.2, False), (-0.2, True)):
        assert "elsewhere" not in said(general, (-0.5, True))


def test_it_costs_no_more_than_the_test_prompts_may(base):
    """A run that answers two prompts with four tokens each was once asked for 21 answers of 48."""
    model, tokenizer = base
    remembered = remember(model, tokenizer, FP32, at_most=2, max_new_tokens=4)
    assert len(remembered.examples["general"]) == len(remembered.texts["general"]) == 2
    assert remembered.texts["own_answers"] == generate(model, tokenizer, probes()[:2], 4)


def test_an_answer_that_was_cut_off_has_no_end(base):
    """An end that the base never chose would be a target, and as unlikely before as after."""
    model, tokenizer = base
    examples, _ = own_answers(model, tokenizer, probes()[:4], FP32, 3)
    assert examples and all(example.ids[-1] != tokenizer.stop for example in examples)
