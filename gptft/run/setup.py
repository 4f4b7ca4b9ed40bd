"""What a run does to the machine before it begins: threads, memory, compiled blocks."""

from __future__ import annotations

import math

import torch

from gptft.config import Config
from gptft.device import cpu_has_bf16, free_memory, keep_freed_memory
from gptft.model import GPT
from gptft.parallel.ranks import here
from gptft.run.console import say
from gptft.run.memory import peak_memory
from gptft.run.threads import describe_spin


def compile_blocks(model: GPT) -> None:
    """Compile each block with torch.compile; kinds of layers, masks and lengths make more variants of a block than
    torch compiles by default."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in model.blocks:
        block.compile()


def set_up_cpu(config: Config, device: torch.device) -> None:
    """Threads; what is slow on this processor is said."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu" and config.precision == "bf16" and not cpu_has_bf16():
        say("note: this processor has no bf16 and emulates it: --precision fp32 is many times as fast")
    if device.type == "cpu" and (note := describe_spin(torch.get_num_threads())):
        say(note)


def keep_memory(config: Config, device: torch.device) -> str:
    """Have the allocator keep what is freed, where that is asked for or pays -> what the user is told.

    To be called after the rehearsal, which shows what a step takes. A tenth to a fifth of a step was seen to go, with
    up to a fifth more memory.
    """
    plenty = (peak_memory(device) or math.inf) / 2 < free_memory(device, here().size)
    wanted = config.keep_memory == "on" or (config.keep_memory == "auto" and config.fast == "auto" and plenty)
    return "freed memory is kept" if wanted and device.type == "cpu" and keep_freed_memory() else ""
