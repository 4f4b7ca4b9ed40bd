"""Prompt templates: the exact texts, the keys that are recognised, and what a bad record is told."""

import pytest

from gptft.data.shapes import recognise
from gptft.errors import BadRecord, UserError
from gptft.prompts import TEMPLATES, Template, hydrate, load_template, template_from_dict
from gptft.text.segments import Segment

BELOW = "Below is an instruction that describes a task"
APPROPRIATE = "Write a response that appropriately completes the request.\n\n"

ONE = {"instruction": "Say hi.", "response": "Hi!"}
WITH_INPUT = {"instruction": "Translate.", "input": "chat", "response": "cat"}
SYSTEM = {"system": "Be brief.", "instruction": "Say hi.", "response": "Hi!"}
TURNS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2."},
    ]
}


def text(segments):
    """The segments as one text; what is trained stands in <<...>>, neighbours joined."""
    out = "".join(f"<<{segment.text}>>" if segment.trained else segment.text for segment in segments)
    return out.replace(">><<", "")


EXACT = [
    ("alpaca", ONE, f"{BELOW}. {APPROPRIATE}### Instruction:\nSay hi.\n\n### Response:\n<<Hi!<|endoftext|>>>"),
    (
        "alpaca",
        WITH_INPUT,
        f"{BELOW}, paired with an input that provides further context. {APPROPRIATE}"
        "### Instruction:\nTranslate.\n\n### Input:\nchat\n\n### Response:\n<<cat<|endoftext|>>>",
    ),
    ("qa", ONE, "### Question:\nSay hi.\n\n### Answer:\n<<Hi!<|endoftext|>>>"),
    ("qa", WITH_INPUT, "### Question:\nTranslate.\nchat\n\n### Answer:\n<<cat<|endoftext|>>>"),
    (
        "qa",
        {"messages": TURNS["messages"][1:]},
        "### Question:\nOne?\n\n### Answer:\n<<1.<|endoftext|>>>\n\n### Question:\nTwo?\n\n### Answer:\n"
        "<<2.<|endoftext|>>>",
    ),
    ("phi3", ONE, "<|user|>\nSay hi.<|end|>\n<|assistant|>\n<<Hi!<|end|>>>"),
    ("phi3", WITH_INPUT, "<|user|>\nTranslate.\nchat<|end|>\n<|assistant|>\n<<cat<|end|>>>"),
    ("phi3", SYSTEM, "<|system|>\nBe brief.<|end|>\n<|user|>\nSay hi.<|end|>\n<|assistant|>\n<<Hi!<|end|>>>"),
    (
        "phi3",
        TURNS,
        "<|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\n<<1.<|end|>>>\n"
        "<|user|>\nTwo?<|end|>\n<|assistant|>\n<<2.<|end|>>>",
    ),
    ("llama2", ONE, "<s>[INST] Say hi. [/INST]<< Hi! </s>>>"),
    ("llama2", WITH_INPUT, "<s>[INST] Translate.\nchat [/INST]<< cat </s>>>"),
    ("llama2", SYSTEM, "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nSay hi. [/INST]<< Hi! </s>>>"),
    (
        "chatml",
        SYSTEM,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
        "<<Hi!<|im_end|>>>",
    ),
    (
        "chatml",
        WITH_INPUT,
        "<|im_start|>user\nTranslate.\nchat<|im_end|>\n<|im_start|>assistant\n<<cat<|im_end|>>>",
    ),
    (
        "chatml",
        TURNS,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
        "<<1.<|im_end|>>>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n<<2.<|im_end|>>>",
    ),
    ("plain", ONE, "Say hi.<<Hi!<|endoftext|>>>"),
    ("plain", WITH_INPUT, "Translate.\nchat<<cat<|endoftext|>>>"),
    ("plain", {"text": "Once."}, "<<Once.<|endoftext|>>>"),
    ("alpaca", {"text": "Once."}, "<<Once.<|endoftext|>>>"),
]


@pytest.mark.parametrize("name, parts, expected", EXACT, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(EXACT)])
def test_every_template_gives_exactly_this_text(name, parts, expected):
    """A space or newline too many, or a prompt that is trained, changes every model without an error."""
    assert text(TEMPLATES[name].segments(parts)) == expected


