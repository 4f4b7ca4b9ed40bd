"""Continuous batching: the ids of the plain loop, whatever the rows, and what it saves, by counting."""

import functools

import pytest
import torch
from counted import VARIANTS, Counted, V, circle, decode_all
from test_decoding import random_prompts
from toys import toy_model

from gptft import generation
from gptft.decoding import GREEDY, Sampling, decode_plain
from gptft.fast import continuous
from gptft.fast.continuous import PASS, Line, decode_continuously, shared_beginning
from gptft.fast.rows import Rows, cache_bytes
from gptft.generation import respond
from gptft.model import GPT
from gptft.tokenizer import embedded

NEW = 12
SEEDS = {"learned": 5, "rotary": 4, "grouped": 3, "sliding window": 2}  # answers of many lengths, no two logits close
LENGTHS = [3, 9, 1, 14, 6, 32, 2, 20, 11, 5, 31, 8]  # those of 31 and 32 fill the block at once


def collect(model, prompts, *args, **options):
    """The answers, each prompt's ids in the order in which they came."""
    answers = [[] for _ in prompts]
    for pairs in decode_continuously(model, prompts, *args, **options):
        assert len({n for n, _ in pairs}) == len(pairs)
        for n, token in pairs:
            answers[n].append(token)
    return answers


def with_beginning(beginning, prompts):
    return [[*beginning, *prompt] for prompt in prompts]


@functools.cache
def toy_and_answers(variant, dtype):
    """A toy, its prompts, a token that it does write, and what the plain loop answers."""
    model = toy_model(dtype, SEEDS[variant], **VARIANTS[variant])
    prompts = random_prompts(LENGTHS)
    stop = decode_plain(model, prompts[0], NEW, (), V)[5]
    return model, prompts, stop, [decode_plain(model, prompt, NEW, {stop}, V) for prompt in prompts]


def margins(model, prompt, answer):
    """Between the two best logits, at each id of the answer but one that only the block ended."""
    text = (prompt + answer)[: model.config.block_size]
    best = model(torch.tensor([text]))[0, len(prompt) - 1 :].topk(2).values
    return best[:, 0] - best[:, 1]


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ids_are_those_of_the_plain_loop(variant, dtype, rows):
    """A row that took over another's place saw the keys of the other; or a prompt was answered in another's name.

    More prompts than rows, stops at different times, prompts that fill the block.
    """
    model, prompts, stop, expected = toy_and_answers(variant, dtype)
    if dtype == torch.float32:
        for prompt, answer in zip(prompts, expected, strict=True):
            assert (margins(model, prompt, answer) > 1e-4).all()
    assert len({len(answer) for answer in expected}) > 3, "answers must end at different times"
    assert collect(model, prompts, NEW, {stop}, V, rows=rows) == expected


@pytest.mark.parametrize("new", [0, 1, 2])
def test_few_new_tokens(new):
    """None at all reads nothing; one comes from the pass that reads the prompt; two fill a block of 31 exactly."""
    model, prompts, _, _ = toy_and_answers("rotary", torch.float64)
    counted, ended = Counted(model), set()
    answers = collect(counted, prompts, new, (), V, rows=3, ended=ended)
    assert answers == [decode_plain(model, prompt, new, (), V) for prompt in prompts]
    assert ended == set(range(len(prompts))) and bool(counted.passes) == bool(new)
    assert not (new == 1 and any(T == 1 for _, T in counted.passes[:-1])), "the first token needs no pass of its own"


def test_no_prompts_are_no_answers():
    assert list(decode_continuously(toy_model(), [], 5, (), V)) == []
    tokenizer = embedded()
    assert respond(toy_model(vocab_size=tokenizer.n_vocab), tokenizer, [], 5, raw=True) == []


BEGINNINGS = {
    "none": random_prompts(LENGTHS[:8]),
    "some": with_beginning(random_prompts([12])[0], random_prompts([3, 9, 1, 14, 6, 2, 20, 11])),
    "one is it": with_beginning(random_prompts([12])[0], [[], *random_prompts([9, 1, 14, 6, 2, 20, 11])]),
    "all are it": with_beginning(random_prompts([12])[0], [[]] * 9),
    "the block": with_beginning(random_prompts([31])[0], [[n] for n in range(9)]),
}


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", BEGINNINGS)
def test_a_shared_beginning_is_read_once_and_changes_no_id(case, variant, rows, monkeypatch):
    """Positions began at 0 again behind it, or a row that was used before kept the beginning of its last text."""
    monkeypatch.setattr(continuous, "PASS", 16)
    model, prompts = toy_model(torch.float64, 1, **VARIANTS[variant]), BEGINNINGS[case]
    counted = Counted(model)
    expected = [decode_plain(model, prompt, 9, (), V) for prompt in prompts]
    assert collect(counted, prompts, 9, (), V, rows=rows) == expected
    shared = {"none": 0, "some": 12, "one is it": 11, "all are it": 11, "the block": 31}[case]
    read = [shape for shape in counted.passes if shape == (1, shared)]
    assert len(read) == (1 if shared else 0)
    if shared > 12:
        assert counted.passes[0] == (1, 31) and max(T for _, T in counted.passes[1:]) == 1


