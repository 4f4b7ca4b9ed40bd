"""Small models and batches for the tests, and the measure of equality: a relative difference of norms."""

import numpy as np
import torch

from gptft.architecture import GPTConfig
from gptft.data.examples import Example
from gptft.model import GPT


def toy_config(**changes) -> GPTConfig:
    values = {"vocab_size": 61, "block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32, "position": "rotary"}
    return GPTConfig(**{**values, **changes})


def toy_model(dtype=torch.float64, seed=0, **changes) -> GPT:
    """A tiny model whose weights are large enough that every part of it matters to the logits."""
    model = GPT.create(toy_config(**changes), seed, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel() + seed))
            parameter.add_(0.1 * noise.to(dtype))
    return model.eval()


def toy_examples(lengths, vocab_size=61, seed=0, prompt=3) -> list[Example]:
    """Random examples: the first `prompt` tokens are a prompt, the rest the response."""
    rng = np.random.default_rng(seed)
    return [
        Example(rng.integers(1, vocab_size, n).astype(np.uint16), [(min(prompt, n - 1), n)], ("toy.jsonl", i + 1))
        for i, n in enumerate(lengths)
    ]


class Examples(list):
    """A split held in memory: all that the loop asks of one."""

    def part(self, number, should_stop=None):
        return self

    @property
    def lengths(self):
        return np.array([len(example.ids) for example in self])

    @property
    def target_counts(self):
        return np.array([sum(end - max(start, 1) for start, end in example.spans) for example in self])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference `b`."""
    return ((a - b).norm() / b.norm()).item()


def gradients(model) -> torch.Tensor:
    """All gradients as one vector; None counts as zero."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    ).clone()
