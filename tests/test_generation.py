"""Text in, text out: what ends an answer, and what is sent."""

import json

import pytest
import torch
from toys import toy_model

from gptft import generation
from gptft.decoding import decode_plain
from gptft.errors import BadRecord, UserError
from gptft.generation import generate, stop_ids
from gptft.model import GPT
from gptft.prompts import TEMPLATES, Template
from gptft.tokenizer import Tokenizer, embedded


def with_end_ids(*end_ids):
    """The embedded vocabulary with a template whose stop is a token of its own, and further end ids."""
    plain = embedded()
    names = {"<|im_end|>": plain.n_vocab, "<|eom|>": plain.n_vocab + 1}
    tokenizer = Tokenizer(plain.ranks, plain.pattern, {**plain.specials, **names})
    tokenizer.template, tokenizer.end_ids = TEMPLATES["chatml"], end_ids
    return tokenizer


@pytest.mark.parametrize("which", ["template", "end of text", "named by the model"])
def test_an_answer_ends_at_any_id_that_ends_one_and_prints_none(which, monkeypatch):
    """It ended only at the template's stop: a model that writes its end-of-text instead ran on to the last token."""
    tokenizer = with_end_ids()
    named = 300  # an ordinary token that the model's own files call an end
    tokenizer.end_ids = (named,)
    end = {"template": tokenizer.specials["<|im_end|>"], "end of text": tokenizer.eot, "named by the model": named}[
        which
    ]
    assert stop_ids(tokenizer) == {tokenizer.specials["<|im_end|>"], tokenizer.eot, named}
    written = [*tokenizer.encode("Yes."), end, *tokenizer.encode(" and so on")]
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=128).config, seed=1)
    for cached in (True, False):
        left = iter(written)
        place = "gptft.fast.continuous.choose_by_blocks" if cached else "gptft.decoding.choose"
        monkeypatch.setattr(place, lambda logits, *_: torch.tensor([next(left)]))  # noqa: B023
        if cached:
            assert generate(model, tokenizer, ["Hi"], 20, lookup=False) == ["Yes."]
        else:
            ids = decode_plain(model, [1, 2], 20, stop_ids(tokenizer), tokenizer.n_vocab)
            assert tokenizer.decode(ids) == "Yes."


def test_end_ids_travel_with_a_checkpoint_and_change_no_digest(tmp_path):
    """Left behind, a chat model that was fine-tuned would run past the end that its first owner gave it."""
    tokenizer = with_end_ids(3, 300)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.end_ids == (3, 300) and again.digest == tokenizer.digest == with_end_ids().digest
    values = json.loads((tmp_path / "gptft_tokenizer.json").read_text())
    del values["end_ids"]  # a file of an earlier commit has none
    (tmp_path / "gptft_tokenizer.json").write_text(json.dumps(values))
    assert Tokenizer.load(tmp_path).end_ids == ()
    for wrong in (5, ["x"], [-1], {"a": 1}):
        (tmp_path / "gptft_tokenizer.json").write_text(json.dumps({**values, "end_ids": wrong}))
        with pytest.raises(UserError, match="end_ids cannot be"):
            Tokenizer.load(tmp_path)


def test_what_stands_between_a_response_and_its_stop_is_not_given_back(monkeypatch):
    """llama2 writes a space there: it came back with every answer, and twice into the next turn of a chat."""
    tokenizer = embedded()
    tokenizer.template = TEMPLATES["llama2"]
    model = toy_model(torch.float32, vocab_size=tokenizer.n_vocab, block_size=64)
    said = tokenizer.encode(" Paris. ")
    monkeypatch.setattr(generation, "decode_continuously", lambda *arguments: ([(0, i)] for i in said))
    assert generation.generate(model, tokenizer, ["Where?"], lookup=False) == ["Paris."]


def test_a_prompt_cut_to_its_beginning_of_text_is_refused():
    tokenizer = embedded()
    tokenizer.bos = tokenizer.eot
    with pytest.raises(UserError, match="room for the beginning-of-text alone"):
        generation.prompt_ids(tokenizer, "a long prompt of many words", raw=True, max_input_tokens=1)


def test_a_place_of_ones_own_that_nothing_fills_is_named():
    """A checkpoint whose template has a {topic}: asked with a text alone, the topic was empty without a word."""
    tokenizer = embedded()
    tokenizer.template = Template("own", prompt="Topic: {topic}\nQ: {instruction}\nA:")
    with pytest.raises(BadRecord, match=r"it has no 'topic'.*--fields topic=KEY"):
        generation.prompt_ids(tokenizer, "What is it?")


def test_a_response_tells_whether_it_came_to_its_end(monkeypatch):
    """One that was cut off for want of room is no finished answer, be it max_new_tokens or the block that ends it."""
    tokenizer = with_end_ids()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=48).config, seed=1)
    said = tokenizer.encode("Yes it is")
    length = len(generation.prompt_ids(tokenizer, "Hi"))
    room = 48 + 1 - length
    assert 3 < len(said) < room

    def respond(written, new):
        left = iter([*written, *[7] * 100])
        monkeypatch.setattr("gptft.fast.continuous.choose_by_blocks", lambda logits, *_: torch.tensor([next(left)]))
        return generation.respond(model, tokenizer, ["Hi"], new, lookup=False)[0]

    assert respond([*said, tokenizer.eot], 100) == ("Yes it is", len(said), True)
    assert respond([*said, tokenizer.eot], len(said) + 1).finished  # the end is the last token that there is room for
    assert respond(said, len(said)) == ("Yes it is", len(said), False)
    assert respond([], 100)[1:] == (room, False)
    assert respond([tokenizer.eot], 5) == ("", 0, True)