def test_a_shared_beginning_saves_what_the_others_would_have_read_of_it():
    """Counted in tokens passed through the model, it was read again for every prompt that entered later."""
    model = toy_model(block_size=128)
    prompts = with_beginning(random_prompts([80])[0], random_prompts([5, 6, 7, 8, 9, 10, 11, 12]))
    counted = Counted(model)
    assert collect(counted, prompts, 3, (), V, rows=2) == [decode_plain(model, prompt, 3, (), V) for prompt in prompts]
    assert sum(T >= 80 for _, T in counted.passes) == 1
    assert sum(B * T for B, T in counted.passes) < 80 + sum(map(len, prompts)) - 8 * 80 + 8 * 3 + 16


def test_a_beginning_is_read_apart_only_where_it_pays():
    """Two tokens in common would cost a pass and a mask for everything."""
    long = list(range(40)) * 2
    assert list(shared_beginning([[*long, 1], [*long, 2, 3]])) == long
    assert list(shared_beginning([[*long, 1], long])) == long[:-1], "each keeps a token, for its state is asked for"
    assert not shared_beginning([[1, 2, 3], [1, 2, 4]]), "less than a pass"
    assert not shared_beginning([[1, 2, *range(n, n + 50)] for n in range(100)]), "less than a fifth"
    assert not shared_beginning([long]) and not shared_beginning([[1], [2]])
    assert list(shared_beginning([(*long, 1), [*long, 2]])) == long, "a tuple beside a list"


def test_prompts_that_are_the_same_are_read_once():
    """Several samples of one question read it as often as there are samples; each has its own random numbers."""
    model, counted = toy_model(), Counted(toy_model())
    prompts = [prompt for prompt in random_prompts([9, 7, 5]) for _ in range(4)]
    sampling = Sampling(1.0, seed=3)
    answers = collect(counted, prompts, 6, (), V, sampling, rows=16)
    assert counted.passes[0] == (3, 9) and counted.passes[1] == (12, 1)
    assert answers == decode_all(model, prompts, 6, (), V, sampling) and len({*map(tuple, answers)}) > 8


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, seed=2), Sampling(0.8, top_k=9), Sampling(1.5, top_p=0.7), Sampling(1e-6)]
)
def test_what_is_drawn_does_not_depend_on_the_rows(sampling):
    """Streams went with the rows, so that whoever entered later went on with another prompt's random numbers."""
    model, prompts, stop, _ = toy_and_answers("rotary", torch.float64)
    numbers = [5, 2**40, 7, 0, 1, 9, 11, 12, 13, 14, 15, 3]
    expected = [
        decode_all(model, [prompt], NEW, {stop}, V, sampling, [number])[0]
        for prompt, number in zip(prompts, numbers, strict=True)
    ]
    for rows in (1, 2, 5, 16):
        assert collect(model, prompts, NEW, {stop}, V, sampling, numbers, rows=rows) == expected
    assert sampling.temperature < 0.1 or expected != [decode_plain(model, prompt, NEW, {stop}, V) for prompt in prompts]


def test_holes_and_ids_beyond_the_vocabulary_are_never_chosen():
    model, prompts, _, _ = toy_and_answers("rotary", torch.float64)
    holes = sorted({*decode_plain(model, prompts[0], NEW, (), V)})
    for sampling in (GREEDY, Sampling(1.0)):
        answers = collect(model, prompts, NEW, (), 50, sampling, holes=holes, rows=3)
        assert answers[0] == decode_plain(model, prompts[0], NEW, (), 50, sampling, holes)
        assert not {i for answer in answers for i in answer} & {*holes, *range(50, V)}


