"""The families of models on Hugging Face: their `config.json` and their tensors' names, both ways. No weights here.

A family is a point in the space of GPTConfig and a way to spell it. What a config asks for and we do not compute is
refused, naming the key and its value; it is never approximated. Nothing is read off a model's name.
"""

from __future__ import annotations

import dataclasses

from gptft.architecture import GPTConfig
from gptft.errors import UserError
from gptft.formats.families.common import Family, Place, unsupported
from gptft.formats.families.gpt2 import FAMILY as GPT2
from gptft.formats.families.gpt_neox import FAMILY as GPT_NEOX
from gptft.formats.families.llama import FAMILIES as LLAMAS

__all__ = ["FAMILIES", "Family", "Place", "all_places", "config_from_hf", "config_to_hf"]

# In this order an architecture that several could express is exported: the plainest first.
FAMILIES = {family.model_type: family for family in (GPT2, GPT_NEOX, *LLAMAS)}

# Keys that no family here knows, and that would change the arithmetic: whoever asks for one is refused.
FOREIGN = (
    "quantization_config",
    "num_experts",
    "num_local_experts",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "alibi",
    "use_qk_norm",
    "qk_layernorm",
)


def config_from_hf(hf: dict, source: str) -> GPTConfig:
    """The architecture out of a Hugging Face `config.json` that lies at `source`. Raises UserError."""
    kind = hf.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UserError(f"{source}: model_type = {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    for key in FOREIGN:
        if hf.get(key):
            raise unsupported(source, key, hf[key])
    return GPTConfig.from_dict(family.read(hf, source), source)


def config_to_hf(config: GPTConfig) -> tuple[Family, dict]:
    """The family that can express `config`, and its `config.json`. Raises UserError where none can."""
    for family in FAMILIES.values():
        hf = {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            "use_cache": True,
            "tie_word_embeddings": config.tie_embeddings,
            "vocab_size": config.vocab_size,
            **family.write(config),
        }
        try:
            if config_from_hf(hf, "") == config:
                return family, hf
        except UserError:
            pass
    raise UserError(
        "this architecture is none that transformers has: it cannot be exported "
        f"({', '.join(f'{k}={v}' for k, v in dataclasses.asdict(config).items())})"
    )


def all_places(family: Family, config: GPTConfig) -> list[Place]:
    """Every tensor of a checkpoint, with the family's prefix, the head included unless it is the embedding."""
    places = [dataclasses.replace(place, theirs=family.prefix + place.theirs) for place in family.places(config)]
    return places if config.tie_embeddings else [*places, Place(family.head, ("lm_head.weight",))]
