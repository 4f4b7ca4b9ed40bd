"""Prompts that already hold a template: it is taken out, so that it is not there twice; never without a word."""

import json
from argparse import Namespace

import pytest

from gptft.__main__ import main
from gptft.checkpoint import save
from gptft.commands.common import load_model
from gptft.data.held import candidates, prompts_of
from gptft.data.readings import choose_template
from gptft.data.shapes import recognise
from gptft.errors import BadRecord, UserError
from gptft.loading import preset
from gptft.prompts import TEMPLATES, Template, load_template, saved_template
from gptft.run.console import describe_choice
from gptft.text.chat import ChatTemplate
from gptft.text.unwrapping import take_out
from gptft.tokenizer import embedded

HOLDING = [name for name in TEMPLATES if name != "plain"]
TEXTS = ["How?", "Two\nlines, {braces} and\n\n### Answer:\ninside", " white ", "a\n\n### Input:\nb", "é <|user|>"]
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))


def text_of(segments):
    return "".join(segment.text for segment in segments if segment.kind != "bos")


def wrapped(template, text, tail=None):
    prompt = text_of(template.prompt_segments({"instruction": text}))
    return prompt if tail is None else prompt.rstrip() + tail


def choose(path, name="auto", fields=None, trained_with=None):
    return choose_template(name, fields or {}, trained_with, [path])


@pytest.mark.parametrize("tail", [None, "", "\n", " "])
@pytest.mark.parametrize("name", HOLDING)
def test_the_ids_are_those_of_the_files_own_text_and_a_bare_question_can_be_asked(write_lines, name, tail):
    texts = [text for text in TEXTS if not (name == "alpaca" and "###" in text)]
    prompts = [wrapped(TEMPLATES[name], text, tail) for text in texts]
    template, choice = choose(write_lines([{"question": prompt, "answer": "So."} for prompt in prompts]))
    assert template.name == name and choice["held"] == {"template": name, "records": len(texts)}
    assert choice["why"] == "all prompts hold it"
    assert f"all {len(texts)} prompts already hold the template {name}" in describe_choice(choice)
    tokenizer = embedded()
    for text, prompt in zip(texts, prompts, strict=True):
        parts = recognise({"question": prompt, "answer": "So."})
        assert text_of(template.prompt_segments(parts)) == text_of(template.segments(parts)[:-2]) == prompt
        # the same ids whether the prompt is asked as the file has it, or the bare question
        asked = [tokenizer.encode_segments(template.prompt_segments({"instruction": way}))[0] for way in (prompt, text)]
        assert asked[0] == asked[1]
        if "<|" not in prompt:  # names of special tokens are text in a file, and tokens in a template
            assert asked[0] == tokenizer.encode(prompt)
    again = saved_template(json.loads(json.dumps(template.to_dict())), "checkpoint.json")
    assert again == template and again.unwraps


def test_an_alpaca_prompt_with_an_input_is_taken_apart_into_both(write_lines):
    parts = {"instruction": "Add.", "input": "1\n2"}
    prompt = text_of(TEMPLATES["alpaca"].prompt_segments(parts))
    template, _ = choose(write_lines([{"instruction": prompt, "output": "3"}]))
    assert take_out({"instruction": prompt}, template.unwraps) == parts
    assert text_of(template.prompt_segments({"instruction": prompt})) == prompt
    with pytest.raises(BadRecord, match="already holds a template with a text for 'input', and it has another"):
        template.segments({"instruction": prompt, "input": "x", "response": "3"})


@pytest.mark.parametrize("name", ["phi3", "chatml"])
def test_a_system_text_inside_a_prompt_is_the_system_text(write_lines, name):
    prompt = text_of(TEMPLATES[name].prompt_segments({"instruction": "How?", "system": "Be kind."}))
    template, choice = choose(write_lines([{"question": prompt, "answer": "So."}]))
    assert choice["held"]["template"] == name
    assert take_out({"instruction": prompt}, template.unwraps) == {"instruction": "How?", "system": "Be kind."}
    assert text_of(template.prompt_segments({"instruction": prompt})) == prompt


