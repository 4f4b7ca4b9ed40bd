"""The chat templates that TRL carries, of the models that people fine-tune: each is proven, or refused in stated words.

The proof: the ids before a trained answer are those that inference sends and those of transformers, and what ends the
assistant's turn is a target.
"""

import dataclasses
import importlib.util
import re
from pathlib import Path

import hf_families as families
import pytest

from gptft.data.shapes import recognise
from gptft.errors import BadRecord
from gptft.formats.hf_tokenizer import read_hf_tokenizer
from gptft.generation import prompt_ids, stop_ids
from gptft.text.chat import ChatTemplate

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

TRL = importlib.util.find_spec("trl")
FOLDER = Path(TRL.submodule_search_locations[0]) / "chat_templates" if TRL else Path("none")
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
pytestmark = pytest.mark.skipif(not NAMES, reason="trl is not here (extra `bench`): its package brings the templates")

SPECIAL = re.compile(
    r"<\|[A-Za-z_]+\|?>|<[a-z]+\|>|<｜[^｜>]+｜>|</?s>|<(?:start|end)_of_(?:turn|utterance)>|<(?:bos|eos|sop)>|\[gMASK\]"
)
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
STOPS = {  # by the beginning of a template's name, the longest that fits: what ends the assistant's turn
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": EOS,  # the template ends no answer: ours is ended by the end-of-text, which is one of GLM's ends
    "glm4moe_training": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}
# Templates that show an earlier answer otherwise than they ask for one (the thought that the prompt opens is gone), so
# that it cannot be a target: refused, unless its weight is 0.
EARLIER_REFUSED = re.compile(r"deepseek|nemotron|qwen3_(5_think|5_nothink|6)(?!_training)")
IN_BLOCKS = re.compile(r"idefics3|llava_next|smolvlm")  # these write contents only as lists of typed blocks


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """(ours, transformers') over one vocabulary that has the special tokens of all templates."""
    values, config, model_type = families.llama3()
    known = {entry["content"] for entry in values["added_tokens"]}
    first = max(entry["id"] for entry in values["added_tokens"]) + 1
    found = {name for path in FOLDER.glob("*.jinja") for name in SPECIAL.findall(path.read_text(encoding="utf-8"))}
    values["added_tokens"] += [families.token(first + n, name) for n, name in enumerate(sorted(found - known))]
    config |= {"eos_token": EOS, "added_tokens_decoder": families.decoder_of(values["added_tokens"])}
    directory = tmp_path_factory.mktemp("all")
    families.write(directory, values, config, model_type)
    return read_hf_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def use(tokenizers):
    """use(name, thinking) -> (ours, transformers'), both with that template."""

    def chosen(name, thinking="keep"):
        ours, theirs = tokenizers
        source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        ours.template = ChatTemplate(source, {"bos_token": BOS, "eos_token": EOS}, tuple(ours.specials), EOS)
        ours.template = dataclasses.replace(ours.template, thinking=thinking)
        theirs.chat_template = source
        return ours, theirs

    return chosen


def turns(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


ONE = turns("How much is 1 + 1?", "It is two.")
TWO = turns("How much is 1 + 1?", "It is two.", "And 2 + 2?", "Four, I think.")


def asked(theirs, name, messages, **options):
    """What transformers sends for the last turn."""
    if IN_BLOCKS.match(name):
        messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    return theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)


