"""What `gpu` measures: records and models made from seeds, and those that train on them.

A contender is a function that trains on rows for so many steps and says what it did; its `parts` are the model and the
optimizer that it holds, or None.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable

SEED = 0
LEARNING_RATE = 1e-5
RANK = 16
SHORT, TARGET_SHARE = 57, 0.23  # tokens of a short record on average; targets among them


class Rows(list):
    """Examples in memory, as the loop takes them."""

    def part(self, number: int, should_stop=None) -> Rows:
        return self

    @property
    def lengths(self):
        import numpy as np

        return np.array([len(example.ids) for example in self])


def make_rows(kind: str, count: int, vocab_size: int, longest: int) -> Rows:
    """`count` examples of random ids: "short", of unequal lengths, or "dense", all `longest` and scored throughout."""
    import numpy as np

    from gptft.data.examples import Example

    rng = np.random.default_rng(SEED)
    lengths = np.full(count, longest)
    starts = np.ones(count, int)
    if kind == "short":
        lengths = rng.lognormal(0.0, 0.5, count)
        lengths = np.clip(np.rint(lengths * min(SHORT, longest / 4) / lengths.mean()), 8, longest).astype(int)
        starts = 1 + lengths - np.maximum(1, np.rint(lengths * TARGET_SHARE)).astype(int)
    return Rows(
        Example(rng.integers(0, vocab_size, length + 1).astype(np.uint32), [(start, length + 1)], ("made", n + 1))
        for n, (length, start) in enumerate(zip(lengths.tolist(), starts.tolist(), strict=True))
    )


def make_theirs(values: dict, device):
    """transformers' model of random weights from the seed, on the device, in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**values, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device)


def make_ours(theirs, device):
    """gptft's model with the same weights, on the device."""
    import torch

    from gptft.formats.families import FAMILIES, all_places, config_from_hf
    from gptft.model import GPT

    values = theirs.config.to_dict()
    config = config_from_hf(values, "config.json")
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    ours, tensors = dict(model.named_parameters()), dict(theirs.named_parameters())
    with torch.no_grad():
        for place in all_places(FAMILIES[values["model_type"]], config):
            for name, part in zip(place.ours, place.split(tensors[place.theirs]), strict=True):
                ours.pop(name).copy_(part)
    assert not ours, f"without weights: {', '.join(ours)}"
    return model


def gptft_trainer(theirs, device, batch_size: int, lora: bool = False, packed: bool = False) -> Callable:
    """gptft's own loop. `packed`: with flex attention, and what examples begin with alike once."""
    from gptft.adapters.lora import LoraConfig, add_lora
    from gptft.collate import collate
    from gptft.config import Config
    from gptft.device import Precision
    from gptft.fast.choice import Choice
    from gptft.loss import Objective
    from gptft.optim import make_optimizer
    from gptft.training import Progress, TrainState, train

    model = make_ours(theirs, device)
    if lora:
        add_lora(model, LoraConfig(RANK), frozen_as="bf16")
    settings = {"lr": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "grad_clip": 1.0}
    state = TrainState(model, make_optimizer(model, Config(**settings)), Precision("bf16", device))
    objective = Objective(model)

    def run(rows: Rows, steps: int) -> dict:
        config = Config(**settings, batch_size=batch_size, max_steps=steps, seed=SEED)
        state.progress = Progress()
        to_batch = functools.partial(collate, pad_id=0, mask_prompt=True)
        if packed:
            to_batch = Choice(packing=0.0, share=True, flex=True).batches(to_batch)
        losses = [event.loss for event in train(state, objective, config, rows, [], to_batch)]
        return {"tokens": state.progress.tokens, "flops": state.progress.flops, "losses": losses}

    run.parts = model, state.optimizer
    return run


def transformers_trainer(model, device, batch_size: int) -> Callable:
    """Its model in a plain loop, on the batches that gptft takes."""
    import torch

    from gptft.collate import plan

    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=device.type in ("cuda", "cpu")
    )

    def run(rows: Rows, steps: int) -> dict:
        losses, tokens = [], 0
        for (chosen,) in itertools.islice(plan(rows.lengths, batch_size, 1, SEED, 0), steps):
            batch = {name: tensor.to(device) for name, tensor in pad([rows[i] for i in chosen]).items()}
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            tokens += sum(len(rows[i].ids) - 1 for i in chosen)
        return {"tokens": tokens, "losses": losses}

    run.parts = model, optimizer
    return run


def pad(examples) -> dict:
    """Examples -> ids, mask and labels (B, T) as transformers takes them: it shifts by itself."""
    import numpy as np
    import torch

    T = max(len(example.ids) for example in examples)
    ids, mask, labels = np.zeros((3, len(examples), T), np.int64)
    labels[:] = -100
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n], mask[row, :n] = example.ids, 1
        for start, end in example.spans:
            labels[row, start:end] = example.ids[start:end]
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


def trl_trainer(model, device, batch_size: int, scratch: str) -> Callable:
    """TRL's SFTTrainer on the same records in the same order; timed from the end of its first step."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from gptft.collate import plan

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0})), eos_token="x", pad_token="x"
    )

    def run(rows: Rows, steps: int) -> dict:
        clock, chosen = [], [i for (batch,) in plan(rows.lengths, batch_size, 1, SEED, 0)[: steps + 1] for i in batch]

        class Clock(TrainerCallback):
            def on_step_end(self, args, state, control, **rest):
                synchronize(device)
                clock.append(time.perf_counter())

        config = SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=batch_size,
            max_steps=steps + 1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=None,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=device.type == "cpu",
            train_sampling_strategy="sequential",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        labels = [[-100] * rows[i].spans[0][0] + rows[i].ids[rows[i].spans[0][0] :].tolist() for i in chosen]
        data = Dataset.from_dict({"input_ids": [rows[i].ids.tolist() for i in chosen], "labels": labels})
        trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        tokens = sum(len(rows[i].ids) - 1 for i in chosen[batch_size:])
        return {"tokens": tokens, "losses": losses, "seconds": clock[-1] - clock[0]}

    run.parts = model, None
    return run


def synchronize(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
