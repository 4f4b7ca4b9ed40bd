"""Decoding by recorded passes. Here a record is run as it is, from what it has kept; that CUDA replays it is for the
tests of the GPU."""

import pytest
import torch
from counted import VARIANTS, V, decode_all
from test_continuous import collect
from test_decoding import random_prompts
from toys import difference, toy_model

from gptft.decoding import decode_plain
from gptft.errors import UserError
from gptft.fast import graphs
from gptft.fast.decoding_model import arranged
from gptft.fast.graphs import AGAIN, GraphedModel

NEW = 20
LENGTHS = [3, 9, 1, 14, 6, 11, 2]


@pytest.fixture
def blocks(monkeypatch):
    """Few tokens a block, so that passes of several sizes are recorded."""
    monkeypatch.setattr(graphs, "BLOCK", 8)


class Records:
    """Runs what was recorded, and counts that."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, run):
        self.recorded += 1
        run()

        def replay():
            self.replayed += 1
            return run()

        return replay


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ids_are_those_of_the_plain_loop(blocks, variant):
    """A pass that was recorded for other rows, or for fewer keys, would read what belongs to others."""
    model, records = toy_model(torch.float64, 3, block_size=64, **VARIANTS[variant]), Records()
    prompts = random_prompts(LENGTHS)
    stop = decode_plain(model, prompts[0], NEW, (), V)[5]
    expected = [decode_plain(model, prompt, NEW, {stop}, V) for prompt in prompts]
    recorded = GraphedModel(model, records)
    for rows in (1, 3, 16):
        assert collect(recorded, prompts, NEW, {stop}, V, rows=rows) == expected
    assert decode_all(recorded, prompts, NEW, {stop}, V) == expected
    assert records.recorded >= 3
    assert records.replayed > 10


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_hidden_states_are_the_models(blocks, variant):
    """Keys behind a row's own are hidden, whatever stands there: here numbers of another text."""
    model = toy_model(torch.float64, 3, block_size=64, **VARIANTS[variant])
    recorded = GraphedModel(model, Records())
    caches = [model.new_cache(3, 50) for _ in range(2)]
    idx, lengths = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(1)), [12, 4, 9]
    for cache in caches:
        cache.k.normal_(), cache.v.normal_()
        model.hidden(idx, cache.begin(lengths), cache)
    for number in range(30):
        token = torch.tensor([[number], [number + 1], [5]])
        expected, found = (who.hidden(token, c.extend(), c) for who, c in zip((model, recorded), caches, strict=True))
        assert difference(found, expected) < 1e-12
    # as many keys; too few passes saw 16 or 48
    assert [end for end, *_ in recorded.passes] == [24, 32, 40]


@torch.no_grad()
def test_a_pass_is_of_one_cache(blocks):
    """Another conversation of as many tokens would write into the first one's keys, and read them."""
    model = toy_model(torch.float64, 3, block_size=64)
    recorded, caches = GraphedModel(model, Records()), [model.new_cache(1, 32) for _ in range(3)]
    prompts = torch.randint(V, (2, 1, 9), generator=torch.Generator().manual_seed(1))
    for cache, prompt in zip(caches, prompts[[0, 1, 1]], strict=True):
        model.hidden(prompt, cache.begin([9]), cache)
    for number in range(2 * AGAIN):
        token = torch.tensor([[number]])
        recorded.hidden(token, caches[0].extend(), caches[0])
        found, expected = (
            who.hidden(token, c.extend(), c) for who, c in zip((recorded, model), caches[1:], strict=True)
        )
        assert difference(found, expected) < 1e-12


@torch.no_grad()
def test_few_passes_of_a_kind_are_not_recorded(blocks):
    """To record one takes as long as some passes."""
    model, records = toy_model(block_size=64), Records()
    recorded, cache = GraphedModel(model, records), model.new_cache(1, 16)
    model.hidden(torch.zeros(1, 2, dtype=torch.long), cache.begin([2]), cache)
    for _ in range(AGAIN):
        recorded.hidden(torch.zeros(1, 1, dtype=torch.long), cache.extend(), cache)
    assert records.recorded == 0
    recorded.hidden(torch.zeros(1, 1, dtype=torch.long), cache.extend(), cache)
    assert (records.recorded, records.replayed) == (1, 1)


@torch.no_grad()
def test_recorded_passes_are_bounded(blocks, monkeypatch):
    """A conversation has a cache of its own each turn: what was recorded for the first must go."""
    monkeypatch.setattr(graphs, "MOST", 3)
    model = toy_model(torch.float64, block_size=64)
    recorded, prompts = GraphedModel(model, Records()), random_prompts(LENGTHS)
    for prompt in prompts:
        assert decode_all(recorded, [prompt], NEW, (), V) == [decode_plain(model, prompt, NEW, (), V)]
        assert len(recorded.passes) <= 3


def test_elsewhere_than_on_cuda_it_is_refused_with_the_reason():
    with pytest.raises(UserError, match="decode 'graph': CUDA records passes, and the model is on cpu"):
        arranged(toy_model(), "graph")