@pytest.mark.parametrize("name, parts", [(name, parts) for name, parts, _ in EXACT if "text" not in parts])
def test_the_prompt_that_inference_sends_is_the_beginning_of_the_example(name, parts):
    """The last response and its stop taken away, nothing else."""
    segments = TEMPLATES[name].segments(parts)
    assert TEMPLATES[name].prompt_segments(parts) == segments[:-2]
    if "messages" not in parts:
        asked = {part: value for part, value in parts.items() if part != "response"}
        assert TEMPLATES[name].prompt_segments(asked) == segments[:-2]


def test_llama2_puts_the_system_text_into_the_first_turn_and_begins_every_turn():
    """As the model's own chat template does: the system text stood before [INST], and no later turn began with <s>."""
    assert text(TEMPLATES["llama2"].segments(TURNS)) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST]<< 1. </s>>><s>[INST] Two? [/INST]<< 2. </s>>>"
    )


def test_a_template_of_an_earlier_commit_renders_as_it_was_trained():
    """Its checkpoint carries it. Its stored form stays too, for it is a part of the data's key."""
    stored = {
        "name": "llama2",
        "prompt": "[INST] {prompt} [/INST]",
        "prompt_with_input": "",
        "system": "<<SYS>>\n{system}\n<</SYS>>\n\n",
        "lead": " ",
        "stop": "</s>",
        "after": "",
        "multi_turn": True,
    }
    template = template_from_dict(stored, "checkpoint", None)
    assert text(template.segments(TURNS)) == (
        "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] One? [/INST]<< 1.</s>>>[INST] Two? [/INST]<< 2.</s>>>"
    )
    assert list(template.to_dict().items()) == list(stored.items())
    assert list(TEMPLATES["chatml"].to_dict()) == list(stored)
    again = template_from_dict(TEMPLATES["llama2"].to_dict(), "checkpoint", None)
    assert again == TEMPLATES["llama2"]


def turns(**keys):
    """One question and answer; `keys` go to the answer."""
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **keys}]}


def test_an_answer_of_weight_0_is_context_and_no_target():
    """The key was dropped without a word, and what was marked as bad was learned like the rest."""
    two = {"messages": [*turns(weight=0)["messages"], *turns(weight=1)["messages"]]}
    assert text(TEMPLATES["qa"].segments(recognise(two))) == (
        "### Question:\na\n\n### Answer:\nb<|endoftext|>\n\n### Question:\na\n\n### Answer:\n<<b<|endoftext|>>>"
    )
    with pytest.raises(BadRecord, match="every assistant message has the weight 0"):
        recognise(turns(weight=0))


@pytest.mark.parametrize(
    "messages, why",
    [
        (turns(weight=0.5)["messages"], "message 2: weight must be 0"),
        (turns(weight="1")["messages"], "message 2: weight must be 0"),
        ([{"role": "user", "content": "a", "weight": 1}], "message 1: weight 1 asks to train on the user's text"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "role 'tool' where 'assistant' was due"),
        ([*turns(tool_calls=[{"name": "f"}])["messages"], {"role": "user", "content": "x"}], "where 'tool' was due"),
    ],
)
def test_a_weight_or_a_tool_out_of_place_is_refused(messages, why):
    with pytest.raises(BadRecord, match=why):
        recognise({"messages": messages})


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("key", ["name", "reasoning_content", "tool_calls", "anything"])
def test_a_key_of_a_message_that_our_templates_do_not_write_is_refused_by_name(name, key):
    """They were dropped without a word: reasoning, calls of tools, names."""
    parts = turns(**{key: [{"name": "f"}] if key == "tool_calls" else "x"})
    with pytest.raises(BadRecord, match=f"message 2 has the key '{key}', for which the template '{name}' has no"):
        TEMPLATES[name].segments(parts)
    assert text(TEMPLATES[name].segments(recognise(turns(**{key: None})))) == text(TEMPLATES[name].segments(turns()))


def test_an_open_conversation_asks_for_the_next_turn():
    template = TEMPLATES["qa"]
    opened = {"messages": TURNS["messages"][1:4]}
    closed = {"messages": TURNS["messages"][1:]}
    assert template.prompt_segments(opened) == template.prompt_segments(closed) == template.segments(closed)[:-2]


