"""What a run does to the machine before it begins: threads, memory, compiled blocks."""

from __future__ import annotations

import torch

from gptft.config import Config
from gptft.device import keep_freed_memory
from gptft.model import GPT
from gptft.run.console import say
from gptft.run.threads import describe_spin


def compile_blocks(model: GPT) -> None:
    """Compile each block with torch.compile; kinds of layers, masks and lengths make more variants of a block than
    torch compiles by default."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in model.blocks:
        block.compile()


def set_up_cpu(config: Config, device: torch.device) -> None:
    """Threads, and what the allocator does with freed memory."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()
    if device.type == "cpu" and (note := describe_spin(torch.get_num_threads())):
        say(note)
