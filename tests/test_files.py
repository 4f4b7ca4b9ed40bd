"""Files: what was there stays whole until the new file is."""

import json
import os
import subprocess
import sys
import threading

import pytest

from gptft.errors import UserError, nearest, need_extra
from gptft.files import (
    atomic_write,
    fingerprints,
    json_line,
    read_json_lines,
    resource,
    sha256_file,
    write_json_lines,
)


def names(folder):
    return sorted(os.listdir(folder))


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    """A crash in mid-write once meant half a file under the right name."""
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half of the new")
        file.flush()
        raise RuntimeError("crash")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["summary.json"]


def test_ctrl_c_in_a_write_leaves_the_old_file_and_no_temporary(tmp_path):
    """KeyboardInterrupt is no Exception: a plain `except Exception` would leave the temporary file."""
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_write_that_the_system_refuses_leaves_the_old_file(tmp_path):
    """The real thing: a limit on file sizes fails the last flush, as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limits on file sizes here")
    code = f"""
import resource, signal
from gptft.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
try:
    with atomic_write({str(tmp_path / "x")!r}) as file:
        file.write("n" * 2000)
except OSError as error:
    print("refused", error.errno)
"""
    (tmp_path / "x").write_text("old")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("refused")
    assert (tmp_path / "x").read_text() == "old" and names(tmp_path) == ["x"]


def test_the_new_file_is_not_seen_before_it_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["x"]


def test_missing_folders_are_made_and_bytes_are_written(tmp_path):
    with atomic_write(tmp_path / "a" / "b" / "x.bin", "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\x00\xff"


def test_text_is_utf8_whatever_the_locale(tmp_path):
    with atomic_write(tmp_path / "x") as file:
        file.write("é 😀")
    assert (tmp_path / "x").read_bytes() == "é 😀".encode()


@pytest.mark.parametrize("text", ["plain", "é 日本 😀", "half of a pair \ud83d", "\u2028 line separator \x00"])
def test_any_text_can_be_written_as_a_json_line(text):
    """Half of a surrogate pair, legal in JSON as an escape, once ended a run with a UnicodeEncodeError."""
    line = json_line({"a": text})
    line.encode()
    assert line.endswith("\n") and line.count("\n") == 1
    assert json.loads(line) == {"a": text}


def test_json_lines_stay_readable():
    assert json_line("日本") == '"日本"\n'


def test_nearest_names_only_what_is_near():
    assert nearest("epoch", ["epochs", "lr"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == ""


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    assert "pip install 'gptft[hf]'" in str(need_extra("safetensors", "hf", "reading"))


def test_a_resource_that_is_not_there_is_a_clear_error():
    assert resource("data/vocab.tiktoken").exists()
    with pytest.raises(UserError, match="lacks its own file 'data/nothing'"):
        resource("data/nothing")


def test_files_are_known_by_content_and_large_ones_by_size_and_time(tmp_path, monkeypatch):
    """A corpus whose file was edited in place, its size the same, would be trained on as it was before."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("12345")
    before = fingerprints(paths)
    os.utime(paths[0], (1, 1))  # copied elsewhere and back, say
    assert fingerprints(paths) == before
    paths[1].write_text("12346")
    assert fingerprints(paths)[0] == before[0] and fingerprints(paths)[1] != before[1]
    monkeypatch.setattr("gptft.files.HASHED_WHOLE", 9)
    before = fingerprints(paths)
    os.utime(paths[0], (2, 2))
    assert fingerprints(paths)[0] != before[0] and fingerprints(paths)[1] == before[1]


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_lines_come_back_as_they_were_written(tmp_path):
    """A response may hold line separators other than the newline, and half of a surrogate pair."""
    rows = [{"after": "a\u2028b\x85c\nd"}, {"after": "\ud83d half"}, {}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_threads_that_write_the_same_file_are_not_in_each_others_way(tmp_path):
    """Two runs of one process on one corpus did: one renamed the temporary file of the other."""
    path, failed = tmp_path / "x", []
    everyone = threading.Barrier(4)

    def write(letter):
        try:
            for _ in range(20):
                everyone.wait()
                with atomic_write(path) as file:
                    file.write(letter * 1000)
        except Exception as error:
            everyone.abort()
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_text() in {letter * 1000 for letter in "abcd"}
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
