"""Examples -> batches: the shift, the -100s and the padding on small tensors; and the plan of an epoch."""

import numpy as np
import pytest
import torch
from toys import toy_model

from gptft.collate import IGNORE, by_length, collate, plan
from gptft.data.examples import Example
from gptft.loss import Objective

EOT = 9
_ = IGNORE  # in the tables below


def example(ids, spans, record=("d.jsonl", 1)):
    return Example(np.array(ids, dtype=np.uint16), spans, record)


def test_the_shift_the_mask_and_the_padding_are_exactly_these():
    """On tensors that can be checked by eye: three prompt tokens, two of response, end-of-text."""
    batch = collate([example([1, 2, 3, 4, 5, EOT], [(3, 6)]), example([1, 6, EOT], [(1, 3)], ("e.jsonl", 7))], EOT)
    assert batch.idx.tolist() == [[1, 2, 3, 4, 5], [1, 6, EOT, EOT, EOT]]
    assert batch.targets.tolist() == [[_, _, 4, 5, EOT], [6, EOT, _, _, _]]
    assert batch.n_targets == 5 and batch.lengths == [5, 2]
    assert batch.records == [("d.jsonl", 1), ("e.jsonl", 7)]
    assert batch.idx.dtype == batch.targets.dtype == torch.long


def test_with_the_pad_id_equal_to_end_of_text_every_responses_own_end_is_a_target():
    """Masked by value, no response's end would be learned, and the model would never stop."""
    batch = collate([example([1, 2, EOT], [(1, 3)]), example([1, 2, 3, 4, EOT], [(1, 5)])], pad_id=EOT)
    assert (batch.targets == EOT).sum() == 2
    assert batch.targets[0].tolist() == [2, EOT, _, _]


@pytest.mark.parametrize("pad_id", [0, 5, EOT])
def test_the_pad_id_changes_no_target(pad_id):
    examples = [example([1, 2, EOT], [(1, 3)]), example([5, 2, 5, 4, EOT], [(2, 5)])]
    batch, other = collate(examples, pad_id), collate(examples, 7)
    assert torch.equal(batch.targets, other.targets)
    assert batch.idx[0].tolist() == [1, 2, pad_id, pad_id]


def test_an_end_of_text_inside_the_data_changes_nothing():
    """In the prompt it is masked like its neighbours, in the response it is a target like its neighbours."""
    inside = collate([example([1, EOT, 3, 4, EOT, EOT], [(3, 6)])], EOT)
    assert inside.idx.tolist() == [[1, EOT, 3, 4, EOT]]
    assert inside.targets.tolist() == [[_, _, 4, EOT, EOT]]


def test_the_prompt_is_masked_and_the_first_response_token_is_scored():
    """For every length of prompt: off by one either way, the loss looks normal."""
    ids = [1, 2, 3, 4, 5, 6, EOT]
    for p in range(1, len(ids)):
        (targets,) = collate([example(ids, [(p, len(ids))])], EOT).targets.tolist()
        assert targets == [_] * (p - 1) + ids[p:]


def test_every_turn_is_a_target_and_what_lies_between_is_not():
    batch = collate([example([1, 2, 3, EOT, 4, 5, 6, EOT], [(2, 4), (6, 8)])], EOT)
    assert batch.targets.tolist() == [[_, 3, EOT, _, _, 6, EOT]]
    assert batch.n_targets == 4


def test_without_masking_every_token_but_the_first_is_a_target():
    examples = [example([1, 2, 3, 4, EOT], [(3, 5)]), example([1, 2, EOT], [(1, 3)])]
    batch = collate(examples, EOT, mask_prompt=False)
    assert batch.targets.tolist() == [[2, 3, 4, EOT], [2, EOT, _, _]]
    assert batch.n_targets == 6


def test_the_token_at_position_0_is_never_a_target():
    """Nothing predicts it; a span that begins there must not wrap around to the row's end."""
    batch = collate([example([1, 2, 3], [(0, 3)]), example([1, 2, 3, 4], [(0, 1), (2, 4)])], EOT)
    assert batch.targets.tolist() == [[2, 3, _], [_, 3, 4]]
    assert batch.n_targets == 4


def test_the_number_of_targets_is_what_the_tensor_says():
    """It divides the gradient: a wrong count is a wrong learning rate."""
    rng = np.random.default_rng(0)
    for mask_prompt in (True, False):
        for _round in range(50):
            examples = []
            for n in rng.integers(2, 12, size=4):
                start = int(rng.integers(0, n - 1))
                examples.append(example(rng.integers(0, 9, n), [(start, int(n))]))
            batch = collate(examples, EOT, mask_prompt)
            assert batch.n_targets == (batch.targets != IGNORE).sum()
            assert batch.idx.shape == (4, max(len(e.ids) for e in examples) - 1)