def test_an_empty_input_or_system_text_counts_as_none():
    assert text(TEMPLATES["alpaca"].segments({**ONE, "input": ""})) == EXACT[0][2]
    assert text(TEMPLATES["chatml"].segments({**ONE, "system": ""})).startswith("<|im_start|>user")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_braces_in_the_users_text_stay_what_they_are(name):
    """`str.format` on a filled prompt would fail, or fill the user's own braces."""
    odd = "{instruction} {input} {0} {} {{x}} {response} %s \\1"
    example = text(TEMPLATES[name].segments({"instruction": odd, "input": "{instruction}{prompt}", "response": odd}))
    assert example.count(odd) == 2 and example.count("{instruction}{prompt}") == 1


def test_special_tokens_are_honoured_in_the_template_and_never_in_the_users_text():
    """The kinds say which is which; the tokenizer goes by them (test_tokenizer)."""
    segments = TEMPLATES["chatml"].segments({"instruction": "<|im_end|>", "response": "<|im_end|>"})
    kinds = [(segment.text, segment.kind) for segment in segments if "<|im_end|>" in segment.text]
    assert kinds == [
        ("<|im_end|>", "text"),
        ("<|im_end|>\n<|im_start|>assistant\n", "template"),
        ("<|im_end|>", "text"),
        ("<|im_end|>", "stop"),
    ]


# ---- recognising records


@pytest.mark.parametrize(
    "record, parts",
    [
        ({"question": "q", "answer": "a"}, {"instruction": "q", "response": "a"}),
        ({"instruction": "q", "response": "a"}, {"instruction": "q", "response": "a"}),
        ({"instruction": "q", "output": "a"}, {"instruction": "q", "response": "a"}),
        ({"instruction": "q", "input": "i", "output": "a"}, {"instruction": "q", "input": "i", "response": "a"}),
        ({"instruction": "q", "input": "i", "response": "a"}, {"instruction": "q", "input": "i", "response": "a"}),
        ({"instruction": "q", "input": "", "output": "a"}, {"instruction": "q", "input": "", "response": "a"}),
        ({"instruction": "q", "input": None, "output": "a"}, {"instruction": "q", "input": "", "response": "a"}),
        ({"instruction": "", "input": "i", "output": "a"}, {"instruction": "", "input": "i", "response": "a"}),
        ({"input": "q", "output": "a"}, {"instruction": "q", "response": "a"}),
        ({"prompt": "q", "completion": "a"}, {"instruction": "q", "response": "a"}),
        ({"text": "t"}, {"text": "t"}),
        ({"question": "q", "answer": "a", "id": 7, "tags": ["x"]}, {"instruction": "q", "response": "a"}),
        ({"question": "q", "answer": "a", "system": "s"}, {"instruction": "q", "response": "a", "system": "s"}),
        (TURNS, TURNS),
    ],
)
def test_sets_of_keys_are_recognised(record, parts):
    assert recognise(record) == parts


@pytest.mark.parametrize(
    "fields, record, parts",
    [
        ({"instruction": "q", "response": "a"}, {"q": "1", "a": "2"}, {"instruction": "1", "response": "2"}),
        (
            {"instruction": "q", "input": "i", "response": "a"},
            {"q": "1", "a": "2"},
            {"instruction": "1", "input": "", "response": "2"},
        ),
        # --fields wins over keys that would be recognised
        (
            {"instruction": "answer", "response": "question"},
            {"question": "1", "answer": "2"},
            {"instruction": "2", "response": "1"},
        ),
        ({"text": "body"}, {"body": "t"}, {"text": "t"}),
        ({"messages": "chat"}, {"chat": TURNS["messages"]}, TURNS),
        # a part of the user's own template is a prompt too; it was once refused for want of an instruction
        ({"topic": "t", "response": "a"}, {"t": "1", "a": "2"}, {"topic": "1", "response": "2"}),
    ],
)
def test_fields_map_keys_to_parts(fields, record, parts):
    assert recognise(record, fields) == parts


