import pytest
import torch
from toys import toy_model

from gptft import decoding, generation
from gptft.decoding import GREEDY, Sampling, choose, decode, decode_plain
from gptft.device import Precision
from gptft.errors import UserError
from gptft.generation import generate, prompt_ids
from gptft.model import GPT
from gptft.prompts import TEMPLATES
from gptft.tokenizer import Tokenizer, embedded

STOP = 7
VARIANTS = {"learned": {"position": "learned"}, "rotary": {}, "grouped": {"n_kv_head": 2}}


def random_prompts(lengths, V=61):
    return [torch.randint(0, V, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]


def collect(model, prompts, *args, **options):
    answers = [[] for _ in prompts]
    for pairs in decode(model, prompts, *args, **options):
        for row, token in pairs:
            answers[row].append(token)
    return answers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cache_and_batch_give_the_oracles_ids(variant, dtype):
    """Cached and uncached, alone and beside unequal prompts (left padding was garbage elsewhere).

    fp64 must be equal always. fp32 is equal wherever the margin between the best two is above 1e-4, which the
    assertion of the margins below makes certain for these models.
    """
    lengths = set()
    for seed in range(5):
        model = toy_model(dtype, seed, **VARIANTS[variant])
        prompts = random_prompts([3, 9, 1, 14, 6])
        stop = decode_plain(model, prompts[0], 12, (), 61)[5]  # a token that does come, so that rows do stop
        oracle = [decode_plain(model, prompt, 12, {stop}, 61) for prompt in prompts]
        if dtype == torch.float32:
            for prompt, answer in zip(prompts, oracle, strict=True):
                logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 :]
                best = logits[: len(answer)].topk(2).values
                assert (best[:, 0] - best[:, 1] > 1e-4).all()
        assert collect(model, prompts, 12, {stop}, 61) == oracle
        assert [collect(model, [prompt], 12, {stop}, 61)[0] for prompt in prompts] == oracle
        lengths |= {len(answer) for answer in oracle}
    assert len(lengths) > 1, "rows must end at different times, or the stop is not tested"


def test_stop_ends_its_row_alone():
    """One row's end-of-text must not end the others, nor appear in the answer."""
    model = toy_model()
    prompts = random_prompts([4, 6, 8, 5])
    free = collect(model, prompts, 10, (), 61)
    stop = free[0][3]  # a token that row 0 emits in its fourth place, or earlier
    answers = collect(model, prompts, 10, {stop}, 61)
    for answer, whole in zip(answers, free, strict=True):
        assert answer == (whole[: whole.index(stop)] if stop in whole else whole)
    assert len(answers[0]) < 10 and max(map(len, answers)) == 10


def test_ids_beyond_the_tokenizer_are_never_emitted():
    """A padded vocabulary's spare rows must not be chosen, however likely the model finds them."""
    model = toy_model(tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[50:] = 100 * model.lm_head.weight[50:].abs()
    prompts = random_prompts([4, 6], V=50)
    assert all(max(answer) < 50 for answer in collect(model, prompts, 10, (), 50))
    assert max(decode_plain(model, prompts[0], 10, (), 50)) < 50
    drawn = collect(model, prompts, 10, (), 50, Sampling(temperature=2.0, seed=1))
    assert all(max(answer) < 50 for answer in drawn)


def test_a_row_that_fills_the_block_stops():
    """block_size 32 and prompts of 30 and 3: the first can take 3 tokens more, the second all it asks for."""
    model = toy_model()
    prompts = random_prompts([30, 3])
    answers = collect(model, prompts, 20, (), 61)
    assert [len(answer) for answer in answers] == [3, 20]
    assert answers == [decode_plain(model, prompt, 20, (), 61) for prompt in prompts]


def test_over_long_and_empty_prompts_are_refused():
    model = toy_model()
    with pytest.raises(UserError, match="prompt 2 has 33 tokens, the model's block_size is 32"):
        collect(model, random_prompts([4, 33]), 5, {STOP}, 61)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        collect(model, [[]], 5, {STOP}, 61)


def test_sampling_keeps_top_k_and_top_p():
    """Draws come from the k likeliest, or from the fewest tokens that reach p, in their proportions."""
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    generators = [torch.Generator().manual_seed(0)]

    def shares(sampling):
        drawn = torch.cat([choose(logits, sampling, generators) for _ in range(4000)])
        return [(drawn == n).float().mean().item() for n in range(4)]

    # 4000 draws: a share's standard deviation is below 0.008
    assert shares(Sampling(1.0)) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.035)
    assert shares(Sampling(1.0, top_k=2)) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.035)
    assert shares(Sampling(1.0, top_p=0.6)) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.035)
    assert shares(Sampling(1.0, top_p=0.01)) == [1, 0, 0, 0]
    sharp = torch.softmax(torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1])) / 0.5, -1).tolist()
    assert shares(Sampling(0.5)) == pytest.approx(sharp, abs=0.035)


