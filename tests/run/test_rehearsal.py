"""What costs most is tried before the first step."""

import weakref
from functools import partial

import numpy as np
import pytest
import torch
from toys import toy_model

from gptft.collate import collate
from gptft.config import Config
from gptft.data.examples import Example
from gptft.device import Precision, is_out_of_memory, random_state
from gptft.errors import UserError
from gptft.loss import Objective
from gptft.optim import make_optimizer
from gptft.run.rehearsal import rehearse
from gptft.training import TrainState

TO_BATCH = partial(collate, pad_id=0)


class Examples(list):
    """A split held in memory."""

    lengths = property(lambda self: np.array([len(example.ids) for example in self]))
    target_counts = property(lambda self: np.array([end - start for example in self for start, end in example.spans]))


def example(n_prompt, n_response):
    n = n_prompt + n_response
    return Example(np.arange(n, dtype=np.uint16) % 60, [(n_prompt, n)], ("toy.jsonl", n))


def setup(**settings):
    config = Config(**{"lr": 1e-2, "batch_size": 2, "eval_batch_size": 2, "precision": "fp32", **settings})
    model = toy_model(torch.float32)
    state = TrainState(model, make_optimizer(model, config), Precision("fp32", torch.device("cpu")))
    return state, Objective(model), config


LONG_PROMPTS = [example(28, 3), example(27, 3)]  # the most positions
LONG_RESPONSES = [example(1, 20), example(2, 20)]  # the most targets
OTHERS = [example(4, 4), example(5, 3)]


def test_the_longest_examples_and_the_most_targets_are_both_tried():
    """Each target has V logits, so a shorter batch may need more memory than the longest."""
    state, objective, config = setup()
    seen = []
    forward = objective.forward
    objective.forward = lambda batch: seen.append((batch.idx.size(1), batch.n_targets)) or forward(batch)
    both = Examples([*OTHERS, *LONG_PROMPTS, *LONG_RESPONSES])
    rehearse(state, objective, config, both, Examples([*LONG_RESPONSES, *LONG_PROMPTS]), TO_BATCH)
    assert seen == [(30, 6), (21, 40), (30, 6), (21, 40)]
    seen.clear()
    rehearse(state, objective, config, Examples([*OTHERS, *LONG_RESPONSES]), Examples([]), TO_BATCH)
    assert seen == [(21, 40)], "one batch is both"


def test_the_longest_prompts_are_tried_with_the_cache_that_answering_them_takes():
    """Generation in a run was tried by nothing: a cache that did not fit ended the run after its training."""
    state, objective, config = setup(max_new_tokens=9)
    caches, state.model.training = [], True
    new_cache = state.model.new_cache
    state.model.new_cache = lambda *args: caches.append(args[:2]) or new_cache(*args)
    before = random_state(torch.device("cpu"))["cpu"]
    prompts = [[1, 2], [1] * 17, [3] * 5, [4] * 11]
    rehearse(state, objective, config, Examples(OTHERS), Examples([]), TO_BATCH, prompts)
    assert caches == [(2, 17 + 9)]
    assert state.model.training and torch.equal(before, random_state(torch.device("cpu"))["cpu"])


@pytest.mark.parametrize(
    ("words", "remedy"),
    [("training", "--batch_size"), ("evaluation", "--eval_batch_size"), ("answering", "--max_new_tokens")],
)
def test_running_out_of_memory_is_one_line_with_what_to_lower(words, remedy, monkeypatch):
    state, objective, config = setup()

    def fail(*args, **options):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    forward = objective.forward
    if words == "answering":
        monkeypatch.setattr("gptft.run.rehearsal.decode", fail)
    else:
        when_training = words == "training"
        objective.forward = lambda batch: fail() if state.model.training == when_training else forward(batch)
    with pytest.raises(UserError, match=rf"^out of memory on cpu .*{words}.*{remedy}"):
        rehearse(state, objective, config, Examples(OTHERS), Examples(OTHERS), TO_BATCH, [[1, 2]])
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize(
    ("phase", "most", "said"),
    [
        (
            "training",
            3,
            r"--batch_size 2 --grad_accum 12 fits; or lower --max_length, or set --checkpoint_activations$",
        ),
        ("training", 0, r"not even --batch_size 1 fits: lower --max_length, or set --checkpoint_activations$"),
        ("evaluation", 2, r"--eval_batch_size 1 fits; or lower --max_length$"),
    ],
)
def test_what_would_fit_is_tried_and_said(phase, most, said):
    """ "Lower --batch_size" left it to the user to try by how much, a minute a try. What the failed try held is gone
    before the next: kept, it would be what the next one fails for."""
    state, objective, config = setup(batch_size=8, grad_accum=3, eval_batch_size=3)
    forward, held = objective.forward, []

    def limited(batch):
        loss, losses = forward(batch)
        held[:] = [each for each in held if each() is not None]
        assert not held or state.model.training != (phase == "training")
        if len(batch.lengths) > most and state.model.training == (phase == "training"):
            held.append(weakref.ref(losses))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return loss, losses

    objective.forward = limited
    examples = Examples([example(3, n) for n in range(1, 13)])
    with pytest.raises(UserError, match=rf"^out of memory on cpu in {phase}, .*: {said}"):
        rehearse(state, objective, config, examples, examples, TO_BATCH)
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("expected scalar type Float but found Half (alloc)"), False),
        (RuntimeError("cannot resize a tensor that was not allocated by its storage"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_by_what_libraries_say(error, expected):
    """ "alloc" in an error's text was what told it: that missed cuBLAS's words and took in other faults."""
    assert is_out_of_memory(error) is expected
