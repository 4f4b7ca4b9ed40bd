"""Judges: taken at their exact word, asked in both orders; faults are no scores, and nothing is paid for twice."""

import json
import random
import types
from collections import Counter

import pytest
from chat_server import ChatServer
from cli import tiny

from gptft import checkpoint
from gptft.errors import UserError
from gptft.evaluation.judge import (
    PROMPTS,
    Asked,
    Judge,
    JudgePrompts,
    Verdicts,
    identity_of,
    open_judge,
    parse_score,
    parse_verdict,
    prompt_text,
    read_judge_prompts,
)
from gptft.evaluation.judge_check import LEAST_WORDS, agreement, check, plant
from gptft.prompts import TEMPLATES
from gptft.text import endpoint
from gptft.text.endpoint import Endpoint, Failing

ASKED = Asked("Where is the key?", "The key is in the red box.")
QUESTIONS = [Asked(f"Where is number {n}?", f"Number {n} lies in the box beside number {n + 1}.") for n in range(40)]


def shown(content):
    """What a judge was shown: (answer A, answer B), or (the answer,)."""
    if "Answer A:\n\n" in content:
        a, b = content.split("Answer A:\n\n")[1].split("\n\nWhich answer")[0].split("\n\nAnswer B:\n\n")
        return a, b
    return (content.split("The answer was:\n\n")[1].split("\n\nHow good")[0],)


def knows(number, content):
    """A judge that is right by construction: the good answers are those that are expected somewhere, for the prompt."""
    asked = content.split("Somebody asked:\n\n")[1].split("\n\n")[0]
    marks = [{each.prompt: each.expected for each in QUESTIONS}[asked] == answer for answer in shown(content)]
    if len(marks) == 1:
        return "90" if marks[0] else "15"
    return "tie" if marks[0] == marks[1] else "A" if marks[0] else "B"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)
    with ChatServer(knows) as server:
        yield server


def judge_at(server, path=None, tries=6, **settings):
    return Judge(Endpoint(server.url, "toy", timeout=0.5, tries=tries), Verdicts(path), **settings)


