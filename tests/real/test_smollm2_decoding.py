"""Faster decoding on a real pretrained model: continuous batching and prompt lookup beside plain decoding, one prompt
at a time. tests/real/test_smollm2.py says where the model comes from."""

import pytest
import torch
from test_smollm2 import PATH
from test_smollm2 import pytestmark as real

from gptft.decoding import decode
from gptft.fast.continuous import decode_continuously
from gptft.fast.lookup import decode_with_lookup
from gptft.generation import prompt_ids, stop_ids
from gptft.loading import load

pytest.importorskip("gguf")
pytestmark = [*real, pytest.mark.slow]
NEW = 32
CLEAR = 1e-3  # logits farther apart do not change places; here most lie several apart
TEXT = (
    "The library of the old town was built in 1887 by a merchant, Josiah Penn, who had made his money in wool. It has "
    "three floors, two of which are open to visitors, and a cellar that nobody has entered since the flood of 1953."
)
QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "What is 12 plus 30?",
    "Say hello.",
    "Explain why the sky is blue.",
    "Write a short story about a snail and a comet.",
    "Is a whale a fish? Answer with yes or no.",
    "Translate into French: The cat sleeps.",
    f"Repeat this text word for word: {TEXT}",
    f"{TEXT}\nWho built the library, and when? Quote the sentence.",
    f"Correct the spelling of this text: {TEXT}",
    "Fix:\ndef mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / n",
]


@pytest.fixture(scope="module")
def asked():
    """The model, its prompts, what ends an answer, and each prompt's answer alone."""
    model, tokenizer = load(PATH)
    prompts = [prompt_ids(tokenizer, question) for question in QUESTIONS]
    ends = stop_ids(tokenizer), tokenizer.n_vocab
    return model, prompts, ends, [collect(decode(model, [prompt], NEW, *ends), 1)[0] for prompt in prompts]


def collect(passes, count):
    answers = [[] for _ in range(count)]
    for pairs in passes:
        for n, token in pairs:
            answers[n].append(token)
    return answers


@torch.no_grad()
def clear_tokens(model, prompt, answer):
    """How many tokens of an answer come before the first whose two best logits are close."""
    best = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 :].topk(2).values
    close = ((best[:, 0] - best[:, 1]) <= CLEAR).nonzero()
    return int(close[0]) if len(close) else len(answer)


@pytest.mark.parametrize("rows", [3, 16])
def test_answers_in_company_are_those_of_each_prompt_alone(asked, rows):
    """Up to the first token at which two logits lie within 1e-3, from where on texts may part; that is rare."""
    model, prompts, ends, alone = asked
    found = collect(decode_continuously(model, prompts, NEW, *ends, rows=rows), len(prompts))
    compared = 0
    for prompt, answer, expected in zip(prompts, found, alone, strict=True):
        clear = clear_tokens(model, prompt, expected)
        assert answer[:clear] == expected[:clear]
        assert answer == expected or clear < len(expected)
        compared += clear
    assert len({*map(len, alone)}) > 2 and compared > 0.8 * sum(map(len, alone))


def test_answers_with_lookup_are_those_without_to_the_last_id(asked, monkeypatch):
    """Near ties included; and where the text is copied, in a fraction of the passes."""
    model, prompts, ends, alone = asked
    passes, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *args, **options: passes.append(1) or hidden(*args, **options))
    taken = []
    for prompt, expected in zip(prompts, alone, strict=True):
        passes.clear()
        assert collect(decode_with_lookup(model, [prompt], NEW, *ends), 1)[0] == expected
        taken.append(len(passes) / len(expected))
    assert min(taken) < 0.5 and max(taken) <= 1 + 1 / min(map(len, alone))
