"""`python -m gptft rank`, and the judges of `evaluate`."""

import json
import sys

import pytest
from chat_server import ChatServer
from cli import GPTFT, is_one_line, write

from gptft import generation, loading
from gptft.errors import UserError
from gptft.evaluation.contenders import read_prompts
from gptft.evaluation.judge import Asked
from gptft.evaluation.judge_check import plant
from gptft.text import endpoint

RECORDS = [
    {"question": f"Where is number {n}?", "answer": f"Number {n} lies in the box beside number {n + 1}."}
    for n in range(12)
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def longest(number, content):
    """A judge that prefers the answer with more words, and gives as many tens."""
    if "Answer A:\n\n" in content:
        a, b = content.split("Answer A:\n\n")[1].split("\n\nWhich answer")[0].split("\n\nAnswer B:\n\n")
        a, b = len(a.split()), len(b.split())
        return "tie" if a == b else "A" if a > b else "B"
    words = content.split("The answer was:\n\n")[1].split("\n\nHow good")[0].split()
    return str(min(100, 10 * len(words)))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)
    with ChatServer(longest) as server:
        yield server


@pytest.fixture
def files():
    """Data, and three files of answers: good ones, half ones, and half ones for two in three records."""
    write("d.jsonl", lines(RECORDS))
    half = [" ".join(record["answer"].split()[:4]) for record in RECORDS]
    write("good.jsonl", lines({"answer": record["answer"]} for record in RECORDS))
    # with the prompts, and in another order
    rows = [{"instruction": r["question"], "output": text} for r, text in zip(RECORDS, half, strict=True)]
    write("half.json", json.dumps(rows[::-1]))
    mixed = [text if n % 3 else RECORDS[n]["answer"] for n, text in enumerate(half)]
    rows = [{"record": r, "before": "", "after": text} for r, text in zip(RECORDS, mixed, strict=True)]
    write("mixed.jsonl", lines(rows))
    return ["good.jsonl", "half.json", "mixed.jsonl"]


def read(path):
    return json.loads(path.read_text())


def table(out):
    """{contender: the cells of its line}"""
    lines = out.split("  contender ")[1].splitlines()[1:]
    return {line.split()[0]: line.split()[1:] for line in lines if " over " not in line}


def test_files_of_answers_are_ranked_by_a_metric(ask, files, place):
    """The matches can be counted by hand: good wins 12 of half, 8 of mixed and ties 4; mixed wins 4 of half."""
    status, out, err = ask(GPTFT, "rank", *files, "--data", "d.jsonl", "--by", "token_f1", "--out", "kept")
    assert (status, err) == (0, "") and "by token f1: 36 matches on 12 prompts" in out
    figures = table(out)
    assert figures["good.jsonl"][-3:] == ["20", "0", "4"]
    assert figures["mixed.jsonl"][-3:] == ["4", "8", "12"] and figures["half.json"][-3:] == ["0", "16", "8"]
    values = read(place / "kept" / "ranking.json")["rankings"]["token_f1"]
    assert [rating["name"] for rating in values["ratings"]] == ["good.jsonl", "mixed.jsonl", "half.json"]
    assert len((place / "kept" / "matches.jsonl").read_text().splitlines()) == 36
    answers = [json.loads(line) for line in (place / "kept" / "answers.jsonl").read_text().splitlines()]
    assert answers[1]["answers"]["half.json"] == "Number 1 lies in" and answers[1]["record"] == RECORDS[1]
    assert ask(GPTFT, "rank", *files, "--data", "d.jsonl", "--out", "kept")[0] == 2


def test_a_judge_decides_is_checked_and_agrees_or_not(ask, server, files, place):
    words = ["rank", *files, "--data", "d.jsonl", "--judge", server.url, "--judge_model", "toy", "--out", "kept"]
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, "")
    # the longer answer is the better of two where one was cut, never where one is shuffled or another's
    assert "USELESS: no better than chance: of 12 planted differences 4 right, 0 wrong, 8 undecided (p 0.125;" in out
    assert table(out)["good.jsonl"][-3:] == ["20", "0", "4"]
    found = read(place / "kept" / "ranking.json")
    assert f"by judge toy at {server.url} (USELESS): 36 matches on 12 prompts" in out
    (with_exact,) = found["agreement"]
    assert (with_exact["n"], with_exact["share"], with_exact["kappa"]) == (36, 1.0, 1.0)
    assert found["judges"][0]["counts"]["position"] == 0
    assert (place / "kept.verdicts.jsonl").exists()


