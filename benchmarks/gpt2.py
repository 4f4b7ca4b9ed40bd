"""A GPT-2 of random weights in Hugging Face's layout, from which every contender starts."""

from __future__ import annotations

import json
from pathlib import Path

from gptft.tokenizer import EOT, gpt2


def make(directory: Path, quick: bool) -> int:
    """Write config, weights (seeded; no dropout) and GPT-2's vocabulary; -> parameters. `quick`: 2 narrow layers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_head": 2, "n_embd": 64} if quick else {}
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **size))
    model.save_pretrained(directory)
    write_vocabulary(directory)
    return model.num_parameters()


def write_vocabulary(directory: Path) -> None:
    """GPT-2's two files, `vocab.json` and `merges.txt`, out of tiktoken's ranks: they write bytes as printable
    characters, and each token of several bytes as the merge that makes it."""
    ranks = gpt2().ranks
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    character = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}

    def write(token: bytes) -> str:
        return "".join(character[byte] for byte in token)

    ordered = sorted(ranks, key=ranks.get)
    merges = [" ".join(map(write, last_merge(token, ranks))) for token in ordered if len(token) > 1]
    vocabulary = {write(token): ranks[token] for token in ordered} | {EOT: 50256}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that byte-pair encoding joins last on its way to `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda n: ranks.get(parts[n] + parts[n + 1], len(ranks)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
