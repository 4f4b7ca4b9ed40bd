"""Prompt lookup: the ids of plain greedy decoding, every one of them, in fewer passes where the answer copies."""

import itertools

import pytest
import torch
from counted import VARIANTS, Counted, V, circle, decode_all
from test_decoding import random_prompts
from toys import toy_model

from gptft import generation
from gptft.adapters.frozen import HalfLinear
from gptft.decoding import Sampling
from gptft.errors import UserError
from gptft.fast import lookup
from gptft.fast.decoding_model import DecodingModel
from gptft.fast.lookup import COARSE, LONGEST, REST, SHORTEST, Copies, Pace, Text, decode_with_lookup, takes_lookup
from gptft.generation import generate, respond
from gptft.model import GPT
from gptft.tokenizer import embedded


def collect(model, prompts, *args, **options):
    answers = [[] for _ in prompts]
    for pairs in decode_with_lookup(model, prompts, *args, **options):
        ((n, token),) = pairs
        answers[n].append(token)
    return answers


def copying_prompts():
    """Prompts that say the same again: a toy's answers to them do, too, sooner or later."""
    told = random_prompts([17, 5, 30, 1, 9])
    return [*told, told[0] * 3, told[1] * 8, told[2] + told[1] + told[2], [4] * 20, (told[4] + told[1]) * 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_id_is_that_of_plain_greedy_decoding(variant, dtype):
    """A token that was drafted wrongly stayed in the cache, or what came free behind a draft was of another place.

    Copying and not, up to the end of the block, with stops.
    """
    copied = 0
    for seed in range(3):
        model = toy_model(dtype, seed, block_size=128, **VARIANTS[variant])
        prompts = copying_prompts()
        plain = decode_all(model, prompts[:1], 40, (), V)[0]
        for stops in ((), {plain[7], plain[30]}):
            expected = [decode_all(model, [prompt], 110, stops, V)[0] for prompt in prompts]
            counted, ended = Counted(model), set()
            assert collect(counted, prompts, 110, stops, V, ended=ended) == expected
            assert ended == set(range(len(prompts)))
            copied += sum(map(len, expected)) - len(counted.passes)
    assert copied > 0, "nothing was copied, so that nothing was tested"


@pytest.mark.parametrize("new", [0, 1, 2, 3])
def test_few_new_tokens(new):
    """A draft may not reach beyond what is asked for: the cache has no room for it."""
    model = circle(3)
    prompts = [[0, 1, 2] * 5, [0, 1, 2] * 85]
    assert collect(model, prompts, new, (), V) == [decode_all(model, [prompt], new, (), V)[0] for prompt in prompts]
    assert [len(answer) for answer in collect(model, prompts, 100, (), V)] == [100, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_answer_that_copies_takes_a_fraction_of_the_passes(variant):
    """30 tokens in a circle, of which the prompt holds one round; and a circle shorter than a draft."""
    for period in (30, 5, 1):
        counted = Counted(circle(period, **VARIANTS[variant]))
        prompt = [n % period for n in range(max(period, 4) + 3)]
        expected = [(prompt[-1] + 1 + n) % period for n in range(120)]
        assert collect(counted, [prompt], 120, (), V) == [expected]
        assert len(counted.passes) < 120 / 8


def test_an_answer_that_copies_nothing_is_decoded_as_plainly_as_ever(monkeypatch):
    """Passes of several tokens where there is nothing to draft, or a look at the margins that nobody needs."""
    model, counted = circle(V), Counted(circle(V))
    monkeypatch.setattr(torch.Tensor, "topk", None)  # would fail if it were asked for
    assert collect(counted, [[5, 3]], 50, (), V) == decode_all(model, [[5, 3]], 50, (), V)
    assert counted.passes == [(1, 2)] + [(1, 1)] * 49


def test_drafts_of_no_use_become_rare():
    """Text in which the same words are always followed by others: every draft is wrong, and costs its tokens."""
    pace, drafted = Pace(), 0
    for _ in range(1000):
        if longest := pace.ask():
            drafted += longest
            pace.learn(longest, 0)
    assert drafted <= SHORTEST * (7 + 1000 / REST), "an eighth of a pass for each: less than 1 in 100"
    pace.learn(SHORTEST, SHORTEST)
    assert [pace.ask() for _ in range(2)] == [2 * SHORTEST] * 2, "one that is right ends it"
    for _ in range(9):
        pace.learn(pace.ask(), pace.length)
    assert pace.ask() == LONGEST
    pace.learn(LONGEST, 5)
    assert pace.ask() == 5
    pace.learn(5, 1)
    assert pace.ask() == SHORTEST


class Rounding(Counted):
    """A model whose passes over several tokens behind a prompt round otherwise than those over one: more than any real
    one, so that close calls go the other way for certain. Its keys and values do, too."""

    def hidden(self, idx, layout=None, cache=None, scored=None):
        h = super().hidden(idx, layout, cache, scored)
        if scored is None and idx.size(1) > 1:
            noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(int(idx.sum())))
            h = h * (1 + 2e-7 * noise)
            filled = slice(layout.end - idx.size(1), layout.end)
            for values in (cache.k, cache.v):
                values[:, :, :, filled] *= 1 + 2e-7 * noise.flatten()[0]
        return h


def nearly_tied(seed, **variant):
    """Every token has a twin, whose logit is the same but for rounding."""
    model = toy_model(torch.float32, seed, block_size=128, tie_embeddings=False, **variant)
    with torch.no_grad():
        weight = model.lm_head.weight
        twins = weight[:30] * (1 + 1e-7 * torch.randn(30, 32, generator=torch.Generator().manual_seed(1)))
        weight[30:60] = twins
        model.tok.weight[30:60] = model.tok.weight[:30]  # the text goes on alike, so that it does copy
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_near_ties_are_decided_by_the_numbers_of_plain_decoding(variant, monkeypatch):
    """The two best logits differed in their last bits, and the draft's pass had them the other way round; or they were
    computed anew over keys and values that came from it."""
    prompts = [[n % 30 for n in prompt] for prompt in copying_prompts()]
    read_again, model_again = [], Text._read_again
    monkeypatch.setattr(Text, "_read_again", lambda text, found: read_again.append(1) or model_again(text, found))
    differ, copied = 0, 0
    for seed in range(3):
        model = nearly_tied(seed, **VARIANTS[variant])
        expected = [decode_all(model, [prompt], 60, (), V)[0] for prompt in prompts]
        rounding = Rounding(model)
        assert collect(rounding, prompts, 60, (), V) == expected
        copied += sum(T > 1 for _, T in rounding.passes[1:])
        with monkeypatch.context() as patch:
            patch.setattr(lookup, "relative_tolerance", lambda *_: 0.0)
            differ += collect(Rounding(model), prompts, 60, (), V) != expected
    assert read_again and copied and differ, "without the tolerance they must part, or nothing was tested"


def test_ties_that_stop_the_gain_stop_the_drafts():
    """Every token read twice would be slower than plain decoding: whoever always ties is decoded plainly, soon."""
    model = circle(5)
    with torch.no_grad():
        model.lm_head.weight[30:35] = model.lm_head.weight[:5] * (1 - 1e-7)
    counted = Counted(model)
    assert collect(counted, [[n % 5 for n in range(20)]], 200, (), V) == [[n % 5 for n in range(200)]]
    assert len(counted.passes) < 200 * 1.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_nothing_is_drafted(dtype):
    """Rounding decides there between logits that lie far apart: ids would not be those of plain decoding."""
    counted = Counted(circle(5, dtype))
    prompt = [n % 5 for n in range(20)]
    assert collect(counted, [prompt], 30, (), V) == decode_all(counted.model, [prompt], 30, (), V)
    assert all(T == 1 for _, T in counted.passes[1:])
    for cache_dtype in (None, dtype):
        lowered = Counted(circle(5))
        with torch.autocast("cpu", dtype):
            collect(lowered, [prompt], 30, (), V, cache_dtype=cache_dtype)
        assert all(T == 1 for _, T in lowered.passes[1:])
    half = circle(5)
    half.blocks[1].mlp.up = HalfLinear(half.blocks[1].mlp.up, dtype)  # logits are in fp32 all the same
    kind = Counted(circle(5))
    kind.kind = "int8"
    for model in (half, kind):
        text = Text(model, prompt, 30, V, None, ())
        list(text.grow(()))
        assert text.tolerance > COARSE
    assert all(T == 1 for _, T in kind.passes[1:])


def test_a_draft_is_what_followed_last_and_goes_on_with_itself():
    copies = Copies([1, 2, 3, 4, 5, 1, 2, 3, 6, 7])
    assert copies.find(4) == []
    for token in (1, 2, 3):
        copies.add(token)
    assert copies.find(4) == [6, 7, 1, 2], "the latest, not the first"
    assert copies.find(9) == [6, 7, 1, 2, 3, 6, 7, 1, 2]
    assert Copies([4]).find(3) == Copies([4, 4]).find(3) == [] and Copies([4] * 3).find(3) == [4] * 3


class Watched(list):
    """A list that counts how many of its items are looked at."""

    looked = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        self.looked += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self):
        self.looked += len(self)
        return super().__iter__()

    def __contains__(self, token):
        self.looked += len(self)
        return super().__contains__(token)

    def index(self, *words):
        self.looked += len(self)
        return super().index(*words)


