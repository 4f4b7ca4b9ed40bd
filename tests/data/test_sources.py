"""Files -> records, each with the line on which it begins; what cannot be read is named with file and line."""

import bz2
import gzip
import json
import sys

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from gptft.data.compressed import mentions
from gptft.data.sources import find, parse, raw_records
from gptft.errors import Unreadable, UserError

COMPRESSED = [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstandard.compress)]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path):
    return [(line, parse(raw)) for line, raw in raw_records(path)]


def refused(path):
    """The one line with which the whole file is refused."""
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def unreadable(path):
    """{line: why} of the records that cannot be parsed."""
    out = {}
    for line, raw in raw_records(path):
        try:
            parse(raw)
        except Unreadable as error:
            out[line] = str(error)
    return out


# ---- JSON lines


def test_json_lines_come_with_their_line_numbers_blank_lines_counted(tmp_path):
    path = write(tmp_path, "d.jsonl", '{"a": "1"}\n\n  \r\n{"a": "2"}\r\n{"a": "3"}')
    assert read(path) == [(1, {"a": "1"}), (4, {"a": "2"}), (5, {"a": "3"})]


def test_other_line_separators_inside_a_text_do_not_end_the_line(tmp_path):
    """str.splitlines would cut a record in two at U+2028, which JSON does not escape."""
    path = write(tmp_path, "d.jsonl", '{"a": "x\u2028y\x85z"}\n{"a": "2"}\n')
    assert read(path) == [(1, {"a": "x\u2028y\x85z"}), (2, {"a": "2"})]


def test_json_lines_are_streamed(tmp_path):
    """A broken line at the end of a long file must not keep the first records from being seen."""
    path = write(tmp_path, "d.jsonl", '{"a": "1"}\nbroken\n')
    lines = raw_records(path)
    assert next(lines)[0] == 1


