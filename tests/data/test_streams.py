"""Streams: every record once, on from a noted place, mixed by shares of tokens; failures are named and lose nothing."""

import bz2
import functools
import gzip
import json

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from gptft.data import hub, streams
from gptft.data.streams import Mix, describe, head_of, open_source, pinned
from gptft.errors import SourceFailed, UserError

RECORDS = [{"text": f"Record {number}: " + "ein Wort, und ein Wort. " * (number % 5)} for number in range(90)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(streams, "WAITS", (0.0, 0.0))


def write_files(folder, kind, records=RECORDS, files=3):
    """The records in several files of a kind, in order; some JSON lines are blank."""
    folder.mkdir(exist_ok=True)
    size = -(-len(records) // files)
    for number in range(files):
        part, path = records[number * size : (number + 1) * size], folder / f"part-{number}{kind}"
        lines = "".join(json.dumps(record) + "\n" * (1 + (at % 7 == 0)) for at, record in enumerate(part)).encode()
        if kind == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(part), path, row_group_size=8)
        elif kind == ".json":
            path.write_text(json.dumps(part, indent=1))
        elif kind == ".csv":
            path.write_text("text\n" + "".join(f'"{record["text"]}"\n' for record in part))
        else:
            compress = {
                ".gz": functools.partial(gzip.compress, mtime=0),
                ".bz2": bz2.compress,
                ".zst": zstandard.compress,
            }
            path.write_bytes(compress.get(path.suffix, bytes)(lines))
    return folder


def texts(rows):
    return [(json.loads(row.raw) if isinstance(row.raw, bytes) else row.raw)["text"] for row in rows]


KINDS = [".jsonl", ".jsonl.gz", ".json.bz2", ".jsonl.zst", ".json", ".csv", ".parquet"]
CASES = [*((kind, "") for kind in KINDS), (".parquet", "hf:"), (".jsonl", "hf:"), (".jsonl.gz", "hf:")]


@pytest.mark.parametrize("kind, by", CASES)
def test_a_stream_goes_on_behind_any_record(tmp_path, kind, by, monkeypatch):
    """Against reading it in one go: the same records, lines and numbers, none twice and none lost."""
    if kind == ".json.bz2":  # JSON lines under another name
        folder = write_files(tmp_path / "d", ".jsonl.bz2")
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.replace(".jsonl", ".json")))
    else:
        folder = write_files(tmp_path / "d", kind)
    (entry,) = pinned(describe([f"{by}{folder}"]))
    monkeypatch.setattr("gptft.data.sources.AT_ONCE", 64)  # what cannot be sought in is skipped in several pieces
    whole = list(open_source(entry))
    assert texts(whole) == [record["text"] for record in RECORDS]
    for done in (0, 1, 7, 8, 29, 30, 31, 60, 89, 90):
        source = open_source(entry)
        rows = iter(source)
        read = [next(rows) for _ in range(done)]
        place = json.loads(json.dumps(source.place))  # as it is stored
        assert read + list(open_source(entry, place)) == whole, done
    place, read = None, []
    for count in (7, 1, 24, 0, 30):  # on again and again, each time from a place that was found from a place
        source = open_source(entry, place)
        rows = iter(source)
        read += [next(rows) for _ in range(count)]
        place = json.loads(json.dumps(source.place))
    assert read + list(open_source(entry, place)) == whole


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_going_on_does_not_read_from_the_start(tmp_path, kind, monkeypatch):
    """What was read is not looked at again: the first file may be gone, and the second is begun in its middle."""
    folder = write_files(tmp_path / "d", kind)
    (entry,) = describe([str(folder)])
    source = open_source(entry)
    rows = iter(source)
    for _ in range(50):
        next(rows)
    (folder / f"part-0{kind}").unlink()
    begun, reads = [], {"json_lines": streams.json_lines, "rows_of_parquet": streams.rows_of_parquet}
    for name, read in reads.items():
        monkeypatch.setattr(
            streams, name, lambda path, *at, read=read: begun.append((path.name, *at)) or read(path, *at)
        )
    assert texts(open_source(entry, source.place)) == [record["text"] for record in RECORDS[50:]]
    assert begun[0][0] == f"part-1{kind}" and begun[0][-1] == source.place.get("byte", 20) > 0


def test_a_file_that_changes_under_the_stream_is_an_error_not_other_records(tmp_path):
    """What is read of it would stand in the cache under the name of what it was, or be taken for its end."""
    folder = write_files(tmp_path / "d", ".jsonl", files=1)
    (path,), (entry,) = folder.iterdir(), describe([str(folder)])
    source = open_source(entry)
    rows = iter(source)
    next(rows)
    with path.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(UserError, match="changed since the stream was begun"):
        list(rows)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="changed since the stream was begun"):
        list(open_source(entry, source.place))


def test_sources_without_weights_come_one_after_the_other(tmp_path):
    folders = [write_files(tmp_path / name, ".jsonl", RECORDS[:40], 1) for name in ("a", "b")]
    mix = Mix(describe(map(str, folders)))
    taken = []
    while batch := mix.take():
        taken.append(batch)
    assert [which for which, _ in taken] == sorted(which for which, _ in taken)
    assert [text for _, rows in taken for text in texts(rows)] == [record["text"] for record in RECORDS[:40]] * 2
    assert mix.take() is None


