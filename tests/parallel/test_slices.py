"""The slices of the ranks: a window divided, nothing lost, within what fits, and each with as much work."""

import subprocess
import sys
from itertools import combinations, pairwise, product

import numpy as np
import pytest

from gptft.collate import plan
from gptft.parallel.slices import Work, slices

GPT2 = {"per_token": 6 * 85e6, "per_pair": 6 * 12 * 768, "per_target": 6 * 768 * 50257}  # FLOPs, its 124M
SEEDS = range(40)


def work_for(lengths, targets, batch_size, **costs):
    """As the caller makes it: any `batch_size` examples fit."""
    most_targets = int(np.sort(targets)[-batch_size:].sum())
    return Work(**(GPT2 | costs), most_positions=batch_size * int(lengths.max()), most_targets=most_targets)


def cost(chosen, lengths, targets, work):
    """What a micro-batch costs, by the definition."""
    n, T, m = len(chosen), int(max(lengths[chosen], default=0)), int(targets[chosen].sum()) if chosen else 0
    return work.per_token * n * T + work.per_pair * n * T * T + work.per_target * m


def costs_of(ranks, *case):
    return np.array([[cost(chosen, *case) for chosen in mine] for mine in ranks])


def flat(nested):
    return [chosen for part in nested for chosen in part]


def case_of(seed):
    """A window as `plan` makes them, some examples alike, sometimes with few of them: the arguments of `slices`."""
    rng = np.random.default_rng(seed)
    ranks, per_rank, batch_size = (int(rng.integers(*bounds)) for bounds in ((2, 6), (1, 5), (1, 9)))
    n = int(rng.integers(1, ranks * per_rank * batch_size + 1))
    lengths = rng.integers(1, rng.choice([4, 60, 1000]), 3 * n)
    targets = rng.integers(0, lengths + 1)
    costs = {name: float(rng.integers(0, 100)) for name in GPT2}
    if rng.random() < 0.5:
        costs["per_token"] += 1
    order = rng.permutation(3 * n)[:n].tolist()
    window = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    return window, lengths, targets, ranks, per_rank, work_for(lengths, targets, batch_size, **costs)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_example_of_a_window_is_in_one_slice_and_one_only(seed):
    """Lost, it is never trained on; twice, it counts double: the loss looks normal either way."""
    window, *rest = case_of(seed)
    assert sorted(flat(flat(slices(window, *rest)))) == sorted(flat(window))
    assert all(type(number) is int for number in flat(flat(slices(window, *rest))))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rank_has_as_many_micro_batches(seed):
    """A rank with one forward less leaves the others waiting for its weights for ever."""
    window, lengths, targets, ranks, per_rank, work = case_of(seed)
    assert [len(mine) for mine in slices(window, lengths, targets, ranks, per_rank, work)] == [per_rank] * ranks


@pytest.mark.parametrize("seed", SEEDS)
def test_no_micro_batch_is_empty_while_another_could_be_divided(seed):
    window, lengths, targets, ranks, per_rank, work = case_of(seed)
    dealt = slices(window, lengths, targets, ranks, per_rank, work)
    filled = [sum(map(bool, mine)) for mine in dealt]
    assert sum(filled) == min(len(flat(window)), ranks * per_rank)
    assert max(filled) - min(filled) <= 1
    assert all(map(bool, flat(mine[:n] for mine, n in zip(dealt, filled, strict=True))))  # the empty ones are last


@pytest.mark.parametrize("seed", SEEDS)
def test_no_micro_batch_holds_more_than_what_was_shown_to_fit(seed):
    """Many short examples cost little, but their targets' logits are what runs out of memory."""
    window, lengths, targets, ranks, per_rank, work = case_of(seed)
    for chosen in filter(None, flat(slices(window, lengths, targets, ranks, per_rank, work))):
        assert len(chosen) * lengths[chosen].max() <= work.most_positions
        assert targets[chosen].sum() <= work.most_targets


@pytest.mark.parametrize("limit", ["most_positions", "most_targets"])
def test_each_limit_binds_where_the_cost_does_not(limit):
    """With nothing to pay the cheapest division is one great piece; each limit alone must break it up."""
    lengths, targets = np.full(16, 10), np.full(16, 5)
    limits = {"most_positions": 10**6, "most_targets": 10**6} | {limit: 4 * (10 if limit == "most_positions" else 5)}
    dealt = slices([list(range(16))], lengths, targets, 2, 2, Work(0.0, 0.0, 0.0, **limits))
    assert [len(chosen) for chosen in flat(dealt)] == [4] * 4
    with pytest.raises(ValueError, match="do not fit into 2"):
        slices([list(range(16))], lengths, targets, 2, 1, Work(0.0, 0.0, 0.0, **limits))
    with pytest.raises(ValueError, match="one example alone"):
        slices([list(range(16))], lengths, targets, 2, 2, Work(0.0, 0.0, 0.0, **limits | {limit: 4}))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_within_the_window_changes_no_slice(seed):
    """All ranks must find the same slices; and a window is a set of examples, some of them of one length."""
    window, *rest = case_of(seed)
    rng = np.random.default_rng(seed)
    again = [rng.permutation(window[number]).tolist() for number in rng.permutation(len(window))]
    assert slices(again, *rest) == slices(window, *rest)


