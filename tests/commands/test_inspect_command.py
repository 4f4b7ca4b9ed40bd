"""`python -m gptft inspect`: what is masked and what is a target."""

import re
from pathlib import Path

from cli import GOOD, GPTFT, is_one_line, write

from gptft.commands import inspect
from gptft.commands.common import make_parser
from gptft.config import fields_by_heading
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded


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


def test_inspect_takes_every_setting_that_decides_the_examples():
    """One that it lacked would show other tokens than those that are trained."""
    fields = set(make_parser(inspect).fields)
    left_out = {"val_data", "test_data", "val_fraction", "test_fraction", "stream", "mix", "shard_tokens"}
    assert set(fields_by_heading()["data"]) - fields == left_out  # the last three decide when, not what
