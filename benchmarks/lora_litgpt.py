"""litgpt fine-tunes a model's adapters, and says how fast. `lora` gives this text to a Python that has litgpt, and
maybe not gptft, with the task as JSON; the outcome, JSON too, is the last line that is printed.

The model, its collate function, its loss and its head in chunks are litgpt's, on lightning's Fabric, put together as
its own command for LoRA has them: AdamW, no clipping. The records come as ids and labels, in batches in a random order.
"""

import json
import re
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import lightning
import torch
from litgpt.config import name_to_config
from litgpt.data import get_sft_collate_fn
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.utils import chunked_cross_entropy

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
PARTS = ("query", "key", "value", "projection", "mlp")


def main(task: dict) -> dict:
    """Train on the first `warm` of the records in `examples`, then, timed, on the others."""
    torch.set_num_threads(task["threads"])
    named = [name for name in name_to_config if task["named"].startswith(name)]
    if not named:
        raise SystemExit(f"litgpt knows no model by the name of {task['named']}")
    name = max(named, key=len)
    weights = convert(Path(task["model"]), Path(task["scratch"], "litgpt"), name)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=PRECISIONS[task["precision"]])
    fabric.launch()
    lora = {f"lora_{part}": True for part in PARTS}
    with fabric.init_module():
        model = GPT(Config.from_name(name, lora_r=task["rank"], lora_alpha=task["alpha"], lora_dropout=0.0, **lora))
    mark_only_lora_as_trainable(model)
    model.load_state_dict(torch.load(weights, mmap=True), strict=False)  # which has no adapters
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task["lr"], weight_decay=0.0)

    rows = json.loads(Path(task["examples"]).read_text(encoding="utf-8"))
    rows = [{key: torch.tensor(ids) for key, ids in row.items()} for row in rows]
    for row in rows:  # its collate function counts tokens, too
        row["token_counts"] = dict.fromkeys(("raw", "raw_plus_prompt_template"), len(row["input_ids"]))
    model.max_seq_length = max(len(row["input_ids"]) for row in rows)
    model.train()
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(optimizer)
    starts = range(0, len(rows), task["batch"])
    loader = [rows[start : start + task["batch"]] for start in starts]
    collate = get_sft_collate_fn(max_seq_length=-1, pad_id=0, ignore_index=-100)

    losses, began = [], 0.0
    for number, batch in enumerate(map(collate, loader)):
        if number == task["warm"] // task["batch"]:
            began = time.perf_counter()
        logits = model(batch["input_ids"], lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]  # the last token is followed by none
        loss = chunked_cross_entropy(logits, batch["labels"][..., 1:])
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - began
    measured = losses[task["warm"] // task["batch"] :]
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return {
        "examples_per_second": (len(rows) - task["warm"]) / seconds,
        "first_loss": losses[0],
        "loss": sum(measured) / len(measured),
        "trained": sum(parameter.numel() for parameter in trained),
        "peak_bytes": int(peak.group(1)) * 1024,
        "version": version("litgpt"),
    }


def convert(model: Path, folder: Path, name: str) -> Path:
    """The weights of a Hugging Face directory as litgpt has them; made once."""
    weights = folder / "lit_model.pth"
    if not weights.exists():
        shutil.copytree(model, folder, dirs_exist_ok=True)
        convert_hf_checkpoint(folder, model_name=name)
    return weights


if __name__ == "__main__":
    print("\n" + json.dumps(main(json.loads(sys.argv[1]))))
