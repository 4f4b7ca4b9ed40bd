"""report.html: what it shows is what the files hold, and nothing that it meets ends a run."""

import json
import os
import pkgutil
import re
import shutil
import signal
import time

import pytest
from test_html import Reader

from gptft.errors import UserError
from gptft.finetuning import finetune
from gptft.report import page
from gptft.report.overfitting import find_course
from gptft.report.page import PARTS, page_of, write_page
from gptft.report.parts.answers import LONGEST, OUTCOMES, ROWS, outcome_of
from gptft.report.parts.tokens import LEAD
from gptft.report.run_files import read_run
from gptft.report.several import page_of_several
from gptft.report.story import model_name, tell
from gptft.run.metrics_file import read_metrics

QUICK = {"init": "tiny", "test_samples": 2, "max_new_tokens": 2, "precision": "fp32", "threads": 1, "batch_size": 4}
FILES = [
    f"{name}.jsonl" for name in ("metrics", "responses", "losses", "tokens", "lost", "forgetting", "training_losses")
]


def text_of(source):
    """What a page says, white space as single blanks."""
    return " ".join(" ".join(Reader(re.sub("<style>.*?</style>", "", source, flags=re.S)).texts).split())


def copy(folder, to):
    shutil.copytree(folder, to)
    return to


def test_a_run_leaves_a_page_with_every_part_made_of_its_files_alone(finished):
    """The page that the run has left is the one that its files give again; each figure is that of the summary."""
    source, summary = page_of(read_run(finished)), json.loads((finished / "summary.json").read_text())
    assert all(f'<section id="{anchor}"' in source for anchor in PARTS)
    said = text_of(source)
    for figure in (
        f"{summary['steps']:,} steps",
        summary["model_id"],
        f"{summary['test_loss']:.4f}",
        f"{summary['total_flos'] / summary['train_runtime'] / summary['machine_flops']:.1%}",
        f"{summary['parameters']:,}",
        f"records read {summary['ledger']['data']['records_read']}",
        summary["versions"]["torch"],
        "perplexity, general text",
        "KL from what it was",
        "What the linter found" if summary["ledger"]["data"]["findings"]["kinds"] else "The linter found nothing",
    ):
        assert figure in said, figure
    assert 'http-equiv="refresh"' not in source and len(source) < 2_000_000 and page.UNMADE not in said