@pytest.mark.parametrize(
    "reply, score",
    [
        ("85", 0.85),
        (" 0\n", 0.0),
        ("100.", 1.0),
        ("**72.5**", 0.725),
        ("Score: 40/100", 0.4),
        ("<think>Perhaps 90?</think>\n30", 0.3),
        ("It is complete and correct.\n\nScore: 95", 0.95),
        ("101", None),
        ("-5", None),
        ("85%", None),
        ("8 of 10", None),
        ("5*", None),
        ("8*5", None),
        ("`70`", 0.7),
        ("*Good.*\n**Score:** 70", 0.7),
        ("I would give it 85", None),
        ("It has two faults.\n85", None),
        ("85 or 90", None),
        ("<think>85", None),
        ("", None),
        ("١٢", None),
    ],
)
def test_a_score_is_a_number_from_0_to_100_and_nothing_else(reply, score):
    assert parse_score(reply) == (score if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("A", 1.0),
        ("B.", 0.0),
        ("tie", 0.5),
        ("A tie", 0.5),
        ("Tie.", 0.5),
        ("**Answer B**", 0.0),
        ("verdict: A", 1.0),
        ("Both are right, A is shorter.\nVerdict: B", 0.0),
        ("a", None),
        ("A and B", None),
        ("A is better", None),
        ("Answer C", None),
        ("The first", None),
        ("A\nB", None),
        ("", None),
    ],
)
def test_a_verdict_is_a_b_or_a_tie_and_nothing_else(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_the_judge_is_asked_in_both_orders_and_sees_what_is_expected(server):
    judge = judge_at(server)
    good, asked = QUESTIONS[3].expected, QUESTIONS[3]
    assert (judge.compare(asked, good, "x"), judge.compare(asked, "x", good)) == (1.0, 0.0)
    first, second = (request["body"]["messages"][0]["content"] for request in server.requests[:2])
    assert shown(first) == (good, "x") and shown(second) == ("x", good)
    assert f"A good answer would be:\n\n{good}" in first and asked.prompt in first
    assert len(server.requests) == 2  # the other way round it is the same two prompts
    assert judge.compare(asked, "same ", " same") == 0.5 and len(server.requests) == 2
    assert judge.counts["same"] == 1 and judge.counts["position"] == 0
    assert (judge.score(asked, good), judge.score(asked, "x")) == (0.9, 0.15)
    assert server.requests[2]["body"]["temperature"] == 0.0


def test_a_judge_that_likes_what_stands_first_decides_nothing(server):
    """All its verdicts are ties, counted as `position`, and it is called useless."""
    server.answer = lambda number, content: "A"
    judge = judge_at(server)
    found = check(judge, plant(QUESTIONS, 24), "pair")
    assert (found["right"], found["wrong"], found["undecided"], found["p"]) == (0, 0, 24, 1.0) and found["useless"]
    assert found["counts"] == {"compared": 24, "asked": 48, "unparsable": 0, "position": 24} and not judge.counts


@pytest.mark.parametrize("kind", ["pair", "score"])
def test_a_judge_that_is_right_is_better_than_chance_and_one_that_is_wrong_is_not(server, kind):
    planted = plant(QUESTIONS, 24)
    found = check(judge_at(server), planted, kind)
    assert (found["n"], found["right"], found["useless"]) == (24, 24, False) and found["p"] == 2 / 2**24
    assert {name: each["n"] for name, each in found["kinds"].items()} == {"shuffled": 8, "another": 8, "cut": 8}
    turn = {"A": "B", "B": "A", "90": "15", "15": "90", "tie": "tie"}
    server.answer = lambda number, content: turn[knows(number, content)]
    found = check(judge_at(server), planted, kind)
    assert found["wrong"] == 24 and found["useless"]
    server.answer = lambda number, content: "What a question!"
    found = check(judge_at(server), planted, kind)
    assert found["undecided"] == 24 and found["useless"] and found["counts"]["unparsable"] == 48


def test_five_right_of_five_are_no_proof_and_six_are():
    """As coins fall: 5 of 5 in 6% of the cases."""

    class Always:
        def __init__(self, n):
            self.left, self.counts = n, Counter()

        def compare(self, asked, good, bad):
            self.left -= 1
            return 1.0 if self.left >= 0 else 0.5

    assert check(Always(5), plant(QUESTIONS, 24), "pair")["useless"]
    assert not check(Always(6), plant(QUESTIONS, 24), "pair")["useless"]
    assert check(Always(5), plant(QUESTIONS, 5), "pair")["useless"] is None  # nobody could have passed


def test_what_is_planted_is_worse_seeded_and_does_not_show_the_good_one():
    planted = plant(QUESTIONS, 30, seed=1)
    assert planted == plant(QUESTIONS, 30, seed=1) != plant(QUESTIONS, 30, seed=2)
    for each in planted:
        assert each.bad != each.good and not each.asked.expected
        if each.kind == "shuffled":
            assert sorted(each.bad.split()) == sorted(each.good.split())
        elif each.kind == "cut":
            assert each.good.startswith(each.bad) and len(each.bad.split()) == len(each.good.split()) // 2
        else:
            assert each.bad in [other.expected for other in QUESTIONS]
    short = [Asked("Why?", "So it is."), Asked("Who?", ""), Asked("Where?", "no " * LEAST_WORDS)]
    assert [each.kind for each in plant(short * 2, 9)] == []  # nothing can be shuffled, and all say the same
    assert len(plant(QUESTIONS, 1000)) == 40


FAULTS = ["429", "500", "503", "slow", "cut", "no json", "no choices", "null", "closed"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_server_does_no_fault_is_scored_and_nothing_is_asked_twice(server, tmp_path, seed):
    """Runs end in the middle, by a refusal or with a line torn, and go on: the verdicts are those of a server without
    faults, and each prompt is answered once."""
    rng, path = random.Random(seed), tmp_path / "v.jsonl"
    pairs = [(each, each.expected, "x") for each in QUESTIONS[:8]]
    expected = [judge_at(server).compare(*pair) for pair in pairs]
    before = server.answered
    for _ in range(40):
        faults = [fault for _ in range(6) for fault in (*rng.choices(FAULTS, k=rng.randint(0, 3)), "")]
        server.faults = [*faults[: rng.randint(0, 9)], *["401"] * 40]
        try:
            judge = judge_at(server, path)
            for pair in pairs:
                judge.compare(*pair)
            break
        except UserError as error:
            assert "401" in str(error)
        if rng.random() < 0.5 and path.exists():
            with open(path, "a") as file:
                file.write('{"key": "torn')
    server.faults = []
    judge = judge_at(server, path)
    assert [judge.compare(*pair) for pair in pairs] == expected == [1.0] * 8
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 16
    assert server.answered - before <= 16  # "slow" answers are not counted, and come too late
    asked = len(server.requests)
    again = judge_at(server, path)
    assert [again.compare(*pair) for pair in pairs] == expected and len(server.requests) == asked


def test_where_the_server_fails_for_one_prompt_the_others_are_judged_and_it_is_asked_again(server, tmp_path):
    server.faults = ["", "", *["500"] * 2, ""]
    judge = judge_at(server, tmp_path / "v.jsonl", tries=2)
    scores = [judge.score(each, each.expected) for each in QUESTIONS[:4]]
    assert scores == [0.9, 0.9, None, 0.9] and judge.counts["failed"] == 1 and judge.counts["unparsable"] == 0
    assert "2 times in a row" in judge.failures[0] and judge.failures[0].startswith("'Where is number 2?': ")
    assert judge_at(server, tmp_path / "v.jsonl").score(QUESTIONS[2], QUESTIONS[2].expected) == 0.9
    server.faults = ["500"] * 40
    with pytest.raises(Failing, match="times in a row"):
        for each in QUESTIONS[10:]:
            judge.score(each, each.expected)
    assert judge.counts["asked"] == 4 + 3


def test_what_the_model_refuses_is_kept_as_that_and_not_asked_again(server, tmp_path):
    server.faults = ["", "400", ""]
    judge = judge_at(server, tmp_path / "v.jsonl")
    assert [judge.score(each, "x") for each in QUESTIONS[:3]] == [0.15, None, 0.15]
    assert judge.counts["refused"] == 1 and len(server.requests) == 3
    again = judge_at(server, tmp_path / "v.jsonl")
    assert again.score(QUESTIONS[1], "x") is None and again.counts["refused"] == 1 and len(server.requests) == 3


def test_where_all_that_was_answered_stands_in_the_file_a_refusal_is_one_of_the_prompt(server, tmp_path):
    """The same command once ended there each time: nothing had been answered in that process."""
    judge_at(server, tmp_path / "v.jsonl").score(QUESTIONS[0], "x")
    for _ in range(2):
        server.faults = ["400"]
        judge = open_judge(server.url, "toy", "cpu", 16, PROMPTS, Verdicts(tmp_path / "v.jsonl"))
        assert (judge.score(QUESTIONS[0], "x"), judge.score(QUESTIONS[1], "x")) == (0.15, None)
        assert judge.counts["refused"] == 1 and len(server.requests) == 2
    server.faults = ["400"] * 3  # another model has answered nothing: it may not exist
    with pytest.raises(UserError, match="400"):
        other = open_judge(server.url, "other", "cpu", 16, PROMPTS, Verdicts(tmp_path / "v.jsonl"))
        for question in QUESTIONS[1:4]:
            other.score(question, "x")


def test_a_first_prompt_that_is_too_long_for_the_judge_does_not_end_every_run(server, tmp_path):
    """Nothing had been answered yet, so that the refusal passed for a wrong name; and the next run began the same."""
    server.faults = ["400", "400", ""]
    judge = open_judge(server.url, "toy", "cpu", 16, PROMPTS, Verdicts(tmp_path / "v.jsonl"))
    assert [judge.score(each, "x") for each in QUESTIONS[:3]] == [None, None, 0.15]
    assert judge.counts["refused"] == 2
    judge = open_judge(server.url, "toy", "cpu", 16, PROMPTS, Verdicts(tmp_path / "v.jsonl"))
    judge.score(QUESTIONS[0], "x")
    assert len(server.requests) == 4  # what was refused before any answer is asked again


def test_a_thought_is_no_part_of_an_answer_that_is_judged(server, tmp_path):
    """An answer that was cut off in its thought got a score, and equal answers with unlike thoughts were compared."""
    judge = judge_at(server, tmp_path / "v.jsonl")
    judge.score(QUESTIONS[0]._replace(expected="<think>Hm.</think>A box."), "<think>Perhaps a bag?</think>In a box.")
    judge.score(QUESTIONS[0], "<think>Perhaps a bag")
    said = [request["body"]["messages"][-1]["content"] for request in server.requests]
    assert "think" not in said[0] + said[1] and "bag" not in said[0] + said[1]
    assert "In a box." in said[0] and "A box." in said[0]
    assert judge.compare(QUESTIONS[0], "<think>1</think>Yes.", "<think>2</think>Yes.") == 0.5
    assert judge.counts["same"] == 1 and len(server.requests) == 2


def test_half_a_character_is_no_fault_of_the_server(server, tmp_path):
    """It was asked six times, with growing waits, and then taken to be down."""
    judge = judge_at(server, tmp_path / "v.jsonl")
    assert judge.score(QUESTIONS[0], "so sad \ud83d") == 0.15 and len(server.requests) == 1


def test_a_verdict_is_of_the_template_that_asked_for_it():
    """A template that was put right left the unparsable replies of the wrong one standing."""
    model, tokenizer = tiny()
    judge = types.SimpleNamespace(model=model, tokenizer=tokenizer)
    found = [identity_of(judge)]
    for name in ("alpaca", None):
        tokenizer.template = TEMPLATES[name] if name else None
        found.append(identity_of(judge))
    assert len(set(found)) == 3


@pytest.mark.parametrize("line, part", [("{", "line 2"), ("[1]", "no verdict"), ('{"judge": "x"}', "no verdict")])
def test_a_damaged_file_of_verdicts_is_one_line(tmp_path, line, part):
    path = tmp_path / "v.jsonl"
    path.write_text(f'{{"key": "1", "reply": "A"}}\n{line}\n')
    with pytest.raises(UserError, match=part) as caught:
        Verdicts(path)
    assert str(path) in str(caught.value)


def test_a_reply_that_is_all_thought_is_unparsable_and_kept(server, tmp_path):
    server.faults = ["all thought"]
    judge = judge_at(server, tmp_path / "v.jsonl")
    assert judge.score(QUESTIONS[0], "x") is None and judge.counts["unparsable"] == 1
    again = judge_at(server, tmp_path / "v.jsonl")
    assert again.score(QUESTIONS[0], "x") is None and len(server.requests) == 1


def test_a_judge_that_was_trained_anew_at_its_path_is_asked_anew(tmp_path):
    """Keyed by the path alone, its verdicts were those of the earlier one."""
    replies = []
    for layers in (1, 2, 2):
        model, tokenizer = tiny(n_layer=layers)
        checkpoint.save(tmp_path / "judge", model, tokenizer, step=0)
        verdicts = Verdicts(tmp_path / "v.jsonl")
        open_judge(str(tmp_path / "judge"), "", "cpu", 4, PROMPTS, verdicts).score(QUESTIONS[0], "x")
        replies.append(len(verdicts.replies))
    assert replies == [1, 2, 2]


def test_a_number_that_was_cut_off_is_none(server):
    """`10` may have been going to be 100."""
    server.faults = ["length"]
    judge = judge_at(server)
    assert judge.score(QUESTIONS[0], "x") is None and judge.counts["unparsable"] == 1


def test_another_prompt_or_judge_is_asked_anew(server, tmp_path):
    judge = judge_at(server, tmp_path / "v.jsonl")
    judge.score(QUESTIONS[0], "x")
    own = JudgePrompts("Somebody asked:\n\n{prompt}\n\nThe answer was:\n\n{answer}\n\nHow good?", PROMPTS.pair)
    judge_at(server, tmp_path / "v.jsonl", prompts=own).score(QUESTIONS[0], "x")
    judge_at(server, tmp_path / "v.jsonl", max_tokens=99).score(QUESTIONS[0], "x")
    Judge(Endpoint(server.url, "other"), Verdicts(tmp_path / "v.jsonl")).score(QUESTIONS[0], "x")
    assert len(server.requests) == 4
    judge_at(server, tmp_path / "v.jsonl").score(QUESTIONS[0], "x")
    assert len(server.requests) == 4


def test_a_file_of_something_else_is_left_as_it_is(server, tmp_path):
    """Its last line was once cut off, for want of a line's end."""
    (tmp_path / "data.jsonl").write_text('{"question": "a"}\n{"question": "b"}')
    with pytest.raises(UserError, match="it holds something else"):
        judge_at(server, tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_text().endswith('"b"}')
    (tmp_path / "torn.jsonl").write_text('{"k')
    assert judge_at(server, tmp_path / "torn.jsonl").score(QUESTIONS[0], "x") == 0.15


OWN = 'score = "Of {prompt}, in {curly} braces: {answer}. Expected: {expected}. Number?"\n'


def test_prompts_of_the_users_own_are_asked_as_they_are(server, tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    prompts = read_judge_prompts(str(tmp_path / "own.toml"))
    assert prompts.pair == PROMPTS.pair
    server.answer = lambda number, content: "50"
    judge_at(server, prompts=prompts).score(Asked("a {answer}?", "so"), "with {prompt}")
    asked = server.requests[0]["body"]["messages"][0]["content"]
    assert asked == "Of a {answer}?, in {curly} braces: with {prompt}. Expected: so. Number?"


@pytest.mark.parametrize(
    "content, message",
    [
        (OWN.replace("score", "scores"), "there is no key 'scores'; did you mean 'score'"),
        (OWN.replace("{answer}", ""), r"'score' must hold \{answer\}"),
        ('pair = "{prompt} {a}"', r"'pair' must hold \{b\}"),
        ("score = 3", "the key 'score' must hold a text"),
        (None, "No such file"),
    ],
)
def test_prompts_that_cannot_be_used_are_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "own.toml").write_text(content)
    with pytest.raises(UserError, match=rf"--judge_prompt .*own\.toml: .*{message}"):
        read_judge_prompts(str(tmp_path / "own.toml"))


def test_a_conversation_is_shown_with_its_roles():
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    assert prompt_text({"messages": [*turns, {"role": "user", "content": "Why?"}]}) == (
        "user: Hello\n\nassistant: Yes?\n\nuser: Why?"
    )
    assert prompt_text({"instruction": "Add these.", "input": "1, 2"}) == "Add these.\n1, 2"


def test_kappa_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    for _ in range(20):
        first = rng.choices([0.0, 0.5, 1.0, None], k=40)
        second = [each if rng.random() < 0.6 else rng.choice([0.0, 0.5, 1.0, None]) for each in first]
        both = [(str(a), str(b)) for a, b in zip(first, second, strict=True) if None not in (a, b)]
        found = agreement(first, second)
        assert found["n"] == len(both) and found["share"] == sum(a == b for a, b in both) / len(both)
        assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(*zip(*both, strict=True)))
    assert agreement([1.0, 1.0], [1.0, 1.0]) == {"n": 2, "share": 1.0, "kappa": None}
    assert agreement([None], [1.0]) == {"n": 0, "share": None, "kappa": None}
