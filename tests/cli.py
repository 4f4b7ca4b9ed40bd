"""The commands, run as users run them: what the tests of all commands share."""

import subprocess
import sys
from pathlib import Path

import torch

from gptft.architecture import GPTConfig
from gptft.model import GPT
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(ROOT / "train.py")]
GPTFT = [sys.executable, "-m", "gptft"]


def shell(command, *words, stdin=""):
    """A real process in the current folder -> (status, standard output, standard error)."""
    done = subprocess.run([*command, *map(str, words)], input=stdin.encode(), capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def is_one_line(err, *parts):
    assert err.startswith("gptft: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def tiny(n_layer=2, vocab_size=None, template="qa", block_size=256):
    tokenizer = embedded()
    tokenizer.template = TEMPLATES[template]
    config = GPTConfig(
        vocab_size or tokenizer.n_vocab, block_size, n_layer=n_layer, n_head=2, n_embd=16, position="rotary"
    )
    model = GPT.create(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # else every response is one token, repeated
    return model.eval(), tokenizer


def write(path, content):
    path = Path(path)
    path.write_text(content, encoding="utf-8")
    return path


GOOD = '{"question": "How many?", "answer": "Two."}\n'
