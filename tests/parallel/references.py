"""The same steps by loops that nobody here wrote, or in twenty lines: `torchrun references.py WHO FOLDER OUT.json`.

A toy GPT-2 as transformers makes it, in FOLDER, on eight examples of unequal lengths and unequal numbers of targets,
all of them in each step, so that no loop's order matters. WHO: ours, plain (DDP around transformers' model), trl.
"""

import contextlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gradients import Examples
from toys import toy_examples

STEPS, RATE, EOT = 6, 1e-3, 0
EXAMPLES = toy_examples([9, 31, 7, 15, 30, 4, 22, 11], vocab_size=97, prompt=3)


def ours(folder):
    from gptft.collate import collate
    from gptft.config import Config
    from gptft.device import Precision
    from gptft.loading import load
    from gptft.optim import make_optimizer
    from gptft.parallel.launch import together
    from gptft.parallel.wrap import Replicated
    from gptft.training import TrainState, train

    config = Config(data=("x",), batch_size=4, max_steps=STEPS, lr=RATE, schedule="constant", weight_decay=0.0)
    config.warmup_steps, config.grad_accum, cpu = 0, 2, torch.device("cpu")
    with together(config, cpu):
        model, _ = load(folder)
        state = TrainState(model.train(), make_optimizer(model, config), Precision("fp32", cpu))
        events = train(state, Replicated(model), config, Examples(EXAMPLES), Examples([]), partial(collate, pad_id=EOT))
        return [event.loss for event in events]


def plain(folder):
    """DDP as its documentation shows it, but for one thing: its mean over the ranks is made one over the targets."""
    from transformers import GPT2LMHeadModel

    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(GPT2LMHeadModel.from_pretrained(folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    targets = sum(end - start for example in EXAMPLES for start, end in example.spans)
    losses = []
    mine = EXAMPLES[dist.get_rank() :: 2]
    for _ in range(STEPS):
        total = torch.zeros(())
        for example in mine:
            ids, start = torch.tensor(example.ids.astype(int)), example.spans[0][0]
            with contextlib.nullcontext() if example is mine[-1] else model.no_sync():
                logits = model(ids[None]).logits[0]
                loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="sum")
                (loss * 2 / targets).backward()
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(total.item() / targets)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def trl(folder):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({str(n): n for n in range(97)}, unk_token="1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")
    rows = [
        {"input_ids": each.ids.tolist(), "completion_mask": [int(n >= each.spans[0][0]) for n in range(len(each.ids))]}
        for each in EXAMPLES
    ]
    config = SFTConfig(
        output_dir=str(Path(folder) / "trl"),
        per_device_train_batch_size=4,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        completion_only_loss=True,
    )
    trainer = SFTTrainer(
        model=GPT2LMHeadModel.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    torch.set_num_threads(1)
    who, folder, out = sys.argv[1:]
    found = {"ours": ours, "plain": plain, "trl": trl}[who](folder)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(found))