@pytest.mark.parametrize("name", NAMES)
def test_each_template_is_proven_or_refused(name, use):
    """DeepSeek-V3, R1, Nemotron-3 and Idefics3 were refused though they can be shown; Cohere's end was not learned."""
    ours, theirs = use(name)
    end = STOPS[max((key for key in STOPS if name.startswith(key)), key=len)]
    assert ours.template.stop == end and {ours.specials[end], ours.eot} <= stop_ids(ours)
    for messages in (ONE, TWO):
        if messages is TWO and EARLIER_REFUSED.match(name):
            with pytest.raises(
                BadRecord, match=r'writes message 2 .* otherwise than it asks .* give it "weight": 0, or'
            ):
                ours.template.segments({"messages": messages})
            messages = [messages[0], {**messages[1], "weight": 0}, *messages[2:]]
        ids, spans = ours.encode_segments(ours.template.segments({"messages": messages}))
        given = asked(theirs, name, messages[:-1])
        assert ids[: spans[-1][0]] == given == prompt_ids(ours, messages)
        answers = [each for each in messages if each["role"] == "assistant" and each.get("weight") != 0]
        assert len(spans) == len(answers)
        for (start, stop), answer in zip(spans, answers, strict=True):
            said = ours.decode(ids[start:stop])
            assert said.removeprefix(ours.template.lead).strip() == answer["content"]
        assert ids[spans[-1][1] - 1] == ours.specials[end]


def test_coheres_turn_ends_with_both_of_its_tokens(use):
    """Only the first was trained: the model never learned to write the token that ends its turn."""
    ours, _ = use("cohere2")
    ids, spans = ours.encode_segments(ours.template.segments({"messages": TWO}))
    both = [ours.specials["<|END_RESPONSE|>"], ours.specials["<|END_OF_TURN_TOKEN|>"]]
    assert [ids[end - 2 : end] for _, end in spans] == [both, both]


# ---- reasoning

THOUGHT, THOUGHTS = "One and one.", ("One and one.", "Twice two.")
THINKERS = ["qwen3", "qwen3_5_think", "deepseek_r1_distill", "nemotron_3_nano", "nemotron_3_super"]


