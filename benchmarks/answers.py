"""The 110 test prompts of instruction-data.json, answered greedily by a real model to the end of each answer: gptft
against transformers' generate.

SmolLM2-135M-Instruct in its own chat template, up to 256 new tokens each. gptft answers as `gptft.generate` does by
itself: 16 rows, which prompts enter and leave; in fp32, and with `--decode bf16` and `--decode int8`. transformers gets
the same weights in fp32, the prompts ordered by length and padded on the left, in batches of the size that is its
fastest: it is found before the rounds, on half of the prompts.

Timed is all from the prompts' ids to the answers' ids, the arranging of gptft's weights included; loading, a short
generation to warm up, and what is measured once on a machine and kept (`gptft/fast/calibrate.py`) are not. Only the
tokens of answers count, no padding and nothing behind an end. In fp32 both must give the same ids, but where two logits
are all but equal.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import common, decode, real, results

TEST = slice(935, 1045)  # the records of the test: of 1,100 the first 85% are trained on, the next 10% are these
NEW = 256
SIZES = (1, 8, 16, 32, 55)  # of transformers' batches
KINDS = {"gptft": "auto", "gptft bf16": "bf16", "gptft int8": "int8"}  # --decode
PEER = "transformers"
TARGET = 4.0  # times transformers' answers a second


# the other side: each of these runs in a fresh process


def work(task: dict) -> dict:
    """In a fresh process: make the weights and the prompts, or answer them as one contender."""
    if task["do"] == "make":
        return make(task)
    import torch

    asked = json.loads(Path(task["prompts"]).read_text(encoding="utf-8"))
    prompts = asked["prompts"][:: task.get("every", 1)]
    answer = (with_transformers if task["do"] == PEER else with_gptft)(task, asked)
    with torch.inference_mode():
        answer(prompts[:2], 4)
        began = time.perf_counter()
        ids = answer(prompts, task["new"])
        seconds = time.perf_counter() - began
    tokens = sum(len(answer) - (len(answer) > 0 and answer[-1] in asked["stops"]) for answer in ids)
    return {
        "answers_per_second": len(ids) / seconds,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "ended": sum(answer[-1] in asked["stops"] for answer in ids),
        "peak_bytes": common.peak_memory(),
        "ids": ids,
    }


def make(task: dict) -> dict:
    """The weights for all, a file of the prompts' ids with the ids that end an answer, and which layouts of weights
    this machine reads fastest, which is kept in the cache."""
    import gptft
    from gptft.data.shapes import recognise
    from gptft.fast.decoding_model import arranged
    from gptft.generation import BATCH, prompt_ids, stop_ids

    made = real.make(task)
    model, tokenizer = gptft.load(made["model"])
    for kind in KINDS.values():
        arranged(model, kind, BATCH)
    data = Path(task["data"])
    tokenizer.template = tokenizer.template or real.template_of(data)
    records = real.read_records(data)[TEST][: task["count"]]
    prompts = [prompt_ids(tokenizer, recognise(record)) for record in records]
    stops = [tokenizer.stop, *sorted(stop_ids(tokenizer) - {tokenizer.stop})]
    told = {"prompts": prompts, "stops": stops, "n_vocab": tokenizer.n_vocab, "holes": list(tokenizer.holes)}
    Path(task["prompts"]).write_text(json.dumps(told), encoding="utf-8")
    return made | {"prompt_tokens": sum(map(len, prompts))}


def with_gptft(task: dict, asked: dict):
    """As `generation.respond` answers, between its texts: an answer is closed by its stop, where it came to one."""
    import gptft
    from gptft.fast.continuous import decode_continuously
    from gptft.fast.decoding_model import arranged
    from gptft.generation import BATCH

    model, _ = gptft.load(task["model"])
    stops, n_vocab, holes = asked["stops"], asked["n_vocab"], asked["holes"]

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        rows = min(BATCH, len(prompts))
        decoding = model
        if new == task["new"]:  # not to warm up: the weights can be taken once
            decoding = arranged(model, KINDS[task["do"]], rows, new * -(-len(prompts) // rows), take=True)
        answers: list[list[int]] = [[] for _ in prompts]
        for pairs in decode_continuously(decoding, prompts, new, stops, n_vocab, holes=holes):
            for number, token in pairs:
                answers[number].append(token)
        room = [min(new, model.config.block_size + 1 - len(prompt)) for prompt in prompts]
        return [ids if len(ids) == most else [*ids, stops[0]] for ids, most in zip(answers, room, strict=True)]

    return run


def with_transformers(task: dict, asked: dict):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()
    stops = asked["stops"]
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = stops[0]

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
        for start in range(0, len(order), task["size"]):
            chosen = order[start : start + task["size"]]
            T = max(len(prompts[n]) for n in chosen)
            idx = torch.tensor([[stops[0]] * (T - len(prompts[n])) + prompts[n] for n in chosen])
            mask = torch.tensor([[0] * (T - len(prompts[n])) + [1] * len(prompts[n]) for n in chosen])
            out = model.generate(idx, attention_mask=mask, max_new_tokens=new, do_sample=False)
            for n, ids in zip(chosen, out[:, T:].tolist(), strict=True):
                end = next((at + 1 for at, token in enumerate(ids) if token in stops), len(ids))
                answers[n] = ids[:end]
        return answers

    return run


# this side


def main(argv: list[str]) -> None:
    parser = common.parser("answers", __doc__, rounds=5)
    real.add_model(parser)
    parser.add_argument("--size", type=int, default=0, help="of transformers' batches [the fastest of 1,8,16,32,55]")
    options = parser.parse_args(argv)
    model, data = real.model_path(options.model), common.instructions(options)
    common.need("torch", "transformers", "safetensors", *(["gguf"] if model.is_file() else []))
    sizes = [options.size] if options.size else list(SIZES)
    count, new, rounds, every = TEST.stop - TEST.start, NEW, options.rounds, 2
    if options.quick:
        count, new, rounds, every = 4, 6, min(rounds, 2), 2
        sizes = sizes if options.size else [1, 2]
    settings = {"model": model.stem, "data": data.name, "answers": count, "new": new, "rounds": rounds}
    result = common.header("answers", options, settings | {"quick": options.quick}, ["torch", "transformers"])
    result |= real.describe_other("answers", argv, options.model)
    with common.temporary() as folder:
        env = common.environment(options) | {"HF_HOME": f"{folder}/hf", "GPTFT_CACHE": f"{folder}/cache"}
        task = {"model": f"{folder}/model", "source": str(model), "data": str(data), "prompts": f"{folder}/prompts"}
        task |= {"quick": options.quick, "new": new, "count": count}
        made = common.call("answers", {**task, "do": "make"}, env)
        task["model"] = made["model"]

        def measure(name: str, _: int) -> dict:
            return common.call("answers", {**task, "do": name}, env)

        def try_size(name: str, _: int) -> dict:
            return common.call("answers", {**task, "do": PEER, "size": int(name), "every": every}, env)

        tried = common.interleave([*map(str, sizes)], 1, try_size, "answers_per_second")[0] if sizes[1:] else {}
        speeds = {name: outcome["answers_per_second"] for name, outcome in tried.items()}
        task["size"] = int(max(speeds, key=speeds.__getitem__)) if speeds else sizes[0]
        measured = common.interleave([PEER, *common.in_what_it_has(KINDS)], rounds, measure, "answers_per_second")
        gate = check(measured[0], task, env)
    result["settings"] |= {"parameters": made["parameters"], "prompt_tokens": made["prompt_tokens"]}
    result["settings"] |= {"size": task["size"], "tried": speeds}
    result["gate"] = gate
    result["rounds"] = [
        {name: {key: value for key, value in outcome.items() if key != "ids"} for name, outcome in once.items()}
        for once in measured
    ]
    result["summary"] = summarise(result["rounds"]) | {"same": count_same(measured[0])}
    results.save(result, common.results_folder(options))


def check(outcomes: dict[str, dict], task: dict, env: dict) -> dict:
    """Raise UserError unless gptft in fp32 gave transformers' ids, ends included, up to near ties (`decode.NEAR`)."""
    exact = {name: outcomes[name] for name in (PEER, "gptft")}
    prompts = json.loads(Path(task["prompts"]).read_text(encoding="utf-8"))["prompts"]
    departures = decode.departures_of(exact, PEER)
    return decode.check_gaps(departures, exact, {"model": task["model"], "prompts": prompts}, env, PEER)