@pytest.mark.parametrize("name, content", [("d.jsonl", '{"a": "1"}\n'), ("d.json", '[{"a": "1"}]'), ("d.txt", "1")])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name, content):
    plain = read(write(tmp_path, name, content))
    assert read(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == plain


def test_a_broken_line_is_named_with_its_column(tmp_path):
    path = write(tmp_path, "d.jsonl", '{"a": "1"}\n{"a": }\n{"a": "3"}\n{"a": "4"\n')
    assert set(unreadable(path)) == {2, 4}
    assert unreadable(path)[2] == "broken JSON: Expecting value (column 7)"
    assert unreadable(path)[4] == "broken JSON: Expecting ',' delimiter (column 10)"


def test_two_records_on_one_line_are_not_half_read(tmp_path):
    """A reader that stopped after the first object would lose the second without a word."""
    path = write(tmp_path, "d.jsonl", '{"a": "1"} {"a": "2"}\n')
    assert unreadable(path) == {1: "broken JSON: Extra data (column 12)"}


def test_a_line_that_is_no_utf8_is_named(tmp_path):
    path = write(tmp_path, "d.jsonl", b'{"a": "ok"}\n{"a": "caf\xe9"}\n{"a": "caf\xc3\xa9"}\n')
    assert unreadable(path) == {2: "not UTF-8 (byte 11 of the line)"}


@pytest.mark.parametrize(
    "value, found",
    [
        ("[1]", "a list"),
        ('"text"', "a text"),
        ("3", "a number"),
        ("2.5", "a number"),
        ("null", "null"),
        ("true", "true or false"),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_record_that_is_no_object_is_told_what_it_is(tmp_path, name, value, found):
    """A text in an array was once parsed as JSON a second time, and reported as broken."""
    content = f'{{"a": "1"}}\n{value}\n' if name == "d.jsonl" else f'[{{"a": "1"}},\n{value}]'
    assert unreadable(write(tmp_path, name, content)) == {2: f"a record must be a JSON object, not {found}"}


def test_json_nested_too_deeply_is_no_traceback(tmp_path):
    deep = "[" * 100_000
    assert "nested too deeply" in unreadable(write(tmp_path, "d.jsonl", f'{{"a": {deep}\n'))[1]
    assert "nested too deeply" in refused(write(tmp_path, "d.json", f'[{{"a": {deep}'))


# ---- JSON arrays


def test_an_arrays_records_come_with_the_line_on_which_each_begins(tmp_path):
    records = [{"a": str(n), "b": "x\ny"} for n in range(5)]
    path = write(tmp_path, "d.json", json.dumps(records, indent=2))
    assert read(path) == [(2 + 4 * n, record) for n, record in enumerate(records)]


def test_several_records_on_one_line_of_an_array(tmp_path):
    path = write(tmp_path, "d.json", '\n[{"a": "1"}, {"a": "2"},\n{"a": "3"} , {"a": "4"}\n]\n\n')
    assert read(path) == [(2, {"a": "1"}), (2, {"a": "2"}), (3, {"a": "3"}), (3, {"a": "4"})]


def test_an_empty_array_holds_no_records(tmp_path):
    assert read(write(tmp_path, "d.json", " [ ]\n")) == []


@pytest.mark.parametrize("lead", ["", "\n\n  ", "\ufeff", "\ufeff\n"])
def test_a_json_file_that_holds_lines_is_read_as_lines(tmp_path, lead):
    """Many data sets are named .json and hold a record a line."""
    path = write(tmp_path, "d.json", lead + '{"a": "1"}\n{"a": "2"}\n')
    first = 1 + lead.count("\n")
    assert read(path) == [(first, {"a": "1"}), (first + 1, {"a": "2"})]


@pytest.mark.parametrize(
    "content, message",
    [
        ('[\n{"a": "1"},\n{"a": }\n]', "line 3: broken JSON: Expecting value"),
        ('[\n{"a": "1"}\n{"a": "2"}\n]', "line 3: broken JSON: expected ',' or ']'"),
        ('[\n{"a": "1"},\n{"a": "2"}', "line 3: broken JSON: the list is not closed"),
        ('[\n{"a": "1"},\n', "line 3: broken JSON: Expecting value"),
        ('[{"a": "1"}]\n[{"a": "2"}]', "line 2: broken JSON: something follows the list of records"),
        ("[] x", "line 1: broken JSON: something follows"),
        ('"text"', "line 1: broken JSON: expected a list of records"),
        ("\n\nquestion,answer\n", "line 3: broken JSON: expected a list of records"),
        ("  \n ", "holds nothing but white space"),
    ],
)
def test_a_broken_array_is_named_with_its_line(tmp_path, content, message):
    """Two lists in one file: the second was once left out without a word."""
    assert message in refused(write(tmp_path, "d.json", content))


@pytest.mark.parametrize("indent", [None, 2])
def test_the_one_list_of_records_in_an_object_is_read_with_its_lines(tmp_path, indent):
    """`{"data": [...]}`. Read as JSON lines it gave one error a line, none of which said what was wrong."""
    records = [{"a": "1"}, {"a": "[2"}, {"a": "3"}]
    content = json.dumps({"version": [1, 2], "data": records, "of": {"x": []}}, indent=indent)
    found = read(write(tmp_path, "d.json", "\n" + content))
    assert [record for _, record in found] == records
    assert [line for line, _ in found] == ([2, 2, 2] if indent is None else [8, 11, 14])


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "about it", "data": [{"a": 1}, {"a": 2}]}',
        '{"data": [{"a": 1}\n,{"a": 2}]}',
        '{"meta": {"n": 1}\n,"data": [{"a": 1}, {"a": 2}]}',
    ],
)
def test_a_list_in_an_object_is_found_however_it_is_written(tmp_path, content):
    """Taken for JSON lines, every line was a bad record; taken for a text, the records were not read."""
    assert [record for _, record in read(write(tmp_path, "d.json", content))] == [{"a": 1}, {"a": 2}]


def test_a_number_of_thousands_of_digits_is_one_line(tmp_path):
    number = "1" * 5000
    assert "broken JSON: Exceeds the limit" in unreadable(write(tmp_path, "d.jsonl", f'{{"a": {number}}}'))[1]
    assert "line 1: broken JSON: Exceeds the limit" in refused(write(tmp_path, "d.json", f'[{{"a": {number}}}]'))


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    """The first of the two was lost without a word."""
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    parquet.write_table(table, tmp_path / "d.parquet")
    assert "every column must have a name of its own" in refused(tmp_path / "d.parquet")