def test_a_judging_run_that_was_cut_off_goes_on_and_pays_for_nothing_twice(ask, server, files, place):
    words = ["rank", *files, "--data", "d.jsonl", "--judge", server.url, "--judge_model", "toy", "--out"]
    status, expected, err = ask(GPTFT, *words, "all")
    assert (status, err) == (0, "")
    paid = server.answered
    for cut in (3, 20, 11):
        server.faults = [""] * cut + ["401"] * 40
        status, _, err = ask(GPTFT, *words, "again")
        assert status == 1 and not (place / "again" / "ranking.json").exists()
        is_one_line(err, "--judge http://127.0.0.1", "401")
    server.faults = []
    status, out, err = ask(GPTFT, *words, "again")
    assert (status, out, err) == (0, expected, "") and server.answered == 2 * paid
    for name in ("ranking.json", "answers.jsonl", "matches.jsonl"):
        assert (place / "again" / name).read_bytes() == (place / "all" / name).read_bytes()


@pytest.mark.parametrize("block_size, lost", [(1024, "unparsable"), (64, "refused")])
def test_a_local_model_that_says_nothing_of_use_decides_nothing(ask, saved, files, block_size, lost):
    """Weights drawn at random say anything; and one with no room for the prompt is not asked with half of it."""
    judge = saved("judge", block_size=block_size)
    words = ["rank", *files[:2], "--data", "d.jsonl", "--judge", judge, "--judge_check", "6", "--judge_tokens", "4"]
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, "") and f"by judge {judge} (USELESS): no match was decided" in out
    assert "24 replies asked for: " in out and f"24 {lost}" in out


def test_two_judges_rank_apart_and_are_set_against_each_other(ask, server, files):
    with ChatServer(lambda number, content: "A") as other:
        words = ["rank", *files, "--data", "d.jsonl", "--judge", server.url, other.url]
        status, out, err = ask(GPTFT, *words, "--judge_model", "toy", "first", "--verdicts", "v.jsonl")
    assert (status, err) == (0, "") and out.count(" matches on 12 prompts") == 2
    # 4 of mixed and good, 8 of half and mixed are the same text; whatever else is asked of the second turns
    assert "36 pairs: 24 verdicts turned with the order and are ties, 12 pairs of equal texts" in out
    assert f"toy at {server.url} and first at {other.url} agree on 33.3% of 36, kappa 0.00" in out


def test_models_are_asked_and_their_answers_shown(ask, saved, place):
    one, other = saved("one"), saved("two", n_layer=1)
    status, out, err = ask(
        GPTFT, "rank", one, other, "--data", "probes", "--max_new_tokens", "8", "--samples", "3", "--show", "--out", "k"
    )
    assert (status, err) == (0, "") and out.startswith("> How do I train my dog to sit?\n")
    rows = [json.loads(line) for line in (place / "k" / "answers.jsonl").read_text().splitlines()]
    asked = [row["record"]["instruction"] for row in rows]
    for path in (one, other):
        model, tokenizer = loading.load(path)
        assert [row["answers"][str(path)] for row in rows] == generation.generate(model, tokenizer, asked, 8)


def test_the_probes_are_prompts_with_answers_of_which_worse_ones_can_be_made():
    prompts = read_prompts(["probes"], {})
    assert len({prompt.asked.prompt for prompt in prompts}) == len(prompts) == 21
    assert all(prompt.expected.strip() and isinstance(prompt.record["family"], str) for prompt in prompts)
    planted = plant([prompt.asked for prompt in prompts], 100)
    assert len(planted) >= 18 and {each.kind for each in planted} == {"shuffled", "another", "cut"}


def test_prompts_without_expected_responses_can_be_judged_and_answers_alone_may_be_a_part(ask, server, files):
    write("bare.jsonl", lines({"prompt": record["question"]} for record in RECORDS))
    write("some.jsonl", lines({"prompt": r["question"], "answer": "One word more."} for r in RECORDS[:9]))
    words = ["rank", "half.json", "some.jsonl", "--data", "bare.jsonl"]
    status, out, err = ask(GPTFT, *words, "--judge", server.url, "--judge_model", "toy", "--verdicts", "v.jsonl")
    assert (status, err) == (0, "")
    assert "some.jsonl has no answer to 3 of 12 prompts, which are left out" in out
    assert "verdicts: not checked: 0 differences were planted" in out and "9 matches on 9 prompts" in out
    status, out, err = ask(GPTFT, *words)
    assert "by token f1: no match was decided" in out  # there is nothing to compare with


