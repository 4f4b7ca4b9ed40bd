"""Prompt lookup on a real model, greedy, one prompt at a time in fp32: where the answer copies its prompt, and where it
is new.

SmolLM2-135M-Instruct in its own chat template, up to 128 new tokens. To be copied are texts made of sentences of
instruction-data.json; the other prompts are its first records. gptft with `--lookup` stands beside gptft
without, with the weights arranged as `generate` arranges them for one row, and as it does for lookup; transformers'
generate beside its own prompt lookup, drafts of 10 tokens.

Timed is all from the prompts' ids to the answers' ids, after a short generation to warm up; loading and arranging the
weights are not. Lookup must give every id of gptft without it on the same weights, and transformers' ids may depart
from those only where two logits are all but equal.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import common, decode, real, results
from gptft.errors import UserError

NEW, PROMPTS = 128, 8  # new tokens at most; prompts of each kind
COPY = ("Repeat this text word for word: {}", 'Print the following text exactly as it is:\n\n"{}"')
DRAFT = 10  # transformers' prompt_lookup_num_tokens
SAME = "gptft, weights as with lookup"  # whose ids are those that lookup must give
PLAIN, LOOKUP, PEER, PEER_LOOKUP = "gptft", "gptft --lookup", "transformers", "transformers' lookup"
CONTENDERS = (PLAIN, SAME, LOOKUP, PEER, PEER_LOOKUP)
TARGETS = {"copying": 2.0, "free": 0.97}  # times the tokens a second of gptft without lookup
SAID = {"copying": "copies its prompt", "free": "is new"}


# the other side: each of these runs in a fresh process


def work(task: dict) -> dict:
    """In a fresh process: make the weights and the prompts, or decode both kinds of them as one contender."""
    if task["do"] == "make":
        return make(task)
    import torch

    answer, passes = (with_transformers if task["do"].startswith(PEER) else with_gptft)(task)
    outcome: dict = {"ids": []}
    with torch.inference_mode():
        answer(task["prompts"]["free"][0], 4)
        for kind, prompts in task["prompts"].items():
            passes.clear()
            began = time.perf_counter()
            answers = [answer(prompt, task["new"]) for prompt in prompts]
            seconds = time.perf_counter() - began
            # a stop is written, too: it takes a pass, and nobody could leave it out
            tokens = sum(map(len, answers))
            outcome |= {f"{kind}_per_second": tokens / seconds, f"{kind}_per_pass": tokens / len(passes)}
            outcome |= {f"{kind}_tokens": tokens}
            outcome["ids"] += answers
    return outcome | {"peak_bytes": common.peak_memory()}


def make(task: dict) -> dict:
    """The weights for all, the prompts' ids of both kinds, and the ids that end an answer."""
    import gptft
    from gptft.data.shapes import recognise
    from gptft.generation import prompt_ids, stop_ids

    made = real.make(task)
    _, tokenizer = gptft.load(made["model"])
    data = Path(task["data"])
    tokenizer.template = tokenizer.template or real.template_of(data)
    records, count = real.read_records(data), task["count"]
    asked = {"copying": texts_to_copy(records, count), "free": [recognise(record) for record in records[:count]]}
    made["prompts"] = {kind: [prompt_ids(tokenizer, prompt) for prompt in each] for kind, each in asked.items()}
    made["stops"] = [tokenizer.stop, *sorted(stop_ids(tokenizer) - {tokenizer.stop})]
    return made | {"n_vocab": tokenizer.n_vocab, "holes": list(tokenizer.holes)}


def texts_to_copy(records: list[dict], count: int) -> list[str]:
    """Prompts that ask for six sentences again, which are responses; no two have the same."""
    firsts = [record["output"].split("\n")[0] for record in records]
    sentences = [first for first in firsts if first.endswith(".") and len(first.split()) >= 5]
    texts = [" ".join(sentences[6 * number : 6 * number + 6]) for number in range(count)]
    return [COPY[number % len(COPY)].format(text) for number, text in enumerate(texts)]


