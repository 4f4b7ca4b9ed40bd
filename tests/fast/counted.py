"""What the tests of decoding share: architectures, a model that counts its passes, and plain decoding as lists."""

import torch
from toys import toy_model

from gptft.decoding import decode

V = 61  # the vocabulary of the toys
VARIANTS = {
    "learned": {"position": "learned", "norm": "layer", "parallel_residual": True},
    "rotary": {},
    "grouped": {"n_kv_head": 2, "qk_norm": True, "norm": "rms"},
    "sliding window": {"n_kv_head": 1, "window": 5, "full_layers": (1,)},
}


def circle(period, dtype=torch.float32, **changes):
    """A model that writes a circle of `period` tokens: behind each stands the next, behind any other it again."""
    model = toy_model(dtype, block_size=256, tie_embeddings=False, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("pos.") or ".attn.out." in name or ".mlp.down." in name:
                parameter *= 0.02  # next to nothing but the token itself
        before = [(n - 1) % period if n < period else n for n in range(V)]
        model.lm_head.weight.copy_(model.tok.weight[before])
    return model


class Counted:
    """A model that notes the shapes of what is passed through it, (rows, tokens a row), and the passes with a mask."""

    def __init__(self, model):
        self.model, self.passes, self.masks = model, [], 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def hidden(self, idx, layout=None, cache=None, scored=None):
        self.passes.append(tuple(idx.shape))
        h = self.model.hidden(idx, layout, cache, scored)
        self.masks += any(mask is not None for mask in layout._masks.values())
        return h


def decode_all(model, prompts, *args, **options):
    """Each prompt's ids, from `decode`."""
    answers = [[] for _ in prompts]
    for pairs in decode(model, prompts, *args, **options):
        for n, token in pairs:
            answers[n].append(token)
    return answers
