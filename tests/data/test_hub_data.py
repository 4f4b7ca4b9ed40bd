"""Data sets of the hub as files: fetched once, record for record; what cannot be had is one line."""

import json
from datetime import date

import pyarrow
import pytest
from pyarrow import parquet

from gptft.data import hub
from gptft.data.hub import fetch, read_word
from gptft.data.sources import find, parse, raw_records
from gptft.errors import UserError

ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}.", "day": date(2026, 1, 1 + n)} for n in range(20)]


@pytest.fixture
def folder(tmp_path):
    """A folder as the hub has them: two files of the training split, one of the test."""
    path = tmp_path / "shards"
    path.mkdir()
    for name, rows in (
        ("train-00000-of-00002", ROWS[:9]),
        ("train-00001-of-00002", ROWS[9:]),
        ("test-00000-of-00001", ROWS[:3]),
    ):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path / f"{name}.parquet")
    return path


@pytest.mark.parametrize(
    "word, name, revision, config, split",
    [
        ("hf:lamini/lamini_docs", "lamini/lamini_docs", None, None, "train"),
        ("hf:tatsu-lab/alpaca@dce01c9", "tatsu-lab/alpaca", "dce01c9", None, "train"),
        ("hf:allenai/c4:en", "allenai/c4", None, "en", "train"),
        ("hf:openai/gsm8k@main:main:test", "openai/gsm8k", "main", "main", "test"),
    ],
)
def test_a_word_names_data_set_commit_config_and_split(word, name, revision, config, split):
    assert read_word(word) == hub.HubData(word, name, revision, config, split)


@pytest.mark.parametrize("word", ["hf:", "hf:a:b:c:d", "hf:@main"])
def test_a_word_that_names_nothing_is_refused(word):
    with pytest.raises(UserError, match=r"--val_data hf:.*: expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"):
        find([word], "val_data")


def test_a_data_set_becomes_a_file_record_for_record(folder):
    (path,) = find([f"hf:{folder}"])
    assert [parse(raw) for _, raw in raw_records(path)] == [row | {"day": row["day"].isoformat()} for row in ROWS]
    (test,) = find([f"hf:{folder}:default:test"])
    assert len(list(raw_records(test))) == 3
    with pytest.raises(UserError, match="it has no split 'dev', but train, test"):
        find([f"hf:{folder}:default:dev"])


def test_what_was_fetched_is_not_fetched_again_unless_it_changed(folder, monkeypatch):
    first = fetch(f"hf:{folder}")
    with monkeypatch.context() as gone:
        gone.setattr(hub, "rows_of", lambda data: 1 / 0)
        assert fetch(f"hf:{folder}") == first
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), folder / "train-00000-of-00002.parquet")
    second = fetch(f"hf:{folder}")
    assert second != first and len(list(raw_records(second))) == 12


def test_each_word_keeps_the_commit_that_was_fetched_for_it(tmp_path, monkeypatch):
    """One that was fetched later, by its own name, must not be taken for it; and no network is asked again."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path))
    commits = {"hf:a/b:en": "b" * 40, "hf:a/b@v1:en": "a" * 40, "hf:a/b-en": "c" * 40}
    for word, commit in commits.items():
        with monkeypatch.context() as online:
            online.setattr(hub, "pin", lambda data, commit=commit: hub.replace(data, revision=commit))
            online.setattr(hub, "rows_of", lambda data: iter([{"text": data.revision}]))
            fetch(word)
    assert {word: json.loads(fetch(word).read_text())["text"] for word in commits} == commits


def test_what_is_not_there_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        fetch("hf:nobody/nothing")  # the tests have no network
    assert str(caught.value).startswith("--data hf:nobody/nothing: ") and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_file_that_breaks_off_leaves_no_half_of_the_records(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    broken = folder / "train-00001-of-00002.parquet"
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(UserError) as caught:
        fetch(f"hf:{folder}")
    assert f"--data hf:{folder}" in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_is_too_large_to_fetch_is_for_a_stream(folder, monkeypatch):
    monkeypatch.setattr(hub, "LARGEST", 500)
    with pytest.raises(UserError, match=r"more than .* GB of records: train on it with --stream true --max_steps N"):
        fetch(f"hf:{folder}")


def test_what_is_no_text_is_not_lost_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path))
    folder = tmp_path / "d"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a", "raw": b"\xff\0"}]), folder / "d.parquet")
    assert json.loads(fetch(f"hf:{folder}").read_text()) == {"text": "a", "raw": "(bytes)"}


# ---- folders


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", ".hidden.jsonl", "README.md"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find([str(tmp_path)])] == ["a.jsonl.gz", "b.jsonl"]


def test_a_folder_with_a_test_in_it_is_not_trained_on_whole(folder):
    with pytest.raises(UserError, match=r"holds files of several splits \(test-00000.*, train-00000.*\): name those"):
        find([str(folder)])


def test_a_folder_of_several_kinds_is_refused(tmp_path):
    for name in ("a.jsonl", "licence.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"holds files of several kinds \(a.jsonl, licence.txt\)"):
        find([str(tmp_path)])