def test_looking_up_takes_no_longer_in_a_long_text():
    """The whole text was searched anew for every token: of 100,000 that is minutes."""
    copies, tokens = Copies([]), 10_000
    copies.ids = Watched()
    for n in itertools.islice(itertools.cycle(range(7)), tokens):
        copies.add(n)
        copies.find(3)
    assert copies.ids.looked <= 8 * tokens


def test_holes_and_ids_beyond_the_vocabulary_are_never_chosen():
    model, prompts = toy_model(block_size=128), copying_prompts()
    plain = decode_all(model, prompts[5:6], 60, (), 50)[0]
    holes = sorted({*plain[:3]})
    expected = [decode_all(model, [prompt], 60, (), 50, holes=holes)[0] for prompt in prompts]
    found = collect(model, prompts, 60, (), 50, holes=holes)
    assert found == expected and not {i for answer in found for i in answer} & {*holes, *range(50, V)}


def test_the_caller_may_end_a_prompt_within_a_draft():
    """What a draft had right behind the end that the caller wanted was given all the same."""
    model, ended, answer = circle(9), set(), []
    for pairs in decode_with_lookup(model, [[n % 9 for n in range(12)], [3], [4]], 50, (), V, ended=ended):
        assert pairs[0][0] != 1
        if pairs[0][0] == 0:
            answer.append(pairs[0][1])
            if len(answer) == 20:
                ended |= {0, 1}
    assert len(answer) == 20 and ended == {0, 1, 2}