def test_the_slices_are_a_pure_function():
    """Of a process of its own, too, with other hashes and other random numbers."""
    window, lengths, targets, ranks, per_rank, work = case_of(3)
    kept = [list(chosen) for chosen in window], lengths.copy(), targets.copy()
    first = slices(window, lengths, targets, ranks, per_rank, work)
    np.random.seed(99)
    assert slices(window, lengths, targets, ranks, per_rank, work) == first
    assert window == kept[0] and (lengths == kept[1]).all() and (targets == kept[2]).all()
    code = (
        f"import numpy as np; from gptft.parallel.slices import Work, slices; print(slices({window}, "
        f"np.array({lengths.tolist()}), np.array({targets.tolist()}), {ranks}, {per_rank}, {work}))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(first)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32])
def test_small_integers_do_not_wrap(dtype):
    """Sums of targets are more than 16 bits, the squares of lengths more than 32; and minus 0 is the least there is."""
    lengths, targets = np.arange(60000, 60040), np.arange(50000, 50040)
    lengths[5] = 0
    case = 4, 2, work_for(lengths, targets, 8)
    window = [list(range(start, start + 8)) for start in range(0, 40, 8)]
    expected = slices(window, lengths, targets, *case)
    assert slices(window, lengths.astype(dtype), targets.astype(dtype), *case) == expected


def small_case(seed):
    rng = np.random.default_rng((seed, 1))
    n, ranks, per_rank = int(rng.integers(2, 8)), int(rng.integers(2, 4)), int(rng.integers(1, 3))
    lengths = rng.integers(1, rng.choice([5, 40]), n)
    targets = rng.integers(0, lengths + 1)
    batch_size = -(-n // (ranks * per_rank))
    costs = {name: float(rng.integers(0, 20)) for name in GPT2}
    return n, lengths, targets, ranks, per_rank, work_for(lengths, targets, batch_size, **costs)


def allowed(pieces, lengths, targets, work):
    return all(
        len(piece) * lengths[piece].max() <= work.most_positions and targets[piece].sum() <= work.most_targets
        for piece in pieces
        if piece
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_no_cut_of_the_order_has_a_cheaper_costliest_piece(seed):
    """Against every cut there is of a small window."""
    n, lengths, targets, ranks, per_rank, work = small_case(seed)
    found = costs_of(slices([list(range(n))], lengths, targets, ranks, per_rank, work), lengths, targets, work).max()
    order = sorted(range(n), key=lambda number: -lengths[number])
    cheapest = float("inf")
    for pieces in range(1, min(n, ranks * per_rank) + 1):
        for inner in combinations(range(1, n), pieces - 1):
            ends = [0, *inner, n]
            cut = [order[start:end] for start, end in pairwise(ends)]
            if allowed(cut, lengths, targets, work):
                cheapest = min(cheapest, max(cost(piece, lengths, targets, work) for piece in cut))
    assert found == cheapest


@pytest.mark.parametrize("seed", SEEDS)
def test_no_division_at_all_is_cheaper_where_targets_cost_nothing(seed):
    """Why it is enough to cut the order by length: sorting the examples into the same sizes makes none longer."""
    n, lengths, targets, *_ = small_case(seed)
    n, lengths, targets = min(n, 6), lengths[:6], np.zeros_like(targets[:6])
    work = work_for(lengths, targets, 3, per_target=0.0)
    found = costs_of(slices([list(range(n))], lengths, targets, 3, 1, work), lengths, targets, work).max()
    cheapest = float("inf")
    for places in product(range(3), repeat=n):
        pieces = [[number for number in range(n) if places[number] == piece] for piece in range(3)]
        if allowed(pieces, lengths, targets, work):
            cheapest = min(cheapest, max(cost(piece, lengths, targets, work) for piece in pieces))
    assert found == cheapest


def test_costs_that_differ_by_a_rounding_error_end_the_search():
    """Between neighbouring floats there is no middle: a bisection that waits for one never returns."""
    targets = np.array([2, 2, 1, 1, 0, 0, 0, 0, 3, 2])  # 0.7 * 6 - 0.7 * 4 is not 0.7 * 2
    dealt = slices([list(range(10))], np.full(10, 1), targets, 2, 2, Work(1e-17, 0.0, 0.7, 99, 99))
    assert max(targets[chosen].sum() for chosen in flat(dealt)) == 4


def test_what_is_divided_further_is_the_costliest_and_evenly():
    """One long example sets the cost, and the others' one piece would leave ranks idle, or busy for nothing."""
    lengths = np.array([100, *[10] * 8])
    work = work_for(lengths, np.zeros(9, int), 9, per_token=1.0, per_pair=0.0, per_target=0.0)
    dealt = costs_of(slices([list(range(9))], lengths, np.zeros(9, int), 5, 1, work), lengths, np.zeros(9, int), work)
    assert dealt[:, 0].tolist() == [100, 20, 20, 20, 20]


def test_the_rank_with_the_least_so_far_has_the_costliest_of_what_is_left():
    """Dealt by number, the first rank would have the costliest of every round."""
    lengths, targets = np.array([40, 30, 20, 10, 9, 7, 5, 3]), np.zeros(8, int)
    dealt = slices([list(range(8))], lengths, targets, 4, 2, work_for(lengths, targets, 1, per_pair=0.0))
    assert dealt == [[[0], [7]], [[1], [6]], [[2], [5]], [[3], [4]]]


def test_long_examples_are_alone_and_short_ones_many():
    """By count, one rank would have all four of 500 tokens, and the others nothing but short ones."""
    lengths = np.array([500, 500, 500, 500, *[20] * 28])
    targets = lengths // 2
    window = [list(range(start, start + 8)) for start in range(0, 32, 8)]
    dealt = slices(window, lengths, targets, 4, 2, work_for(lengths, targets, 8))
    assert [[lengths[chosen].max() for chosen in mine] for mine in dealt] == [[500, 20]] * 4
    assert [len(first) for first, _ in dealt] == [1] * 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ranks_costliest_micro_batch_comes_first(seed):
    """FSDP gathers weights in every forward: the ranks' n-th micro-batches should be alike, or they wait n times."""
    window, lengths, targets, ranks, per_rank, work = case_of(seed)
    costs = costs_of(slices(window, lengths, targets, ranks, per_rank, work), lengths, targets, work)
    assert (costs[:, :-1] >= costs[:, 1:]).all()
    assert (costs[:, :-1].min(0, initial=np.inf) >= costs[:, 1:].max(0, initial=0)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_the_last_window_with_fewer_examples_than_micro_batches_leaves_no_rank_idle_that_need_not_be(n):
    """Of 4 ranks with 2 micro-batches each: an example each first, and an empty list for a pass that adds nothing."""
    lengths, targets = np.arange(100, 100 + n), np.arange(50, 50 + n)
    dealt = slices([list(range(n))], lengths, targets, 4, 2, work_for(lengths, targets, n))
    assert [len(mine) for mine in dealt] == [2] * 4
    assert sorted(flat(flat(dealt))) == list(range(n)) and max(map(len, flat(dealt))) == 1
    assert sum(any(mine) for mine in dealt) == min(n, 4)


def test_four_examples_for_four_ranks_are_one_each_and_an_empty_micro_batch_is_no_shared_list():
    lengths, targets = np.array([9, 3, 12, 6]), np.array([1, 1, 1, 1])
    dealt = slices([[0, 1, 2, 3]], lengths, targets, 4, 1, work_for(lengths, targets, 8))
    assert dealt == [[[2]], [[0]], [[3]], [[1]]]
    padded = slices([[0, 1, 2, 3]], lengths, targets, 4, 3, work_for(lengths, targets, 8))
    assert padded == [[[2], [], []], [[0], [], []], [[3], [], []], [[1], [], []]]
    assert len({id(chosen) for chosen in flat(padded)}) == 12


def test_one_rank_has_the_window_as_it_is():
    """One process does what it always did, to the order of the rows; limits are for what is divided anew."""
    window = [[5, 2], [9], [1, 7, 3]]
    assert slices(window, np.arange(10), np.arange(10), 1, 1, Work(1.0, 1.0, 1.0, 1, 1)) == [window]


def test_an_empty_window_is_empty_for_all():
    assert slices([], np.arange(3), np.arange(3), 2, 2, Work(1.0, 1.0, 1.0, 9, 9)) == [[[], []], [[], []]]


def unevenness(ranks, *case):
    """The costliest rank's work to the mean: what a step takes to what it would with the same work spread evenly."""
    totals = costs_of(ranks, *case).sum(1)
    return totals.max() / totals.mean()


@pytest.mark.parametrize("per_rank, limit", [(1, 1.15), (4, 1.05)])
def test_the_ranks_have_near_equal_work_on_lengths_as_they_are(per_rank, limit):
    """Log-normal lengths, and windows of the real plan. Compared with micro-batches dealt out as they come."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(120), 0.8, 4000).astype(int), 2, 1024)
    targets = (lengths * rng.uniform(0.2, 0.9, 4000)).astype(int).clip(1)
    work = work_for(lengths, targets, 8)
    sliced, dealt, slowest = [], [], np.zeros(2)
    for window in plan(lengths, 8, 4 * per_rank, 1, 0):
        ours = slices(window, lengths, targets, 4, per_rank, work)
        in_order = [(window + [[]] * (4 * per_rank - len(window)))[rank::4] for rank in range(4)]
        sliced.append(unevenness(ours, lengths, targets, work))
        dealt.append(unevenness(in_order, lengths, targets, work))
        slowest += [costs_of(ranks, lengths, targets, work).sum(1).max() for ranks in (ours, in_order)]
    print(f"costliest rank to the mean, {per_rank} each: {np.mean(sliced):.3f}, dealt in order {np.mean(dealt):.3f}")
    assert np.mean(sliced) < limit < np.mean(dealt)
    assert slowest[0] < 0.7 * slowest[1]  # the padding that longer pieces may hold included


def test_slices_are_made_without_torch():
    code = "import sys, gptft.parallel.slices; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