def count_same(outcomes: dict[str, dict]) -> dict[str, int]:
    """Of each contender, how many answers are transformers' from end to end."""
    expected = outcomes[PEER]["ids"]
    return {
        name: sum(a == b for a, b in zip(outcome["ids"], expected, strict=True)) for name, outcome in outcomes.items()
    }


def summarise(rounds: list[dict]) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""
    keys = ("answers_per_second", "tokens_per_second", "seconds", "peak_bytes")
    return {key: common.spreads(rounds, key) for key in keys} | {
        "ratios": {
            name: common.ratios(rounds, name, PEER, "answers_per_second") for name in KINDS if name in rounds[0]
        },
        "tokens": {name: outcome["tokens"] for name, outcome in rounds[0].items()},
        "ended": rounds[0][PEER]["ended"],
    }


def table(result: dict) -> str:
    """A row a contender; how many answers there are and how long they are."""
    summary, settings, gate = result["summary"], result["settings"], result["gate"]
    rows = []
    for name, speed in summary["answers_per_second"].items():
        ratio = summary["ratios"].get(name)
        target = results.verdict(ratio["median"], TARGET, "x", at_least=True) if name == "gptft" else ""
        rows.append(
            [
                name if name != PEER else f"{PEER}, {settings['size']} at once",
                results.shown(speed),
                results.shown(summary["tokens_per_second"][name], 1),
                results.shown(summary["seconds"][name], 1),
                f"{summary['peak_bytes'][name]['median'] / 1e9:.2f}",
                f"{summary['same'][name]} of {settings['answers']}",
                f"{results.shown(ratio)}x" if ratio else "",
                target,
            ]
        )
    head = ["who", "answers/s", "tokens/s", "seconds for all", "peak memory, GB", "answers of transformers"]
    tried = ", ".join(f"{speed:.2f} of {size}" for size, speed in settings["tried"].items())
    tried = f" transformers' answers/s in batches, tried on half of the prompts: {tried}." if tried else ""
    ties = f"but {gate['near_ties']}, at logits that differ by at most {gate['largest_gap']:.0e}"
    return (
        f"{results.markdown([*head, 'ratio, by round', 'target'], rows)}\n\n{settings['model']}, "
        f"{settings['parameters'] / 1e6:.0f} million parameters; {settings['answers']} answers of at most "
        f"{settings['new']} tokens, {summary['tokens'][PEER]:,} in all, of which {summary['ended']} came to their end. "
        f"In fp32 all ids are the same{', ' + ties if gate['near_ties'] else ''}.{tried}"
    )


def short_table(result: dict) -> str:
    """Seconds for all prompts, and how much less than transformers takes."""
    rows = []
    for name, seconds in result["summary"]["seconds"].items():
        ratio = common.ratios(result["rounds"], name, PEER, "answers_per_second")
        rows.append([name, results.shown(seconds, 1), "" if name == PEER else f"{results.shown(ratio)}x"])
    return results.markdown(["who", "seconds for 110 answers", "over transformers, by round"], rows)


if __name__ == "__main__":
    common.answer(work)