def test_a_mix_keeps_to_its_shares_of_tokens_and_goes_on_where_it_was(tmp_path):
    folders = [write_files(tmp_path / name, ".jsonl", RECORDS[:60], 2) for name in ("a", "b")]
    entries, weights = describe(map(str, folders)), [0.8, 0.2]

    def count(mix, which, rows):  # as the maker does, by characters here
        mix.tokens[which] += sum(map(len, texts(rows)))

    mix, order, states = Mix(entries, weights), [], []
    for _ in range(60):
        states.append(json.loads(json.dumps(mix.state)))
        which, rows = mix.take()
        count(mix, which, rows)
        order.append((which, rows))
    assert mix.tokens[0] / sum(mix.tokens) == pytest.approx(0.8, abs=0.03)
    assert min(mix.passes) >= 1  # each began again when it had ended
    for at in (0, 1, 17, 40):
        again = Mix(entries, weights, states[at])
        for expected in order[at : at + 8]:
            which, rows = again.take()
            count(again, which, rows)
            assert (which, rows) == expected


@pytest.mark.parametrize("gone_on_with", [False, True])
@pytest.mark.parametrize("content", ["\n\n", "broken\n" * 50])
def test_a_source_of_a_mix_that_gives_no_token_is_an_error(tmp_path, content, gone_on_with):
    """It would be read again and again, without end."""
    (tmp_path / "d.jsonl").write_text(content)
    entries = describe([str(tmp_path / "d.jsonl")])
    mix = Mix(entries, [1.0])
    if gone_on_with:  # of the pass in which it was stopped it does not know how many tokens came
        mix = Mix(entries, [1.0], mix.state)
    with pytest.raises(UserError, match=r"d\.jsonl: it holds no record that can be trained on"):
        for _ in range(10):
            mix.take()


def test_a_folder_that_comes_back_is_read_on_without_a_gap(tmp_path, monkeypatch):
    """By the library, in the same process: its place is that of the last record that it gave."""
    folder = write_files(tmp_path / "d", ".parquet")
    (entry,) = pinned(describe([f"hf:{folder}"]))
    away = tmp_path / "away"
    monkeypatch.setattr(streams.time, "sleep", lambda seconds: away.rename(folder))
    mix, read = Mix([entry]), []
    while batch := mix.take(13):
        read += texts(batch[1])
        if len(read) == 26:
            folder.rename(away)
            mix.rows[0] = None  # as after an error
    assert read == [record["text"] for record in RECORDS]


def test_a_source_that_fails_for_a_while_is_opened_again_and_loses_nothing(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "d", ".jsonl", files=1)
    failures = iter([5, 20, 21])
    reading, fail_at = streams.json_lines, [next(failures)]

    def failing(*arguments):
        for line, raw, byte in reading(*arguments):
            if line >= fail_at[0]:
                fail_at[0] = next(failures, 10**9)
                raise OSError("the network is unreachable")
            yield line, raw, byte

    monkeypatch.setattr(streams, "json_lines", failing)
    monkeypatch.setattr(streams, "WAITS", (0.0,) * 3)
    mix, read = Mix(describe([str(folder)])), []
    while batch := mix.take():
        read += texts(batch[1])
    assert read == [record["text"] for record in RECORDS]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("by", ["", "hf:"])
@pytest.mark.parametrize("kind", [".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("harm", [cut_short, lambda path: path.unlink()], ids=["cut short", "gone"])
def test_a_source_that_stays_away_is_named_with_where_it_was_read_until(tmp_path, kind, by, harm):
    folder = write_files(tmp_path / "d", kind)
    entries = pinned(describe([f"{by}{folder}"]))
    mix = Mix(entries)
    read = texts(mix.take()[1])
    harm(folder / f"part-2{kind}")
    with pytest.raises(SourceFailed) as caught:
        while (state := json.loads(json.dumps(mix.state))) and (batch := mix.take()):
            read += texts(batch[1])
    message = str(caught.value)
    assert str(folder) in message and "read until record" in message and "\n" not in message
    write_files(folder, kind)  # it is back
    again = Mix(entries, (), state)  # as it was before what failed
    while batch := again.take():
        read += texts(batch[1])
    assert read == [record["text"] for record in RECORDS]


def test_a_text_file_cannot_be_a_stream(tmp_path):
    (tmp_path / "book.txt").write_text("It was a dark night.")
    with pytest.raises(UserError, match=r"--stream: .*book\.txt is one text: train on it without --stream"):
        describe([str(tmp_path / "book.txt")])


def test_the_head_is_the_first_records_as_they_are(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n\nbroken\n{"text": "b"}')
    (entry,) = describe([str(path)])
    assert list(head_of(entry, 1000)) == [b'{"text": "a"}\n', b"broken\n", b'{"text": "b"}\n']
    assert len(list(head_of(entry, 2))) == 2


def test_the_commit_of_a_data_set_is_kept(monkeypatch, tmp_path):
    """Another commit in mid-run would be other data under the same name."""
    monkeypatch.setattr(hub, "pin", lambda data: hub.replace(data, revision="0123abc"))
    entries = pinned(describe(["hf:someone/something:en"]))
    assert entries == [{"word": "hf:someone/something:en", "revision": "0123abc"}]
    source = open_source(entries[0])
    assert source.data == hub.HubData("hf:someone/something:en", "someone/something", "0123abc", "en", "train")