def with_thoughts(messages, how):
    """The conversation with reasoning in each answer: under a key of its own, or in the content."""
    left = iter(THOUGHTS)
    out = []
    for message in messages:
        if message["role"] == "assistant":
            thought = next(left)
            more = {"content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}
            message = {**message, **(more if how == "content" else {"reasoning_content": thought})}
        out.append(message)
    return out


@pytest.mark.parametrize("how", ["key", "content"])
@pytest.mark.parametrize("name", THINKERS)
def test_thinking_keep_trains_the_reasoning(name, how, use):
    """It is what the model must produce, from what inference sends on: R1's prompt already opens the thought."""
    ours, theirs = use(name)
    messages = with_thoughts(ONE, how)
    ids, spans = ours.encode_segments(ours.template.segments({"messages": messages}))
    ((start, end),) = spans
    assert ids[:start] == asked(theirs, name, messages[:-1]) == prompt_ids(ours, messages)
    said = ours.decode(ids[start:end])
    assert re.fullmatch(rf"(<think>\n)?{THOUGHT}\n</think>\n+It is two\.", said), said
    assert ids[end - 1] == ours.stop
    with pytest.raises(BadRecord, match=r"message 2 \(the assistant's\).*--thinking strip|writes message 2"):
        ours.template.segments({"messages": with_thoughts(TWO, how)})


@pytest.mark.parametrize("how", ["key", "content"])
@pytest.mark.parametrize("name", THINKERS)
def test_thinking_strip_trains_answers_to_prompts_that_ask_for_no_reasoning(name, how, use):
    """transformers is given enable_thinking=False: the same ids; and none of the reasoning is left."""
    ours, theirs = use(name, "strip")
    for plain in (ONE, TWO):
        messages = with_thoughts(plain, how)
        if plain is TWO and name in ("qwen3", "qwen3_5_think", "deepseek_r1_distill"):
            with pytest.raises(BadRecord, match="writes message 2"):  # shown without the thought that is asked for
                ours.template.segments({"messages": messages})
            messages[1]["weight"] = 0
        ids, spans = ours.encode_segments(ours.template.segments({"messages": messages}))
        given = asked(theirs, name, plain[:-1], enable_thinking=False)
        assert ids[: spans[-1][0]] == given == prompt_ids(ours, messages)
        assert not any(thought in ours.decode(ids) for thought in THOUGHTS)
        assert ours.decode(ids[slice(*spans[-1])]).removeprefix(ours.template.lead) == plain[-1]["content"]


@pytest.mark.parametrize("how", ["key", "content"])
@pytest.mark.parametrize("name", THINKERS)
def test_thinking_mask_shows_the_reasoning_and_trains_the_answer(name, how, use):
    ours, theirs = use(name, "mask")
    for plain in (ONE, TWO):
        messages = with_thoughts(plain, how)
        if plain is TWO and name != "qwen3":
            with pytest.raises(BadRecord, match="writes message 2"):
                ours.template.segments({"messages": messages})
            messages[1]["weight"] = 0
        ids, spans = ours.encode_segments(ours.template.segments({"messages": messages}))
        given = asked(theirs, name, messages[:-1])
        assert ids[: len(given)] == given == prompt_ids(ours, messages)
        assert ours.decode(ids[slice(*spans[-1])]) == plain[-1]["content"] and ids[spans[-1][1] - 1] == ours.stop
        assert THOUGHTS[len(plain) // 2 - 1] in ours.decode(ids[: spans[-1][0]])


def test_the_reasoning_of_gpt_oss_stands_in_its_own_channel(use):
    """Under whichever of the names that transformers knows."""
    for key in ("reasoning_content", "thinking", "reasoning"):
        ours, _ = use("gptoss")
        messages = [ONE[0], {**ONE[1], key: THOUGHT}]
        ids, ((start, _),) = ours.encode_segments(ours.template.segments({"messages": messages}))
        whole = "".join(segment.text for segment in ours.template.segments({"messages": messages}))
        assert f"<|channel|>analysis<|message|>{THOUGHT}<|end|>" in whole and ids[:start] == prompt_ids(ours, messages)


def test_reasoning_that_the_template_leaves_out_of_a_turn_without_weight_is_no_loss(use):
    """R1's template shows earlier answers without their thoughts; of weight 0 they are context, as inference sends."""
    for name in ("deepseek_r1_distill", "qwen3"):
        ours, theirs = use(name)
        messages = with_thoughts(TWO, "content")
        messages[1]["weight"] = 0
        ids, spans = ours.encode_segments(ours.template.segments({"messages": messages}))
        assert ids[: spans[0][0]] == asked(theirs, name, messages[:-1]) and len(spans) == 1
        assert THOUGHTS[1] in ours.decode(ids[slice(*spans[0])]) and THOUGHTS[0] not in ours.decode(ids)


# ---- tools

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": "the number 1", "b": 2}}}
TOOLS = [
    {"role": "user", "content": "How much is 1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "three", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is three."},
]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "lfm2_v2", "qwen3_vl"])
def test_calls_of_tools_are_written_as_transformers_writes_them_and_trained(name, use):
    """`tool_calls` was dropped, and an answer without a content refused."""
    ours, theirs = use(name)
    segments = ours.template.segments({"messages": TOOLS})
    given = theirs.apply_chat_template(TOOLS, tokenize=False)
    assert "".join(segment.text for segment in segments) == given
    trained = "".join(segment.text for segment in segments if segment.trained)
    assert "add" in trained and "the number 1" in trained and "three" in trained and "How much" not in trained
    ids, spans = ours.encode_segments(segments)
    assert len(spans) == 2 and ids[: spans[-1][0]] == asked(theirs, name, TOOLS[:-1]) == prompt_ids(ours, TOOLS)


def test_a_message_of_calls_alone_needs_no_content(use):
    ours, theirs = use("qwen3")
    for message in ({**TOOLS[1], "content": None}, {key: TOOLS[1][key] for key in ("role", "tool_calls")}):
        messages = recognise({"messages": [TOOLS[0], message, *TOOLS[2:]]})["messages"]
        given = asked(theirs, "qwen3", messages[:-1])
        assert prompt_ids(ours, messages) == given


def test_a_call_of_a_tool_that_the_template_does_not_write_is_refused_by_name(use):
    """LFM2's first template reads no `tool_calls`."""
    ours, _ = use("lfm2")
    messages = [TOOLS[0], {**TOOLS[1], "content": "I call."}, *TOOLS[2:]]
    with pytest.raises(BadRecord, match=r"leaves out 'tool_calls' of message 2 \(the assistant's\)"):
        ours.template.segments({"messages": messages})
