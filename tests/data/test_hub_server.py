"""`hf:` over HTTP, against a server that speaks the hub's protocol: the commit is kept, what is fetched stays, and a
connection that breaks in the middle of a file loses nothing."""

import json
import os
import sys
from pathlib import Path

import pyarrow
import pytest
from cli import GPTFT, is_one_line, shell
from hub_server import NAME, HubServer
from pyarrow import parquet

FIRST, SECOND = "a" * 40, "b" * 40
TINY = ["--init", "tiny", "--max_length", 64, "--batch_size", 4, "--test_samples", 0, "--save_every", 0]


def texts(count, word):
    return [{"text": f"The {word} number {number} stands here, and it is one of many."} for number in range(count)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Two commits of a data set: Parquet files of another word in each."""
    commits = {}
    for commit, word in ((FIRST, "old"), (SECOND, "new")):
        commits[commit] = folder = tmp_path / word
        (folder / "data").mkdir(parents=True)
        for number in range(3):
            table = pyarrow.Table.from_pylist(texts(400, word)[number::3])
            parquet.write_table(table, folder / "data" / f"train-{number:05}-of-00003.parquet", row_group_size=50)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with HubServer(commits) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def fetched():
    """What the cache holds: {file name: number of records that tell of each word}."""
    found = {}
    for path in sorted(Path(os.environ["GPTFT_CACHE"], "hub").glob("*.jsonl")):
        lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        found[path.name] = {word: sum(word in line for line in lines) for word in ("old", "new")}
    return found


FETCH = [sys.executable, "-c", "import sys; from gptft.data.sources import find; print(find(sys.argv[1:])[0])"]


@pytest.mark.slow
def test_a_data_set_is_fetched_once_at_a_commit(hub, monkeypatch):
    status, out, err = shell(GPTFT, "train", *TINY, "--data", f"hf:{NAME}", "--max_steps", 2, "--out_dir", "run")
    assert status == 0, err
    assert "400 records read" in out
    name = NAME.replace("/", "--")
    assert fetched() == {f"{name}-train@{SECOND[:12]}.jsonl": {"old": 0, "new": 400}}
    # from then on without the network
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert shell(FETCH, f"hf:{NAME}")[0] == 0
    # another commit by its name; and one that is not there
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert shell(FETCH, f"hf:{NAME}@{FIRST}")[0] == 0
    assert fetched()[f"{name}-train@{FIRST[:12]}.jsonl"] == {"old": 400, "new": 0}
    for word in (f"hf:{NAME}@cccc", "hf:someone/other"):
        status, _, err = shell(GPTFT, "train", *TINY, "--data", word, "--max_steps", 2, "--out_dir", "none")
        assert status == 2
        is_one_line(err, f"--data {word}: ")


@pytest.mark.slow
def test_a_stream_of_the_hub_stays_at_its_commit_and_survives_broken_connections(hub, tmp_path):
    """Against the same run on local files that nothing happens to."""
    words = ["--stream", "true", "--shard_tokens", 1500, "--max_steps", 60, *TINY]
    hub.drop = 2
    status, _, err = shell(GPTFT, "train", *words, "--data", f"hf:{NAME}", "--out_dir", "by-hub")
    assert status == 0, err
    assert hub.drop == 0
    hub.commits[FIRST] = hub.commits.pop(FIRST)  # main is the other commit from now on
    goes_on = ["train", "--resume", "--config", "by-hub/config.toml", "--out_dir", "by-hub", "--max_steps", 70]
    status, _, err = shell(GPTFT, *goes_on)
    assert status == 0, err
    local = tmp_path / "new" / "data"
    status, _, err = shell(GPTFT, "train", *words, "--data", local, "--max_steps", 60, "--out_dir", "by-files")
    assert status == 0, err
    losses = {
        name: [row["loss"] for row in map(json.loads, open(f"{name}/metrics.jsonl")) if "loss" in row][:60]
        for name in ("by-hub", "by-files")
    }
    assert losses["by-hub"] == losses["by-files"]