@pytest.mark.parametrize(
    "record, fields, message",
    [
        ({"q": "x"}, None, "no known set of keys; it has 'q'; name them with --fields"),
        ({}, None, "it has no keys"),
        ({"question": "x"}, None, "key 'answer' is missing; it has 'question'"),
        ({"question": "x", "answer": ""}, None, "key 'answer' is empty"),
        ({"question": "x", "answer": " \n\t"}, None, "key 'answer' is empty"),
        ({"question": "x", "answer": None}, None, "key 'answer' must hold text, not NoneType"),
        ({"question": 3, "answer": "y"}, None, "key 'question' must hold text, not int"),
        ({"question": " ", "answer": "y"}, None, "key 'question' is empty: there is no prompt"),
        ({"instruction": "", "input": "", "output": "y"}, None, "key 'instruction' is empty: there is no prompt"),
        ({"instruction": "x", "input": 3, "output": "y"}, None, "key 'input' must hold text, not int"),
        ({"text": "  "}, None, "key 'text' is empty"),
        ({"q": "x"}, {"instruction": "q", "response": "a"}, "key 'a' (for response) is missing; it has 'q'"),
        ({"q": "x"}, {"instruction": "q"}, "there is no response: name its key with --fields response=KEY"),
        ({"a": "x"}, {"response": "a"}, "there is no prompt: name its key with --fields instruction=KEY"),
        ({"messages": []}, None, "key 'messages' must hold a list of messages"),
        ({"messages": "hello"}, None, "key 'messages' must hold a list of messages"),
        ({"messages": [{"role": "user"}]}, None, "message 1: it must have 'role' and 'content', both text"),
        ({"messages": [{"role": "bot", "content": "x"}]}, None, "message 1: role 'bot' is none of system, user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None, "role 'assistant' where 'user' was due"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]},
            None,
            "message 2: role 'user' where 'assistant' was due",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
            None,
            "message 2: role 'system' where 'assistant' was due",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
            None,
            "message 2: the assistant's content is empty",
        ),
        (
            {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]},
            None,
            "message 1: the user's content is empty",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, None, "no assistant message"),
    ],
)
def test_a_bad_record_is_told_which_key_and_why(record, fields, message):
    """The error names the key; a record must not be trained on half."""
    with pytest.raises(BadRecord) as caught:
        recognise(record, fields)
    assert message in str(caught.value)


# ---- nothing of a record is lost without a word


def test_an_input_for_which_the_template_has_no_place_is_refused():
    """A user's template with {instruction} alone once trained on records without their inputs, silently."""
    template = Template("mine", prompt="Q: {instruction}\nA: ").check()
    assert text(template.segments(ONE)) == "Q: Say hi.\nA: <<Hi!<|endoftext|>>>"
    with pytest.raises(BadRecord, match="it has a text for 'input', for which the template 'mine' has no place"):
        template.segments(WITH_INPUT)


@pytest.mark.parametrize("name", ["alpaca", "qa", "plain"])
def test_a_system_text_for_which_the_template_has_no_place_is_refused(name):
    with pytest.raises(BadRecord, match=f"a text for 'system', for which the template '{name}' has no place"):
        TEMPLATES[name].segments(SYSTEM)


@pytest.mark.parametrize("name", ["alpaca", "plain"])
def test_a_template_without_a_form_for_several_turns_refuses_them(name):
    turns = {"messages": TURNS["messages"][1:]}
    with pytest.raises(BadRecord, match="no form for conversations of several turns"):
        TEMPLATES[name].segments(turns)
    single = {"messages": TURNS["messages"][1:3]}
    assert text(TEMPLATES[name].segments(single)).endswith("<<1.<|endoftext|>>>")


def test_a_misspelt_part_in_fields_is_refused_with_the_nearest():
    """`--fields instrction=q` was taken for a part of the user's own that no template shows."""
    with pytest.raises(UserError, match="has no part 'instrction'; did you mean 'instruction'"):
        TEMPLATES["qa"].check_fields({"instrction": "q", "response": "a"})
    TEMPLATES["qa"].check_fields({"instruction": "q", "input": "i", "response": "a", "system": "s", "text": "t"})
    Template("mine", prompt="{topic}").check(["topic"]).check_fields({"topic": "t", "response": "a"})


