"""A corpus: its shards hold every record once, runs share them and stop and go on in the middle of one, bit for bit;
a source that fails in mid-run loses nothing."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

import gptft
from gptft.curation.brief import describe_data
from gptft.data import streams
from gptft.data.build import Recipe
from gptft.data.corpus import AHEAD, Corpus, stream_of
from gptft.data.examples import Split, load_dataset
from gptft.data.maker import shard_path, shards_in_all
from gptft.errors import Interrupted, SourceFailed, UserError
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded

TINY = {"init": "tiny", "stream": True, "shard_tokens": 1500, "max_length": 48, "batch_size": 4, "max_steps": 60}
TINY |= {"eval_every": 20, "save_every": 0, "threads": 1, "dropout": 0.1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))


def documents(count, seed=0):
    rng = random.Random(seed)
    words = ["the", "a", "model", "learns", "from", "text", "and", "then", "it", "answers", "what", "was", "asked"]
    return [f"Text {number}: " + " ".join(rng.choices(words, k=rng.randint(3, 60))) + "." for number in range(count)]


@pytest.fixture
def folder(tmp_path):
    """Three files of texts, in all some nine shards."""
    path = tmp_path / "texts"
    path.mkdir()
    texts = documents(300)
    for number in range(3):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::3]]
        (path / f"part-{number}.jsonl").write_text("".join(lines))
    return path


def tokenizer_for(name="plain"):
    tokenizer = embedded()
    tokenizer.template = TEMPLATES[name]
    return tokenizer


def begin(words, weights=(), shard_tokens=1500, bad_records="stop"):
    tokenizer = tokenizer_for()
    corpus = Corpus([str(word) for word in words], weights, shard_tokens)
    return corpus, corpus.begin(Recipe(tokenizer.template, 48, bad_records=bad_records), tokenizer)


def all_shards(corpus):
    shards = []
    while (dataset := corpus.shard(len(shards))) is not None:
        shards.append(dataset)
    corpus.close()
    return shards


def test_the_shards_hold_the_examples_of_the_files_in_order(folder):
    """Against the dataset that the same files make when they are read whole: ids, spans and places."""
    corpus, _ = begin([folder])
    shards = all_shards(corpus)
    tokenizer, paths = tokenizer_for(), sorted(folder.iterdir())
    whole = load_dataset(paths, tokenizer, Recipe(tokenizer.template, 48))
    assert len(shards) > 5 and len(shards) == shards_in_all(corpus.folder)
    assert np.array_equal(np.concatenate([shard.ids for shard in shards]), whole.ids)
    examples = [shard[i] for shard in shards for i in range(len(shard))]
    assert [(e.spans, e.record) for e in examples] == [
        (e.spans, e.record) for e in map(whole.__getitem__, range(len(whole)))
    ]
    # each but the last is full, and by no more than the records that are taken at once
    assert all(len(shard.ids) >= 1500 for shard in shards[:-1])
    for name in ("records_read", "tokens_read", "tokens_user", "tokens_template", "tokens_repeated", "targets"):
        assert sum(shard.ledger[name] for shard in shards) == whole.ledger[name]


def test_parquet_by_the_library_makes_the_same_tokens(folder, tmp_path):
    texts = [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]
    other = tmp_path / "parquet"
    other.mkdir()
    for number in range(4):
        part = texts[number * 75 : (number + 1) * 75]
        parquet.write_table(pyarrow.Table.from_pylist(part), other / f"{number}.parquet", row_group_size=20)
    ids = [np.concatenate([shard.ids for shard in all_shards(begin([word])[0])]) for word in (folder, f"hf:{other}")]
    assert np.array_equal(*ids)


def test_a_shard_that_was_deleted_is_made_again_the_same(folder):
    """From the place that the shard before it noted: nothing before that is read."""
    corpus, _ = begin([folder])
    ids = [np.array(shard.ids) for shard in all_shards(corpus)]
    for number in (2, 3):
        shutil.rmtree(shard_path(corpus.folder, number))
    corpus, _ = begin([folder])
    assert all(np.array_equal(a, b.ids) for a, b in zip(ids, all_shards(corpus), strict=True))


def test_no_more_shards_are_made_than_will_be_needed_soon(folder):
    corpus, _ = begin([folder])
    corpus.shard(1)
    end = time.monotonic() + 20
    while not shard_path(corpus.folder, 1 + AHEAD).exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    corpus.close()
    assert len(list(corpus.folder.glob("shard-*"))) == 2 + AHEAD


def test_two_runs_share_the_shards_of_one_corpus(folder):
    """Both ask for all of them at once, each with a process that makes them: each shard is made once."""
    made, shards = {}, {}

    def run(name):
        corpus, _ = begin([folder])
        shards[name] = [np.array(shard.ids) for shard in all_shards(corpus)]

    def watch():
        while any(thread.is_alive() for thread in runs):
            with contextlib.suppress(FileNotFoundError):  # a temporary folder that is gone meanwhile
                for path in tmp.glob("corpora/*/*/shard-*"):
                    made.setdefault(path.name, set()).add(path.stat().st_ino)
            time.sleep(0.01)

    tmp = Path(os.environ["GPTFT_CACHE"])
    runs = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in runs:
        thread.start()
    watch()
    assert len(shards) == 2
    assert all(np.array_equal(a, b) for a, b in zip(shards["a"], shards["b"], strict=True))
    assert len(made) == len(shards["a"]) and all(len(inodes) == 1 for inodes in made.values())


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_the_maker_ends_with_a_run_that_is_killed(folder, tmp_path):
    """It would go on filling the disk."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from data.test_corpus import begin\n"
        "corpus, _ = begin([sys.argv[1]]); print(corpus.maker.pid, flush=True); time.sleep(60)"
    )
    tests = str(Path(__file__).resolve().parent.parent)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), tests], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert "gptft.data.maker" in Path(f"/proc/{pid}/cmdline").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    try:
        return "gptft.data.maker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_waiting_for_a_shard_ends_with_ctrl_c(folder, monkeypatch):
    corpus, _ = begin([folder])
    monkeypatch.setattr(corpus, "_ask_for", lambda number: None)
    with pytest.raises(Interrupted):
        corpus.shard(7, lambda: True)
    corpus.close()


