"""What every family needs: how their tensors and ours correspond, and reading a `config.json` strictly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gptft.architecture import LARGEST, GPTConfig
from gptft.errors import UserError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}  # what we write


@dataclass(frozen=True)
class Place:
    """One of their tensors and those of ours that it holds.

    `transposed`: stored as (in, out), as GPT-2 does. Several of ours lie one after the other, or, with `heads`, head
    by head: q, k, v of head 0, then of head 1, as GPT-NeoX does.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    heads: int = 0

    def split(self, x: Tensor) -> list[Tensor]:
        """Their tensor -> ours, in the order of `ours`. RuntimeError where it cannot be divided so."""
        return self.split_rows(x.T if self.transposed and x.dim() == 2 else x)

    def split_rows(self, x: Tensor) -> list[Tensor]:
        """(n * rows, ...) -> n times (rows, ...)."""
        if self.heads:
            return [part.flatten(0, 1) for part in x.unflatten(0, (self.heads, len(self.ours), -1)).unbind(1)]
        return list(x.unflatten(0, (len(self.ours), -1)).unbind(0)) if len(self.ours) > 1 else [x]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Ours -> their tensor; the inverse of `split`."""
        x = self.join_rows(parts)
        return x.T if self.transposed and x.dim() == 2 else x

    def join_rows(self, parts: list[Tensor]) -> Tensor:
        """n times (rows, ...) -> (n * rows, ...)."""
        if self.heads:
            return torch.stack([part.unflatten(0, (self.heads, -1)) for part in parts], dim=1).flatten(0, 2)
        return torch.cat(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Family:
    """How one `model_type` of transformers is read and written.

    read    config.json, where it lies -> fields of GPTConfig
    write   GPTConfig -> config.json, without what all families share; may fail to express it: the caller compares
    places  GPTConfig -> every tensor below `prefix`, the head left out
    """

    model_type: str
    architecture: str  # transformers' class
    prefix: str  # in front of every tensor but the head's
    head: str  # what the head is called, where it is not the embedding
    read: Callable[[dict, str], dict]
    write: Callable[[GPTConfig], dict]
    places: Callable[[GPTConfig], list[Place]]


def unsupported(source: str, key: str, value, only: str = "") -> UserError:
    return UserError(f"{source}: {key} = {value!r} is not supported" + (f"; only {only} is" if only else ""))


def required_size(hf: dict, key: str, source: str) -> int:
    """A size that must be there, a whole number above 0."""
    value = hf.get(key)
    if type(value) is not int or not 0 < value <= LARGEST:
        raise UserError(f"{source}: {key} must be a whole number above 0, not {value!r}")
    return value


def whole_number(hf: dict, key: str, default: int, source: str) -> int:
    """A whole number from 0. A key that is there without a value, null, counts as 0."""
    value = hf.get(key, default)
    if value is not None and (type(value) is not int or not 0 <= value <= LARGEST):
        raise UserError(f"{source}: {key} must be a whole number, not {value!r}")
    return value or 0


def positive_number(hf: dict, key: str, default: float, source: str) -> float:
    """A number above 0, and finite."""
    value = hf.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{source}: {key} must be a number above 0, not {value!r}")
    return float(value)


def boolean(hf: dict, key: str, default: bool, source: str) -> bool:
    value = hf.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{source}: {key} must be true or false, not {value!r}")
    return value


def activation(hf: dict, key: str, default: str, source: str) -> str:
    name = hf.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unsupported(source, key, name)
    return ACTIVATIONS[name]


def rotary_settings(hf: dict, source: str, theta: float = 10000.0, partial: float | None = None) -> dict:
    """The rotary settings, from the old keys (rope_theta, rope_scaling) or the new one (rope_parameters).

    `partial`: the family's share of each head that is rotated; None: the family rotates all of it.
    """
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    given = hf.get(key) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise unsupported(source, key, given, "one set of values for all layers")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise unsupported(source, f"{key}.rope_type", kind, "'default' or 'llama3'")
    outer = {"rope_theta": hf.get("rope_theta", hf.get("rotary_emb_base", theta))}
    values = {"position": "rotary", "rope_theta": positive_number({**outer, **given}, "rope_theta", theta, source)}
    fraction = hf.get("partial_rotary_factor", hf.get("rotary_pct", 1.0 if partial is None else partial))
    fraction = positive_number({"partial_rotary_factor": fraction, **given}, "partial_rotary_factor", 1.0, source)
    if fraction > 1 or (partial is None and fraction != 1):
        raise unsupported(source, "partial_rotary_factor", fraction, "1" if partial is None else "a share up to 1")
    if kind == "llama3":
        for ours, theirs in (
            ("rope_factor", "factor"),
            ("rope_low", "low_freq_factor"),
            ("rope_high", "high_freq_factor"),
        ):
            if theirs not in given:
                raise UserError(f"{source}: {key}.{theirs} is missing")
            values[ours] = positive_number(given, theirs, 0.0, source)
        original = given.get("original_max_position_embeddings", hf.get("max_position_embeddings"))
        values["rope_original"] = required_size(
            {"original_max_position_embeddings": original}, "original_max_position_embeddings", source
        )
    return {**values, "rope_fraction": fraction}


def write_rotary(config: GPTConfig) -> dict:
    scaling = None
    if config.rope_original:
        scaling = {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low,
            "high_freq_factor": config.rope_high,
            "original_max_position_embeddings": config.rope_original,
        }
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
