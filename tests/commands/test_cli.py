"""The commands, run as users run them: what is wrong gets one clear line and leaves nothing behind."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptft import checkpoint, generation, loading
from gptft.__main__ import command_train, main
from gptft.adapters.lora import LoraConfig, add_lora, lora_state
from gptft.architecture import GPTConfig
from gptft.commands.common import run
from gptft.data.examples import Recipe, load_dataset
from gptft.files import sha256_file
from gptft.model import GPT
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "train.py")]
GPTFT = [sys.executable, "-m", "gptft"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to work in and a cache elsewhere, so that whatever is left behind shows."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def shell(command, *words, stdin=""):
    """A real process in the current folder -> (status, standard output, standard error)."""
    done = subprocess.run([*command, *map(str, words)], input=stdin.encode(), capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def ask(capsys, monkeypatch):
    """The same in this process, without the seconds that importing torch takes: `run` is all that train.py does."""

    def call(command, *words, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        status = 0
        try:
            run(command_train if command is TRAIN else main, [str(word) for word in words])
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call


def is_one_line(err, *parts):
    assert err.startswith("gptft: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def tiny(n_layer=2, vocab_size=None, template="qa", block_size=256):
    tokenizer = embedded()
    tokenizer.template = TEMPLATES[template]
    config = GPTConfig(
        vocab_size or tokenizer.n_vocab, block_size, n_layer=n_layer, n_head=2, n_embd=16, position="rotary"
    )
    model = GPT.create(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # else every response is one token, repeated
    return model.eval(), tokenizer


@pytest.fixture
def saved(tmp_path):
    """saved(**settings of tiny) -> the path of a checkpoint, which is enough by itself."""

    def save(name="model", **settings):
        model, tokenizer = tiny(**settings)
        checkpoint.save(tmp_path / name, model, tokenizer, step=0)
        return tmp_path / name

    return save


def write(path, content):
    path = Path(path)
    path.write_text(content, encoding="utf-8")
    return path


GOOD = '{"question": "How many?", "answer": "Two."}\n'


# ---- bad input: the command line


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--bach_size", "4"], ["unknown flag --bach_size", "did you mean '--batch_size'?"]),
        (["--lr", "fast"], ["--lr must be a number, not 'fast'"]),
        (["--dropout", "2", "--out_dir", "out"], ["--dropout must be below 1, not 2.0"]),
        (["--config", "gone.toml", "--out_dir", "out"], ["--config: no such file: gone.toml"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(words, parts, place):
    status, out, err = shell(TRAIN, *words)
    assert status == 2 and out == "" and os.listdir(place) == []
    is_one_line(err, *parts)


@pytest.mark.parametrize(
    "words, parts",
    [
        (["generat", "model"], ["unknown command 'generat'; did you mean 'generate'?"]),
        (["generate"], ["required: model"]),
        (["generate", "m", "hi", "--tempature", "1"], ["--tempature", "did you mean '--temperature'?"]),
        (["generate", "m", "hi", "--max_new_tokens", "0"], ["--max_new_tokens", "at least 1, not '0'"]),
        (["generate", "m", "hi", "--max_input_tokens", "-3"], ["--max_input_tokens", "at least 0, not '-3'"]),
        (["chat", "m", "--top_k", "two"], ["--top_k", "must be a whole number of at least 0, not 'two'"]),
        (["evaluate", "m"], ["required: --data"]),
        (["inspect", "--data", "x.json", "--rows", "0"], ["--rows", "at least 1, not '0'"]),
        (["prepare", "--data", "x.json", "--template", "qa"], ["required: --out"]),
        (["inspect", "--data", "x.json", "--fields", "instruction"], ["fields must be a table of KEY=VALUE"]),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(ask, words, parts):
    status, out, err = ask(GPTFT, *words)
    assert status == 2 and out == ""
    is_one_line(err, *parts)


def test_the_module_answers_like_the_function(place):
    """`python -m gptft` for once as a process."""
    status, out, err = shell(GPTFT, "generat", "model")
    assert status == 2 and out == ""
    is_one_line(err, "unknown command 'generat'")
    status, out, err = shell(GPTFT)
    assert status == 0 and err == ""
    assert all(name in out for name in ("train", "generate", "chat", "evaluate", "inspect", "prepare"))


# ---- bad input: the data


BAD_DATA = {
    "missing file": ("gone.jsonl", None, ["--data: no such file: gone.jsonl"]),
    "empty file": ("d.jsonl", "", ["--data: d.jsonl is empty"]),
    "no records": ("d.json", "[]", ["d.json: no record is left to use"]),
    "wrong suffix": ("d.csv", "a,b", ["--data: d.csv: expected a .json, .jsonl or .txt file"]),
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
    """Row 20."""
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


# ---- bad input: the model


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


def test_other_commands_name_a_model_that_is_not_there(ask):
    for words in (
        ["generate", "./gone", "hi"],
        ["chat", "./gone"],
        ["evaluate", "./gone", "--data", "embedded:text.txt"],
    ):
        status, out, err = ask(GPTFT, *words)
        assert status == 2 and out == ""
        is_one_line(err, "./gone: no such directory")


# ---- output that the terminal cannot show


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


# ---- prepare


RECORDS = [
    {"instruction": "Say {x}.", "input": "", "output": "é \u2028 😀"},
    {"instruction": "Add.", "input": "1 and\n2", "output": "3 {instruction}"},
    {"question": "Literal <|endoftext|>?", "answer": "<|endoftext|> it is"},
    {"instruction": "half \ud83d", "response": "\ude00 of a pair"},
    {"text": "Plain text\nas it stands."},
]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_prepared_records_with_the_plain_template_give_the_same_ids(ask, template, place):
    """The file is what the course trains on: its ids and masks must be those of the template itself."""
    write("d.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS))
    status, out, err = ask(GPTFT, "prepare", "--data", "d.jsonl", "--template", template, "--out", "x.jsonl")
    assert (status, out, err) == (0, "5 records in x.jsonl\n", "")
    tokenizer = embedded()
    a = load_dataset([Path("d.jsonl")], tokenizer, Recipe(TEMPLATES[template], 256))
    b = load_dataset([Path("x.jsonl")], tokenizer, Recipe(TEMPLATES["plain"], 256))
    assert len(a) == len(b) == 5
    for one, other in zip(a, b, strict=True):
        assert np.array_equal(one.ids, other.ids) and one.spans == other.spans
    first = json.loads(Path("x.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert list(first) == ["input", "output"] and "Say {x}." in first["input"]


def test_prepare_writes_nothing_where_a_record_is_bad(ask, place):
    write("d.jsonl", GOOD + '{"question": "a", "answer": ""}\n')
    write("x.jsonl", "what was there")
    status, out, err = ask(GPTFT, "prepare", "--data", "d.jsonl", "--template", "qa", "--out", "x.jsonl")
    assert status == 2 and out == ""
    is_one_line(err, "d.jsonl, line 2: key 'answer' is empty", "nothing was written")
    assert Path("x.jsonl").read_text() == "what was there" and sorted(os.listdir()) == ["d.jsonl", "x.jsonl"]


def test_prepare_does_not_overwrite_what_it_reads(ask):
    write("d.jsonl", GOOD)
    status, _, err = ask(GPTFT, "prepare", "--data", "d.jsonl", "--template", "qa", "--out", "./d.jsonl")
    assert status == 2 and Path("d.jsonl").read_text() == GOOD
    is_one_line(err, "--out ./d.jsonl is one of the files to read")


def test_prepare_without_records_writes_nothing(ask):
    write("d.json", "[]")
    status, _, err = ask(GPTFT, "prepare", "--data", "d.json", "--template", "qa", "--out", "x.jsonl")
    assert status == 2 and os.listdir() == ["d.json"]
    is_one_line(err, "d.json: there is no record")


def test_prepare_with_fields(ask):
    write("d.jsonl", '{"q": "How?", "a": "So."}\n')
    words = ["prepare", "--data", "d.jsonl", "--template", "qa", "--out", "x.jsonl"]
    assert ask(GPTFT, *words, "--fields", "instruction=q", "response=a")[0] == 0
    assert json.loads(Path("x.jsonl").read_text()) == {
        "input": "### Question:\nHow?\n\n### Answer:\n",
        "output": "So.",
    }


# ---- inspect


def test_inspect_shows_what_is_masked_and_what_is_a_target(ask, saved):
    write("d.jsonl", GOOD + '{"question": "q", "answer": ""}\n' + '{"question": "Who?", "answer": "Me."}\n')
    words = ["inspect", "--data", "d.jsonl", "--init", saved(), "--bad_records", "drop"]
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, "") and "\x1b" not in out
    assert "3 records read, 2 kept" in out and "1 dropped (1 bad record)" in out
    assert "template qa" in out
    assert "--- example 0: d.jsonl, line 1:" in out and "--- example 1: d.jsonl, line 3:" in out
    body = out.split("--- example 0")[1].split("--- example 1")[0]
    targets = "".join(re.findall(r"\[(.*?)\]", body))
    assert targets == "Two.<|endoftext|>"
    assert "### Question:\\n" in body and "Two." not in re.sub(r"\[.*?\]", "", body)


def test_inspect_one_row_with_its_ids(ask, saved):
    write("d.jsonl", GOOD)
    path = saved()
    status, out, _ = ask(GPTFT, "inspect", "--data", "d.jsonl", "--init", path, "--row", "0")
    tokenizer = embedded()
    segments = TEMPLATES["qa"].segments({"instruction": "How many?", "response": "Two."})
    ids, _ = tokenizer.encode_segments(segments)
    rows = re.findall(r"^ +(\d+) +(\d+)  (target|masked) ", out, re.M)
    assert status == 0 and [int(i) for _, i, _ in rows] == ids
    assert f"{len(ids)} tokens, {sum(kind == 'target' for *_, kind in rows)} targets" in out
    status, _, err = ask(GPTFT, "inspect", "--data", "d.jsonl", "--init", path, "--row", "1")
    assert status == 2
    is_one_line(err, "--row 1: there are 1 examples, numbered from 0")


def test_inspect_without_masking_marks_the_prompt_as_targets_too(ask, saved):
    write("d.jsonl", GOOD)
    path = saved()
    for words in (["--mask_prompt", "false"], ["--mask_prompt=false"]):
        _, out, _ = ask(GPTFT, "inspect", "--data", "d.jsonl", "--init", path, "--row", "0", *words)
        rows = re.findall(r"^ +\d+ +\d+  (target|masked) ", out, re.M)
        assert rows == ["masked"] + ["target"] * (len(rows) - 1)
        assert f"{len(rows)} tokens read, {len(rows) - 1} of them targets" in out


def test_inspect_writes_a_page(ask, saved):
    write("d.jsonl", '{"question": "<b>?", "answer": "a & b"}\n')
    status, out, _ = ask(GPTFT, "inspect", "--data", "d.jsonl", "--init", saved(), "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert status == 0 and out == "page.html\n"
    assert page.startswith("<!doctype html>") and "<b>" not in page and 'class="target"' in page


# ---- generate, chat, evaluate


def test_generate_gives_what_python_gives_from_the_checkpoint_alone(saved, ask):
    """Row 22: tokenizer and template travel with the checkpoint; prompts come as words or line by line."""
    path = saved()
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, ["How many?", "Who is it?"], 8)
    assert expected[0] != expected[1] and all(expected)
    raw = generation.generate(model, tokenizer, ["How many?"], 8, raw=True)
    assert raw[0] != expected[0]

    status, out, err = shell(GPTFT, "generate", path, "How many?", "Who is it?", "--max_new_tokens", "8")
    assert (status, err) == (0, "") and out == "".join(text + "\n" for text in expected)
    status, out, _ = ask(GPTFT, "generate", path, "--max_new_tokens", "8", stdin="How many?\n\nWho is it?\n")
    assert status == 0 and out == "".join(text + "\n" for text in expected)
    status, out, _ = ask(GPTFT, "generate", path, "How many?", "--max_new_tokens", "8", "--raw")
    assert out == raw[0] + "\n"
    given = generation.generate(model, tokenizer, [{"instruction": "Add.", "input": "1 2"}], 8)
    status, out, _ = ask(GPTFT, "generate", path, "Add.", "--input", "1 2", "--max_new_tokens", "8")
    assert out == given[0] + "\n"


def test_generate_says_what_is_wrong_with_a_prompt(ask, saved):
    path = saved()
    status, out, err = ask(GPTFT, "generate", path, stdin="\n \n")
    assert status == 2 and out == ""
    is_one_line(err, "there is no prompt")
    status, out, err = ask(GPTFT, "generate", path, "word " * 300)
    assert status == 2 and out == ""
    is_one_line(err, "the model's block_size is 256")
    status, out, err = ask(GPTFT, "generate", path, "word " * 300, "--max_input_tokens", "20", "--max_new_tokens", "2")
    assert status == 0 and err == ""
    write("mine.toml", 'prompt = "Q: {instruction}\\nA: "')
    status, out, err = ask(GPTFT, "generate", path, "Add.", "--input", "1 2", "--template", "mine.toml")
    assert status == 2 and out == ""
    is_one_line(err, "a text for 'input', for which the template 'mine' has no place")


def test_prompts_that_are_no_utf8_do_not_end_in_a_traceback(saved):
    done = subprocess.run(
        [*GPTFT, "generate", saved(), "--max_new_tokens", "2"], input=b"caf\xe9\n", capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b""


def turn(role, content):
    return {"role": role, "content": content}


def test_chat_remembers_the_conversation_and_forgets_it_on_demand(ask, saved):
    path = saved(template="chatml")
    model, tokenizer = loading.load(path)

    def reply(*turns):
        return generation.generate(model, tokenizer, [list(turns)], 6)[0]

    first = reply(turn("user", "hi"))
    history = [turn("user", "hi"), turn("assistant", first), turn("user", "again")]
    second, fresh = reply(*history), reply(turn("user", "again"))
    assert second != fresh  # else the test could not tell whether anything is remembered
    status, out, err = ask(
        GPTFT, "chat", path, "--max_new_tokens", "6", stdin="hi\nagain\n/new\nagain\n\nnever asked\n"
    )
    assert (status, err) == (0, "")
    assert out == f"{first}\n{second}\n{fresh}\n"


def test_chat_with_a_template_of_single_turns_answers_each_alone(ask, saved):
    path = saved(template="alpaca")
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, ["hi", "again"], 6)
    status, out, _ = ask(GPTFT, "chat", path, "--max_new_tokens", "6", stdin="hi\nagain\n")
    assert status == 0 and out == "".join(text + "\n" for text in expected)


def test_chat_goes_on_after_a_prompt_that_is_too_long(ask, saved):
    path = saved(template="chatml")
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, [[turn("user", "hi")]], 6)[0]
    status, out, err = ask(GPTFT, "chat", path, "--max_new_tokens", "6", stdin="word " * 300 + "\nhi\n")
    assert status == 0 and "block_size is 256" in err and out == expected + "\n"


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


# ---- adapters


@pytest.fixture
def adapted(tmp_path, saved):
    """(adapters for a checkpoint, that checkpoint, the model with both, its tokenizer)"""
    base = saved("base")
    model, tokenizer = loading.load(base)
    named = loading.base_of(model, tokenizer, str(base))
    add_lora(model, LoraConfig(4, alpha=64.0, targets=("all",)), base=named)
    with torch.no_grad():
        for tensor in lora_state(model).values():
            tensor.normal_(generator=torch.Generator().manual_seed(tensor.numel()))
    checkpoint.save(tmp_path / "adapter", model, tokenizer, 3)
    return tmp_path / "adapter", base, model, tokenizer


def test_merge_writes_a_model_that_answers_as_the_adapters_did(ask, adapted, place):
    path, base, model, tokenizer = adapted
    expected = generation.generate(model, tokenizer, ["Hello"], 12)[0]
    assert expected != generation.generate(*loading.load(base), ["Hello"], 12)[0]
    assert ask(GPTFT, "generate", path, "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")
    assert ask(GPTFT, "merge", path, "out/merged") == (0, "out/merged\n", "")
    assert ask(GPTFT, "generate", "out/merged", "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")


def test_merge_says_what_is_wrong_and_writes_nothing(ask, adapted, saved, place):
    """Adapters on another base, a whole model in their place, an OUT that exists: one line each."""
    path, base, _, _ = adapted
    other = saved("other", n_layer=1)
    os.mkdir("taken")
    for words, parts in (
        ([path, "out", "--base", other], ["adapters for another base", str(base), str(other), "--base"]),
        ([base, "out"], ["base is a whole model: there are no adapters to merge"]),
        ([path, "taken"], ["taken exists already"]),
        (["nowhere", "out"], ["'nowhere' is no directory, not in the local cache, and the hub cannot be reached"]),
        ([path, "out", "--bas", other], ["unknown argument --bas; did you mean '--base'?"]),
        ([path], ["the following arguments are required: out"]),
    ):
        status, out, err = ask(GPTFT, "merge", *words)
        assert status == 2 and out == "" and os.listdir(place) == ["taken"]
        is_one_line(err, *parts)


def test_every_command_takes_adapters_and_another_place_of_their_base(ask, adapted, place):
    """A base that was moved is named with --base; without it one line says so."""
    path, base, model, tokenizer = adapted
    expected = generation.generate(model, tokenizer, ["Hello"], 5)[0]
    base.rename(base.with_name("moved"))
    write("d.jsonl", GOOD)
    moved = ["--base", base.with_name("moved")]
    status, out, err = ask(GPTFT, "generate", path, "Hello", "--max_new_tokens", 5)
    assert status == 2 and out == ""
    is_one_line(err, "its base", str(base), "cannot be loaded", "no such directory", "--base")
    assert ask(GPTFT, "generate", path, "Hello", "--max_new_tokens", 5, *moved)[:2] == (0, expected + "\n")
    assert expected in ask(GPTFT, "chat", path, "--max_new_tokens", 5, *moved, stdin="Hello\n")[1]
    assert "nats a target" in ask(GPTFT, "evaluate", path, "--data", "d.jsonl", *moved)[1]
    assert "template qa" in ask(GPTFT, "inspect", "--init", path, "--data", "d.jsonl", *moved)[1]


def test_training_on_another_models_adapters_is_one_line_and_no_folder(ask, adapted, place):
    path, _, _, _ = adapted
    write("d.jsonl", GOOD * 30)
    status, _, err = ask(TRAIN, "--init", path, "--data", "d.jsonl", "--out_dir", "out", "--lora_rank", 4)
    assert status == 2 and os.listdir(place) == ["d.jsonl"]
    is_one_line(err, "holds adapters", f"python -m gptft merge {path} OUT")
    status, _, err = ask(TRAIN, "--init", "tiny", "--data", "d.jsonl", "--out_dir", "out", "--lora_alpha", 4)
    assert status == 2 and os.listdir(place) == ["d.jsonl"]
    is_one_line(err, "--lora_alpha is given, but --lora_rank is 0")


# ---- export


@pytest.mark.parametrize("form, name", [("hf", "out/hf"), ("peft", "out/peft")])
def test_export_writes_what_answers_as_the_adapters_did(ask, adapted, place, form, name):
    """Adapters are merged for transformers, and stay adapters for PEFT; template and stop come along both ways."""
    path, _, model, tokenizer = adapted
    tokenizer.template = TEMPLATES["chatml"]
    checkpoint.save(path, model, tokenizer, step=0)
    expected = generation.generate(model, tokenizer, ["Hello"], 12)[0]
    status, out, err = ask(GPTFT, "export", path, name, "--format", form)
    assert (status, err) == (0, "") and out.endswith(f"{name}\n")
    assert ask(GPTFT, "generate", name, "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")
    assert sorted(os.listdir("out")) == [name.removeprefix("out/")]


def test_export_writes_a_file_for_llama_cpp(ask, saved, place):
    pytest.importorskip("gguf")
    status, out, err = ask(GPTFT, "export", saved(), "model.gguf", "--format", "gguf", "--dtype", "fp32")
    assert (status, err) == (0, "") and out.endswith("model.gguf\n") and "note: " in out  # how it splits text
    assert (place / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_the_model_card_tells_of_the_run(ask, place):
    """What it started from, its data, its losses; no path of this machine."""
    write("d.jsonl", "".join(GOOD.replace("many", f"many {n}") for n in range(40)))
    words = ["--init", "tiny", "--data", "d.jsonl", "--out_dir", "run", "--max_steps", 2, "--test_samples", 0]
    assert ask(TRAIN, *words)[0] == 0
    assert ask(GPTFT, "export", "run", "hf", "--format", "hf", "--name", "Counter", "--license", "mit")[0] == 0
    card = (place / "hf" / "README.md").read_text()
    for part in ("# Counter", 'license: "mit"', "d.jsonl", "validation loss", "preset tiny"):
        assert part in card
    assert str(place) not in card


def test_export_says_what_is_wrong_and_writes_nothing(ask, saved, place):
    model = saved()
    os.mkdir("taken")
    write("taken/file", "x")
    for words, parts in (
        ([model, "out"], ["the following arguments are required: --format"]),
        ([model, "out", "--format", "onnx"], ["argument --format: invalid choice: 'onnx'"]),
        ([model, "out", "--format", "hf", "--dtype", "q8_0"], ["--dtype q8_0: with --format hf it is one of fp32"]),
        ([model, "out", "--format", "gguf", "--dtype", "bf16"], ["--dtype bf16: with --format gguf it is one of"]),
        ([model, "out", "--format", "hf", "--shard_gb", "0"], ["--shard_gb must be above 0"]),
        ([model, "taken", "--format", "hf"], ["taken exists already and is not empty"]),
        ([model, "taken", "--format", "gguf"], ["taken exists already"]),
        ([model, "out", "--format", "peft"], ["the model has no adapters"]),
        ([model, "out", "--format", "hf", "--base", "x"], ["is a whole model; --base"]),
    ):
        status, out, err = ask(GPTFT, "export", *words)
        assert status == 2 and out == "" and os.listdir(place) == ["taken"], words
        is_one_line(err, *parts)
