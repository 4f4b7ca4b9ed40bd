"""Log-likelihoods of continuations: the plain path against the model's logits, the fast one against the plain."""

import random

import pytest
import torch
from toys import toy_model

from gptft.decoding import decode_plain
from gptft.device import Precision
from gptft.errors import UserError
from gptft.fast.shared_context import log_likelihoods_shared
from gptft.generation import log_likelihoods, log_likelihoods_plain

SHAPES = {
    "rotary": {},
    "learned positions": {"position": "learned"},
    "grouped heads": {"n_kv_head": 2},
    "sliding window": {"window": 5},
}


def requests(count, seed=0, most=4):
    """(context, continuation) pairs: some contexts have one continuation, some several, in no order."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        context = [rng.randrange(61) for _ in range(rng.randint(1, 14))]
        for _ in range(rng.randint(1, most)):
            made.append((context, [rng.randrange(61) for _ in range(rng.randint(1, 9))]))
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_a_log_likelihood_is_that_of_the_models_own_logits(shape):
    model = toy_model(**SHAPES[shape])
    asked = requests(10)
    for (context, continuation), found in zip(asked, log_likelihoods_plain(model, asked, 4), strict=True):
        ids = torch.tensor([[*context, *continuation]])
        with torch.no_grad():
            logits = model(ids[:, :-1])[0, len(context) - 1 :].float()
        each = logits.log_softmax(-1).gather(1, ids[0, len(context) :, None])
        assert found[0] == pytest.approx(each.sum().item(), rel=1e-6)
        assert found[1] == (logits.argmax(-1).tolist() == continuation)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_shared_context_changes_nothing(shape, batch_size):
    """A continuation that saw its neighbour, or stood at its neighbour's position, would be likelier or less."""
    model = toy_model(**SHAPES[shape])
    asked = requests(12, seed=1)
    plain, fast = log_likelihoods_plain(model, asked, 5), log_likelihoods_shared(model, asked, batch_size)
    # logits are rounded to fp32 before the softmax in both, so that this is as near as they come
    assert [value for value, _ in fast] == pytest.approx([value for value, _ in plain], rel=1e-6)
    assert [greedy for _, greedy in fast] == [greedy for _, greedy in plain]


def test_what_greedy_decoding_gives_is_greedy():
    model = toy_model()
    context = [5, 9, 2]
    best = decode_plain(model, context, 4, (), 61)
    other = [*best[:3], (best[3] + 1) % 61]
    assert [each.greedy for each in log_likelihoods(model, [(context, best), (context, other)])] == [True, False]


def test_each_context_is_read_once(monkeypatch):
    """What makes it fast: of four endings the context's tokens go through the model a single time."""
    model, seen = toy_model(), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda idx, *args, **more: seen.append(idx.numel()) or hidden(idx, *args, **more)
    )
    asked = [(list(range(1, 21)), [n, n + 1, n + 2]) for n in range(4)]
    log_likelihoods(model, asked, batch_size=16)
    assert seen == [20 + 4 * 2]
    seen.clear()
    log_likelihoods(model, [([n], [1, 2]) for n in range(4)], batch_size=16)  # nothing is shared: the plain path
    assert seen == [4 * 2]


def test_a_context_with_thousands_of_continuations_is_no_table_of_their_square(monkeypatch):
    """Whole texts have the beginning-of-text alone as their context: all of a task stood in one row, and its mask would
    have taken terabytes."""
    model, seen = toy_model(), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda idx, *args, **more: seen.append(tuple(idx.shape)) or hidden(idx, *args, **more)
    )
    asked = [([7], [n % 61] * 20) for n in range(300)]
    alone = log_likelihoods_plain(model, asked, 16)
    seen.clear()
    assert [value for value, _ in log_likelihoods_shared(model, asked, 16)] == pytest.approx(
        [value for value, _ in alone], rel=1e-6
    )
    assert len(seen) >= 300 / 16 and max(T for _, T in seen) <= 513
    seen.clear()
    log_likelihoods(model, asked, 16)  # a token that is shared saves nothing
    assert max(T for _, T in seen) == 20


def test_requests_that_cannot_be_measured_are_named():
    model = toy_model()
    for asked, message in (
        ([([1], [2]), ([], [2])], "request 2: context and continuation must have a token each"),
        ([([1], [])], "request 1: context and continuation must have a token each"),
        ([([1] * 20, [2] * 14)], "request 1 has 34 tokens, and the model reads 32"),
    ):
        with pytest.raises(UserError, match=message):
            log_likelihoods(model, asked)
    assert len(log_likelihoods(model, [([1] * 20, [2] * 13)])) == 1  # the last token is never read
    assert log_likelihoods(model, []) == []


def test_training_mode_and_precision_are_as_they_were():
    model = toy_model(dtype=torch.float32).train()
    first = log_likelihoods(model, requests(3), precision=Precision("fp32", model.device))
    assert model.training and first == log_likelihoods(model.eval(), requests(3))