@pytest.mark.parametrize("V, top_p", [(1500, 1.0), (1500, 0.9), (1500, 0.1), (3, 0.9)])
def test_draws_have_the_distribution_that_multinomial_draws_from(V, top_p):
    """One number a row, looked up in the cumulated probabilities, must not favour any token, nor draw one that top_p
    dropped; a nucleus of more than the 64 tokens that are sorted first included."""
    torch.manual_seed(3)
    logits = torch.randn(1, V)
    probabilities = logits.softmax(-1)[0]
    ordered, which = probabilities.sort(descending=True)
    dropped = which[ordered.cumsum(0) - ordered >= top_p]
    expected = probabilities.index_fill(0, dropped, 0.0).double()
    expected /= expected.sum()
    n = 8_000
    stream = torch.Generator().manual_seed(0)
    drawn = torch.cat(
        [choose(logits.expand(100, V), Sampling(1.0, top_p=top_p), [stream] * 100) for _ in range(n // 100)]
    )
    counts = torch.bincount(drawn, minlength=V).double()
    assert counts[expected == 0].sum() == 0
    # a hundred bins (or V) of about equal share; chi-squared is beyond twice its degrees of freedom once in 10^6
    bins = (expected.cumsum(0) * 100).clamp(max=99.99).long() if V > 100 else torch.arange(V)
    share = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins, expected)
    seen = torch.zeros_like(share).index_add_(0, bins, counts)
    chi_squared = ((seen - n * share) ** 2 / (n * share))[share > 0].sum()
    assert chi_squared < max(2 * len(share), 14)


def test_tokens_without_a_probability_are_never_drawn():
    """At both ends of the vocabulary and in its middle, whatever number is drawn, the largest below 1 too."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for number in (0.0, 0.6, 1 - 2**-53):
        rand = torch.rand
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, **__: torch.tensor([number], dtype=torch.float64))  # noqa: B023
            assert choose(logits, Sampling(1.0), [torch.Generator()]).item() == (1 if number < 0.5 else 3)
        assert torch.rand is rand


@pytest.mark.parametrize("temperature", [1e-40, 1e-300, 1e-9])
def test_a_temperature_near_zero_is_greedy(temperature):
    """Dividing by 1e-40 overflowed: the probabilities were not numbers, and torch's error a traceback."""
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(1)) * 50
    streams = [torch.Generator().manual_seed(n) for n in range(4)]
    assert choose(logits, Sampling(temperature), streams).tolist() == logits.argmax(-1).tolist()
    assert choose(logits, Sampling(temperature, top_k=5, top_p=0.5), streams).tolist() == logits.argmax(-1).tolist()


def test_a_seed_of_any_size_has_streams_of_its_own():
    """2^45 was shifted beyond what torch takes; and prompt 2^20 of one seed drew as prompt 0 of another."""
    logits = torch.zeros(1, 10**6)
    draws = set()
    seeds = (0, 1, -1, 2**20, 2**45, 2**64, -(2**80))
    for seed in seeds:
        for number in (0, 1, 1 << 20):
            sampling = Sampling(1.0, seed=seed)
            draws.add(choose(logits, sampling, decoding.random_streams(sampling, [number])).item())
    assert len(draws) == 3 * len(seeds)
    model = toy_model()
    assert len(collect(model, random_prompts([4]), 5, (), 61, Sampling(1.0, seed=2**45))[0]) == 5


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0)])
def test_an_id_that_no_token_has_is_never_emitted(sampling):
    """A vocabulary may have holes, and the model rows for them."""
    model, prompts = toy_model(), random_prompts([4, 6])
    plain = [decode_plain(model, prompt, 12, (), 61, sampling) for prompt in prompts]
    holes = sorted({*plain[0], *plain[1]})
    assert len(holes) < 61
    for prompt in prompts:
        without = decode_plain(model, prompt, 12, (), 61, sampling, holes)
        assert len(without) == 12 and not set(without) & set(holes)
    answers = collect(model, prompts, 12, (), 61, sampling, holes=holes)
    assert not {i for answer in answers for i in answer} & set(holes)
    tokenizer = embedded()
    holed = Tokenizer(tokenizer.ranks, tokenizer.pattern, {"<|endoftext|>": tokenizer.n_vocab + 2})
    assert holed.holes == [tokenizer.n_vocab - 1, tokenizer.n_vocab, tokenizer.n_vocab + 1] and not tokenizer.holes