@pytest.mark.parametrize(
    "words, parts",
    [
        (["a.jsonl"], ["name two contenders or more"]),
        (["good.jsonl", "good.jsonl"], ["good.jsonl is named twice"]),
        (["good.jsonl", "half.json", "--by", "tokenf1"], ["--by tokenf1", "did you mean 'token_f1'"]),
        (["good.jsonl", "gone.jsonl"], ["no such file: gone.jsonl"]),
        (["good.jsonl", "few.jsonl"], ["few.jsonl: 1 answers to 12 prompts"]),
        (["good.jsonl", "half.json:outputs"], ["half.json, line", "no key 'outputs'; did you mean 'output'"]),
        (["good.jsonl", "d.jsonl:question", "--judge", "x", "--by", "rouge_l"], ["--by and --judge"]),
        (["good.jsonl", "half.json", "--judge", "http://127.0.0.1:9/v1"], ["--judge_model: 0 names for 1 URLs"]),
        (["good.jsonl", "half.json", "--judge", "http://127.0.0.1:9/v1", "--judge_model", "m"], ["must be kept"]),
        (["good.jsonl", "half.json", "--judge_model", "m"], ["--judge_model: there is no --judge"]),
        (["good.jsonl", "half.json", "--judge", "gone"], ["'gone'"]),
        (
            ["good.jsonl", "half.json", "--judge", "tiny", "--out", "o", "--verdicts", "o/v.jsonl"],
            ["would lie in --out"],
        ),
        (["good.jsonl", "other.jsonl"], ["other.jsonl: it answers none of the prompts"]),
        (["good.jsonl", "half.json", "--jugde", "x"], ["unknown argument --jugde; did you mean '--judge'"]),
    ],
)
def test_misuse_is_one_line(ask, files, words, parts):
    write("few.jsonl", lines([{"answer": "x"}]))
    write("other.jsonl", lines([{"prompt": "another", "answer": "x"}]))
    status, out, err = ask(GPTFT, "rank", *words, "--data", "d.jsonl")
    assert (status, out) == (2, "")
    is_one_line(err, *parts)


def test_the_prompts_are_shown(ask):
    status, out, err = ask(GPTFT, "rank", "--show_judge_prompt")
    assert (status, err) == (0, "") and "Reply with the number alone." in out and "{answer}" in out and "{b}" in out
    write("own.toml", 'score = "Of {prompt}: {answer}?"')
    assert (
        "Of {prompt}: {answer}?" in ask(GPTFT, "evaluate", "m", "--show_judge_prompt", "--judge_prompt", "own.toml")[1]
    )


def test_evaluate_has_answers_judged(ask, saved, server, place):
    """Scores and verdicts stand among the metrics, a record's own among its answers; a server that fails leaves what
    was said, and the answers."""
    write("d.jsonl", lines(RECORDS[:4]))
    words = ["evaluate", saved("one"), "--against", saved("two", n_layer=1), "--data", "d.jsonl"]
    words += ["--max_new_tokens", "8", "--judge", server.url, "--judge_model", "toy", "--out", "kept"]
    server.faults = [""] * 9 + ["401"] * 40
    assert ask(GPTFT, *words)[0] == 1 and {path.name for path in (place / "kept").iterdir()} == {
        "responses.jsonl",
        "losses.jsonl",
    }
    paid, server.faults = server.answered, []
    status, out, err = ask(GPTFT, *words)
    assert (status, err) == (0, "") and paid == 9
    evaluation = read(place / "kept" / "evaluation.json")
    rows = [json.loads(line) for line in (place / "kept" / "responses.jsonl").read_text().splitlines()]
    name = f"toy at {server.url}"
    for side in ("before", "after"):
        scores = [min(100, 10 * len(row[side].split())) / 100 for row in rows]
        assert [row["judges"][f"score by {name}"][side] for row in rows] == scores
        found = evaluation["metrics"][f"score by {name} (unchecked)"]["all"][side]
        assert found["value"] == pytest.approx(sum(scores) / len(scores))
    longer = sum(len(row["after"].split()) > len(row["before"].split()) for row in rows)
    assert evaluation["metrics"][f"preferred by {name} (unchecked)"]["all"]["wins"] == longer
    assert (
        f"score by {name}" in out
        and "scores: not checked: 4 differences were planted, and 6 are the fewest" in out
        and "and exact match agree on" in out
    )
    assert server.answered == len((place / "kept.verdicts.jsonl").read_text().splitlines())


TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
SHAPES = {
    "messages": lambda n: {"messages": [*TURNS, {"role": "user", "content": f"And {n}?"}, said(f"It is {n}.")]},
    "conversations": lambda n: {
        "conversations": [{"from": "human", "value": f"Where is {n}?"}, {"from": "gpt", "value": f"It is {n}."}]
    },
    "query": lambda n: {"query": f"Where is {n}?", "response": f"It is {n}."},
    "input": lambda n: {"input": f"Where is {n}?", "output": f"It is {n}."},
    "trl": lambda n: {"prompt": [{"role": "user", "content": f"Where is {n}?"}], "completion": [said(f"It is {n}.")]},
    "squad": lambda n: {"context": f"{n} lies here.", "question": "Where?", "answers": {"text": [f"It is {n}."]}},
    "systems": lambda n: {"system": f"You are number {n}.", "instruction": "Who are you?", "output": f"It is {n}."},
    "fields": lambda n: {"frage": f"Wo ist {n}?", "antwort": f"It is {n}."},
}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("named", ["by its record", "by its prompt"])
def test_answers_to_some_records_are_never_taken_for_those_to_others(ask, place, shape, named):
    """Of 20 records every other one was answered, right, and only 10 are asked: as many, and not in their order."""
    records = [SHAPES[shape](n) for n in range(20)]
    write("d.jsonl", lines(records))
    rows = [(record, f"It is {n}.") for n, record in enumerate(records)][::2]
    by_record = named == "by its record"
    write("right.jsonl", lines(({"record": r} if by_record else r) | {"after": text} for r, text in rows))
    write("wrong.jsonl", lines(({"record": r} if by_record else r) | {"after": "No."} for r, _ in rows))
    fields = ["--fields", "instruction=frage", "response=antwort"] if shape == "fields" else []
    words = ["rank", "right.jsonl:after", "wrong.jsonl:after", "--data", "d.jsonl", "--samples", "10", *fields]
    status, out, err = ask(GPTFT, *words, "--by", "exact_match")
    assert (status, err) == (0, "") and "has no answer to 5 of 10 prompts" in out
    assert table(out)["right.jsonl:after"][-3:] == ["5", "0", "0"]


def test_two_answers_to_one_prompt_are_one_line(ask, files):
    write("two.jsonl", lines({"question": RECORDS[3]["question"], "after": text} for text in ("yes", "no")))
    status, out, err = ask(GPTFT, "rank", "good.jsonl", "two.jsonl", "--data", "d.jsonl")
    assert (status, out) == (2, "")
    is_one_line(err, "two.jsonl, line 2: another answer to the same prompt")


def test_answers_of_others_are_known_by_what_was_asked(ask, files):
    """Somebody's `prompt` is what the data has as its question."""
    rows = [{"prompt": record["question"], "model": "m", "answer": record["answer"]} for record in RECORDS]
    write("theirs.jsonl", lines(rows[::-1]))
    status, out, err = ask(GPTFT, "rank", "theirs.jsonl", "half.json", "--data", "d.jsonl", "--by", "exact_match")
    assert (status, err) == (0, "") and table(out)["theirs.jsonl"][-3:] == ["12", "0", "0"]