def test_predicting_the_next_token_gives_no_loss_and_the_one_after_it_does():
    """Through the loss itself: a shift in the collate and another in the loss would train t+2."""
    batch = collate([example([1, 2, 3, 4, 5, 6, 7, 8, EOT], [(2, 9)])], EOT)
    assert batch.idx.shape == batch.targets.shape

    class Oracle(torch.nn.Module):
        """Hidden states that know the token `ahead` places further on; the head makes logits of them."""

        def __init__(self, ahead):
            super().__init__()
            self.ahead = ahead

        def hidden(self, idx, layout, scored):
            ids = torch.cat((idx, torch.full((1, 1), EOT)), dim=1)
            return torch.nn.functional.one_hot(ids.roll(-self.ahead, dims=1)[:, :-1], 10).float().flatten(0, 1)[scored]

        def head(self, h):
            return 50 * h

    total, losses = Objective(Oracle(1))(batch)
    assert total < 1e-6 and len(losses) == batch.n_targets
    assert Objective(Oracle(2))(batch)[0] / batch.n_targets > 10
    assert Objective(Oracle(0))(batch)[0] / batch.n_targets > 10


def test_padding_changes_no_loss():
    """An example alone and beside a longer one: the same losses, to rounding."""
    objective = Objective(toy_model())
    short, long = example([1, 2, 3, EOT], [(2, 4)]), example([*range(1, 20), EOT], [(2, 20)])
    alone = objective(collate([short], EOT))[1]
    beside = objective(collate([short, long], EOT))[1]
    assert torch.allclose(beside[: len(alone)], alone, rtol=1e-10, atol=0)


# ---- the plan of an epoch


def lengths_of(n, seed=0):
    return np.random.default_rng(seed).integers(2, 200, n)


CASES = [(1, 1, 1), (7, 2, 3), (8, 2, 2), (100, 8, 4), (103, 8, 3), (1000, 4, 1), (5, 16, 4)]


@pytest.mark.parametrize("batching", ["length", "random"])
@pytest.mark.parametrize("n, batch_size, grad_accum", CASES)
def test_every_example_appears_once_an_epoch_in_windows_of_the_right_size(n, batch_size, grad_accum, batching):
    """Leftovers at the end are trained on, never dropped; one micro-batch at most is smaller than the others."""
    windows = plan(lengths_of(n), batch_size, grad_accum, 1, 0, batching)
    batches = [batch for window in windows for batch in window]
    assert sorted(number for batch in batches for number in batch) == list(range(n))
    assert sorted(map(len, batches), reverse=True) == [batch_size] * (n // batch_size) + [n % batch_size] * (
        n % batch_size > 0
    )
    assert all(len(window) == grad_accum for window in windows[:-1]) and 1 <= len(windows[-1]) <= grad_accum
    assert len(windows) == -(-len(batches) // grad_accum)
    assert all(isinstance(number, int) for batch in batches for number in batch)


@pytest.mark.parametrize("batching", ["length", "random"])
def test_the_plan_is_a_pure_function(batching):
    """A resumed run makes it again, whatever random numbers were drawn since."""
    lengths = lengths_of(300)
    first = plan(lengths, 4, 2, 5, 3, batching)
    np.random.seed(99)
    np.random.rand(7)
    torch.manual_seed(3)
    assert plan(lengths.copy(), 4, 2, 5, 3, batching) == first
    assert np.array_equal(lengths, lengths_of(300))


@pytest.mark.parametrize("batching", ["length", "random"])
def test_epochs_and_seeds_give_other_orders_and_other_company(batching):
    """Batches sorted once and kept would show the model the same neighbours for ever."""
    lengths = lengths_of(1000)
    plans = [plan(lengths, 4, 1, seed, epoch, batching) for seed, epoch in ((1, 0), (1, 1), (2, 0), (0, 1))]
    groups = [{frozenset(batch) for window in p for batch in window} for p in plans]
    for a in range(4):
        for b in range(a):
            assert plans[a] != plans[b]
            assert len(groups[a] & groups[b]) < 25  # of 250


def padding(lengths, windows):
    """The share of positions that are padding."""
    batches = [lengths[batch] for window in windows for batch in window]
    total = sum(batch.max() * len(batch) for batch in batches)
    return 1 - lengths.sum() / total


def test_batching_by_length_really_reduces_padding():
    lengths = lengths_of(2000)
    by_chance = padding(lengths, plan(lengths, 8, 1, 1, 0, "random"))
    sorted_pools = padding(lengths, plan(lengths, 8, 1, 1, 0, "length"))
    assert by_chance > 0.35 and sorted_pools < 0.05


def test_batching_by_length_does_not_go_from_short_to_long():
    """Sorted batches in order would make the loss a function of the step: their order is random again."""
    lengths = lengths_of(2000)
    means = [lengths[batch].mean() for window in plan(lengths, 8, 1, 1, 0) for batch in window]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_random_batching_does_not_look_at_lengths():
    assert plan(lengths_of(100), 8, 1, 1, 0, "random") == plan(lengths_of(100, seed=5), 8, 1, 1, 0, "random")


def test_evaluation_batches_hold_every_example_once_longest_first():
    lengths = lengths_of(101)
    batches = by_length(lengths, 8)
    order = [number for batch in batches for number in batch]
    assert sorted(order) == list(range(101)) and list(map(len, batches)) == [8] * 12 + [5]
    assert (np.diff(lengths[order]) <= 0).all()
    assert by_length(lengths[:0], 8) == []
