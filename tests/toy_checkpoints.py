"""Toy checkpoints that several tests load: a model, and adapters for it."""

from pathlib import Path

import torch
from toys import toy_config

from gptft.adapters.lora import LoraConfig, add_lora, lora_state
from gptft.checkpoint import save
from gptft.loading import base_of, load
from gptft.model import GPT
from gptft.prompts import TEMPLATES
from gptft.tokenizer import Tokenizer, embedded

IDX = torch.arange(20)[None]


def small(seed=0) -> tuple[GPT, Tokenizer]:
    tokenizer = embedded()
    tokenizer.template = TEMPLATES["qa"]
    return GPT.create(toy_config(vocab_size=tokenizer.n_vocab, block_size=64), seed), tokenizer


def same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def write_adapters(folder: Path) -> tuple[GPT, Tokenizer]:
    """A base in folder/base, and adapters for it in folder/adapter -> (the model with both, its tokenizer)."""
    base, tokenizer = small()
    save(folder / "base", base, tokenizer, 1)
    model, tokenizer = load(folder / "base")
    tokenizer.template = TEMPLATES["phi3"]
    named = base_of(model, tokenizer, str(folder / "base"))
    add_lora(model, LoraConfig(3, dora=True, rslora=True, targets=("attn", "down")), 5, named)
    with torch.no_grad():
        for tensor in lora_state(model).values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))
    save(folder / "adapter", model, tokenizer, 9, {"x": 1})
    return model, tokenizer
