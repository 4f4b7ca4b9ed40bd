"""`python -m gptft evaluate`: the loss and the scores of the answers."""

import json
import math
import os
import re

import torch
from cli import GOOD, GPTFT, TRAIN, is_one_line, tiny, write

from gptft import checkpoint, generation, loading
from gptft.evaluation.metrics import METRICS
from gptft.prompts import TEMPLATES
from gptft.tokenizer import Tokenizer


def read_table(said):
    """{metric: the cells of its line}"""
    lines = [re.split("  +", line.strip()) for line in said.splitlines() if line.startswith("  ")]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


def test_evaluate_measures_loss_and_exact_matches(ask, saved):
    """The loss is computed again here, a record at a time, from the logits."""
    path = saved()
    model, tokenizer = loading.load(path)
    (said,) = generation.generate(model, tokenizer, ["Who is it?"], 5)
    records = [{"q": "Who is it?", "a": said}, {"q": "How many?", "a": "Two of them."}, {"q": "Where?", "a": "There"}]
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    total, n, hits = 0.0, 0, 0
    for record in records:
        segments = TEMPLATES["qa"].segments({"instruction": record["q"], "response": record["a"]})
        ids, [(start, end)] = tokenizer.encode_segments(segments)
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        hits += sum(logits[t - 1].argmax().item() == ids[t] for t in range(start, end))
        total -= sum(logits[t - 1, ids[t]].item() for t in range(start, end))
        n += end - start
    words = ["evaluate", path, "--data", "d.jsonl", "--fields", "instruction=q", "response=a", "--max_new_tokens", "5"]
    outputs = [ask(GPTFT, *words, "--batch_size", size) for size in ("1", "2", "16")]
    # bounds are drawn from what differs in the last bits
    assert len({re.sub(r" \([\d.e+]+ to [\d.e+]+\)", "", out) for _, out, _ in outputs}) == 1
    status, out, err = outputs[0]
    assert (status, err) == (0, "")
    assert "3 records read, 3 kept" in out
    figures = read_table(out)
    assert figures["loss"][0] == "3" and figures["loss"][1].startswith(f"{total / n:.4f} (")
    assert figures["perplexity"][1].startswith(f"{math.exp(total / n):.4g} (")
    assert figures["token accuracy"][1].startswith(f"{hits / n:.1%} (")
    assert said.strip() and figures["exact match"][1].startswith("33.3% (")


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
    assert (status, err) == (0, "") and read_table(out)["is text"] == ["1", "25.0%"]


