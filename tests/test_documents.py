"""The documents: their figures are those of the results, their links lead somewhere, their flags exist."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptft
from benchmarks import chart, core_lines, document, results
from gptft.__main__ import main
from gptft.config import Config
from gptft.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {str(path.relative_to(ROOT)): path for path in document.documents()}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_figures_are_those_of_the_results(name):
    """`python -m benchmarks document` writes them anew."""
    text = read(name)
    assert text.count("<!-- figures: ") == text.count("<!-- end -->") == len(document.MARKED.findall(text))
    assert document.fill(text) == text


def test_the_picture_is_that_of_the_results():
    assert (results.DOCS / chart.PICTURE).read_text(encoding="utf-8") == chart.draw()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_figure_in_a_sentence_begins_no_line(name):
    """A line that begins with a comment is HTML to Markdown: links and emphasis in it would show as they are typed."""
    for line in read(name).splitlines():
        assert not re.match(r"<!-- figures: [\w-]+ -->.", line), line


def test_all_tables_are_those_of_the_results():
    assert read("benchmarks/RESULTS.md") == results.all_tables()


def test_a_changed_figure_is_written_anew_in_a_line_and_as_a_table():
    """This file's tests would pass on anything if nothing were replaced."""
    line = f"so <!-- figures: lora-int8 -->9.9999<!-- end --> more, {document.FIGURES['lora-int8']()}"
    assert document.fill(line) == line.replace("9.9999", document.FIGURES["lora-int8"]())
    table = "a\n\n<!-- figures: sft -->\nold\n<!-- end -->\n\nb"
    assert document.fill(table) == f"a\n\n<!-- figures: sft -->\n\n{document.FIGURES['sft']()}\n\n<!-- end -->\n\nb"
    with pytest.raises(UserError, match="there are no figures 'stf'; did you mean 'sft'"):
        document.fill("<!-- figures: stf --> <!-- end -->")


@pytest.mark.parametrize(
    "source, lines",
    [
        ("", 0),
        ('"""A module\'s docstring,\nof two lines."""\n\n# a comment\nx = 1  # and another\n', 1),
        ('def f():\n    """What f does."""\n\n    return [\n        1,\n\n        2,  # two\n    ]\n', 5),
        ('class A:\n    """A."""\n\n    text = """one\n\n    three"""\n', 4),
        ('x = 1\n"""a text that is no docstring"""\n', 2),
    ],
)
def test_lines_of_code_are_counted_without_comments_docstrings_and_blank_lines(source, lines):
    ast.parse(source)
    assert core_lines.count_lines(source) == lines


def test_the_core_can_be_read_in_one_sitting():
    """What a learner reads stays under 2,000 lines of code; CONTRIBUTING.md shows the figure by file."""
    counts = core_lines.count_core()
    assert 0 < sum(counts.values()) < core_lines.LIMIT == 2000
    assert "<!-- figures: core -->" in read("CONTRIBUTING.md")


def test_the_readme_is_a_front_door():
    assert len(read("README.md").splitlines()) <= 150


def anchor(title):
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", [*DOCUMENTS, "data/README.md", "benchmarks/RESULTS.md"])
def test_links_lead_to_files_and_headings_that_are_there(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), f"{name}: {target}"
        if heading:
            assert heading in map(anchor, re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)), target