def test_the_caller_may_end_a_prompt_between_two_passes():
    """In its row or while it waits: it went on, or the others ended with it."""
    model, prompts, stop, expected = toy_and_answers("rotary", torch.float64)
    for rows in (1, 2, 3, 16):
        answers, ended = [[] for _ in prompts], set()
        for pairs in decode_continuously(model, prompts, NEW, {stop}, V, rows=rows, ended=ended):
            for n, token in pairs:
                assert n not in ended or len(answers[n]) + 1 == len(expected[n])
                answers[n].append(token)
                if n % 3 == 0 and len(answers[n]) == 2:
                    ended.add(n)
            ended.add(2)  # the shortest, which enters last
        assert ended == set(range(len(prompts)))
        for n, (answer, whole) in enumerate(zip(answers, expected, strict=True)):
            assert answer == ([] if n == 2 else whole[:2] if n % 3 == 0 else whole)


def test_a_caller_who_wants_nothing_more_ends_it():
    """With all of those that wait ended, it waited for ever for a row to come free, or read nothing as a batch."""
    model, prompts, _, _ = toy_and_answers("rotary", torch.float64)
    for rows in (1, 4):
        ended, seen = set(), 0
        for pairs in decode_continuously(model, prompts, NEW, (), V, rows=rows, ended=ended):
            seen += len(pairs)
            ended.update(range(len(prompts)))
        assert seen <= rows
    assert list(decode_continuously(model, prompts, NEW, (), V, ended=set(range(len(prompts))))) == []


def test_memory_is_bounded_whatever_the_number_of_prompts(monkeypatch):
    """One block for all: rows of the longest prompt with its answer, and nothing that grows with the prompts."""
    made, new_cache = [], GPT.new_cache
    monkeypatch.setattr(GPT, "new_cache", lambda *args: made.append(new_cache(*args)) or made[-1])
    model = toy_model(torch.float32, n_kv_head=2)
    for count in (4, 40):
        made.clear()
        prompts = random_prompts([1 + n % 20 for n in range(count)])
        collect(model, prompts, 5, (), V, rows=4)
        (cache,) = made
        assert tuple(cache.k.shape) == (2, 4, 2, min(count, 20) + 4, 8)
        assert cache.k.nbytes + cache.v.nbytes == cache_bytes(model.config, 4, min(count, 20) + 4, torch.float32)
    made.clear()
    prompts = with_beginning([1] * 20, random_prompts([2, 3, 4, 5, 6, 7, 8, 9]))
    with torch.autocast("cpu", torch.bfloat16):
        collect(model, prompts, 50, (), V, rows=4, cache_dtype=torch.bfloat16)
    assert [tuple(cache.k.shape[1:4]) for cache in made] == [(4, 2, 32), (1, 2, 20)], "never beyond the block"
    assert {cache.k.dtype for cache in made} == {torch.bfloat16}


def test_free_rows_are_filled_while_the_others_go_on():
    """Batch by batch a batch lasts as long as its longest answer, with fewer and fewer rows."""
    model = circle(40)
    prompts = [[*[41] * (n % 7), 38 - (11 * n) % 30] for n in range(40)]  # each goes on up to 39, which ends it
    expected = [list(range(prompt[-1] + 1, 39)) for prompt in prompts]
    counted, plain = Counted(model), Counted(model)
    assert collect(counted, prompts, 40, {39}, V, rows=8) == expected
    order = sorted(range(40), key=lambda n: len(prompts[n]))
    for start in range(0, 40, 8):
        decode_all(plain, [prompts[n] for n in order[start : start + 8]], 40, {39}, V)
    assert len(counted.passes) < 0.8 * len(plain.passes)
    rows_asked = sum(B for B, T in counted.passes if T == 1)
    assert rows_asked <= sum(map(len, expected)) + 40, "no row is computed that is not being written"


def test_prompts_enter_when_the_free_rows_have_cost_a_pass():
    """A pass for every single row that comes free would cost more than the row; to wait for all rows is batch by
    batch."""
    line = Line([[1]] * 100, 16)
    assert len(line.next_to_enter(0, ())) == 16, "nobody is held up"
    assert line.next_to_enter(16, ()) == []
    waited = [line.next_to_enter(15, ()) for _ in range(16)]
    assert waited[:15] == [[]] * 15 and len(waited[15]) == 1, "one row, for sixteen passes"
    assert line.next_to_enter(16, ()) == []
    waited = [line.next_to_enter(12, ()) for _ in range(4)]
    assert waited[:3] == [[]] * 3 and len(waited[3]) == 4, "four rows, for four passes"
    line = Line([[1]] * 18, 16)
    line.next_to_enter(0, ())
    assert line.next_to_enter(15, ()) == [] and len(line.next_to_enter(14, ())) == 2, "all who wait find a row"