def test_evaluate_leaves_out_prompts_without_room_by_name(ask, saved):
    """The rule is that of a run: they were once cut without a word, and scored as wrong."""
    path = saved()
    (said,) = generation.generate(*loading.load(path), ["Who is it?"], 30)
    records = [{"question": "Who is it?", "answer": said}, {"question": "~" * 230, "answer": "No, " * 30}]
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    status, out, err = ask(GPTFT, "evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "30")
    assert (status, err) == (0, "")
    assert "1 of 2 prompts are left out of the score:\n  d.jsonl, line 2: its prompt of " in out
    assert read_table(out)["exact match"] == ["1", "100.0% (2.5% to 100.0%)"]


def test_evaluate_compares_two_models_on_the_same_questions(ask, saved, place):
    """Figures, files and the list of what got worse agree with one another, and with each model asked alone."""
    path, other = saved("tuned"), saved("base", n_layer=1)
    (said,) = generation.generate(*loading.load(path), ["Who is it?"], 8)
    (once,) = generation.generate(*loading.load(other), ["How many?"], 8)
    records = [{"question": "Who is it?", "answer": said or "x"}, {"question": "How many?", "answer": once or "x"}]
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    words = ["evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "8"]
    status, out, err = ask(GPTFT, *words, "--against", other, "--out", "kept")
    assert (status, err) == (0, "")
    evaluation = json.loads((place / "kept" / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (place / "kept" / "responses.jsonl").read_text().splitlines()]
    assert [row["record"] for row in rows] == records and len(rows) == evaluation["records"] == 2
    for name, side in ((path, "after"), (other, "before")):
        answers = generation.generate(*loading.load(name), ["Who is it?", "How many?"], 8)
        assert [row[side] for row in rows] == answers
        alone = ask(GPTFT, "evaluate", name, "--data", "d.jsonl", "--max_new_tokens", "8")[1]
        cells = read_table(out)["loss"]
        assert read_table(alone)["loss"][1] == cells[2 if side == "after" else 1]
        assert evaluation["lengths"][side]["tokens_longest"] == max(row["tokens"][side] for row in rows)
    table = evaluation["metrics"]["exact_match"]["all"]
    assert table["wins"] + table["losses"] + table["ties"] == 2
    losses = [json.loads(line) for line in (place / "kept" / "losses.jsonl").read_text().splitlines()]
    assert {row["line"] for row in losses} == {1, 2} and {"before", "after"} <= losses[0].keys()
    if once.strip() and once != rows[1]["after"]:
        assert "got worse (by token f1)" in out
    status, out, err = ask(GPTFT, *words, "--out", "kept")
    assert status == 2 and "--out kept exists already" in err and not out


def test_two_models_with_other_vocabularies_have_no_losses_compared(ask, saved, tmp_path):
    """A loss a target is of the vocabulary's own tokens: side by side the two would mislead."""
    path = saved("tuned")
    model, tokenizer = tiny(vocab_size=300)
    ranks = {token: rank for token, rank in tokenizer.ranks.items() if rank < 299}
    small = Tokenizer(ranks, tokenizer.pattern, {"<|endoftext|>": 299})
    checkpoint.save(tmp_path / "other", model, small, step=0)
    write("d.jsonl", GOOD)
    words = ["evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "4", "--against", tmp_path / "other"]
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, "") and "losses are not compared" in out
    assert len(read_table(out)["loss"]) == 3 < len(read_table(out)["exact match"])  # before and after, no difference


def test_evaluate_takes_a_metric_from_a_file(ask, saved, monkeypatch):
    monkeypatch.setattr("gptft.evaluation.metrics.METRICS", dict(METRICS))
    write("d.jsonl", GOOD)
    write("own.py", "def length(response, expected):\n    return 0.5 if response is not None else None\n")
    words = ["evaluate", saved(), "--data", "d.jsonl", "--max_new_tokens", "2", "--metric"]
    status, out, err = ask(GPTFT, *words, "own.py:length")
    assert (status, err) == (0, "") and read_table(out)["length"] == ["1", "50.0%"]
    status, out, err = ask(GPTFT, *words, "own.py:lenght")
    assert (status, out) == (2, "") and err == "gptft: --metric own.py:lenght: own.py has no function 'lenght'\n"


def test_several_answers_are_drawn_and_what_they_are_worth_is_told(ask, saved, place):
    """Another batch draws the same; of one greedy model all answers are the same, and that is refused."""
    path = saved()
    write("d.jsonl", GOOD)
    words = [
        "evaluate",
        path,
        "--data",
        "d.jsonl",
        "--max_new_tokens",
        "6",
        "--generations",
        "3",
        "--temperature",
        "1.5",
    ]
    status, out, err = ask(GPTFT, *words, "--out", "kept")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in (place / "kept" / "responses.jsonl").read_text().splitlines()]
    assert all(len(row["samples"]["after"]) == 3 for row in rows)
    assert any(len(set(row["samples"]["after"])) > 1 for row in rows)
    found = json.loads((place / "kept" / "evaluation.json").read_text())["samples"]["after"]["exact_match"]
    assert list(found) == ["n", "pass@1", "pass@2", "pass@3", "majority", "agreement"] and found["n"] == len(rows)
    figures = read_table(out)
    assert figures["3 responses a record at temperature 1.5"] == ["n", "score"]
    assert figures["exact match, pass@3"][0] == str(len(rows)) and "normalised match, agreement" in figures
    ask(GPTFT, *words, "--batch_size", "1", "--out", "again")
    again = [json.loads(line) for line in (place / "again" / "responses.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in again] == [row["samples"] for row in rows]
    status, out, err = ask(GPTFT, *words[:-1], "0")
    assert status == 2 and "--temperature must be above 0" in err


def test_two_models_are_compared_in_what_they_knew(ask, saved, place):
    """The same model has lost nothing; --against itself the KL is 0."""
    write("d.jsonl", GOOD)
    words = ["evaluate", saved("one"), "--data", "d.jsonl", "--max_new_tokens", "4", "--against", saved("one")]
    status, out, err = ask(GPTFT, *words, "--out", "kept")
    assert (status, err) == (0, "")
    found = json.loads((place / "kept" / "evaluation.json").read_text())["forgetting"]
    assert found["kl"]["value"] == 0.0 and not found["general"]["difference"]["loss"]["differs"]
    assert read_table(out)["perplexity, general text"][0] == str(found["general"]["n"])
    assert len((place / "kept" / "forgetting.jsonl").read_text().splitlines()) == 24 + found["kl"]["n"]


def test_evaluate_names_the_mistakes_and_the_training_records_nearest_to_them(ask, saved):
    """Of answers that are not what was expected; a file that is there stays."""
    path = saved()
    training = [{"question": f"Who is number {n}?", "answer": f"It is {n}."} for n in range(5)]
    write("train.jsonl", "".join(json.dumps(record) + "\n" for record in training))
    write("d.jsonl", GOOD + json.dumps({"question": "Who is number 3?", "answer": "It is 3."}) + "\n")
    words = ["evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "4", "--mend", "mend.jsonl"]
    status, out, err = ask(GPTFT, *words)
    assert status == 2 and "name that by --mend_data" in err
    status, out, err = ask(GPTFT, *words, "--mend_data", "train.jsonl", "--out", "o")
    assert (status, err) == (0, "") and "2 answers to mend, each with the nearest of 5 training records" in out
    rows = [json.loads(line) for line in open("mend.jsonl", encoding="utf-8")]
    assert [row["record"]["question"] for row in rows] == ["How many?", "Who is number 3?"]
    assert (rows[1]["nearest"][0]["file"], rows[1]["nearest"][0]["line"]) == ("train.jsonl", 4)
    kept = [json.loads(line) for line in open("o/responses.jsonl", encoding="utf-8")]
    assert [row["mistakes"] for row in rows] == [row["mistakes"]["after"] for row in kept] == [["no_stop"]] * 2
    evaluation = json.loads(open("o/evaluation.json", encoding="utf-8").read())
    assert evaluation["mistakes"]["no_stop"] == {"n": 2, "after": 2, "examples": [1, 2]}
    assert read_table(out)["no stop"] == ["2", "2"]
    status, out, err = ask(GPTFT, *words, "--mend_data", "train.jsonl")
    assert status == 2 and "--mend mend.jsonl exists already" in err


def test_what_a_run_was_trained_on_is_found_by_its_checkpoint(ask):
    write("train.jsonl", "".join(json.dumps({"q": f"Who is {n}?", "a": f"It is {n}."}) + "\n" for n in range(20)))
    fields = ["--fields", "instruction=q", "response=a"]
    settings = ["--init", "tiny", "--max_steps", "1", "--max_new_tokens", "4", "--precision", "fp32", "--threads", "1"]
    status, _, err = ask(TRAIN, "--data", "train.jsonl", *fields, "--out_dir", "run", *settings)
    assert status == 0, err
    summary = json.loads(open("run/evaluation.json", encoding="utf-8").read())
    assert summary["mistakes"]["no_stop"]["n"] == summary["records"] > 0
    write("d.jsonl", GOOD)
    for number, model in enumerate(("run", "run/best")):
        words = ["evaluate", model, "--data", "d.jsonl", "--max_new_tokens", "4", "--mend", f"mend-{number}.jsonl"]
        status, out, err = ask(GPTFT, *words)
        trained = len(open("run/training_losses.jsonl", encoding="utf-8").readlines())  # not what was held out
        assert trained < 20 and (status, err) == (0, "") and f"the nearest of {trained} training records" in out


def test_what_cannot_be_written_or_read_is_refused_before_the_model_is_asked(ask, saved, monkeypatch, capsys):
    """After hours the folder could not be made; and a broken --mend_data left an --out that refused the next try."""
    path = saved()
    write("d.jsonl", GOOD)
    write("broken.jsonl", GOOD + "{")
    write("texts.jsonl", '{"text": "Once."}\n')
    words = ["evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "4"]
    for more, parts in (
        (["--out", "d.jsonl/x"], ["--out d.jsonl/x cannot be made"]),
        (["--out", "o", "--mend", "m.jsonl", "--mend_data", "texts.jsonl"], ["--mend_data texts.jsonl: there is no"]),
    ):
        status, out, err = ask(GPTFT, *words, *more)
        assert status == 2 and not out
        is_one_line(err, *parts)
    status, out, err = ask(GPTFT, "evaluate", path, "--tasks", ",")
    assert status == 2 and "--tasks ,: there is no task in it" in err
    assert not os.path.exists("o") and not os.path.exists("m.jsonl")


def test_an_evaluation_that_failed_is_made_again_in_its_folder(ask, saved):
    """Its folder was refused, and with it the file of verdicts that had been paid for."""
    path = saved()
    write("d.jsonl", GOOD)
    write("own.py", "def bad(response, expected):\n    raise ValueError('no')\n")
    words = ["evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "4", "--out", "o"]
    status, _, err = ask(GPTFT, *words, "--metric", "own.py:bad")
    assert status == 2 and "ValueError: no" in err and os.path.exists("o/responses.jsonl")
    METRICS.pop("bad")  # a process of its own would not know it
    status, _, err = ask(GPTFT, *words)
    assert (status, err) == (0, "") and os.path.exists("o/evaluation.json")
    status, _, err = ask(GPTFT, *words)
    assert status == 2 and "--out o exists already: name another folder" in err


def test_what_is_longer_than_max_length_is_named_and_the_limit_is_the_users(ask, saved):
    """A model that reads more was measured on the first 1,024 tokens, and what was longer was gone without a line."""
    path = saved()
    write("d.jsonl", GOOD + json.dumps({"question": "How many? " * 30, "answer": "Two."}) + "\n")
    words = ["evaluate", path, "--data", "d.jsonl", "--max_new_tokens", "4"]
    status, out, err = ask(GPTFT, *words, "--max_length", "40")
    assert (status, err) == (0, "") and "dropped: d.jsonl, line 2" in out
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, "") and "dropped: d.jsonl" not in out


def test_a_record_that_the_other_models_template_cannot_ask_is_left_out_by_name(ask, saved):
    """It ended the command, in the name of nobody."""
    talk = [{"role": role, "content": "Hm?"} for role in ("user", "assistant", "user", "assistant")]
    write("d.jsonl", json.dumps({"messages": talk}) + "\n" + json.dumps({"messages": talk[:2]}) + "\n")
    one, two = saved("one", template="chatml"), saved("two", template="alpaca")
    words = ["evaluate", one, "--against", two, "--data", "d.jsonl", "--max_new_tokens", "4", "--bad_records", "drop"]
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, ""), err
    assert "d.jsonl, line 1: the template 'alpaca' has no form" in out
