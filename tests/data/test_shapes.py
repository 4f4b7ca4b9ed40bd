"""The shapes of records, and of what somebody asks a model."""

import pytest

from gptft.data.shapes import Parts, prompt_parts, recognise, used_keys
from gptft.errors import BadRecord
from gptft.prompts import TEMPLATES, Template

TURNS = [{"role": "user", "content": "One?"}]
OWN = Template("own", prompt="{customer}: {instruction} ({input})\n")


@pytest.mark.parametrize(
    "template, prompt, parts",
    [
        ("qa", "Why?", {"instruction": "Why?"}),
        ("qa", TURNS, {"messages": TURNS}),
        ("qa", {"instruction": "a", "input": "b"}, {"instruction": "a", "input": "b"}),
        ("qa", {"question": "a", "answer": "b", "id": 3}, {"instruction": "a", "response": "b"}),
        ("qa", Parts(question="a"), {"question": "a"}),  # recognised already: not looked at again
        (Template("one", prompt="{customer}:"), "Ann", {"customer": "Ann"}),
        (OWN, {"customer": "Ann", "instruction": "a"}, {"customer": "Ann", "instruction": "a"}),
    ],
)
def test_a_prompt_becomes_the_parts_of_its_template(template, prompt, parts):
    made = prompt_parts(TEMPLATES[template] if isinstance(template, str) else template, prompt)
    assert made == parts and isinstance(made, Parts)


@pytest.mark.parametrize("prompt, missing", [({"customer": "Ann"}, "instruction"), ({"instruction": "a"}, "customer")])
def test_a_part_that_the_template_needs_is_named(prompt, missing):
    """Its place was once left empty, without a word."""
    with pytest.raises(BadRecord, match=f"the template 'own' needs a '{missing}'; the prompt has"):
        prompt_parts(OWN, prompt)


def test_a_whole_record_is_asked_without_its_answer():
    """Of instruction, input, output and text (tatsu-lab/alpaca) the text was sent as the prompt, answer included."""
    record = {"instruction": "Add.", "input": None, "output": "3", "text": "### Add. ### 3", "messages": []}
    assert prompt_parts(TEMPLATES["alpaca"], record) == {"instruction": "Add.", "input": ""}


# ---- shapes of other people's files


SHARE = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
WHOLE = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    "record, parts",
    [
        (
            {"instruction": "q", "context": "c", "response": "a", "category": "x"},
            {"instruction": "q", "input": "c", "response": "a"},
        ),
        ({"instruction": "q", "context": "", "response": "a"}, {"instruction": "q", "input": "", "response": "a"}),
        ({"query": "q", "response": "a"}, {"instruction": "q", "response": "a"}),
        (
            {"id": "1", "title": "t", "context": "c", "question": "q", "answers": {"text": ["a", "b"]}},
            {"instruction": "q", "input": "c", "response": "a"},
        ),
        ({"conversations": SHARE}, {"messages": WHOLE}),
        (
            {"messages": [{"role": "user", "content": TEXTS}, {"role": "assistant", "content": "x", "weight": 1}]},
            {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "x", "weight": 1}]},
        ),
    ],
    ids=["dolly", "dolly without", "query", "squad", "sharegpt", "parts"],
)
def test_shapes_of_other_peoples_files(record, parts):
    assert recognise(record) == parts


@pytest.mark.parametrize(
    "record, message",
    [
        ({"context": "c", "question": "q", "answers": {"text": []}}, "'answers' has no answer"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "message 1: it is from 'narrator'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "message 1: it must have 'role' and 'content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "message 1: its content has a part of the type 'image_url'; only text can be read",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "a part of the type 'str'"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "pair of preferences .* --fields instruction=PROMPT"),
    ],
)
def test_what_a_shape_cannot_give_is_said(record, message):
    with pytest.raises(BadRecord, match=message):
        recognise(record)


def test_the_chosen_of_a_pair_can_be_learned_by_name():
    fields = {"instruction": "prompt", "response": "chosen"}
    assert recognise({"prompt": "p", "chosen": "a", "rejected": "b"}, fields) == {"instruction": "p", "response": "a"}


@pytest.mark.parametrize(
    "keys, parts",
    [
        (["instruction", "input", "context", "response"], ["instruction", "input", "response"]),
        (["instruction", "query", "response"], ["instruction", "response"]),
        (["messages", "conversations"], ["messages"]),
        (["question", "answer", "context", "answers"], ["question", "answer"]),
        (["query", "response", "text"], ["query", "response"]),
    ],
)
def test_the_further_shapes_take_nothing_from_those_that_were_read_before(keys, parts):
    assert sorted(used_keys(keys)) == sorted(parts)


def test_prompts_are_asked_in_the_shapes_that_are_trained_on():
    """A context was trained as the input and left out of a question; a list of parts was a traceback."""
    template = TEMPLATES["qa"]
    assert prompt_parts(template, {"instruction": "q", "context": "c"}) == {"instruction": "q", "input": "c"}
    asked = [{"role": "user", "content": "q"}]
    assert prompt_parts(template, [{"role": "user", "content": [{"type": "text", "text": "q"}]}]) == {"messages": asked}
    assert prompt_parts(template, {"conversations": [{"from": "human", "value": "q"}]}) == {"messages": asked}
    assert prompt_parts(template, [{"from": "human", "value": "q", "role": None}]) == {"messages": asked}
    for wrong in ([{"role": "user"}], ["q"], [], [{"from": "human", "value": "q", "content": "z"}]):
        with pytest.raises(BadRecord, match="message"):
            prompt_parts(template, wrong)


# ---- prompt and completion as lists of messages, as TRL has them

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"}]
TURNS += [{"role": "assistant", "content": "2"}, {"role": "user", "content": "3?"}]
LAST = [{"role": "assistant", "content": "4"}]


def test_of_a_prompt_and_a_completion_of_messages_the_completion_alone_is_learned():
    """TRL masks the answers in the prompt."""
    record = {"prompt": TURNS, "completion": LAST, "id": 1}
    expected = [*TURNS[:2], {**TURNS[2], "weight": 0}, TURNS[3], *LAST]
    assert recognise(record) == {"messages": expected} and {"prompt", "completion"} <= used_keys(record).keys()
    segments = TEMPLATES["chatml"].segments(recognise(record))
    assert [segment.text for segment in segments if segment.trained] == ["4", "<|im_end|>"]
    parts = {"from": "human", "value": "1?"}
    assert recognise({"prompt": [parts], "completion": LAST})["messages"] == [{"role": "user", "content": "1?"}, *LAST]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": "1?", "completion": LAST}, "key 'prompt' must hold a list of messages"),
        ({"prompt": TURNS, "completion": "4"}, "key 'completion' must hold a list of messages"),
        ({"prompt": TURNS, "completion": []}, "every assistant message has the weight 0"),
        (
            {"prompt": LAST, "completion": LAST},
            "keys 'prompt' and 'completion', message 1: role 'assistant' where 'user'",
        ),
        ({"prompt": [1], "completion": LAST}, "message 1: it must have 'role' and 'content'"),
    ],
)
def test_a_prompt_and_a_completion_that_do_not_fit_are_named(record, message):
    with pytest.raises(BadRecord, match=message):
        recognise(record)
