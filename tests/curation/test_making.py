"""Records made by a model, from documents and from examples: nothing lost and nothing made twice, come what may."""

import json
import random
import re

import pytest
from chat_server import ChatServer

from gptft.__main__ import main
from gptft.curation.making import most_similar, passages
from gptft.errors import UserError
from gptft.text import endpoint

PROSE = "The lamp has a switch on its left side, and it turns itself off after {n} minutes in which nobody moves."
DOCUMENT = "# The lamp\n\n" + "\n\n".join(f"## Part {n}\n\n{PROSE.format(n=n)}" for n in range(6)) + "\n\nShort end.\n"


def talk(number, content):
    """A model that asks about the passage that it is shown, and answers from it."""
    minutes = content.split("after ")[1].split(" ")[0] if "after " in content else "no"
    if "Question: " in content:
        return f"It turns itself off after {minutes} minutes."
    return f'Question: "When does the lamp of {minutes} minutes turn itself off?"'


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)
    (tmp_path / "lamp.md").write_text(DOCUMENT)
    with ChatServer(talk) as server:
        yield server


def make(server, *words, out="faq.jsonl"):
    main(["make-data", "--from", "lamp.md", "--endpoint", server.url, "--model", "toy", "--out", out, *words])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_passages_are_paragraphs_under_their_headings_with_their_lines(tmp_path):
    (tmp_path / "d.md").write_text(DOCUMENT)
    found = list(passages(tmp_path / "d.md"))
    assert [line for line, _ in found] == [3, 7, 11, 15, 19, 23]
    assert found[0][1] == f"## Part 0\n\n{PROSE.format(n=0)}" and found[-1][1].endswith("Short end.")
    (tmp_path / "long.txt").write_text("\n\n".join(" ".join(["word"] * 100) for _ in range(6)))
    assert [len(text.split()) for _, text in passages(tmp_path / "long.txt")] == [200, 200, 200]


def test_every_record_has_its_source_and_the_prompts_that_made_it(server, tmp_path, capsys):
    make(server)
    records = read(tmp_path / "faq.jsonl")
    assert [record["source"]["line"] for record in records] == [3, 7, 11, 15, 19, 23]
    assert records[2]["question"] == "When does the lamp of 2 minutes turn itself off?"
    assert records[2]["answer"] == "It turns itself off after 2 minutes."
    assert records[2]["prompts"] == [request["body"]["messages"][0]["content"] for request in server.requests[4:6]]
    assert records[2]["model"] == f"toy at {server.url}"
    assert "6 records in faq.jsonl; none left out" in capsys.readouterr().out
    main(["lint", "--data", "faq.jsonl"])  # and it is data like any: no findings, status 0


OWN = """question = "Read {text} of {file}, in {curly} braces after {text}. What would a child ask?"
answer = "Question: {question} Explain it to a child, from: {text}"
"""


def test_prompts_of_the_users_own_are_asked_as_they_are(server, tmp_path):
    """Braces in a prompt or a passage are only text."""
    (tmp_path / "child.toml").write_text(OWN)
    (tmp_path / "lamp.md").write_text(
        "A {question} in braces, and {text} after 7 minutes in which nobody moves, is kept."
    )
    make(server, "--template", "child.toml")
    (record,) = read(tmp_path / "faq.jsonl")
    text = (tmp_path / "lamp.md").read_text()
    assert record["prompts"] == [
        f"Read {text} of lamp.md, in {{curly}} braces after {text}. What would a child ask?",
        f"Question: {record['question']} Explain it to a child, from: {text}",
    ]
    assert [request["body"]["messages"][0]["content"] for request in server.requests] == record["prompts"]
    (tmp_path / "child.toml").write_text(OWN.replace("child", "lawyer"))
    with pytest.raises(UserError, match="was made of other settings"):
        make(server, "--template", "child.toml")


