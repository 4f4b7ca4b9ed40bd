"""`python -m gptft evaluate`: the loss and the scores of the answers."""

import json

import torch
from cli import GOOD, GPTFT, write

from gptft import generation, loading
from gptft.evaluation.metrics import METRICS
from gptft.prompts import TEMPLATES


def test_evaluate_measures_loss_and_exact_matches(ask, saved):
    """The loss is computed again here, a record at a time, from the logits."""
    path = saved()
    model, tokenizer = loading.load(path)
    (said,) = generation.generate(model, tokenizer, ["Who is it?"], 5)
    records = [{"q": "Who is it?", "a": said}, {"q": "How many?", "a": "Two of them."}, {"q": "Where?", "a": "There"}]
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    total, n = 0.0, 0
    for record in records:
        segments = TEMPLATES["qa"].segments({"instruction": record["q"], "response": record["a"]})
        ids, [(start, end)] = tokenizer.encode_segments(segments)
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        total -= sum(logits[t - 1, ids[t]].item() for t in range(start, end))
        n += end - start
    words = ["evaluate", path, "--data", "d.jsonl", "--fields", "instruction=q", "response=a", "--max_new_tokens", "5"]
    outputs = {ask(GPTFT, *words, "--batch_size", size) for size in ("1", "2", "16")}
    ((status, out, err),) = outputs
    assert (status, err) == (0, "")
    assert "3 records read, 3 kept" in out
    assert f"loss {total / n:.4f} nats a target, over 3 examples" in out
    if said.strip():
        assert "exact match 33.3%, over the first 3 records" in out


def test_evaluate_asks_with_the_template_of_the_checkpoint_be_it_plain(ask, saved):
    """A run takes another than `plain` for records; a model that was trained with it was measured with other prompts
    than its own."""
    path = saved(template="plain")
    write("d.jsonl", GOOD)
    status, out, err = ask(GPTFT, "evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "2")
    assert (status, err) == (0, "") and "template plain" in out
    status, out, err = ask(GPTFT, "evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "2", "--template", "qa")
    assert (status, err) == (0, "") and "template qa" in out


def test_evaluate_tells_of_every_metric(ask, saved, monkeypatch):
    monkeypatch.setitem(METRICS, "is_text", lambda response, expected: 0.25)
    write("d.jsonl", GOOD)
    status, out, err = ask(GPTFT, "evaluate", saved(), "--data", "d.jsonl", "--max_new_tokens", "2")
    assert (status, err) == (0, "") and "is text 25.0%, over the first 1 records" in out


def test_evaluate_leaves_out_prompts_without_room_by_name(ask, saved):
    """The rule is that of a run: they were once cut without a word, and scored as wrong."""
    path = saved()
    (said,) = generation.generate(*loading.load(path), ["Who is it?"], 30)
    records = [{"question": "Who is it?", "answer": said}, {"question": "~" * 230, "answer": "No, " * 30}]
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    status, out, err = ask(GPTFT, "evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "30")
    assert (status, err) == (0, "")
    assert "1 of 2 prompts are left out of the score:\n  d.jsonl, line 2: its prompt of " in out
    assert "exact match 100.0%, over 1 of the first 2 records" in out
