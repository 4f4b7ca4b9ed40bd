"""`python -m gptft report`: one run's page anew, several side by side."""

import html
import json

import pytest
from cli import GPTFT, is_one_line

import gptft

QUICK = {"init": "tiny", "max_steps": 2, "test_samples": 2, "max_new_tokens": 2, "precision": "fp32", "threads": 1}


@pytest.fixture
def trained(place, pairs):
    """trained(name, **settings) -> the folder of a finished run, in the current one."""
    (place / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pairs(20)))

    def train(name, **settings):
        return gptft.finetune(data="d.jsonl", out_dir=name, **QUICK, **settings).path

    return train


def test_the_page_that_a_run_leaves_comes_again_from_its_folder(ask, trained):
    folder = trained("one")
    first = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert ask(GPTFT, "report", "one") == (0, "one/report.html\n", "")
    assert (folder / "report.html").read_bytes() == first
    assert ask(GPTFT, "report", "one", "--out", "other.html") == (0, "other.html\n", "")


def test_several_runs_make_one_page_with_what_differs(ask, trained, place):
    trained("one")
    trained("two", lr=1e-3)
    assert ask(GPTFT, "report", "one", "two") == (0, "report.html\n", "")
    page = (place / "report.html").read_text(encoding="utf-8")
    (settings,) = [part for part in page.split("<section") if part.startswith(' id="settings"')]
    assert '<th scope="row">lr</th><td>5e-05</td><td>0.001</td>' in settings and settings.count("<tr>") == 2
    assert "Validation loss over tokens" in page and page.count('class="line look1"') >= 2
    assert ask(GPTFT, "report", "one", "two")[0] == 0  # a report of ours gives way to a newer one


def test_a_run_of_an_earlier_version_leaves_the_others_on_the_page_of_several(ask, trained, place):
    """Without a figure that a later version's summary has it was once a traceback."""
    trained("one")
    summary = json.loads((trained("two") / "summary.json").read_text())
    for name in ("data_share", "total_flos"):
        (place / "two" / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != name}))
        assert ask(GPTFT, "report", "one", "two") == (0, "report.html\n", "")
        page = (place / "report.html").read_text(encoding="utf-8")
        assert f"This part could not be made of the files (KeyError: '{name}')" in html.unescape(page)
        assert "Validation loss over tokens" in page and "The lowest validation loss is that of" in page
    (place / "two" / "evaluation.json").write_text('{"metrics": {"exact_match": 3}, "likelihood": []}')
    assert ask(GPTFT, "report", "one", "two")[0] == 0


def test_what_is_no_report_of_ours_is_not_overwritten(ask, trained, place):
    trained("one")
    (place / "notes.html").write_text("<p>mine</p>")
    status, out, err = ask(GPTFT, "report", "one", "--out", "notes.html")
    assert status == 2 and out == "" and (place / "notes.html").read_text() == "<p>mine</p>"
    is_one_line(err, "notes.html is there already, and is no report of gptft: name another file")


@pytest.mark.parametrize(
    "words, parts",
    [
        (["nowhere"], ["nowhere: no such folder"]),
        (["."], ["holds no run: it has no config.toml"]),
        ([], ["runs"]),
        (["one", "./one"], ["a run is named twice"]),
        (["one", "--out", "no/where.html"], ["--out no/where.html: there is no folder no"]),
        (["one", "--oot", "x"], ["did you mean '--out'?"]),
    ],
)
def test_what_is_no_run_or_no_place_is_one_line(ask, trained, place, words, parts):
    if "one" in words:
        trained("one")
    status, _, err = ask(GPTFT, "report", *words)
    assert status == 2
    is_one_line(err, *parts)
    assert not list(place.glob("*.html"))


def test_a_damaged_file_is_one_line_and_the_old_page_stays(ask, trained):
    folder = trained("one")
    before = (folder / "report.html").read_bytes()
    with open(folder / "losses.jsonl", "a") as file:
        file.write('{"example": ')
    status, _, err = ask(GPTFT, "report", "one")
    assert status == 2 and (folder / "report.html").read_bytes() == before
    is_one_line(err, "losses.jsonl, line 3: ")