@pytest.mark.parametrize(
    "content, message",
    [
        (OWN.replace("answer =", "anser ="), "there is no key 'anser'; did you mean 'answer'"),
        (OWN.split("answer")[0], "the key 'answer' must hold a text"),
        (OWN.replace("{question}", ""), r"'answer' must hold \{question\}"),
        (OWN.replace("{text}", ""), r"'question' must hold \{text\}"),
        ("question", "Expected '=' after a key"),
        (None, "No such file"),
    ],
)
def test_prompts_that_cannot_be_used_are_one_line(server, tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.toml").write_text(content)
    with pytest.raises(UserError, match=rf"--template own\.toml: .*{message}"):
        make(server, "--template", "own.toml")
    assert not server.requests and not list(tmp_path.glob("faq*"))


def test_a_second_run_asks_for_nothing(server, tmp_path):
    make(server)
    asked, before = len(server.requests), (tmp_path / "faq.jsonl").read_bytes()
    make(server)
    assert len(server.requests) == asked == 12 and (tmp_path / "faq.jsonl").read_bytes() == before


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_server_does_nothing_is_lost_and_nothing_is_made_twice(server, tmp_path, seed):
    rng = random.Random(seed)
    faults = ["429", "500", "cut", "no json", "no choices", "closed"]
    server.faults = [fault for _ in range(15) for fault in (*rng.choices(faults, k=rng.randint(0, 4)), "")]
    make(server)
    expected = read(tmp_path / "faq.jsonl")
    assert len({record["key"] for record in expected}) == len(expected) == 6
    # the same, with runs that end in the middle: the server refuses, and later goes on
    for number in range(30):
        server.faults = [""] * rng.randint(0, 4) + ["401"] * 40
        try:
            make(server, out="again.jsonl")
        except UserError as error:
            assert "401" in str(error)
        if number % 2 and (tmp_path / "again.jsonl").exists():
            with open(tmp_path / "again.jsonl", "a") as file:
                file.write('{"question": "torn')
    server.faults = []
    make(server, out="again.jsonl")
    assert read(tmp_path / "again.jsonl") == expected


def test_what_is_left_out_is_kept_with_its_reason_and_not_asked_again(server, tmp_path, capsys):
    server.answer = lambda number, content: (
        "As an AI language model, I cannot say." if "Question: " in content else "Why?"
    )
    make(server)
    left = read(tmp_path / "faq.left-out.jsonl")
    assert len(left) == 6 and not (tmp_path / "faq.jsonl").exists()
    assert left[0]["why"].startswith("refusal: ") and left[1]["why"].startswith("duplicate: ")
    asked = len(server.requests)
    make(server)
    assert len(server.requests) == asked and "0 records in faq.jsonl; 6 left out" in capsys.readouterr().out


def test_a_passage_that_the_model_cannot_take_is_left_out_and_the_others_are_made(server, tmp_path):
    server.faults = ["", "", "400", ""]
    make(server)
    (left,) = read(tmp_path / "faq.left-out.jsonl")
    assert left["why"].startswith("refused by the model: 400") and left["source"]["line"] == 7
    assert len(read(tmp_path / "faq.jsonl")) == 5


def test_a_local_model_says_what_is_too_long_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.md").write_text("word " * 400 + "\n")
    main(["make-data", "--from", "d.md", "--model", "tiny", "--out", "o.jsonl"])
    (left,) = read(tmp_path / "o.left-out.jsonl")
    assert re.fullmatch(r"refused by the model: its prompt has \d+ tokens, of 256 with the answer", left["why"])


def test_several_questions_a_passage_are_drawn_by_their_seeds(server, tmp_path):
    server.answer = lambda number, content: f"{talk(number, content)} Number {number}."
    make(server, "--each", "2", "--temperature", "0.5")
    assert len(read(tmp_path / "faq.jsonl")) == 12
    warmth = [request["body"]["temperature"] for request in server.requests]
    assert warmth == [0.0, 0.0, 0.5, 0.5] * 6


def test_new_instructions_come_from_three_examples_and_are_not_like_those_that_are_there(server, tmp_path, capsys):
    seeds = [
        {"instruction": f"Name {n} animals that live in the sea.", "output": "Fish."} for n in ("two", "five", "ten")
    ]
    (tmp_path / "seeds.json").write_text(json.dumps(seeds))
    subjects = [
        "Write a poem about rain.",
        "Name six animals that live in the sea.",
        "Sort 3, 1, 2.",
        "Why is it cold?",
    ]

    def talk(number, content):
        return subjects[(number // 2) % len(subjects)] if "instructions that somebody" in content else f"Text {number}."

    server.answer = talk
    words = ["make-data", "--seeds", "seeds.json", "--count", "3", "--out", "new.jsonl", "--seed", "1"]
    main([*words, "--endpoint", server.url, "--model", "toy"])
    made, left = read(tmp_path / "new.jsonl"), read(tmp_path / "new.left-out.jsonl")
    assert len({record["instruction"] for record in made}) == 3
    assert any(each["why"].startswith("similar: to 'Name ") for each in left)
    assert made[0]["source"]["seeds"].count("- Name ") == 3 and "3 records in new.jsonl" in capsys.readouterr().out


def test_instructions_that_share_most_words_are_similar():
    assert most_similar("Name six animals of the sea.", ["Write a poem.", "Name ten animals of the sea."])
    assert not most_similar("Name six animals of the sea.", ["Write a poem.", "Name the sea."])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "m", "--out", "o.jsonl"], "documents with --from, or examples with --seeds"),
        (["--from", "lamp.md", "--model", "m", "--out", "o.csv"], r"name a \.jsonl file"),
        (["--from", "gone.md", "--model", "m", "--out", "o.jsonl"], "gone.md: no such file"),
        (["--from", "lamp.md", "--model", "m", "--out", "o.jsonl", "--template", "qs"], "--template qs"),
        (["--from", "short.md", "--model", "m", "--out", "o.jsonl"], "no passage long enough"),
        (["--seeds", "lamp.jsonl", "--model", "m", "--out", "o.jsonl"], "line 1: no known set of keys"),
        (["--from", "lamp.md", "--model", "m", "--out", "there.jsonl"], "there.jsonl exists already"),
        (["--from", "lamp.md", "--model", "m", "--out", "fixed.jsonl"], "fixed.left-out.jsonl exists already"),
        (["--from", "lamp.md", "--model", "m", "--endpoint", "here", "--out", "o.jsonl"], "a URL begins with http"),
    ],
)
def test_bad_input_is_one_line_and_overwrites_nothing(server, tmp_path, words, message):
    (tmp_path / "short.md").write_text("Short.")
    (tmp_path / "lamp.jsonl").write_text('{"x": "y"}\n')
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "fixed.left-out.jsonl").write_text("{}")
    with pytest.raises(UserError, match=message):
        main(["make-data", *words])
    assert (tmp_path / "there.jsonl").read_text() == "mine" and not server.requests


def test_other_settings_do_not_go_on_with_what_is_there(server, tmp_path):
    make(server)
    with pytest.raises(UserError, match="was made of other settings"):
        make(server, "--temperature", "0.1")
    (tmp_path / "lamp.md").write_text(DOCUMENT + "\nMore.")
    with pytest.raises(UserError, match=r"was made of other settings \(files\): name another file"):
        make(server)


def test_a_run_that_made_nothing_stands_in_no_ones_way(server, tmp_path):
    """A model that could not be opened left a file of settings, and the right model was refused for it."""
    with pytest.raises(UserError, match="'gone' is no directory"):
        main(["make-data", "--from", "lamp.md", "--model", "gone", "--out", "faq.jsonl"])
    make(server)
    assert read(tmp_path / "faq.jsonl") and json.loads((tmp_path / "faq.made.json").read_text())["model"] != "gone"


def test_a_budget_ends_the_run_with_what_was_made(server, tmp_path):
    with pytest.raises(UserError, match="the budget of 50 tokens is used up"):
        make(server, "--budget", "50")
    assert len(read(tmp_path / "faq.jsonl")) == 2
    make(server)
    assert len(read(tmp_path / "faq.jsonl")) == 6