def test_one_object_over_several_lines_that_is_a_record_is_one(tmp_path):
    record = {"question": "Why?", "answer": "So."}
    assert read(write(tmp_path, "d.json", "\n" + json.dumps(record, indent=2))) == [(2, record)]
    record = {"messages": [{"role": "user", "content": "Why?"}]}
    assert read(write(tmp_path, "e.json", json.dumps(record))) == [(1, record)]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"train": [{"a": "1"}], "test": [{"a": "2"}]}, "one such list in it: 'train' and 'test'"),
        ({"train": {"a": ["1"]}, "n": 3}, "one such list in it: none among 'train', 'n'"),
        ({}, "none among no keys"),
    ],
)
def test_an_object_without_one_list_of_records_says_what_it_has(tmp_path, content, message):
    text = json.dumps(content, indent=2) if content else "{\n}"
    found = refused(write(tmp_path, "d.json", text))
    assert "one JSON object; expected a list of records" in found and message in found


@pytest.mark.parametrize(
    "content, message",
    [
        ('{\n"data": [{"a": 1},\n{"a" 2}]}', "line 3: broken JSON: Expecting ':' delimiter"),
        ('{\n"data": [{"a": 1}]\n} {}', "line 3: broken JSON: something follows the object"),
        ('{\n"data": [{"a": 1}],\n"data": [{"a": 2}]}', "line 3: broken JSON: the key 'data' stands there twice"),
        ('{\n"question": "a",\n"answer": "b",\n}', "line 4: broken JSON: expected a key"),
        ("{\n[1]: [2]}", "line 2: broken JSON: expected a key"),
        ('{\n"data" [{"a": 1}]\n}', "line 2: broken JSON: expected ':'"),
        ('{\n"data": [{"a": 1}]', "line 2: broken JSON: expected ',' or '}'"),
    ],
)
def test_a_broken_object_is_named_with_its_line(tmp_path, content, message):
    assert message in refused(write(tmp_path, "d.json", content))


def test_an_array_that_is_no_utf8_is_named_with_its_line(tmp_path):
    assert "line 2: not UTF-8" in refused(write(tmp_path, "d.json", b'[{"a": "1"},\n{"a": "\xe9"}]'))


# ---- plain text


def test_a_text_file_is_one_record_as_it_stands(tmp_path):
    text = "One.\n\n  Two. \ufeff\n"
    assert read(write(tmp_path, "d.txt", text)) == [(1, {"text": text})]


def test_a_text_file_that_is_blank_or_no_utf8_is_refused(tmp_path):
    assert "holds nothing but white space" in refused(write(tmp_path, "d.txt", " \n\n"))
    assert "line 3: not UTF-8" in refused(write(tmp_path, "d.txt", b"a\nb\n\xff\n"))


# ---- finding files


