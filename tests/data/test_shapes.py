"""What somebody asks a model -> the parts that its template renders."""

import pytest

from gptft.data.shapes import Parts, prompt_parts
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