def test_a_part_whose_files_are_of_another_version_says_so_and_the_others_are_there(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    (folder / "evaluation.json").write_text('{"metrics": {"exact_match": {"all": 3}}}')
    said = text_of(page_of(read_run(folder)))
    assert said.count(page.UNMADE) == 2 and "Records and tokens" in said


def test_the_page_is_made_again_from_the_folder_byte_for_byte(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    write_page(folder / page.NAME, page_of(read_run(folder)))
    first = (folder / page.NAME).read_bytes()
    (folder / page.NAME).unlink()
    for name in ("best", "last"):  # nothing but the small files is read
        shutil.rmtree(folder / name)
    write_page(folder / page.NAME, page_of(read_run(folder)))
    assert (folder / page.NAME).read_bytes() == first


def test_while_a_run_goes_on_its_page_is_renewed_at_each_evaluation(tmp_path, write_lines, pairs, monkeypatch):
    pages = []
    known = page.write_page
    monkeypatch.setattr(page, "write_page", lambda path, source: (pages.append(source), known(path, source)))
    monkeypatch.setattr(page, "SHARE", 1e9)  # however short the run
    run = finetune(**QUICK, data=write_lines(pairs(40)), out_dir=tmp_path / "run", max_steps=6, eval_every=2)
    *during, last = pages
    assert len(during) == 4  # before the first step, after 2, 4 and 6
    for source, steps in zip(during, (0, 2, 4, 6), strict=True):
        assert 'http-equiv="refresh"' in source and f"has reached step {steps}, epoch" in text_of(source)
        assert '<section id="answers"' not in source
    assert 'http-equiv="refresh"' not in last and "6 steps" in text_of(last)
    assert (run.path / page.NAME).read_text(encoding="utf-8") == last == page_of(read_run(run.path))


def full(*_, **__):
    raise OSError(28, "No space left on device")


def signalled(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@pytest.mark.parametrize(
    "where, what",
    [
        ("gptft.loss.Objective.forward", full),  # in the loop
        ("gptft.run.folder.Keeper.keep", full),  # in what is made of its events
        ("gptft.run.folder.Keeper.save_whole", full),  # in the last save
        ("gptft.finetuning.restore_best", full),  # after it
        ("gptft.run.comparison.Comparison.after", signalled),
    ],
)
def test_the_page_of_a_run_that_ends_too_soon_no_longer_says_that_it_goes_on(
    tmp_path, write_lines, pairs, monkeypatch, where, what
):
    """Wherever it ends: the page said so for ever where not the loop had failed."""
    out = tmp_path / "run"
    owner, name = where.rsplit(".", 1)
    owner = pkgutil.resolve_name(owner)
    known, said = getattr(owner, name), []

    def fail(*args, **kwargs):
        going_on = (out / page.NAME).exists() and 'http-equiv="refresh"' in (out / page.NAME).read_text("utf-8")
        said.append(going_on)
        return what() if going_on else known(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises((OSError, UserError)):
        finetune(**QUICK, data=write_lines(pairs(40)), out_dir=out, max_steps=3)
    assert said[-1] and 'http-equiv="refresh"' not in (out / page.NAME).read_text(encoding="utf-8")
    assert "it has not come to its end" in text_of((out / page.NAME).read_text(encoding="utf-8"))


def test_a_run_that_is_refused_leaves_the_page_of_the_one_before_alone(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    before = (folder / page.NAME).read_bytes()
    with pytest.raises(UserError), page.last_report(folder):
        raise UserError("it already holds a run")
    assert (folder / page.NAME).read_bytes() == before


@pytest.mark.parametrize("told_by", ["metrics.jsonl", "last"])
def test_what_an_earlier_end_has_left_is_not_shown_of_a_run_that_was_gone_on_with(finished, tmp_path, told_by):
    """Its summary, its answers and its losses; also where no step since was logged."""
    folder = copy(finished, tmp_path / "run")
    (row, *_) = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] == 16]
    if told_by == "last":
        path = folder / "last" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 17}))
    else:
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row | {"step": 17}) + "\n")
    assert read_run(finished).losses and read_run(finished).training_losses
    source = page_of(read_run(folder))
    assert "not finished" in text_of(source)
    assert [anchor for anchor in PARTS if f'<section id="{anchor}"' in source] == ["curves", "speed", "setup"]


