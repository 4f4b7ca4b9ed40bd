"""What a rank does for test_equal.py: `torchrun gradients.py OUT.json`. Every window's gradient, loss and norm on these
ranks, beside those of a plain reference on the whole window, which each process computes by itself: logits of each
example alone, torch's cross-entropy, one sum, one division, one backward pass."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toys import difference, gradients, toy_examples, toy_model

from gptft.adapters.lora import LoraConfig, add_lora
from gptft.collate import collate, plan
from gptft.config import Config
from gptft.data.examples import Split
from gptft.device import Precision
from gptft.fast import head, packing, windows
from gptft.fast.choice import Choice
from gptft.loss import Objective
from gptft.optim import make_optimizer
from gptft.parallel.launch import together
from gptft.parallel.ranks import here, whole
from gptft.parallel.window import own_slices
from gptft.parallel.wrap import OfRanks, Replicated, shard
from gptft.training import TrainState, add_up, backward, clip_gradients, count, evaluate_loss

CPU = torch.device("cpu")
CLIP = 0.05
MODELS = {
    "gpt2": {"position": "learned", "qkv_bias": True, "mlp_bias": True, "out_bias": True},
    "llama": {"norm": "rms", "gated_mlp": True, "n_kv_head": 2, "qk_norm": True, "tie_embeddings": False},
}
# 25, so that of the last window 2, 3 and 4 ranks have one example
LENGTHS = [9, 12, 31, 7, 15, 30, 4, 22, 11, 8, 6, 19, 25, 5, 14, 10, 7, 28, 9, 13, 17, 6, 20, 8, 12]
CASES = [  # what is trained, micro-batches a rank, whether activations are computed again
    ("full", 1, False),
    ("full", 3, True),
    ("lora", 1, True),
    ("dora", 3, False),
    ("int8", 1, False),
    ("packed", 2, False),  # full, without padding, and what the examples begin with alike computed once
    ("chunks", 3, False),  # full, with the head and the loss some rows at a time
    ("windows", 2, False),  # full, of a model with sliding windows, block by block
]
FULL = ("full", "packed", "chunks", "windows")
packing.FEWEST = 2
windows.BLOCK = 4
head.LOGITS, head.ROWS = 1, 4
FOUND = {}  # references, by kind, model and window


class Examples(Split):
    """Examples in memory as a split of a dataset: lengths, targets, and the examples by number."""

    def __init__(self, examples):
        object.__setattr__(self, "examples", examples)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]

    @property
    def lengths(self):
        return torch.tensor([len(each.ids) for each in self.examples]).numpy()

    @property
    def target_counts(self):
        return torch.tensor([sum(b - a for a, b in each.spans) for each in self.examples]).numpy()


def make(kind, shape):
    more = {"window": 5} if kind == "windows" else {}
    model = toy_model(torch.float64, **MODELS[shape], **more).train()
    if kind not in FULL:
        add_lora(model, LoraConfig(4, dora=kind == "dora"), 0, None, "int8" if kind == "int8" else "fp32")
        with torch.no_grad():  # B starts at zero, and A would have no gradient
            for name, parameter in model.named_parameters():
                if name.endswith(".B"):
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))
    return model.train()


def reference(model, examples):
    """(gradient, loss a target, norm, gradient when clipped)."""
    total, n = 0.0, 0
    for example in examples:
        ids = torch.tensor(example.ids.astype(int))
        each = torch.nn.functional.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
        for start, end in example.spans:
            total, n = total + each[start - 1 : end - 1].sum(), n + end - start
    (total / n).backward()
    grads = gradients(model)
    norm = grads.norm()
    clipped = grads * min(1.0, CLIP / (norm.item() + 1e-6))
    model.zero_grad(set_to_none=True)
    return total.item() / n, norm.item(), clipped


def run_case(kind, shape, engine, grad_accum, checkpointed):
    ranks, examples = here(), Examples(toy_examples(LENGTHS, prompt=4))
    lora_rank = 0 if kind in FULL else 4
    config = Config(data=("x",), batch_size=2, grad_accum=grad_accum * ranks.size, lora_rank=lora_rank)
    to_batch = partial(collate, pad_id=0, mask_prompt=True)
    if kind == "packed":
        for example in examples.examples:
            example.ids[:3] = 5
        to_batch = Choice(0.0, True).batches(to_batch)
    if kind == "windows":
        to_batch = Choice(None, False, windows=True).batches(to_batch)
    plain, model, precision = make(kind, shape), make(kind, shape), Precision("fp32", CPU)
    model.checkpoint_activations = checkpointed
    losses = Choice(None, False, chunks=kind == "chunks").head_losses
    objective = Objective(model, losses)
    if ranks.size > 1:
        objective = OfRanks(shard(model, precision), losses) if engine == "fsdp" else Replicated(model, losses)
    state = TrainState(model, make_optimizer(model, config), precision)
    worst = {"loss": 0.0, "norm": 0.0, "gradient": 0.0}
    idle = 0
    planned = plan(examples.lengths, 2, config.grad_accum, 0, 0)
    for window, mine in zip(planned, own_slices(planned, examples, config, model), strict=True):
        if (known := (kind, shape, str(window))) not in FOUND:  # both engines have the same
            FOUND[known] = reference(plain, [examples[i] for chosen in window for i in chosen])
        loss, norm, clipped = FOUND[known]
        batches = [to_batch([examples[i] for i in chosen]) for chosen in mine]
        idle += sum(not batch.n_targets for batch in batches) == len(batches)
        n_targets = ranks.total(*count(model, batches))[0]
        losses = backward(state, objective, batches, n_targets, lambda: False)
        found = {"loss": ranks.add_up(add_up(losses)).item() / n_targets, "norm": clip_gradients(state, CLIP).item()}
        for name, value in (("loss", loss), ("norm", norm)):
            worst[name] = max(worst[name], abs(found[name] - value) / value)
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        grads = torch.cat([whole(grad).flatten() for grad in grads])
        wanted = [p.requires_grad for p in plain.parameters() for _ in range(p.numel())]
        worst["gradient"] = max(worst["gradient"], difference(grads, clipped[torch.tensor(wanted)]))
        state.optimizer.zero_grad(set_to_none=True)
    losses = [evaluate_loss(objective, examples, size, to_batch, precision) for size in (1, 4)]
    plain.eval()
    total = evaluate_alone(plain, examples, to_batch, precision)
    worst["evaluation"] = max(abs(each - total) / total for each in losses)
    return worst | {"idle": sum(ranks.gather(idle)), "windows": len(planned)}


def evaluate_alone(model, examples, to_batch, precision):
    """Of the whole split, by this process alone."""
    batches = [to_batch([examples[i]]) for i in range(len(examples))]
    with torch.no_grad():
        sums = [Objective(model)(batch)[1].double().sum().item() for batch in batches]
    return sum(sums) / sum(batch.n_targets for batch in batches)


def main(out):
    torch.set_num_threads(1)
    found = {}
    with together(Config(data=("x",)), CPU) as ranks:
        for shape in MODELS:
            for engine in ("ddp", "fsdp"):
                for kind, grad_accum, checkpointed in CASES:
                    if engine == "ddp" or ranks.size > 1:
                        name = f"{shape} {engine} {kind} {grad_accum}"
                        found[name] = run_case(kind, shape, engine, grad_accum, checkpointed)
        if ranks.first:
            Path(out).write_text(json.dumps({"ranks": ranks.size, "found": found}))


if __name__ == "__main__":
    main(sys.argv[1])