# ---- runs


def weights(run):
    return torch.cat([tensor.flatten() for tensor in run.model.state_dict().values()])


def rows(run):
    kept = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in kept if key in line} for line in lines]


def law(books):
    left = books["tokens_user"] + books["tokens_template"] + books["tokens_repeated"]
    gone = books.get("tokens_dropped", 0) + books.get("tokens_set_aside", 0)
    return left == books["targets"] + books["tokens_masked"] + books["tokens_cut"] + gone


def test_a_run_goes_over_all_shards_and_again_and_its_books_add_up(folder, tmp_path):
    run = gptft.finetune(data=[str(folder)], out_dir=str(tmp_path / "run"), **TINY | {"max_steps": 200})
    ledger, lines = run.summary["ledger"]["data"], rows(run)
    assert lines[-1]["epoch"] > ledger["shards"] > 5  # a second pass was begun
    assert law(ledger) and all(map(law, ledger["splits"].values()))
    tokenizer, paths = tokenizer_for(), sorted(folder.iterdir())
    whole = load_dataset(paths, tokenizer, Recipe(tokenizer.template, 48)).ledger
    assert {name: ledger[name] for name in ("records_read", "tokens_user")} == {
        name: whole[name] for name in ("records_read", "tokens_user")
    }
    assert sum(ledger["tokens_by_source"].values()) == whole["tokens_read"] + whole["tokens_repeated"]
    assert 0 <= run.summary["data_share"] < 1
    assert run.summary["train_examples"] == ledger["splits"]["data"]["examples"] > 300
    steps = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= step["data_share"] <= 1 for step in steps if "loss" in step)