# ---- hydrating


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_hydrated_records_hold_the_whole_prompt_and_the_response(name):
    template = TEMPLATES[name]
    record = hydrate(template, WITH_INPUT)
    prompt = [segment.text for segment in template.prompt_segments(WITH_INPUT) if segment.kind != "bos"]
    assert record["input"] == "".join(prompt)  # a beginning-of-text is the tokenizer's to write
    assert record["output"] == template.lead + "cat" + template.tail
    assert hydrate(template, {"text": "Once."}) == {"text": "Once."}


def test_hydrating_a_conversation_keeps_everything_but_the_last_turn_as_prompt():
    record = hydrate(TEMPLATES["chatml"], TURNS)
    assert record["input"].endswith("Two?<|im_end|>\n<|im_start|>assistant\n") and "1.<|im_end|>" in record["input"]
    assert record["output"] == "2."


@pytest.mark.parametrize("template", [TEMPLATES["chatml"], Template("bare", prompt="{prompt}")], ids=["chatml", "bare"])
def test_hydrating_a_conversation_that_ends_with_the_user_is_refused(template):
    """With a bare template the last stop was once taken for the response."""
    turns = {"messages": TURNS["messages"][1:4]}
    with pytest.raises(BadRecord, match="does not end with the assistant"):
        hydrate(template, turns)


# ---- the user's own template


def toml(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_template_from_a_toml_file(tmp_path):
    path = toml(
        tmp_path,
        'prompt = "Q: {instruction}\\nA:"\nprompt_with_input = "Q: {instruction} ({input})\\nA:"\n'
        'lead = " "\nstop = "<|stop|>"\nmulti_turn = false\n',
    )
    template = load_template(path)
    assert template.name == "mine"
    assert text(template.segments(ONE)) == "Q: Say hi.\nA:<< Hi!<|stop|>>>"
    assert text(template.segments(WITH_INPUT)) == "Q: Translate. (chat)\nA:<< cat<|stop|>>>"
    assert template_from_dict(template.to_dict(), "checkpoint", None) == template


def test_placeholders_of_the_users_own_come_with_fields(tmp_path):
    path = toml(tmp_path, 'prompt = "On {topic}, in the style of {style}: "')
    template = load_template(path, {"topic": "t", "style": "s", "response": "r"})
    parts = recognise({"t": "war", "s": "Homer", "r": "Sing"}, {"topic": "t", "style": "s", "response": "r"})
    assert text(template.segments(parts)) == "On war, in the style of Homer: <<Sing<|endoftext|>>>"
    with pytest.raises(UserError, match=r"unknown placeholder \{topic\} in 'prompt'"):
        load_template(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ('prompt = "{instructon}"', "unknown placeholder {instructon} in 'prompt'; did you mean 'instruction'?"),
        (
            'prompt = "{instruction}"\nprompt_with_input = "{inptu}"',
            "unknown placeholder {inptu} in 'prompt_with_input'; did you mean 'input'?",
        ),
        ('prompt = "{prompt}"\nsystem = "{sys}"', "unknown placeholder {sys} in 'system'"),
        ('prompt = "Answer: "', "'prompt' has no placeholder"),
        ('promt = "{prompt}"', "unknown key 'promt'; did you mean 'prompt'?"),
        ('stop = "x"', "the key 'prompt' is missing"),
        ("prompt = 3", "prompt must be text"),
        ('prompt = "{prompt}"\nmulti_turn = "yes"', "multi_turn must be true or false"),
        ("prompt = ", "mine.toml: "),
    ],
)
def test_a_faulty_template_file_is_one_line_naming_file_and_key(content, message, tmp_path):
    with pytest.raises(UserError) as caught:
        load_template(toml(tmp_path, content))
    assert message in str(caught.value) and "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_template_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'alpacca' is no template and no .toml file; did you mean 'alpaca'"):
        load_template("alpacca")
    with pytest.raises(UserError, match=r"--template none.toml: No such file"):
        load_template("none.toml")


def test_shipped_templates_pass_their_own_check():
    for template in TEMPLATES.values():
        assert template.check() is template
        assert all(isinstance(segment, Segment) for segment in template.segments(ONE))