@pytest.mark.parametrize(
    "record, asked",
    [
        ({"instruction": "Why?", "dataset": "helpful_base"}, "Why?"),
        ({"prompt": "Why?", "tags": ["a"]}, "Why?"),
        ({"instruction": "Why?", "input": "So.", "output": ""}, "Why?\nSo."),
        ({"query": "Why?"}, "Why?"),
        ({"prompt": "Why?", "completion": None}, "Why?"),
        ({"question": "Why?", "context": "So.", "answers": {"text": []}}, "Why?\nSo."),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "Why?"),
        ({"conversations": [{"from": "human", "value": "Why?"}]}, "Why?"),
        ({"prompt": [{"role": "user", "content": "Why?"}]}, "Why?"),
        ({"system": "Be brief.", "instruction": "Why?"}, "system: Be brief.\n\nuser: Why?"),
    ],
)
def test_a_prompt_needs_no_response_whatever_else_it_has(place, record, asked):
    write("bare.jsonl", lines([record]))
    (prompt,) = read_prompts(["bare.jsonl"], {})
    assert prompt.asked == Asked(asked, "") and prompt.record == record


@pytest.mark.parametrize(
    "record, fields, message",
    [
        ({"instruction": "Why?", "answer": "So."}, {}, "key 'output' is missing"),
        ({"question": "Why?", "answer": 3}, {}, "key 'answer' must hold text"),
        ({"name": "x"}, {}, "no known set of keys"),
        ({"text": "Once"}, {}, "plain text asks nothing"),
        ({"body": "Once"}, {"text": "body"}, "plain text asks nothing"),
        ({"instruction": " ", "output": ""}, {}, "key 'output' is empty"),
        ({"a": "x"}, {"instruction": "frage", "response": "antwort"}, "key 'frage'"),
        ({"messages": [{"role": "system", "content": 3}]}, {}, "it must have 'role' and 'content'"),
    ],
)
def test_what_asks_nothing_is_no_prompt(place, record, fields, message):
    write("d.jsonl", lines([record]))
    with pytest.raises(UserError, match=f"d.jsonl, line 1: .*{message}"):
        read_prompts(["d.jsonl"], fields)


def test_a_file_that_cannot_be_read_is_named_before_a_model_is_asked(ask, saved, files, monkeypatch):
    monkeypatch.setattr("gptft.evaluation.contenders.ask_model", lambda *_: pytest.fail("a model was asked"))
    status, _, err = ask(GPTFT, "rank", saved("one"), "gone.jsonl", "--data", "d.jsonl")
    assert status == 2
    is_one_line(err, "no such file: gone.jsonl")


def test_text_of_others_does_not_steer_the_terminal(ask, files):
    write("d.jsonl", lines({**record, "question": f"\x1b[2J{record['question']}"} for record in RECORDS))
    write("bad.jsonl", lines({"answer": "\x1b]0;owned\x07 so\nit is"} for _ in RECORDS))
    status, out, err = ask(GPTFT, "rank", "good.jsonl", "bad.jsonl", "--data", "d.jsonl", "--show")
    assert (status, err) == (0, "") and "\x1b" not in out and "\x07" not in out
    assert "> \\x1b[2JWhere is number 0?" in out and "\\x1b]0;owned\\x07 so\n" in out


@pytest.mark.parametrize(
    "words, part",
    [
        (["--judge", "gone"], "'gone'"),
        (["--judge", "judge", "judge"], "one judge is named twice"),
        (["--judge", "judge", "--verdicts", "d.jsonl"], "--verdicts d.jsonl: it holds something else"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge_model", "m", "--verdicts", "v.jsonl"], "gptft[make]"),
        (["--judge", "judge", "--samples", "0"], "--judge: there is nothing to judge with --samples 0"),
    ],
)
def test_what_is_wrong_with_a_judge_comes_out_before_a_model_has_answered(ask, saved, files, monkeypatch, words, part):
    """It came after the answers of both, which take long and were lost."""
    monkeypatch.setattr("gptft.commands.evaluate.examine_all", lambda *_: pytest.fail("a model was asked"))
    monkeypatch.setitem(sys.modules, "openai", None)  # not installed
    words = [saved("judge") if word == "judge" else word for word in words]
    status, out, err = ask(GPTFT, "evaluate", saved("one"), "--data", "d.jsonl", *words)
    assert (status, out) == (2, "")
    is_one_line(err, part)


def test_where_nothing_was_answered_it_is_said_that_nothing_is_judged(ask, saved):
    write("text.jsonl", lines([{"text": "Once upon a time there was a text. " * 4}]))
    status, out, err = ask(GPTFT, "evaluate", saved("one"), "--data", "text.jsonl", "--judge", saved("judge"))
    assert (status, err) == (0, "") and "note: no record was answered, so there is nothing to judge" in out