def test_every_pass_has_every_example_once_in_another_order(folder, tmp_path, monkeypatch):
    """By the ids that the loop was given, over two passes."""
    from gptft import finetuning

    seen, collate = [], finetuning.collate

    def watched(examples, **settings):
        seen.append([(example.record, example.ids.tobytes()) for example in examples])
        return collate(examples, **settings)

    monkeypatch.setattr(finetuning, "collate", watched)
    monkeypatch.setattr(finetuning, "rehearse", lambda *arguments: None)
    settings = TINY | {"max_steps": 280, "val_fraction": 0.0}
    run = gptft.finetune(data=[str(folder)], out_dir=str(tmp_path / "run"), **settings)
    one_pass = run.summary["ledger"]["data"]["examples"]
    flat = [example for batch in seen for example in batch]
    assert len(flat) > 2 * one_pass
    first, second = flat[:one_pass], flat[one_pass : 2 * one_pass]
    assert sorted(first) == sorted(second) and len(set(first)) == one_pass and first != second


def test_prompts_of_the_validation_are_in_no_later_shard(tmp_path):
    """A question that stands in the corpus twice would be trained on and measured."""
    questions = [f"What is {number}?" for number in range(40)]
    path = tmp_path / "d.jsonl"
    records = [{"question": q, "answer": f"It is {n}, {k}."} for k in range(5) for n, q in enumerate(questions)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = TINY | {"shard_tokens": 700, "val_fraction": 0.3}
    run = gptft.finetune(data=[str(path)], out_dir=str(tmp_path / "run"), **settings)
    ledger = run.summary["ledger"]["data"]
    assert ledger["shards"] >= 4 and law(ledger) and all(map(law, ledger["splits"].values()))
    held = ledger["splits"]["val_data"]["examples"]
    assert held and ledger["set_aside"]["examples"] > held
    for key in ("examples", "tokens_user"):
        parts = ledger["splits"].values()
        assert sum(part[key] for part in parts) + ledger["set_aside"][key] == ledger[key]


@pytest.mark.parametrize("harm", ["gone", "broken", "killed"])
def test_a_run_whose_source_fails_is_saved_and_goes_on_bit_for_bit(folder, tmp_path, monkeypatch, harm):
    """Against the run that nothing happened to: every loss, and the weights."""
    unbroken = gptft.finetune(data=[str(folder)], out_dir=str(tmp_path / "unbroken"), **TINY)
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "another"))
    last, out_dir = folder / "part-1.jsonl", str(tmp_path / "run")
    content = last.read_bytes()
    settings = TINY | {"data": [str(folder)], "out_dir": out_dir}
    if harm == "killed":
        stop_at(monkeypatch, 33)
    else:
        opened = threading.Event()
        describe = streams.describe

        def then_harm(words):  # once the sources are known
            entries = describe(words)
            if harm == "gone":
                last.unlink()
            else:
                last.write_bytes(b"broken\n" * 3 + content[21:])
            opened.set()
            return entries

        monkeypatch.setattr("gptft.data.corpus.describe", then_harm)
        monkeypatch.setattr("gptft.data.corpus.HEAD", 50)
    with pytest.raises(UserError) as caught:
        gptft.finetune(**settings)
    message = str(caught.value)
    assert "Go on with: " in message and f"--resume --out_dir {out_dir}" in message
    if harm == "gone":
        assert str(last) in message and f"Saved in {tmp_path / 'run' / 'last'}" in message
    if harm == "broken":
        assert f"{last} changed since the stream was begun" in message
    monkeypatch.undo()
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "another"))
    if harm != "killed":
        monkeypatch.setattr("gptft.data.corpus.HEAD", 50)
    last.write_bytes(content)
    resumed = gptft.finetune(resume=True, **settings)
    assert torch.equal(weights(resumed), weights(unbroken))
    assert rows(resumed) == rows(unbroken)
    kept = ("tokens_user", "targets", "shards", "splits")
    assert all(resumed.summary["ledger"]["data"][k] == unbroken.summary["ledger"]["data"][k] for k in kept)


