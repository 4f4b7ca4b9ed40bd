"""What a rank does for test_steps.py: `torchrun steps.py OUT`. Steps in which one rank alone meets something: a loss
that is not finite, an overflow in fp16. Each rank writes what it saw to OUT-RANK.json."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gradients import CPU, Examples
from toys import toy_examples, toy_model

from gptft.collate import collate
from gptft.config import Config
from gptft.device import Precision
from gptft.errors import NonFinite
from gptft.optim import make_optimizer
from gptft.parallel.launch import together
from gptft.parallel.ranks import here, local, whole
from gptft.parallel.wrap import OfRanks, Replicated, ScalerOfParts, shard
from gptft.training import TrainState, train


def set_up(engine, precision, poisoned=False, **settings):
    examples = toy_examples([5, 9, 14, 7, 8, 22, 6, 11], vocab_size=59)
    model = toy_model(torch.float32, tie_embeddings=False).train()
    if poisoned:
        with torch.no_grad():
            model.tok.weight[60] = torch.nan
        examples[2].ids[4] = 60
    config = Config(data=("x",), batch_size=1, batching="random", warmup_steps=0, lr=1e-3, **settings)
    config.grad_accum = here().size
    precision = Precision(precision, CPU)
    if engine == "fsdp":
        precision.scaler = ScalerOfParts("cpu", enabled=precision.scaler.is_enabled())
        objective = OfRanks(shard(model, precision))
    else:
        objective = Replicated(model)
    state = TrainState(model, make_optimizer(model, config), precision)
    return state, objective, config, Examples(examples)


def weights(model):
    return torch.cat([whole(parameter.detach()).flatten() for parameter in model.parameters()])


def meet_nan(engine):
    """One record of one rank makes a loss of NaN."""
    state, objective, config, examples = set_up(engine, "fp32", poisoned=True, max_steps=8)
    steps, before = [], weights(state.model)
    try:
        for event in train(state, objective, config, examples, Examples([]), partial(collate, pad_id=0)):
            steps.append(event.step)
            before = weights(state.model)
    except NonFinite as error:
        same = torch.equal(before.nan_to_num(7.0), weights(state.model).nan_to_num(7.0))
        return {"steps": steps, "said": str(error), "unchanged": same}


def meet_overflow(engine, overflows):
    """The gradient of one rank overflows once, in its third backward pass: all of it ("whole"), or, in the part of the
    sum that this rank holds, one number ("part")."""
    state, objective, config, examples = set_up(engine, "fp16", max_steps=4)
    calls = [0]

    def enlarge(grad):
        calls[0] += 1
        return grad * torch.inf if overflows == "whole" and calls[0] == 3 and here().rank == 1 else grad

    inner = objective.module if engine == "ddp" else objective
    forward = inner.forward

    def forward_and_watch(batch):
        loss, each = forward(batch)
        loss.register_hook(enlarge)
        return loss, each

    inner.forward = forward_and_watch
    unscale = state.precision.scaler.unscale_

    def unscale_and_watch(optimizer):
        if overflows == "part" and calls[0] == 3 and here().rank == 1:
            local(next(state.model.parameters()).grad)[0, 0] = torch.inf
        unscale(optimizer)

    state.precision.scaler.unscale_ = unscale_and_watch
    to_batch = partial(collate, pad_id=0)
    losses = [event.loss for event in train(state, objective, config, examples, Examples([]), to_batch)]
    scale, seen = state.precision.scaler.get_scale(), state.progress.examples
    return {
        "losses": losses,
        "scale": scale,
        "passes": calls[0],
        "examples": seen,
        "weights": weights(state.model).tolist(),
    }


def main(out):
    torch.set_num_threads(1)
    found = {}
    with together(Config(data=("x",)), CPU) as ranks:
        for engine in ("ddp", "fsdp"):
            found[f"{engine} nan"] = meet_nan(engine)
            found[f"{engine} overflow"] = meet_overflow(engine, "whole")
            found[f"{engine} none"] = meet_overflow(engine, "")
        found["fsdp part"] = meet_overflow("fsdp", "part")
        Path(f"{out}-{ranks.rank}.json").write_text(json.dumps(found))
        ranks.gather(None)


if __name__ == "__main__":
    main(sys.argv[1])
