"""Fine-tune a GPT: `python train.py [--config FILE.toml] [--FIELD VALUE ...]`.

With no config, data or init it runs the embedded default: a small GPT is pretrained on plain text, then tuned on
instructions, on any laptop. From here the story goes on in `gptft/finetuning.py`.
"""

from functools import partial

from gptft.commands import train
from gptft.commands.common import run, run_command

if __name__ == "__main__":
    run(partial(run_command, train))