def test_a_page_takes_no_more_than_its_share_of_the_time(tmp_path, monkeypatch):
    """A run that evaluates every few steps would do little else than draw its page."""
    now, made = [0.0], []
    monkeypatch.setattr(page.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(page, "write_report", lambda *_, **__: (made.append(now[0]), now.__setitem__(0, now[0] + 1.0)))
    for _ in page.refresh_report(tmp_path, [page.Evaluation(n, 0.0, 1.0) for n in range(100)]):
        now[0] += 1.0
    assert 5 <= len(made) <= 10 and sum(1.0 for _ in made) <= page.SHARE * now[0] + 1


@pytest.mark.parametrize("what", ["a folder", "a file of the user's"])
def test_a_page_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path, write_lines, pairs, capsys, what):
    out = tmp_path / "run"
    out.mkdir()
    if what == "a folder":
        (out / page.NAME).mkdir()
    else:
        (out / page.NAME).write_text("<html>mine</html>")
    run = finetune(**QUICK, data=write_lines(pairs(40)), out_dir=out, max_steps=2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no report.html: ")]
    assert said and run.summary["steps"] == 2 and (out / "summary.json").exists()
    assert (out / page.NAME).is_dir() if what == "a folder" else (out / page.NAME).read_text() == "<html>mine</html>"


def test_a_run_that_was_killed_has_a_page_without_what_its_end_would_tell(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    for name in ("summary.json", "evaluation.json"):
        (folder / name).unlink()
    source = page_of(read_run(folder))
    assert "not finished" in text_of(source) and "it has not come to its end" in text_of(source)
    assert '<section id="curves"' in source and '<section id="answers"' not in source


@pytest.mark.parametrize("name", FILES)
def test_a_page_is_made_of_what_is_there(finished, tmp_path, name):
    """Of a run of an earlier version some files are missing."""
    folder = copy(finished, tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    assert page_of(read_run(folder)).endswith("</html>\n")


def test_the_summary_of_an_earlier_version_is_enough(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("machine_flops", "versions"):
        del summary[name]
    for name in ("findings", "lengths"):
        del summary["ledger"]["data"][name]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "ceiling" not in text_of(page_of(read_run(folder)))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.toml", "a = [", "config.toml: "),
        ("summary.json", "{", "summary.json: "),
        ("responses.jsonl", '{"record": {}}\n{"rec', "responses.jsonl, line 2: "),
        ("losses.jsonl", "[1]\n", "losses.jsonl, line 1: expected a JSON object"),
        ("tokens.jsonl", "\xff", "tokens.jsonl: "),
    ],
)
def test_a_damaged_file_is_named(finished, tmp_path, name, content, message):
    folder = copy(finished, tmp_path / "run")
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(message)):
        read_run(folder)


def test_a_long_test_set_is_shown_in_part_and_the_page_says_so(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    row = {"record": {"question": "Why?", "answer": "x"}, "expected": "x", "before": "b", "after": "word " * 999}
    (folder / "responses.jsonl").write_text((json.dumps(row) + "\n") * 1319)
    source = page_of(read_run(folder))
    said = text_of(source)
    (first,) = re.findall(r"The first (\d+) of 1,319 test prompts; responses.jsonl holds all of them", said)
    assert int(first) <= ROWS and f"({5 * 999 - LONGEST:,} more letters)" in said and len(source) < 2_000_000
    assert source.count(' id="answer-') == int(first)


def test_a_long_run_has_a_small_page(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    (row,) = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] == 3]
    lines = [json.dumps(row | {"step": n, "loss": 5 / n}) + "\n" for n in range(1, 50_000)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    assert len(page_of(read_run(folder))) < 500_000


@pytest.mark.parametrize(
    "expected, before, after, outcome",
    [
        ("Two.", "One.", "Two.", "mended"),
        ("Two.", "Two.", " Two.", "kept"),
        ("Two.", "Two.", "One.", "spoilt"),
        ("It is two now.", "No.", "It is two, perhaps.", "nearer"),
        ("It is two now.", "It is two, perhaps.", "No.", "further"),
        ("It is two now.", "No.", "Never.", "same"),
    ],
)
def test_what_became_of_an_answer(expected, before, after, outcome):
    assert outcome_of({"expected": expected, "before": before, "after": after}) == outcome
    assert outcome_of({"expected": expected, "before": "", "after": "", "left_out": "why"}) == "left-out"
    assert {outcome, "left-out"} <= OUTCOMES.keys()


def logged(training, validation):
    """Rows of metrics.jsonl: a training loss each step, a validation loss each ten."""
    rows = [{"step": n + 1, "loss": loss, "epoch": 0.0} for n, loss in enumerate(training)]
    return rows, [{"step": 10 * n, "eval_loss": loss, "epoch": 0.0} for n, loss in enumerate(validation)]


FALLING = [1 / n for n in range(1, 61)]


@pytest.mark.parametrize(
    "training, validation, lowest, rose, overfits",
    [
        (FALLING, [3, 2, 1, 0.9, 0.8, 0.7, 0.6], 60, False, False),
        (FALLING, [3, 2, 1, 0.8, 0.9, 1.1, 1.4], 30, True, True),
        (FALLING, [3, 2, 1, 0.8, 0.81, 0.8, 0.81], 30, False, False),  # the noise of a small split
        (FALLING[::-1], [3, 2, 1, 0.8, 0.9, 1.1, 1.4], 30, True, False),  # both rise: it is unsteady
        ([], [3, 1, 2], 10, True, None),  # --log_every above the number of steps
    ],
)
def test_overfitting_is_told_from_noise_and_from_a_run_that_is_unsteady(training, validation, lowest, rose, overfits):
    course = find_course(*logged(training, validation))
    assert (course.lowest[0], course.rose, course.overfits) == (lowest, rose, overfits)
    assert find_course(logged(training, [])[0], []) is None


def story(tmp_path, training, validation, **summary):
    rows = [row for part in logged(training, validation) for row in part]
    (tmp_path / "config.toml").write_text('init = "gpt2"\ndata = ["/a/faq.jsonl"]\n')
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tell(read_run(tmp_path))


def test_the_paragraph_says_whether_it_overfits_and_where(tmp_path):
    said = story(tmp_path, FALLING, [3, 2, 1, 0.8, 0.9, 1.1, 1.4])
    assert "A model that began as gpt2 was trained on faq.jsonl and has reached step 60" in said
    assert "fell from 3 to 0.8 nats a target, its lowest, at step 30; then it rose to 1.4 while the training" in said
    assert "where it was still falling: no overfitting is seen" in story(tmp_path, FALLING, [3, 2, 1, 0.9])
    assert "it is unsteady, not overfitting" in story(tmp_path, FALLING[::-1], [3, 2, 1, 0.8, 0.9, 1.1, 1.4])
    assert "No step lowered the validation loss" in story(tmp_path, FALLING, [1, 2, 3])
    assert "No validation loss was measured" in story(tmp_path, FALLING, [])
    assert "too few steps were logged to say whether it overfits" in story(tmp_path, [], [3, 1, 2])


def test_a_model_goes_by_its_name_and_not_by_its_place(tmp_path):
    """The paragraph began with the path of a file in somebody's environment."""
    (tmp_path / "run" / "best").mkdir(parents=True)
    for init, name in (
        ("/a/b/x.Q4_1.gguf", "x.Q4_1.gguf"),
        (str(tmp_path / "run" / "best"), "run/best"),
        (str(tmp_path / "run"), "run"),
        ("org/name-1.7B", "org/name-1.7B"),
        ("gpt2", "gpt2"),
    ):
        assert model_name(init) == name


def test_no_difference_is_told_that_the_figures_do_not_show(finished, tmp_path):
    """Three answers mended of twenty may be chance: the paragraph says so as the table does."""
    folder = copy(finished, tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    table = evaluation["metrics"]["exact_match"]["all"]
    table["before"], table["after"] = ({"value": v, "low": v - 0.05, "high": v + 0.1} for v in (0.1, 0.25))
    table["difference"] = {"value": 0.15, "low": -0.01, "high": 0.3, "differs": False}
    table |= {"wins": 4, "losses": 1}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert "10.0% were answered exactly as expected before and 25.0% after" in tell(read_run(folder))
    assert "no difference is shown" in tell(read_run(folder))
    table["difference"] |= {"low": 0.01, "differs": True}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert "that is better by more than chance" in tell(read_run(folder))
    # 50 won and 50 lost are a change, though no difference
    for wins, words in ((50, "as many got better as worse"), (0, "nothing changed")):
        table["difference"] = {"value": 0.0, "low": -0.1, "high": 0.1, "differs": False}
        table |= {"n": 20000, "wins": wins, "losses": wins}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        assert words in tell(read_run(folder)) and "few" not in tell(read_run(folder))


def test_nothing_of_the_data_becomes_an_element(hostile):
    """Every element of the page is one that this code has put there, and every attribute."""
    reader = Reader(page_of(read_run(hostile)))
    assert not {"script", "img", "iframe", "object", "embed", "link", "form action"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "style")]
    assert all(value.startswith("#") for name, value in reader.attributes if name == "href")
    assert "document.title = 'owned'" in reader.text and page.UNMADE not in reader.text  # it is there, as text


@pytest.mark.parametrize(
    "gained, words",
    [(-0.5, "was paid for elsewhere"), (0.5, "It has lost elsewhere, too:"), (0.0, "It has lost elsewhere:")],
)
def test_the_paragraph_says_paid_for_only_of_a_gain(finished, tmp_path, gained, words):
    """It once said so of any loss."""
    folder = copy(finished, tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["forgetting"]["general"]["difference"]["loss"] |= {"value": 0.2, "differs": True}
    evaluation["likelihood"]["difference"]["loss"] |= {"value": gained, "differs": gained != 0}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert words in tell(read_run(folder))


def test_what_an_earlier_end_has_left_is_not_shown_as_of_this_one(finished, tmp_path):
    """A finished run that was gone on with without test prompts kept the answers of its old weights on its page."""
    folder = copy(finished, tmp_path / "run")
    settings = {**QUICK, "val_fraction": 0.2, "init": str(finished.parent / "start" / "last"), "lr": 3e-3}
    settings |= {"data": str(finished.parent / "train.jsonl"), "test_data": str(finished.parent / "test.jsonl")}
    finetune(**settings | {"max_steps": 20, "eval_every": 4, "test_samples": 0}, out_dir=folder, resume=True)
    assert not (folder / "responses.jsonl").exists() and not (folder / "forgetting.jsonl").exists()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation) == {"likelihood"}
    run = read_run(folder)
    assert not run.responses and "20 steps" in text_of(page_of(run)) and '<section id="answers"' not in page_of(run)


def test_passes_are_counted_whatever_was_logged(finished, tmp_path):
    """With --log_every above the number of steps a run of two passes was one of none."""
    folder = copy(finished, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["train_examples"] == 32 and "16 steps, 2 passes over the data" in tell(read_run(folder))
    (folder / "metrics.jsonl").write_text("")
    assert "16 steps, 2 passes over the data" in tell(read_run(folder))
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace("stream = false", "stream = true"))
    assert "pass" not in tell(read_run(folder))


def test_topics_are_among_the_figures_of_the_page(finished, tmp_path):
    """The console had them, and the page did not."""
    folder = copy(finished, tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["topic"] = {"deflected": evaluation["metrics"]["exact_match"]["all"]}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert "off topic, deflected" in text_of(page_of(read_run(folder)))
    assert "off topic, deflected" in text_of(page_of_several([read_run(folder), read_run(finished)]))


def test_mistakes_of_the_answer_before_are_told_from_those_of_the_answer(finished):
    """A mended answer carried those of the old one, and each button counted both."""
    said = text_of(page_of(read_run(finished)))
    assert "repetitive (7)" in said and "before: too long" in said and "too long (20)" not in said


def test_of_a_long_prompt_the_targets_are_shown(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()][:1]
    for key, value in (("tokens", "long "), ("kinds", "masked"), ("before", None), ("after", None)):
        rows[0][key] = [value] * 600 + rows[0][key]
    (folder / "tokens.jsonl").write_text(json.dumps(rows[0]) + "\n")
    said = text_of(page_of(read_run(folder)))
    first = next(n for n, loss in enumerate(rows[0]["after"]) if loss is not None)
    assert f"({first - LEAD:,} tokens before) ..." in said and f"{rows[0]['after'][first]:.4f}" in said


def test_what_is_long_is_cut_and_the_page_says_so(finished, tmp_path):
    """A row an evaluation, a column a pass, a row a family: a page of megabytes."""
    folder = copy(finished, tmp_path / "run")
    evaluations = [{"step": n, "epoch": 0.0, "eval_loss": 1.0} for n in range(1000)]
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in evaluations)
    summary = json.loads((folder / "summary.json").read_text()) | {"steps": 1000}
    summary["ledger"]["data"]["shards"] = 3
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [{"file": "a", "line": n, "targets": 1, "losses": [0.5] * 300, "stubborn": 0.5} for n in range(3)]
    (folder / "training_losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    families = evaluation["metrics"]["exact_match"]["families"]
    families |= {f"family {n} " + "x" * 2000: families["a"] for n in range(200)}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    source = page_of(read_run(folder))
    said = text_of(source)
    assert re.search(r"Losses at \d+ of 1,00\d evaluations", said) and "pass 300" in said and "pass 5 " not in said
    assert "the 50 largest of 202; evaluation.json has all" in said and len(source) < 2_000_000
    assert "Lengths, the first shard of the training files" in said and page.UNMADE not in said


def test_runs_that_are_measured_on_other_records_are_not_set_against_each_other_unsaid(finished, tmp_path):
    folder = copy(finished, tmp_path / "run")
    config = (folder / "config.toml").read_text()
    assert "differ in what it is measured on" not in text_of(page_of_several([read_run(folder), read_run(finished)]))
    (folder / "config.toml").write_text(config.replace("seed = 123", "seed = 5"))
    assert "differ in what it is measured on" in text_of(page_of_several([read_run(folder), read_run(finished)]))