def test_prompts_of_unlike_lengths_are_not_padded_to_the_longest():
    """One prompt of 500 tokens would have made fifteen of 20 cost as much as it does."""
    lengths = [20] * 15 + [500]
    line = Line([[1] * n for n in lengths], 16)
    assert line.next_to_enter(0, ()) == [15]
    assert sorted(line.next_to_enter(1, ())) == list(range(15))
    line = Line([[1] * (100 - n) for n in range(16)], 16)
    groups = [line.next_to_enter(0, ())]
    while line.waiting:
        groups.append(line.next_to_enter(sum(map(len, groups)), ()))
    assert len(groups) == 2 and all(sum(group) - len(group) * group[0] <= PASS for group in groups)


def test_one_row_needs_no_mask():
    """A mask for nothing would keep CUDA from its flash kernel, and costs a copy everywhere."""
    model, prompts, _, _ = toy_and_answers("rotary", torch.float64)
    counted = Counted(model)
    collect(counted, prompts, NEW, (), V, rows=1)
    assert counted.masks == 0 and len(counted.passes) > len(prompts)
    alike = Counted(model)
    collect(alike, random_prompts([7] * 4), 5, (), V, rows=4)
    assert alike.masks == 0


def test_a_text_that_is_not_finite_leaves_nothing_to_the_next_in_its_row():
    """In fp16 one prompt may overflow: its NaNs were masked, multiplied by a weight of 0, and were NaN again."""
    model = toy_model(torch.float64, **VARIANTS["learned"], tie_embeddings=False)
    with torch.no_grad():
        model.tok.weight[60] = torch.nan
    prompts = random_prompts([9, 8, 7, 6, 5, 4], 50)
    prompts[0][3] = prompts[2][-1] = 60
    for rows in (1, 2, 3):
        answers = collect(model, prompts, 6, (), 50, rows=rows)
        for n in (1, 3, 4, 5):
            assert answers[n] == decode_plain(model, prompts[n], 6, (), 50)


def test_rows_move_with_their_keys():
    """leave() says of each row that is now in use which one it was, and its keys and values are those."""
    model = toy_model(torch.float64)
    rows = Rows(model, 5, 8)
    rows.enter([[1, 2, 3], [4, 5], [6], [7, 8], [9, 9, 9]])
    before, lengths = rows.cache.k.clone(), list(rows.lengths)
    order = rows.leave([0, 3])
    assert sorted(order) == [1, 2, 4] and rows.lengths == [lengths[row] for row in order] == [3, 2, 1]
    assert torch.equal(rows.cache.k[:, :3], before[:, order]) and not rows.cache.k[:, 3:].any()
    assert rows.leave([0, 1, 2]) == [] and not rows.cache.v.any()


def test_respond_ends_an_answer_at_a_text_and_the_others_go_on():
    """`until` of one prompt ended its whole batch, or was cut from the wrong answer."""
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab, block_size=64).config, seed=1).eval()
    prompts = ["The dog", "A much longer prompt than that", "One", "Some words here", "And", "What is it?"]
    plain = [respond(model, tokenizer, [prompt], 12, raw=True)[0] for prompt in prompts]
    end = plain[1].text[5:8]
    assert end
    for batch_size in (1, 2, 16):
        assert respond(model, tokenizer, prompts, 12, raw=True, batch_size=batch_size) == plain
        found = respond(model, tokenizer, prompts, 12, raw=True, batch_size=batch_size, until=[end])
        assert found[1].text == plain[1].text[: plain[1].text.index(end)] and found[1].finished
        assert 0 < found[1].tokens < plain[1].tokens
        for response, whole in zip(found, plain, strict=True):
            assert response == whole or end in whole.text


def test_respond_takes_all_prompts_in_one_call(monkeypatch):
    """In batches of batch_size, each waited for its longest answer."""
    calls = []
    monkeypatch.setattr(
        generation,
        "decode_continuously",
        lambda *args: calls.append((len(args[1]), args[9])) or decode_continuously(*args),
    )
    tokenizer = embedded()
    model = GPT.create(toy_model(vocab_size=tokenizer.n_vocab).config, seed=1)
    respond(model, tokenizer, ["One", "Two words", "Three"] * 3, 3, raw=True, batch_size=4)
    assert calls == [(9, 4)]