def test_weights_are_arranged_for_drafts_where_there_are_drafts(monkeypatch):
    """They were arranged for one row, as for an answer without drafts: a draft of three took half a pass more."""
    tokenizer, asked = embedded(), []
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=128).config, seed=1).eval()
    arranged = generation.arranged
    monkeypatch.setattr(
        generation, "arranged", lambda model, decode, rows, **more: asked.append(rows) or arranged(model, decode, rows)
    )
    for options in ({}, {"lookup": True, "decode": "int8"}, {"lookup": False}):
        respond(model, tokenizer, ["The dog. The dog."], 3, raw=True, **options)
    assert asked == [LONGEST, 1, 1]


def test_a_single_prompt_is_looked_up_by_itself_and_nothing_else_is():
    """It was a flag that nobody knew: answers that copy take less than half of the time, new ones no more. In 16 bits
    nothing is drafted, other prompts are company, and another process would wait."""
    model = toy_model(torch.float32)
    assert takes_lookup(None, model, 1, 0.0, "auto", False) and takes_lookup(True, model, 5, 0.0, "auto", False)
    assert not takes_lookup(False, model, 1, 0.0, "auto", False)
    for prompts, temperature, decode, lowered in (
        (2, 0.0, "auto", False),
        (1, 0.5, "auto", False),
        (1, 0.0, "int8", False),
        (1, 0.0, "auto", True),
    ):
        assert not takes_lookup(None, model, prompts, temperature, decode, lowered)
    assert not takes_lookup(None, DecodingModel(model, "bf16"), 1, 0.0, "plain", False)


def test_responses_with_lookup_are_those_without():
    """With the template, stops and `until`; sampled text cannot be foreseen, and is refused in one line."""
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=128).config, seed=1).eval()
    prompts = ["The dog. The dog. The dog", "A longer prompt than that", "One one one one one"]
    plain = respond(model, tokenizer, prompts, 40, raw=True)
    assert respond(model, tokenizer, prompts, 40, raw=True, lookup=True) == plain
    assert generate(model, tokenizer, prompts, 40, raw=True, lookup=True) == [each.text for each in plain]
    end = plain[0].text[8:10]
    cut = respond(model, tokenizer, prompts, 40, raw=True, until=[end])
    assert respond(model, tokenizer, prompts, 40, raw=True, until=[end], lookup=True) == cut != plain
    with pytest.raises(UserError, match="it needs temperature 0"):
        respond(model, tokenizer, prompts, 5, raw=True, sampling=Sampling(0.5), lookup=True)
