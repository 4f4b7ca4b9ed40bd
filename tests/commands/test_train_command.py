"""`python train.py`: what is wrong with data or model is one clear line before anything is written."""

import json
import os
from pathlib import Path

import pytest
from cli import GOOD, TRAIN, is_one_line, shell, write

from gptft.files import sha256_file
from gptft.tokenizer import embedded

BAD_DATA = {
    "missing file": ("gone.jsonl", None, ["--data: no such file: gone.jsonl"]),
    "empty file": ("d.jsonl", "", ["--data: d.jsonl is empty"]),
    "no records": ("d.json", "[]", ["d.json: no record is left to use"]),
    "wrong suffix": ("d.doc", "a,b", ["--data: d.doc: expected a .json, .jsonl, .csv, .tsv, .parquet or .txt file"]),
    "broken array": ("d.json", '[{"question": "a",\n "answer": }]', ["d.json, line 2: broken JSON: Expecting value"]),
}


BAD_RECORDS = {
    "broken JSON line": ('{"question": "a", "answer"\n', ["line 2: broken JSON", "column 27"]),
    "no keys": ('{"q": "a", "a": "b"}\n', ["line 2: no known set of keys; it has 'q', 'a'"]),
    "empty response": ('{"question": "a", "answer": " "}\n', ["line 2: key 'answer' is empty"]),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_cannot_be_used_is_one_line_and_no_folder(ask, what, place):
    name, content, parts = BAD_DATA[what]
    if content is not None:
        write(name, content)
    status, _, err = ask(TRAIN, "--init", "tiny", "--data", name, "--out_dir", "out")
    assert status == 2
    is_one_line(err, *parts)
    assert set(os.listdir(place)) <= {name}


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_bad_records_stop_before_training_with_file_line_key_and_count(ask, what, place):
    """Trained on without a word, a half-empty file would look like a good run."""
    line, parts = BAD_RECORDS[what]
    write("d.jsonl", GOOD + line + GOOD)
    status, _, err = ask(TRAIN, "--init", "tiny", "--data", "d.jsonl", "--out_dir", "out")
    assert status == 2 and "Traceback" not in err
    first, second = err.splitlines()
    assert first == "gptft: 1 bad record (--bad_records drop goes on without them):"
    assert "d.jsonl" in second and all(part in second for part in parts)
    assert os.listdir(place) == ["d.jsonl"]


def test_a_bad_record_as_a_process(place):
    """Once through train.py itself."""
    write("d.jsonl", GOOD + '{"question": "a"}\n')
    status, _, err = shell(TRAIN, "--init", "tiny", "--data", "d.jsonl", "--out_dir", "out")
    assert status == 2 and "Traceback" not in err and "d.jsonl, line 2: key 'answer' is missing" in err
    assert os.listdir(place) == ["d.jsonl"]


def test_the_files_are_looked_for_before_a_model_is_downloaded(ask):
    """A misspelt path once showed only after half a gigabyte, or as a network error."""
    status, _, err = ask(TRAIN, "--init", "some/model", "--data", "gone.jsonl")
    assert status == 2
    is_one_line(err, "no such file: gone.jsonl")
    write("d.jsonl", GOOD)
    status, _, err = ask(TRAIN, "--init", "some/model", "--data", "d.jsonl", "--val_data", "gone.jsonl")
    is_one_line(err, "--val_data: no such file: gone.jsonl")
    status, _, err = ask(TRAIN, "--init", "some/model", "--data", "d.jsonl", "--template", "alpacca")
    is_one_line(err, "did you mean 'alpaca'?")


def test_data_is_asked_for_where_there_is_an_init_but_no_data(ask, place):
    status, _, err = ask(TRAIN, "--init", "tiny")
    assert status == 2 and os.listdir(place) == []
    is_one_line(err, "--data is missing")


def test_an_unknown_placeholder_in_a_template_file_is_one_line(ask, place):
    write("d.jsonl", GOOD)
    write("mine.toml", 'prompt = "Q: {instrution}\\nA: "')
    status, _, err = ask(TRAIN, "--init", "tiny", "--data", "d.jsonl", "--template", "mine.toml", "--out_dir", "out")
    assert status == 2 and sorted(os.listdir(place)) == ["d.jsonl", "mine.toml"]
    is_one_line(err, "mine.toml", "unknown placeholder {instrution}", "did you mean 'instruction'?")


def test_a_misspelt_part_in_fields_is_one_line(ask):
    write("d.jsonl", '{"q": "a", "i": "b", "a": "c"}\n')
    status, _, err = ask(
        TRAIN, "--init", "tiny", "--data", "d.jsonl", "--fields", "instruction=q", "inputs=i", "response=a"
    )
    assert status == 2
    is_one_line(err, "has no part 'inputs'", "did you mean 'input'?")


def test_models_that_cannot_be_loaded_are_one_line_each_and_no_folder(ask, saved, place):
    write("d.jsonl", GOOD)

    def train(init, *words):
        status, _, err = ask(TRAIN, "--init", init, "--data", "d.jsonl", "--out_dir", "out", *words)
        assert status == 2 and os.listdir(place) == ["d.jsonl"]
        return err

    # not a checkpoint
    (place.parent / "folder").mkdir()
    is_one_line(train(place.parent / "folder"), "folder: neither a checkpoint", "nor a Hugging Face directory")
    is_one_line(train("./gone"), "./gone: no such directory")
    is_one_line(train("tinny/"), "tinny")

    # no network for a hub id
    is_one_line(train("EleutherAI/pythia-70m"), "'EleutherAI/pythia-70m'")

    # a checkpoint of another architecture: its config asks for a layer that its weights lack
    other = saved("other")
    config = json.loads((other / "config.json").read_text())
    config["gptft"]["n_layer"] = 3
    (other / "config.json").write_text(json.dumps(config))
    is_one_line(train(other), "config.json is damaged")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["sha256"]["config.json"] = sha256_file(other / "config.json")
    (other / "manifest.json").write_text(json.dumps(manifest))
    is_one_line(train(other), "a checkpoint of another architecture", "lacks the tensor 'blocks.2.")

    # a tokenizer larger than the model's embedding
    small = saved("small", vocab_size=100)
    is_one_line(train(small), f"its tokenizer has {embedded().n_vocab} ids, more than the 100 rows")

    # longer examples than the model can read
    good = saved("good")
    is_one_line(train(good, "--max_length", "300"), "--max_length 300 is above the model's block_size 256")


@pytest.mark.slow
def test_odd_characters_do_not_end_a_run_on_a_console_that_knows_only_ascii(ask, saved, monkeypatch):
    """Redirected on Windows or under LANG=C, one é in the table of responses once ended a run that was otherwise
    done; and half of a surrogate pair, legal in JSON as an escape, could not be written to responses.jsonl."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    records = [{"question": f"caf\u00e9 {n} \U0001f600 \ud83d?", "answer": "\u00e9\u2028"} for n in range(6)]
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    words = [
        "--init",
        saved(),
        "--data",
        "d.jsonl",
        "--val_fraction",
        "0",
        "--test_fraction",
        "0.3",
        "--max_steps",
        "1",
    ]
    status, out, err = shell(TRAIN, *words, "--max_new_tokens", "3", "--precision", "fp32", "--out_dir", "out")
    assert (status, err) == (0, "") and "caf? " in out
    rows = [json.loads(line) for line in Path("out/responses.jsonl").read_text("utf-8").split("\n") if line]
    assert len(rows) == 2 and all(row["record"] in records for row in rows)
    # and going on from it reads them back
    status, out, err = ask(TRAIN, "--resume", "--out_dir", "out")
    assert (status, err) == (0, "") and "answering 2 test prompts before" not in out


def test_training_on_another_models_adapters_is_one_line_and_no_folder(ask, adapted, place):
    path, _, _, _ = adapted
    write("d.jsonl", GOOD * 30)
    status, _, err = ask(TRAIN, "--init", path, "--data", "d.jsonl", "--out_dir", "out", "--lora_rank", 4)
    assert status == 2 and os.listdir(place) == ["d.jsonl"]
    is_one_line(err, "holds adapters", f"python -m gptft merge {path} OUT")
    status, _, err = ask(TRAIN, "--init", "tiny", "--data", "d.jsonl", "--out_dir", "out", "--lora_alpha", 4)
    assert status == 2 and os.listdir(place) == ["d.jsonl"]
    is_one_line(err, "--lora_alpha is given, but --lora_rank is 0")