def stop_at(monkeypatch, step):
    """SIGTERM in mid-shard, as a machine that is taken back sends it."""
    from gptft.run.folder import Keeper

    keep = Keeper.keep

    def kill(self, event):
        keep(self, event)
        if getattr(event, "loss", None) is not None and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Keeper, "keep", kill)


def test_bad_records_of_a_stream_are_dropped_by_name_or_stop_it(folder, tmp_path):
    """Also in a shard that another run made, which dropped them."""
    path = folder / "part-2.jsonl"
    lines = path.read_text().splitlines()
    lines[50] = "broken"
    path.write_text("\n".join(lines))
    settings = TINY | {"data": [str(folder)], "max_steps": 120}
    dropped = gptft.finetune(out_dir=str(tmp_path / "drop"), bad_records="drop", **settings)
    assert dropped.summary["ledger"]["data"]["records_dropped"] == {"bad record": 1}
    (lost,) = [json.loads(line) for line in (dropped.path / "lost.jsonl").read_text().splitlines()]
    assert (lost["file"], lost["line"]) == (str(path), 51)
    with pytest.raises(UserError, match=r"1 bad record .*\n  .*part-2.jsonl, line 51: broken JSON"):
        gptft.finetune(out_dir=str(tmp_path / "stop"), **settings)
    assert (tmp_path / "stop" / "last").is_dir()