@pytest.mark.parametrize(
    "others, message",
    [
        (["bare?"], "line 3: the first of 1 that hold none"),
        ([wrapped(TEMPLATES["llama2"], "q")], "line 3: the first of 1 that hold the template 'llama2'"),
        ([wrapped(TEMPLATES["qa"], "q", " ")], r"line 3: the first of 1 that hold the template 'qa', ending in ' '"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "qa", "alpaca"])
def test_where_only_some_hold_it_the_run_stops_with_counts_and_lines(write_lines, name, others, message):
    prompts = [wrapped(TEMPLATES["qa"], text) for text in "ab"] + others
    path = write_lines([{"question": prompt, "answer": "So."} for prompt in prompts])
    with pytest.raises(UserError, match=message) as caught:
        choose(path, name)
    assert r"line 1: the first of 2 that hold the template 'qa', ending in '\n'" in str(caught.value)


def test_a_named_template_takes_out_what_prompts_hold_and_puts_its_own_around_them(write_lines):
    path = write_lines([{"question": wrapped(TEMPLATES["qa"], "How?"), "answer": "So."}])
    template, choice = choose(path, "alpaca")
    assert choice["template"] == "alpaca" and choice["held"]["template"] == "qa"
    record = recognise({"question": wrapped(TEMPLATES["qa"], "How?"), "answer": "So."})
    assert text_of(template.prompt_segments(record)) == wrapped(TEMPLATES["alpaca"], "How?")
    # `plain` puts nothing around a prompt: the file's own text is sent as it is
    assert choose(path, "plain")[0] is TEMPLATES["plain"]


def test_a_checkpoints_chat_template_is_not_wrapped_around_another(write_lines):
    path = write_lines([{"question": wrapped(TEMPLATES["qa"], "How?"), "answer": "So."}])
    chat = ChatTemplate(CHAT, specials=("</>",), eot="</>")
    template, choice = choose(path, trained_with=chat)
    assert choice["why"] == "the model was trained with it" and choice["held"]["template"] == "qa"
    parts = recognise({"question": wrapped(TEMPLATES["qa"], "How?"), "answer": "So."})
    assert text_of(template.prompt_segments(parts)) == "<user>How?</><assistant>"
    assert saved_template(json.loads(json.dumps(template.to_dict())), "x") == template
    assert "unwraps" not in chat.to_dict() and "unwraps" not in TEMPLATES["qa"].to_dict()


def test_a_template_of_ones_own_is_found_too(write_lines, tmp_path):
    (tmp_path / "own.toml").write_text('prompt = "Customer: {instruction}\\nAgent:"')
    own = load_template(str(tmp_path / "own.toml"))
    path = write_lines([{"q": f"Customer: {n}\nAgent:", "a": "So."} for n in range(3)])
    template, choice = choose(path, str(tmp_path / "own.toml"), {"instruction": "q", "response": "a"})
    assert choice["held"] == {"template": "own", "records": 3}
    assert text_of(template.prompt_segments({"instruction": "Customer: 1\nAgent:"})) == "Customer: 1\nAgent:"
    # a run that goes on from its checkpoint knows the template again
    assert choose(path, fields={"instruction": "q", "response": "a"}, trained_with=own)[1]["held"]["template"] == "own"


@pytest.mark.parametrize("prompt", ["{instruction}\n", "{instruction}\n{input}", "\n{prompt} Answer:"])
def test_a_template_that_begins_with_its_placeholder_is_held_by_no_prompt(write_lines, prompt):
    """Any text would fit into it, and lose the white space at its end."""
    mine = Template("mine", prompt)
    path = write_lines([{"instruction": text, "output": "x"} for text in ("a b", "a b ", "c Answer:")])
    template, choice = choose(path, trained_with=mine)
    assert template is mine and "held" not in choice


def test_of_two_templates_that_fit_the_runs_own_is_taken(write_lines, tmp_path):
    (tmp_path / "own.toml").write_text('prompt = "### Question:\\nQ: {instruction}\\n\\n### Answer:\\n"')
    path = write_lines([{"question": "### Question:\nQ: a\n\n### Answer:\n", "answer": "b"}])
    template, choice = choose(path, str(tmp_path / "own.toml"))
    assert choice["held"]["template"] == "own"
    assert text_of(template.prompt_segments({"instruction": "### Question:\nQ: a\n\n### Answer:\n"})).count("Q:") == 1


def test_plain_sends_mixed_prompts_as_they_are(write_lines):
    prompts = [wrapped(TEMPLATES["qa"], "a"), "bare"]
    path = write_lines([{"question": prompt, "answer": "So."} for prompt in prompts])
    assert choose(path, "plain")[0] is TEMPLATES["plain"]
    with pytest.raises(UserError, match="or send the text as it is by --template plain"):
        choose(path)


def test_a_template_that_was_named_or_trained_with_is_not_changed_by_how_prompts_end(write_lines):
    """The files of the course end in `### Answer:` without a line feed."""
    path = write_lines([{"question": wrapped(TEMPLATES["qa"], "a", ""), "answer": "So."}])
    for template, _ in (choose(path, "qa"), choose(path, trained_with=TEMPLATES["qa"])):
        assert template.prompt == TEMPLATES["qa"].prompt and template.unwraps
    assert choose(path)[0].prompt == "### Question:\n{prompt}\n\n### Answer:"


def test_a_prompts_last_space_is_not_written_twice(write_lines):
    """llama2's own answers begin with a space; where the prompt ends in one already, there must be no second."""
    template, _ = choose(write_lines([{"prompt": "[INST] a [/INST] ", "completion": "x"}]))
    assert (
        "".join(s.text for s in template.segments({"instruction": "a", "response": "x"}))
        == "<s>[INST] a [/INST] x </s>"
    )


def test_prepare_and_a_template_named_when_asking_do_not_wrap_twice(write_lines, tmp_path):
    prompt = wrapped(TEMPLATES["qa"], "a")
    path = write_lines([{"question": prompt, "answer": "b"}])
    main(["prepare", "--data", str(path), "--template", "qa", "--out", str(tmp_path / "h.jsonl")])
    assert json.loads((tmp_path / "h.jsonl").read_text()) == {"input": prompt, "output": "b"}
    model, tokenizer = preset("tiny", 0), embedded()
    tokenizer.template = choose(path)[0]
    save(tmp_path / "checkpoint", model, tokenizer, 0)
    for name in ("qa", "alpaca"):
        options = Namespace(model=str(tmp_path / "checkpoint"), template=name, base="")
        asked = load_model(options, "cpu")[1].template.prompt_segments({"instruction": prompt})
        assert text_of(asked) == wrapped(TEMPLATES[name], "a")


def test_a_template_in_the_middle_of_a_prompt_is_the_users_text(write_lines):
    texts = ["Explain: ### Question:\nHow?\n\n### Answer:\n", "### Question:\nno end", "[INST] x [/INST] and more"]
    template, choice = choose(write_lines([{"question": text, "answer": "So."} for text in texts]))
    assert template is TEMPLATES["qa"] and "held" not in choice


def test_every_form_of_a_prompt_is_looked_for():
    for name, template in candidates(None).items():
        forms = prompts_of(template)
        assert template.prompt in forms and (not template.prompt_with_input or forms[0].endswith("Response:\n")), name
    mine = Template("mine", "Q: {prompt}")
    assert list(candidates(mine)) == ["mine", *candidates(None)] and "plain" not in candidates(None)
