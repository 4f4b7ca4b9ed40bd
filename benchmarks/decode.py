"""Greedy decoding with GPT-2 124M of random weights in fp32: 64 prompt tokens, 128 new ones, 1 and 8 prompts at once.

gptft with its KV cache, gptft's plain uncached loop (the oracle; one prompt, fewer new tokens, since it slows down
with each) and transformers' generate, each in a fresh process. Timed is all of it, the prompt's pass included, after
one short generation to warm up. All must give the same ids.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import common, gpt2, results
from gptft.errors import UserError

PROMPT, NEW, NEW_PLAIN = 64, 128, 32
CONTENDERS = ("gptft, 1", "transformers, 1", "gptft uncached, 1", "gptft, 8", "transformers, 8")


def work(task: dict) -> dict:
    """In a fresh process: make the weights, or decode as one contender."""
    if task["do"] == "make":
        return {"parameters": gpt2.make(Path(task["model"]), task["quick"])}
    import torch

    who, count = task["do"].split(", ")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(50256, (8, task["prompt"]), generator=generator)[: int(count)].tolist()
    new = task["new_plain"] if "uncached" in who else task["new"]
    run = with_transformers(task) if who == "transformers" else with_gptft(task, plain="uncached" in who)
    with torch.inference_mode():
        run(prompts, 4)
        began = time.perf_counter()
        ids = run(prompts, new)
        seconds = time.perf_counter() - began
    return {"tokens_per_second": len(prompts) * new / seconds, "ids": ids}


def with_gptft(task: dict, plain: bool):
    import gptft
    from gptft.decoding import decode, decode_plain

    model, _ = gptft.load(task["model"])
    n_vocab = model.config.vocab_size
    never = ()  # nothing stops early

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        if plain:
            return [decode_plain(model, prompt, new, never, n_vocab) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        for pairs in decode(model, prompts, new, never, n_vocab):
            for row, token in pairs:
                answers[row].append(token)
        return answers

    return run


def with_transformers(task: dict):
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(task["model"]).eval()
    model.generation_config.eos_token_id = None  # nothing stops early
    model.generation_config.pad_token_id = 50256

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        idx = torch.tensor(prompts)
        out = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=new, do_sample=False)
        return out[:, idx.size(1) :].tolist()

    return run


def main(argv: list[str]) -> None:
    options = common.parser("decode", __doc__, rounds=5).parse_args(argv)
    common.need("torch", "transformers", "safetensors")
    common.instructions(options)  # GPT-2's vocabulary lies beside them
    sizes = {"prompt": PROMPT, "new": NEW, "new_plain": NEW_PLAIN}
    if options.quick:
        sizes = {"prompt": 8, "new": 8, "new_plain": 4}
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    settings = {**sizes, "rounds": rounds, "quick": options.quick}
    result = common.header("decode", options, settings, ["torch", "transformers"])
    with common.temporary() as folder:
        env = common.environment(options) | {"HF_HOME": f"{folder}/hf"}
        task = {"model": f"{folder}/model", "quick": options.quick, **sizes}
        settings |= common.call("decode", {**task, "do": "make"}, env)
        measured = common.interleave(
            CONTENDERS, rounds, lambda name, _: common.call("decode", {**task, "do": name}, env), "tokens_per_second"
        )
    check_ids(measured[0])
    result["rounds"] = [
        {name: {"tokens_per_second": outcome["tokens_per_second"]} for name, outcome in once.items()}
        for once in measured
    ]
    result["summary"] = {
        "tokens_per_second": common.spreads(measured, "tokens_per_second"),
        "ratios": {
            count: common.ratios(measured, f"gptft, {count}", f"transformers, {count}", "tokens_per_second")
            for count in ("1", "8")
        },
    }
    results.save(result, common.results_folder(options))


def check_ids(outcomes: dict[str, dict]) -> None:
    """Raise UserError unless every contender gave the same ids, as far as each went."""
    reference = outcomes["transformers, 8"]["ids"]
    for name, outcome in outcomes.items():
        for row, ids in enumerate(outcome["ids"]):
            if ids != reference[row][: len(ids)]:
                at = next(n for n, (a, b) in enumerate(zip(ids, reference[row], strict=False)) if a != b)
                raise UserError(f"{name}: prompt {row + 1} departs from transformers' ids at new token {at + 1}", 1)


def table(result: dict) -> str:
    summary, settings = result["summary"], result["settings"]
    rows = []
    for name, speed in summary["tokens_per_second"].items():
        who, count = name.split(", ")
        ratio = f"{results.shown(summary['ratios'][count])}x" if who == "gptft" else ""
        new = settings["new_plain"] if "uncached" in who else settings["new"]
        rows.append([who, count, str(new), results.shown(speed, 1), ratio])
    head = ["who", "prompts at once", "new tokens each", "tokens/s", "over transformers, by round"]
    size = f"{settings['parameters'] / 1e6:.0f} million parameters"
    note = f"fp32, {size}, prompts of {settings['prompt']} tokens. All gave the same ids."
    return results.markdown(head, rows) + "\n\n" + note


if __name__ == "__main__":
    common.answer(work)
