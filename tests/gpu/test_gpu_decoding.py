"""Decoding on a GPU: the same greedy ids with and without the cache, alone and in a batch of unequal prompts."""

import pytest
import torch
from runs import SHAPE
from test_decoding import collect, random_prompts
from toys import toy_model

from gptft.decoding import decode_plain
from gptft.device import Precision
from gptft.generation import generate
from gptft.model import GPT
from gptft.tokenizer import embedded

VARIANTS = {
    "gpt2": {"norm": "layer", "position": "learned", "n_kv_head": 4, "gated_mlp": False, "activation": "gelu_tanh"},
    "llama": {},
    "sliding-window": {"window": 7, "full_layers": (1,)},
}
V, NEW = SHAPE["vocab_size"], 24


def model_and_prompts(device, dtype, variant, seed):
    model = toy_model(dtype, seed, **(SHAPE | VARIANTS[variant])).to(device)
    return model, random_prompts([3, 9, 1, 14, 6, 40], V)


def narrowest_margins(model, prompt, answer):
    """Between the two best logits, at each new token."""
    idx = torch.tensor([prompt + answer], device=model.device)
    best = model(idx)[0, len(prompt) - 1 : -1].topk(2).values
    return (best[:, 0] - best[:, 1]).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cache_gives_the_oracles_ids_in_fp64(device, variant):
    for seed in range(2):
        model, prompts = model_and_prompts(device, torch.float64, variant, seed)
        oracle = [decode_plain(model, prompt, NEW, (), V) for prompt in prompts]
        assert collect(model, prompts, NEW, (), V) == oracle
        assert [collect(model, [prompt], NEW, (), V)[0] for prompt in prompts] == oracle


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_cache_gives_the_oracles_ids_in_fp32_wherever_the_margin_is_clear(device, variant, record_property):
    """Up to the first token whose two best logits lie within 1e-4: from there on texts may part."""
    compared = 0
    for seed in range(3):
        model, prompts = model_and_prompts(device, torch.float32, variant, seed)
        together = collect(model, prompts, NEW, (), V)
        for prompt, answer in zip(prompts, together, strict=True):
            expected = decode_plain(model, prompt, NEW, (), V)
            margins = narrowest_margins(model, prompt, expected)
            clear = next((n for n, margin in enumerate(margins) if margin <= 1e-4), NEW)
            assert answer[:clear] == expected[:clear]
            compared += clear
    record_property("tokens compared", compared)
    assert compared > 0.9 * 3 * 6 * NEW


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@torch.no_grad()
def test_decoding_runs_in_bf16(device, variant, autocast, record_property):
    """bf16 has many ties, so ids are counted, not compared; every token must be among the uncached model's best."""
    model, prompts = model_and_prompts(device, torch.float32, variant, 0)
    model = model if autocast else model.bfloat16()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        answers = collect(model, prompts, NEW, (), V, cache_dtype=torch.bfloat16)
        same, behind = 0, 0.0
        for prompt, answer in zip(prompts, answers, strict=True):
            assert len(answer) == NEW
            same += sum(a == b for a, b in zip(answer, decode_plain(model, prompt, NEW, (), V), strict=True))
            logits = model(torch.tensor([prompt + answer], device=device))[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(answer, device=device)[:, None])[:, 0]
            behind = max(behind, ((logits.max(1).values - chosen) / logits.std(1)).max().item())
    record_property("equal ids", same / (NEW * len(prompts)))
    record_property("furthest behind the best, deviations", behind)
    assert behind < 0.2


def test_generation_in_a_run_is_in_its_precision(device, monkeypatch, record_property):
    """The cache of a run in bf16 is in bf16 on CUDA; texts come, and the weights stay as they are."""
    caches, new_cache = [], GPT.new_cache
    monkeypatch.setattr(GPT, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[-1])
    tokenizer = embedded()
    model = toy_model(torch.float32, **(SHAPE | {"vocab_size": tokenizer.n_vocab})).to(device)
    prompts = ["The dog", "A much longer prompt than that", "One"]
    for name in ("fp32", "bf16"):
        given = {"precision": Precision(name, device), "decode": "plain"}  # on the CPU, another model has the cache
        assert len(generate(model, tokenizer, prompts, 8, raw=True, **given)) == 3
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    assert [cache.k.dtype for cache in caches] == [torch.float32, half]
    assert generate(model, tokenizer, prompts, 8, raw=True) == generate(
        model, tokenizer, prompts, 8, raw=True, precision=Precision("fp32", device)
    )