def test_data_that_changed_cannot_be_gone_on_with(folder, tmp_path):
    settings = TINY | {"data": [str(folder)], "out_dir": str(tmp_path / "run"), "max_steps": 10}
    gptft.finetune(**settings)
    with (folder / "part-2.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="--resume: the training data changed"):
        gptft.finetune(resume=True, **settings)


def test_a_run_that_ends_with_a_shard_asks_for_no_further_one(folder, tmp_path, monkeypatch):
    """It waited for one that it did not train on, and could never end where the source was gone."""
    corpus, first = begin([folder])
    corpus.close()
    shard = Corpus.shard

    def first_alone(self, number, should_stop=lambda: False):
        if number:
            raise SourceFailed("the source is gone")
        return shard(self, number, should_stop)

    monkeypatch.setattr(Corpus, "shard", first_alone)
    settings = TINY | {"data": [str(folder)], "out_dir": str(tmp_path / "run"), "val_fraction": 0.2}
    n_train = len(first) - round(0.2 * len(first))
    run = gptft.finetune(**settings | {"max_steps": -(-n_train // 4)})
    assert run.summary["ledger"]["data"]["shards"] == 1 and rows(run)[-1]["epoch"] == 1.0
    with pytest.raises(UserError, match="the source is gone"):
        gptft.finetune(**settings | {"max_steps": -(-n_train // 4) + 1, "out_dir": str(tmp_path / "further")})


def test_of_a_long_stream_the_first_records_are_linted_and_the_line_says_so(folder, monkeypatch):
    """It named the heads' records as if they were all."""
    lines = []
    for head in (200, 100, 99):  # each of the three files has 100 records, in all 300
        monkeypatch.setattr("gptft.data.corpus.HEAD", head)
        corpus, first = begin([folder] if head > 100 else sorted(folder.iterdir()))
        lines.append(describe_data({"data": first}, {}, TEMPLATES["plain"]))
        corpus.close()
    (folder / "part-2.jsonl").unlink()
    monkeypatch.setattr("gptft.data.corpus.HEAD", 201)
    corpus, first = begin([folder])
    lines.append(describe_data({"data": first}, {}, TEMPLATES["plain"]))
    corpus.close()
    assert [line.rpartition(", ")[2] for line in lines] == [
        "in the first 200 records",
        "in the first 300 records",
        "in the first 297 records",
        "in 200 records",
    ]


def test_a_shard_of_which_all_is_held_out_is_passed_over(tmp_path):
    """A corpus that is sorted by question: the run took such a shard for the end."""
    path = tmp_path / "d.jsonl"
    records = [{"question": f"What is {n}?", "answer": f"It is {k}."} for n in range(3) for k in range(60)]
    records = records[:1] + records[60:61] + records[120:] + records[1:60] + records[61:120]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = tokenizer_for("qa")
    corpus = Corpus([str(path)], (), 500)
    first = corpus.begin(Recipe(tokenizer.template, 48), tokenizer)
    of_group = [np.flatnonzero(first.groups == group) for group in first.groups[:2]]
    held = Split(first, of_group[1])  # what stands in the shards of the end
    stream = stream_of(corpus, Split(first, np.setdiff1d(np.arange(len(first)), of_group[1])), held)
    parts = [stream.part(number) for number in range(20)]
    assert all(map(len, parts))
    in_all = shards_in_all(corpus.folder)
    empty = [number for number in range(in_all) if not len(stream.kept_of(number))]
    assert empty and stream.shards_begun(20) == in_all
    groups = np.concatenate([part.dataset.groups[part.indices] for part in parts])
    assert not np.isin(held.dataset.groups[held.indices], groups).any()
    assert parts[len(corpus.filled)].dataset.directory == first.directory  # the second pass
    corpus.close()


def test_records_at_the_end_that_are_all_left_out_are_counted_and_the_next_pass_begins(folder, tmp_path):
    """They made no shard, so nobody told of them; or the run ended there."""
    with (folder / "part-2.jsonl").open("a") as file:
        file.write("broken\n" * 40)
    settings = TINY | {"data": [str(folder)], "shard_tokens": 500, "max_steps": 220, "bad_records": "drop"}
    run = gptft.finetune(out_dir=str(tmp_path / "run"), **settings)
    ledger = run.summary["ledger"]["data"]
    assert rows(run)[-1]["epoch"] > ledger["shards"]
    assert ledger["records_read"] == 340 and ledger["records_dropped"] == {"bad record": 40} and law(ledger)
    assert len((run.path / "lost.jsonl").read_text().splitlines()) == 40


def test_a_shard_that_is_deleted_in_mid_run_is_made_again(folder):
    """The run would wait for it without end: the process that makes shards is far behind it."""
    corpus, _ = begin([folder])
    ids = np.array(corpus.shard(1).ids)
    corpus.shard(4)
    for number in (1, 2):
        shutil.rmtree(shard_path(corpus.folder, number))
    assert np.array_equal(corpus.shard(1).ids, ids)
    corpus.close()


def test_a_file_that_is_edited_is_another_corpus(folder):
    """Its size is the same, and the shards of the old one lie in the cache."""
    _, first = begin([folder])
    path = folder / "part-0.jsonl"
    path.write_text(path.read_text().replace("Text 0:", "Text 9:"))
    corpus, second = begin([folder])
    assert not np.array_equal(first.ids[:8], second.ids[:8])
    corpus.close()


def test_a_mix_has_its_shares(folder, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(60, seed=1)))
    settings = TINY | {"data": [str(folder), str(other)], "mix": [0.25, 0.75], "shard_tokens": 6000, "max_steps": 120}
    ledger = gptft.finetune(out_dir=str(tmp_path / "run"), **settings).summary["ledger"]["data"]
    by = ledger["tokens_by_source"]
    assert by[str(other)] / sum(by.values()) == pytest.approx(0.75, abs=0.06)
    assert law(ledger)


def test_an_unexpected_end_of_the_maker_is_an_error_not_a_wait(folder, monkeypatch):
    corpus, _ = begin([folder])
    corpus.close()
    (corpus.folder / "corpus.json").write_text("{}")
    with pytest.raises(SourceFailed, match="the process that makes the shards ended with status 1: KeyError"):
        corpus.shard(5)