def test_logits_that_are_not_numbers_are_one_line():
    with pytest.raises(UserError, match="the model's logits are not finite numbers"):
        choose(torch.full((1, 5), torch.nan), Sampling(1.0), [torch.Generator()])
    for settings in ({"temperature": float("inf")}, {"temperature": float("nan")}, {"top_p": 0.0}):
        with pytest.raises(UserError, match="must be finite and at least 0"):
            Sampling(**settings)


def test_sampling_does_not_depend_on_the_batch():
    """The same seed gives the same answers whatever the batch, and with other prompts beside them."""
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab).config, seed=1).eval()
    prompts = ["The dog", "A much longer prompt than that", "One", "Some words here"]
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5, "raw": True}
    together = generate(model, tokenizer, prompts, **options)
    assert together == generate(model, tokenizer, prompts, batch_size=2, **options)
    assert together[:2] == generate(model, tokenizer, prompts[:2], **options)
    assert together[0] == generate(model, tokenizer, [prompts[0], "A"], **options)[0]
    assert together != generate(model, tokenizer, prompts, **{**options, "seed": 6})
    nucleus = {**options, "top_p": 0.5}
    assert generate(model, tokenizer, prompts, **nucleus) == generate(
        model, tokenizer, prompts, batch_size=1, **nucleus
    )


def test_generate_applies_the_template_and_returns_training_mode():
    """The ids sent are those of training; the prompt is not repeated; the mode is as before."""
    tokenizer = embedded()
    tokenizer.template = TEMPLATES["llama2"]
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=64).config, seed=1).train()
    record = {"instruction": "Name a colour.", "response": "Blue."}
    trained, spans = tokenizer.encode_segments(tokenizer.template.segments(record))
    assert prompt_ids(tokenizer, "Name a colour.") == trained[: spans[0][0]]
    (text,) = generate(model, tokenizer, ["Name a colour."], max_new_tokens=5)
    assert "INST" not in text
    assert model.training


def test_max_input_tokens_is_a_stated_choice():
    """An over-long prompt is an error unless its start may be cut; what is kept is its end."""
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab).config, seed=1)
    long = "word " * 100
    with pytest.raises(UserError, match="max_input_tokens"):
        generate(model, tokenizer, [long], raw=True)
    assert len(generate(model, tokenizer, [long], raw=True, max_input_tokens=20, max_new_tokens=3)) == 1
    assert prompt_ids(tokenizer, long, raw=True, max_input_tokens=20) == tokenizer.encode(long)[-20:]


def test_one_text_is_not_a_list_of_prompts():
    tokenizer = embedded()
    with pytest.raises(UserError, match="a list of prompts"):
        generate(toy_model(vocab_size=tokenizer.n_vocab), tokenizer, "Hello")


def test_the_cache_is_in_the_dtype_that_is_asked_for(monkeypatch):
    """A fp32 cache under autocast is rounded anew, all of it, by every layer at every token."""
    model, caches = toy_model(torch.float32), []
    new_cache = GPT.new_cache
    monkeypatch.setattr(GPT, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[-1])
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            answers = collect(model, random_prompts([4, 6]), 5, (), 61, cache_dtype=dtype)
        assert [len(answer) for answer in answers] == [5, 5]
    assert [cache.k.dtype for cache in caches] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("lowered", [None, torch.bfloat16])
def test_a_run_generates_in_its_precision(monkeypatch, lowered):
    """Generation inside a run: autocast and cache are the run's where the device gains by it, else as without."""
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab).config, seed=1).train()
    plain = generate(model, tokenizer, ["The dog", "One"], 6, raw=True)
    if lowered:
        monkeypatch.setattr(generation, "lowered_dtype", lambda model, precision: precision.dtype)
    seen, decode_ids = [], generation.decode_continuously

    def watch(*args):
        seen.append((torch.is_autocast_enabled("cpu"), args[7]))
        return decode_ids(*args)

    monkeypatch.setattr(generation, "decode_continuously", watch)
    texts = generate(model, tokenizer, ["The dog", "One"], 6, raw=True, precision=Precision("bf16", model.device))
    assert seen == [(lowered is not None, lowered)]
    assert lowered or texts == plain
    assert not torch.is_autocast_enabled("cpu") and model.training