def with_gptft(task: dict):
    """-> what answers one prompt, and a list that has an entry for every pass of the model."""
    import gptft
    from gptft.fast.continuous import decode_continuously
    from gptft.fast.decoding_model import arranged
    from gptft.fast.lookup import decode_with_lookup, rows_in_a_pass

    model, _ = gptft.load(task["model"])
    rows = 1 if task["do"] == PLAIN else rows_in_a_pass("auto")
    model = arranged(model, "auto", rows, task["new"], take=True)
    passes = counted(model, "hidden")
    run = decode_with_lookup if task["do"] == LOOKUP else decode_continuously

    def answer(prompt: list[int], new: int) -> list[int]:
        found = run(model, [prompt], new, task["stops"], task["n_vocab"], holes=task["holes"])
        ids = [token for pairs in found for _, token in pairs]
        return ids if len(ids) == min(new, model.config.block_size + 1 - len(prompt)) else [*ids, task["stops"][0]]

    return answer, passes


def with_transformers(task: dict):
    """As `with_gptft`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = task["stops"]
    model.generation_config.pad_token_id = task["stops"][0]
    passes = counted(model, "forward")
    options = {"prompt_lookup_num_tokens": DRAFT} if task["do"] == PEER_LOOKUP else {}

    def answer(prompt: list[int], new: int) -> list[int]:
        idx = torch.tensor([prompt])
        out = model.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=new, do_sample=False, **options)
        return out[0, len(prompt) :].tolist()

    return answer, passes


def counted(model, method: str) -> list[int]:
    """A list that gets an entry whenever this method of the model is called."""
    import functools

    plain, passes = getattr(model, method), []

    @functools.wraps(plain)  # transformers looks at the parameters of a forward
    def call(*args, **options):
        passes.append(1)
        return plain(*args, **options)

    setattr(model, method, call)
    return passes


# this side


def main(argv: list[str]) -> None:
    parser = common.parser("lookup", __doc__, rounds=5)
    real.add_model(parser)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"of each kind [{PROMPTS}]")
    options = parser.parse_args(argv)
    model, data = real.model_path(options.model), common.instructions(options)
    common.need("torch", "transformers", "safetensors", *(["gguf"] if model.is_file() else []))
    count, new, rounds = options.prompts, NEW, options.rounds
    if options.quick:
        count, new, rounds = 1, 8, min(rounds, 1)
    settings = {"model": model.stem, "data": data.name, "prompts": count, "new": new, "rounds": rounds}
    result = common.header("lookup", options, settings | {"quick": options.quick}, ["torch", "transformers"])
    result |= real.describe_other("lookup", argv, options.model)
    with common.temporary() as folder:
        env = common.environment(options) | {"HF_HOME": f"{folder}/hf", "GPTFT_CACHE": f"{folder}/cache"}
        task = {"model": f"{folder}/model", "source": str(model), "data": str(data), "quick": options.quick}
        task |= {"new": new, "count": count}
        made = common.call("lookup", {**task, "do": "make"}, env)
        task |= {key: made[key] for key in ("model", "prompts", "stops", "n_vocab", "holes")}

        def measure(name: str, _: int) -> dict:
            return common.call("lookup", {**task, "do": name}, env)

        measured = common.interleave(CONTENDERS, rounds, measure, "copying_per_second")
        for once in measured:
            check_same(once)
        result["gate"] = check_peers(measured[0], task, env)
    lengths = {kind: sum(map(len, prompts)) for kind, prompts in task["prompts"].items()}
    result["settings"] |= {"parameters": made["parameters"], "prompt_tokens": lengths}
    result["rounds"] = [
        {name: {key: value for key, value in outcome.items() if key != "ids"} for name, outcome in once.items()}
        for once in measured
    ]
    result["summary"] = summarise(result["rounds"])
    results.save(result, common.results_folder(options))


def check_same(outcomes: dict[str, dict]) -> None:
    """Raise UserError unless lookup gave every id that the same weights give without it."""
    for number, (ids, expected) in enumerate(zip(outcomes[LOOKUP]["ids"], outcomes[SAME]["ids"], strict=True), 1):
        if ids != expected:
            raise UserError(f"prompt {number}: with lookup the ids are others than without", 1)


def check_peers(outcomes: dict[str, dict], task: dict, env: dict) -> dict:
    """Raise UserError where transformers without its lookup, or gptft with the weights arranged for one row, departs
    from the reference but for near ties; -> these, and how many answers of each are the same from end to end."""
    exact = {name: outcomes[name] for name in (SAME, PLAIN, PEER)}
    prompts = [prompt for each in task["prompts"].values() for prompt in each]
    departures = decode.departures_of(exact, SAME)
    gate = decode.check_gaps(departures, exact, {"model": task["model"], "prompts": prompts}, env, SAME)
    expected = outcomes[SAME]["ids"]
    same = {name: sum(a == b for a, b in zip(each["ids"], expected, strict=True)) for name, each in outcomes.items()}
    return gate | {"same": same, "answers": len(expected)}


def summarise(rounds: list[dict]) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""
    summary: dict = {"peak_bytes": common.spreads(rounds, "peak_bytes"), "kinds": {}}
    for kind in TARGETS:
        key = f"{kind}_per_second"
        summary["kinds"][kind] = {
            "tokens_per_second": common.spreads(rounds, key),
            "per_pass": {name: outcome[f"{kind}_per_pass"] for name, outcome in rounds[0].items()},
            "tokens": rounds[0][SAME][f"{kind}_tokens"],
            "ratios": {to: common.ratios(rounds, LOOKUP, to, key) for to in CONTENDERS if to != LOOKUP},
            "peers_ratio": common.ratios(rounds, PEER_LOOKUP, PEER, key),
        }
    return summary


def table(result: dict) -> str:
    """For each kind of prompt the speeds, then the ratios with their targets."""
    summary, settings, gate = result["summary"], result["settings"], result["gate"]
    rows, ratios = [], []
    for kind, found in summary["kinds"].items():
        for name, speed in found["tokens_per_second"].items():
            peak = f"{summary['peak_bytes'][name]['median'] / 1e9:.2f}"
            same = f"{gate['same'][name]} of {gate['answers']}"
            rows.append([SAID[kind], name, results.shown(speed, 1), f"{found['per_pass'][name]:.2f}", peak, same])
        for name, ratio in found["ratios"].items():
            target = results.verdict(ratio["median"], TARGETS[kind], "x", at_least=True) if name == PLAIN else ""
            ratios.append([SAID[kind], f"{LOOKUP} / {name}", f"{results.shown(ratio)}x", target])
        ratios.append([SAID[kind], f"{PEER_LOOKUP} / {PEER}", f"{results.shown(found['peers_ratio'])}x", ""])
    head = ["the answer", "who", "tokens/s", "tokens a pass", "peak memory, GB", "answers the same, of both kinds"]
    tokens = " and ".join(f"{found['tokens']:,} where it {SAID[kind]}" for kind, found in summary["kinds"].items())
    ties = (
        f" transformers, and gptft with its weights arranged for one row, depart from them {gate['near_ties']} times, "
        f"at logits that differ by at most {gate['largest_gap']:.0e}."
        if gate["near_ties"]
        else " So do transformers without lookup, and gptft with its weights arranged for one row."
    )
    return "\n\n".join(
        [
            results.markdown(head, rows),
            results.markdown(["the answer", "ratio of tokens/s", "by round", "target"], ratios),
            f"{settings['model']}, {settings['parameters'] / 1e6:.0f} million parameters; {settings['prompts']} "
            f"prompts of each kind, answers of at most {settings['new']} tokens: {tokens}. With lookup gptft gives "
            f"every id that it gives without on the same weights.{ties}",
        ]
    )


def short_table(result: dict) -> str:
    """Tokens a second of each, where answers copy and where they are new."""
    kinds = list(result["summary"]["kinds"])
    rows = []
    for name in (PLAIN, LOOKUP, PEER, PEER_LOOKUP):
        rows.append([name])
        for kind in kinds:
            speed = result["summary"]["kinds"][kind]["tokens_per_second"][name]
            rows[-1].append(results.shown(speed, 1))
    return results.markdown(["tokens a second", *(f"the answer {SAID[kind]}" for kind in kinds)], rows)


if __name__ == "__main__":
    common.answer(work)