def all_flags():
    """Every setting, and every flag of the commands that is spelled out in the code."""
    words = {f"--{name}" for name in Config.__dataclass_fields__}
    for path in [*(ROOT / "gptft").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        words |= set(re.findall(r'"(--[a-z][\w-]*)"', path.read_text(encoding="utf-8")))
    return words | {"--help", "--config"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_that_are_shown_exist(name):
    others = {"--check", "--no-deps", "--dist"}  # of other programs: ruff, pip, pytest; torchrun and SLURM
    others |= {"--nnodes", "--node_rank", "--nproc_per_node", "--master_addr", "--master_port", "--max_restarts"}
    others |= {"--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--nodes", "--ntasks-per-node", "--gpus-per-node"}
    others |= {"--requeue", "--signal"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", read(name))) <= all_flags() | others


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_are_there(name):
    """`gptft/report/viewer.py`, `tests/test_loss.py`, `benchmarks/sft.py`, ... in back quotes."""
    for path in re.findall(r"`((?:gptft|tests|benchmarks|configs|data|docs)/[\w./-]+)`", read(name)):
        assert (ROOT / path).exists(), f"{name}: {path}"


def test_names_of_the_package_that_are_shown_exist():
    """`gptft.load`, `from gptft import BasicModelRunner`, ..."""
    for name in DOCUMENTS:
        for block in re.findall(r"^```python\n(.*?)^```$", read(name), re.S | re.M):
            shown = re.findall(r"\bgptft\.(\w+)|from gptft import (\w+)", block)
            assert shown and {word for pair in shown for word in pair if word} <= set(gptft.__all__)


def test_commands_that_are_shown_exist():
    known = subprocess.run([sys.executable, "-m", "gptft", "--help"], capture_output=True, text=True, cwd=ROOT).stdout
    shown = {word for name in DOCUMENTS for word in re.findall(r"python -m gptft (\w[\w-]*)", read(name))}
    assert shown and all(re.search(rf"^\s+{word}\s", known, re.M) for word in shown)


def test_the_package_is_described_as_it_is():
    """CONTRIBUTING.md names every file and folder of the package's root."""
    table = read("CONTRIBUTING.md")
    for path in (ROOT / "gptft").iterdir():
        if (path.suffix == ".py" and path.name != "__init__.py") or (path.is_dir() and any(path.glob("*.py"))):
            place = path.name + ("/" if path.is_dir() else "")
            assert f"`{place}`" in table, f"{place} is not in the house of CONTRIBUTING.md"


def test_the_places_to_add_to_are_there():
    """`gptft.optim.SCHEDULES`, ... in CONTRIBUTING.md."""
    named = re.findall(r"`((?:gptft|benchmarks)\.[\w.]+)\.([A-Z]+)`", read("CONTRIBUTING.md"))
    assert len(named) == 10
    for module, name in named:
        assert len(getattr(importlib.import_module(module), name)) > 0


def test_the_console_shown_is_unedited():
    """Every line of the README's picture stood in the run's output, in this order."""
    console = iter([line.rstrip() for line in results.read("default")["console"]])
    block = re.search(r"<!-- figures: default-output -->\s*```\n(.*?)```", read("README.md"), re.S).group(1)
    for line in block.splitlines():
        assert line == "..." or line in console


def test_only_files_of_the_project_are_documents():
    """A document that git does not know would be checked here and be missing elsewhere."""
    done = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git repository")
    assert set(DOCUMENTS) <= set(done.stdout.split())


FAQ = [
    {"question": "How do I reset it?", "answer": "Hold the button for ten seconds."},
    {"question": "Does it work offline?", "answer": ""},
    {"question": "Does it work offline?"},
]


def shown(name, start):
    """The block of a document that holds a line which begins so: the lines from there on."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", read(name), re.S | re.M):
        if f"\n{start}" in f"\n{block}":
            return block[f"\n{block}".index(f"\n{start}") :]
    raise AssertionError(f"{name} shows nothing that begins with {start!r}")


@pytest.mark.parametrize("name", ["README.md", "docs/data.md"])
def test_inspect_prints_what_is_shown(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("faq.jsonl").write_text(json.dumps(FAQ[0]) + "\n")
    command, _, expected = shown(name, "$ python -m gptft inspect ").partition("\n")
    main(command.removeprefix("$ python -m gptft ").split())
    assert capsys.readouterr().out.endswith(expected)


def test_bad_records_are_told_as_it_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("faq.jsonl").write_text("".join(json.dumps(record) + "\n" for record in FAQ))
    with pytest.raises(UserError) as error:
        main(["train", "--init", "tiny", "--data", "faq.jsonl"])
    assert f"gptft: {error.value}\n" == shown("docs/data.md", "gptft: 2 bad records")


def test_the_choice_of_a_template_is_told_as_it_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    held = {**FAQ[0], "question": f"### Question:\n{FAQ[0]['question']}\n\n### Answer:\n"}
    for record, start in ((FAQ[0], "template: qa (by the"), (held, "template: qa (all prompts")):
        Path("faq.jsonl").write_text((json.dumps(record) + "\n") * 42)
        main(["train", "--init", "tiny", "--data", "faq.jsonl", "--max_steps", "1", "--test_samples", "0"])
        assert capsys.readouterr().out.startswith(shown("docs/data.md", start))
