"""Sampling without a walk over the whole vocabulary: the ids of `decoding.choose`, with the same random numbers."""

import pytest
import torch

from gptft.decoding import GREEDY, Sampling, choose, random_streams
from gptft.errors import UserError
from gptft.fast.sampling import BLOCK, SMALL, choose_by_blocks, find, keep_likeliest, largest

SETTINGS = [
    GREEDY,
    Sampling(1.0),
    Sampling(0.3),
    Sampling(2.0, top_k=40),
    Sampling(1.0, top_k=5000),
    Sampling(0.8, top_k=50, top_p=0.95),
    Sampling(1.0, top_p=0.9),
    Sampling(1.0, top_p=0.2, top_k=7),
    Sampling(1e-40),
]


@pytest.mark.parametrize("V", [3, BLOCK, BLOCK + 1, 4 * BLOCK, 5000])
@pytest.mark.parametrize("sampling", SETTINGS)
def test_ids_are_those_of_the_plain_choice(V, sampling):
    """At the edge of a block, or in a last one that is not full, another token would be drawn than with other rows."""
    streams = [random_streams(sampling, range(8)) for _ in range(2)]
    for seed in range(40):
        logits = 3 * torch.randn(8, V, generator=torch.Generator().manual_seed(seed))
        logits[:, V // 2 : V // 2 + V // 9] = -torch.inf  # holes
        given = logits.clone()
        assert choose_by_blocks(logits, sampling, streams[0]).tolist() == choose(given, sampling, streams[1]).tolist()
        assert torch.equal(logits, given), "what the caller gave is still his"


@pytest.mark.parametrize("V", [40, SMALL * 3, SMALL * 3 + 1, 5000])
def test_the_largest_are_found_wherever_they_stand(V):
    """Side by side in one block, or in a last one that is not full: a block has one largest, and many numbers."""
    for seed, k in ((0, 1), (1, 2), (2, 39)):
        x = torch.randn(4, V, generator=torch.Generator().manual_seed(seed))
        x[0, V - k :] += 9
        x[1, :k] += 9
        values, ids = largest(x, k)
        assert torch.equal(values, x.topk(k).values) and torch.equal(x.gather(-1, ids), values)
        assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("V", [100, 5000])
def test_all_that_are_as_large_as_the_last_are_kept(V):
    """Which of equals topk returns is a matter of chance; one that was left out could never be drawn."""
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(0))
    assert keep_likeliest(logits, 2)[1].size(-1) == 2
    logits[:, [3, 40, V - 1]] = 9.0
    kept, ids = keep_likeliest(logits, 2)
    assert ids is None and (kept > -torch.inf).sum(-1).tolist() == [3, 3]
    kept, ids = keep_likeliest(logits, 3)
    assert ids.tolist() == [[3, 40, V - 1]] * 2 and (kept == 9).all()


@pytest.mark.parametrize("V", [5, BLOCK - 40, BLOCK, 3 * BLOCK, 3 * BLOCK + 5])
def test_what_has_no_probability_is_never_found(V):
    """Whatever the number is: 0, the largest below 1, and those on which a block ends; in fp32's odd shares, too."""
    for at in {1, V // 2, V - 2}:
        weights = torch.zeros(1, V)
        weights[0, at] = 0.3
        for number in (0.0, 0.5, 1 - 2**-53):
            assert find(weights, torch.tensor([[number]], dtype=torch.float64)).item() == at
    weights = torch.exp(9 * torch.randn(1000, V, generator=torch.Generator().manual_seed(V)))
    weights[:, ::2] = 0
    for number in (0.0, 1 - 2**-53):  # in another order of summation the largest lies behind the last weight
        found = find(weights, torch.full((1000, 1), number, dtype=torch.float64))
        assert found.max() < V and (weights.gather(-1, found) > 0).all()
    for end in (weights[0].double().cumsum(-1) / weights[0].double().sum()).tolist():
        assert weights[0, find(weights[:1], torch.tensor([[min(end, 1 - 2**-53)]], dtype=torch.float64)).item()] > 0


def test_logits_that_are_not_numbers_are_one_line():
    for bad in (torch.nan, torch.inf):
        logits = torch.zeros(2, 500)
        logits[1, 300] = bad
        with pytest.raises(UserError, match="the model's logits are not finite numbers"):
            choose_by_blocks(logits, Sampling(1.0), random_streams(Sampling(1.0), [0, 1]))
