"""gptft fine-tunes GPTs to follow instructions, from scratch in plain PyTorch.

Names are resolved on first use, so that `import gptft` is light.
"""

import importlib
import os

# torch is to ask Linux for large pages wherever it takes much memory: a step takes and returns hundreds of megabytes,
# which in pages of 4 KB is a tenth to a quarter of its time on a CPU. torch reads this at its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

_HOME = {
    "load": "loading",
    "generate": "generation",
    "finetune": "finetuning",
    "BasicModelRunner": "runner",
    "Config": "config",
    "GPT": "model",
    "GPTConfig": "architecture",
    "Tokenizer": "tokenizer",
    "UserError": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'gptft' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gptft.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
