"""What the tests of the GPU share: every call of the loop is here."""

from functools import partial

import numpy as np
import torch
from toys import Examples, toy_examples, toy_model

from gptft.collate import collate
from gptft.config import Config
from gptft.device import Precision
from gptft.loss import Objective
from gptft.optim import make_optimizer
from gptft.run.rehearsal import rehearse
from gptft.training import Step, TrainState, train

TO_BATCH = partial(collate, pad_id=0, mask_prompt=True)
# as a run has them; heads of 16 channels in groups, so that CUDA's fused kernels take part
SHAPE = {
    "vocab_size": 331,
    "block_size": 256,
    "n_layer": 3,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 64,
    "norm": "rms",
    "gated_mlp": True,
    "activation": "silu",
    "qkv_bias": False,
}


def examples(count, longest=60, seed=0):
    """Examples of unequal length, from a seed."""
    lengths = np.random.default_rng(seed).integers(5, longest, count).tolist()
    return Examples(toy_examples(lengths, vocab_size=SHAPE["vocab_size"], seed=seed))


class Run:
    """A model on the device with all that training it takes."""

    def __init__(self, device, dtype=torch.float32, shape=None, **settings):
        plain = {"lr": 1e-3, "warmup_steps": 2, "batch_size": 4, "eval_every": 1000, "precision": "fp32"}
        self.config = Config(**(plain | settings))
        self.model = toy_model(dtype, **(SHAPE | (shape or {}))).to(device).train()
        self.model.set_dropout(self.config.dropout)
        precision = Precision(self.config.precision, device)
        self.state = TrainState(self.model, make_optimizer(self.model, self.config), precision)
        self.objective = Objective(self.model)

    def steps(self, train_set, val_set=()):
        """Train; yields the steps."""
        events = train(self.state, self.objective, self.config, train_set, Examples(val_set), TO_BATCH)
        return (event for event in events if isinstance(event, Step))

    def rehearse(self, train_set, val_set=()):
        rehearse(self.state, self.objective, self.config, train_set, Examples(val_set), TO_BATCH)

    def weights(self):
        """All weights as one vector, in fp64 on the CPU."""
        return torch.cat([p.detach().double().cpu().flatten() for p in self.model.parameters()])