def test_files_are_found_and_embedded_ones_too(tmp_path):
    path = write(tmp_path, "d.jsonl", "{}")
    assert find([str(path)]) == [path]
    assert find(["embedded:text.txt"])[0].name == "text.txt"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.json", None, "--val_data: no such file: "),
        ("d.doc", "a,b", "expected a .json, .jsonl, .csv, .tsv, .parquet or .txt file, or one of these as .gz, .bz2"),
        ("d.doc.gz", "a,b", "expected a .json, .jsonl, .csv, .tsv, .parquet or .txt file"),
        ("d.jsonl", "", "is empty"),
        (".", None, "holds no .json, .jsonl, .csv, .tsv, .parquet or .txt file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_flag(tmp_path, name, content, message):
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        find([str(tmp_path / name)], "val_data")
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert str(caught.value).startswith("--val_data: ") and caught.value.status == 2


# ---- tables and compressed files


def test_a_table_gives_a_record_a_row_with_the_line_on_which_it_begins(tmp_path):
    """Quoted fields may hold delimiters, quotes and new lines; an empty line is no row."""
    text = '\ufeffquestion,answer\r\nWhat?,"One, ""two"",\r\nthree."\r\n\r\nWho?,\r\n'
    path = tmp_path / "d.csv"
    path.write_bytes(text.encode())
    assert read(write(tmp_path, "blank.csv", "\n \n\na,b\n1,2\n".replace(" ", ""))) == [(5, {"a": "1", "b": "2"})]
    rows = [(line, parse(raw)) for line, raw in raw_records(path)]
    assert rows == [
        (2, {"question": "What?", "answer": 'One, "two",\r\nthree.'}),
        (5, {"question": "Who?", "answer": ""}),
    ]
    path = write(tmp_path, "d.tsv", "a\tb\n1, 2\t3\n")
    assert [(line, parse(raw)) for line, raw in raw_records(path)] == [(2, {"a": "1, 2", "b": "3"})]


def test_a_row_of_another_length_is_a_bad_record_by_line(tmp_path):
    path = write(tmp_path, "d.csv", "a,b\n1,2\n1,2,3\n1\n4,5\n")
    found = []
    for line, raw in raw_records(path):
        try:
            found.append((line, parse(raw)))
        except Unreadable as error:
            found.append((line, str(error)))
    assert found == [
        (2, {"a": "1", "b": "2"}),
        (3, "it has 3 of 2 fields"),
        (4, "it has 1 of 2 fields"),
        (5, {"a": "4", "b": "5"}),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,a\n1,2\n", "line 1: every column must have a name of its own"),
        ("a,\n1,2\n", "line 1: every column must have a name of its own"),
        ('a,b\n1,2\n"x,y\n', "line 3: no table that can be read"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_by_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        list(raw_records(write(tmp_path, "d.csv", text)))


def test_a_table_that_is_no_utf8_is_named_by_line(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"a,b\n1,2\n\xff,3\n")
    with pytest.raises(UserError, match="line 3: not UTF-8"):
        list(raw_records(tmp_path / "d.csv"))


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".csv", ".txt"])
@pytest.mark.parametrize("ending, compress", COMPRESSED)
def test_a_compressed_file_gives_the_records_of_the_file(tmp_path, kind, ending, compress):
    content = {".json": '[{"a": 1},\n{"a": 2}]', ".jsonl": '{"a": 1}\n{"a": 2}', ".csv": "a\n1\n2\n", ".txt": "Hello."}
    plain = write(tmp_path, f"d{kind}", content[kind])
    packed = tmp_path / f"d{kind}{ending}"
    packed.write_bytes(compress(content[kind].encode()))
    assert find([str(packed)]) == [packed]
    assert [(n, parse(raw)) for n, raw in raw_records(packed)] == [(n, parse(raw)) for n, raw in raw_records(plain)]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"plain text", lambda data: data[:20] + b"xx"])
@pytest.mark.parametrize("ending, compress", COMPRESSED)
def test_a_damaged_compressed_file_is_one_line(tmp_path, ending, compress, damage):
    path = tmp_path / f"d.jsonl{ending}"
    path.write_bytes(damage(compress(b'{"a": 1}\n' * 500)))
    with pytest.raises(UserError, match="cannot be decompressed: it is damaged, or cut short"):
        list(raw_records(path))


def test_all_frames_of_a_zst_file_are_read_and_one_cut_short_is_an_error(tmp_path):
    """zstandard's own stream ends without a word where the last frame is not complete: records would be lost."""
    path = tmp_path / "d.jsonl.zst"
    frames = [zstandard.compress(b'{"a": %d}\n' % n * 9) for n in range(3)]
    path.write_bytes(b"".join(frames))
    assert [parse(raw)["a"] for _, raw in raw_records(path)] == [0] * 9 + [1] * 9 + [2] * 9
    for cut in range(1, len(frames[2])):
        path.write_bytes(b"".join(frames)[:-cut])
        with pytest.raises(UserError, match="cut short"):
            list(raw_records(path))


def test_a_parquet_file_gives_a_record_a_row(tmp_path):
    """More rows than are decoded at a time; nested values come as Python's own."""
    records = [{"question": f"{n}?", "answers": {"text": [str(n)], "answer_start": [n]}} for n in range(2345)]
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    assert [(n, parse(raw)) for n, raw in raw_records(path)] == list(enumerate(records, 1))
    assert find([str(path)]) == [path]
    packed = tmp_path / "d.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"compressed inside: give it as it is, without \.gz"):
        list(raw_records(packed))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"plain", lambda data: data[:900] + data[950:]]
)
def test_a_damaged_parquet_file_is_one_line(tmp_path, damage):
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.table({"text": [f"{n} {n**9}" for n in range(3000)]}), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="no Parquet file that can be read") as caught:
        list(raw_records(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, package", [("d.parquet", "pyarrow"), ("d.jsonl.zst", "zstandard")])
def test_an_absent_package_is_named_with_its_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"needs the package '{package}': pip install 'gptft\[data\]'"):
        list(raw_records(tmp_path / name))


def test_words_are_found_across_pieces_of_a_file(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * ((1 << 20) - 3) + b'"weight"' + b"y" * 100))
    assert mentions(path, b'"weight"') and not mentions(path, b'"weigth"')
