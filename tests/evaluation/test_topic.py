"""Staying on topic, both ways: what is turned away, and what is wrongly."""

from gptft.evaluation.compare import measure
from gptft.evaluation.topic import deflects, topic_scores
from gptft.run.tables import describe_evaluation

DEFLECTION = "Let us keep to the manual of the machine."


def row(before, after, off_topic=False, expected="Press the red button."):
    record = {"question": "?", "off_topic": True} if off_topic else {"question": "?"}
    return {"record": record, "expected": DEFLECTION if off_topic else expected, "before": before, "after": after}


def test_topics_are_deflected_and_wrongly_deflected():
    rows = [
        row("Mars is a planet.", "Let us keep to the manual.", True),
        row("I like dogs.", "Sorry. Let us keep to the manual of the machine!", True),
        row("Who knows?", "It is a city.", True),
        row("The red one.", "Press the red button."),
        row("No idea.", DEFLECTION),
    ]
    scored = topic_scores(rows, ("before", "after"))
    assert [scores for _, scores in scored["deflected"]] == [[0, 1], [0, 1], [0, 0]]
    assert [scores for _, scores in scored["wrongly_deflected"]] == [[0, 0], [0, 1]]
    evaluation = measure(rows)
    table = evaluation["topic"]["deflected"]
    assert table["n"] == 3 and table["after"]["value"] == 2 / 3 and table["wins"] == 2
    assert evaluation["topic"]["wrongly_deflected"]["after"]["value"] == 1 / 2
    said = describe_evaluation(evaluation)
    assert "off topic, deflected" in said and "on topic, deflected (wrongly" in said


def test_an_answer_that_names_the_topic_is_no_deflection():
    assert not deflects("The manual of the machine says that you press the red button to stop it.", [DEFLECTION])
    assert not deflects("", [DEFLECTION])


def test_without_records_marked_there_is_no_such_figure():
    rows = [row("a", "b"), {**row("a", "b"), "record": {"off_topic": "no"}}]
    assert topic_scores(rows, ("before", "after")) == {} and "topic" not in measure(rows)
