"""The linter over files, its report, its command and what --fix writes."""

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gptft.__main__ import main
from gptft.curation.findings import KINDS
from gptft.curation.lint import lint
from gptft.errors import UserError
from gptft.report.findings import as_html, as_text

GOOD = [{"question": f"What is the name of number {n}?", "answer": f"It is called {n * 7919}."} for n in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(capsys, *words):
    """(exit status, what was printed)."""
    try:
        main(["lint", *words])
    except SystemExit as stop:
        return stop.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def found_in(capsys, path, *words):
    status, out = run(capsys, "--data", str(path), "--json", *words)
    report = json.loads(out)
    assert (status == 1) == bool(report["findings"])
    return [(finding["kind"], finding["line"]) for finding in report["findings"]]


def test_nothing_is_found_in_good_records_and_the_status_is_0(write_lines, capsys):
    path = write_lines(GOOD)
    status, out = run(capsys, "--data", str(path))
    assert status == 0 and out == "60 records: nothing found\n"


def test_every_record_that_cannot_be_used_is_named_with_its_line(write_lines, capsys):
    bad = [
        '{"question": "a"',
        "[1]",
        {"question": "a"},
        {"question": "a", "answer": ["b"]},
        {"question": "a", "answer": " "},
    ]
    bad += [{"question": " ", "answer": "b"}]
    path = write_lines(GOOD)
    path.write_text(
        path.read_text() + "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in bad)
    )
    kinds = [("broken", 61), ("broken", 62), ("shape", 63), ("shape", 64), ("empty", 65), ("empty", 66)]
    assert found_in(capsys, path) == kinds


def test_keys_and_types_that_few_records_have_are_named(write_lines, capsys):
    records = [{**record, "id": n} for n, record in enumerate(GOOD)]
    records[7] = {**records[7], "answr": "x"}
    records[9] = {**records[9], "id": "nine"}
    path = write_lines(records)
    assert found_in(capsys, path) == [("key", 8), ("type", 10)]
    _, out = run(capsys, "--data", str(path))
    assert "the key 'answr', which 1 record has and which plays no part; did you mean 'answer'?" in out
    assert "key 'id' holds a text, and a number in 59 records" in out


def test_records_that_do_not_agree_are_a_finding_and_not_the_end(write_lines, capsys):
    path = write_lines([*GOOD, {"instruction": "a", "output": "b"}])
    kinds = found_in(capsys, path)
    assert ("shape", 1) in kinds and "choose one with --template" in run(capsys, "--data", str(path))[1]


def test_the_template_that_all_prompts_hold_is_no_finding(write_lines, capsys):
    held = [{**record, "question": f"### Question:\n{record['question']}\n\n### Answer:\n"} for record in GOOD]
    assert found_in(capsys, write_lines(held)) == []
    assert {kind for kind, _ in found_in(capsys, write_lines([*held, *GOOD]))} >= {"shape", "special"}


def test_leaks_between_the_files_are_found(write_lines, capsys):
    train, val = write_lines(GOOD), write_lines([{**GOOD[3], "answer": "No."}], "val.jsonl")
    assert found_in(capsys, train, "--val_data", str(val)) == [("leak", 4)]
    assert found_in(capsys, train, "--test_data", str(val)) == [("leak", 4)]


def test_a_text_file_is_looked_at_by_line(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("Fine.\nA <|endoftext|> here.\nFine.\nIt\x00.\n")
    assert found_in(capsys, tmp_path / "t.txt") == [("special", 2), ("control", 4)]


def test_kinds_can_be_ignored_and_a_misspelt_one_is_refused(write_lines, capsys):
    path = write_lines([*GOOD, GOOD[0]])
    assert found_in(capsys, path) == [("duplicate", 61)]
    assert found_in(capsys, path, "--ignore", "duplicate", "cut") == []
    with pytest.raises(UserError, match="--ignore duplicat: no such kind; did you mean 'duplicate'"):
        main(["lint", "--data", str(path), "--ignore", "duplicat"])


def test_lengths_stand_out_by_words_and_by_tokens(write_lines, capsys):
    long = {"question": "What is it?", "answer": "It is one of the many. " * 300}
    path = write_lines([*GOOD, long])
    assert found_in(capsys, path) == [("length", 61)]
    kinds = found_in(capsys, path, "--init", "tiny", "--max_length", "200")
    assert kinds == [("length", 61), ("too-long", 61)]
    _, out = run(capsys, "--data", str(path), "--init", "tiny", "--max_length", "200")
    assert "loses" in out and "truncation drop: 0 cut, 1 dropped" in out and "padding at batch size 8" in out
    assert sum(int(n) for n in re.findall(r"#* +(\d+)$", out.split("response: ")[1], re.M)[:12]) == 61


def test_the_lengths_are_those_that_training_counts(write_lines, capsys):
    """Tokens and targets are those of the ledger of a run over the same file."""
    from gptft.data.examples import Recipe, load_dataset
    from gptft.prompts import TEMPLATES
    from gptft.tokenizer import embedded

    path = write_lines(GOOD)
    lengths = json.loads(run(capsys, "--data", str(path), "--init", "tiny", "--json")[1])["lengths"]
    ledger = load_dataset([path], embedded(), Recipe(TEMPLATES["qa"], 256)).ledger
    assert (lengths["tokens"], lengths["targets"]) == (ledger["tokens_read"], ledger["targets"])


def test_a_page_shows_everything_that_was_found_and_nothing_of_it_is_html(write_lines, capsys, tmp_path):
    path = write_lines(
        [*GOOD, {"question": "What is <b>this</b> now?", "answer": "<|im_end|><script>alert(1)</script>"}]
    )
    run(capsys, "--data", str(path), "--html", "page.html", "--init", "tiny")
    page = (tmp_path / "page.html").read_text()
    assert "special (1)" in page and "<script>" not in page and "<svg" in page and "&lt;|im_end|&gt;" in page


def test_fix_writes_what_is_left_and_what_was_left_out_and_loses_nothing(write_lines, capsys, tmp_path):
    faults = [
        GOOD[0],
        {"question": "What is a café?".encode().decode("cp1252"), "answer": "A place\x00."},
        {"question": "Who are you, if I may ask?", "answer": "As an AI language model, I am nobody."},
        {"question": "And?", "answer": " "},
    ]
    path = write_lines([*GOOD, *faults])
    path.write_text(path.read_text() + '{"question": "broken\n')
    status, out = run(capsys, "--data", str(path), "--fix", "clean.jsonl")
    assert status == 1 and "61 records in clean.jsonl, 1 of them mended; 4 left out, in clean.left-out.jsonl" in out
    clean = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert clean == [*GOOD, {"question": "What is a café?", "answer": "A place."}]
    left = [json.loads(line) for line in (tmp_path / "clean.left-out.jsonl").read_text().splitlines()]
    assert [each["line"] for each in left] == [61, 63, 64, 65]
    assert left[0]["why"][0].startswith("duplicate: ") and left[3]["record"] == '{"question": "broken'
    assert run(capsys, "--data", "clean.jsonl") == (0, "61 records: nothing found\n")


def test_of_two_that_are_alike_the_one_without_another_fault_stays(write_lines, tmp_path, capsys):
    prompt = "Where do " + " ".join(f"bird{n}" for n in range(40)) + " fly in winter?"
    faulty = {"question": prompt, "answer": "They fly, as everybody knows, off to the and"}
    path = write_lines([faulty, {"question": prompt, "answer": "They fly, as everybody knows, off to the south."}])
    run(capsys, "--data", str(path), "--fix", "clean.jsonl")
    assert "south" in (tmp_path / "clean.jsonl").read_text() and "the and" not in (tmp_path / "clean.jsonl").read_text()


@pytest.mark.parametrize("seed", ["0", "1", "2", "4"])
def test_wrongly_decoded_text_is_mended_before_control_characters_are_removed(write_lines, tmp_path, seed):
    """In the other order its bytes were gone; and which came first was left to the hash of their names."""
    path = write_lines([*GOOD, {"question": "Who?", "answer": "They don’t.".encode().decode("latin-1") + "\x00"}])
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-m", "gptft", "lint", "--data", str(path), "--fix", f"clean{seed}.jsonl"]
    subprocess.run(words, env=env, check=False, capture_output=True)
    assert "They don’t." in (tmp_path / f"clean{seed}.jsonl").read_text()


def test_what_parquet_holds_beside_json_is_written_as_text(tmp_path, capsys):
    records = [{**record, "day": datetime.date(2026, 1, 2)} for record in GOOD]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
    for out in ("clean.json", "lines.jsonl"):
        run(capsys, "--data", "d.parquet", "--fix", out)
    assert json.loads((tmp_path / "clean.json").read_text())[0] == {**GOOD[0], "day": "2026-01-02"}
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == len(GOOD)


def test_what_could_not_be_read_is_kept_as_it_was(tmp_path, capsys):
    (tmp_path / "d.csv").write_text(
        "question,answer\n" + "".join(f"Q{n} is what?,A{n}.\n" for n in range(9)) + "a,b,c\n"
    )
    run(capsys, "--data", "d.csv", "--fix", "clean.jsonl")
    (left,) = [json.loads(line) for line in (tmp_path / "clean.left-out.jsonl").read_text().splitlines()]
    assert left["record"] == ["a", "b", "c"] and left["line"] == 11


def test_a_file_that_is_broken_in_the_middle_is_a_finding_and_is_not_fixed(write_lines, tmp_path, capsys):
    (tmp_path / "d.json").write_text('[{"question": "a", "answer": "b"},\n{"question" "c"}]')
    path = write_lines([*GOOD, GOOD[0]])
    assert found_in(capsys, path, "--data", "d.json")[0] == ("broken", 2)
    with pytest.raises(UserError, match=r"d\.json could not be read to its end"):
        main(["lint", "--data", str(path), "d.json", "--fix", "clean.jsonl"])
    assert not (tmp_path / "clean.jsonl").exists()


def test_files_are_not_overwritten_by_a_page_nor_read_twice(write_lines, tmp_path):
    path = write_lines(GOOD)
    before = path.read_bytes()
    for words in (["--html", str(path)], ["--data", str(path)]):
        with pytest.raises(UserError, match=r"name an \.html file|is named twice"):
            main(["lint", "--data", str(path), *words])
    assert path.read_bytes() == before


def test_records_that_do_not_agree_leave_none_out(write_lines, tmp_path, capsys):
    path = write_lines(
        [*GOOD[:3], {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    )
    run(capsys, "--data", str(path), "--fix", "clean.jsonl")
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 4


def test_fix_keeps_records_apart_that_stand_on_one_line(tmp_path, capsys):
    (tmp_path / "d.json").write_text(json.dumps([*GOOD[:3], GOOD[0], GOOD[4]]))
    run(capsys, "--data", "d.json", "--fix", "clean.json")
    assert json.loads((tmp_path / "clean.json").read_text()) == [*GOOD[:3], GOOD[4]]


@pytest.mark.parametrize("out", ["d.jsonl", "clean.csv", "there.jsonl"])
def test_fix_never_overwrites_a_file(write_lines, capsys, tmp_path, out):
    path = write_lines(GOOD, "d.jsonl")
    (tmp_path / "there.left-out.jsonl").write_text("mine")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    with pytest.raises(UserError, match="--fix"):
        main(["lint", "--data", str(path), "--fix", out])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before


def test_every_kind_says_what_it_is_and_what_becomes_of_it(write_lines):
    report, _ = lint({"data": [write_lines([*GOOD, GOOD[1]])]})
    text, page = as_text(report), as_html(report)
    assert KINDS["duplicate"].what in text and "under --fix such a record is left out" in page
    assert {kind.fix for kind in KINDS.values()} == {"left out", "mended", "kept"}


def test_the_embedded_set_has_one_near_duplicate_and_nothing_is_invented(capsys):
    """It differs from an earlier record in one name: a real one."""
    _, out = run(
        capsys, "--data", "embedded:instructions.jsonl", "--val_data", "embedded:instructions-test.jsonl", "--json"
    )
    report = json.loads(out)
    assert report["counts"].keys() <= {"near-duplicate", "near-leak"} and report["counts"]["near-duplicate"] == 1
