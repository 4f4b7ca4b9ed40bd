"""Greedy decoding with GPT-2 124M of random weights in fp32: 64 prompt tokens, 256 new ones, 1 and 8 prompts at
once.

gptft as `generate` decodes, with the weights as they are, in bf16 and in int8 (`--decode`), and drawing at temperature
0.8 from the 50 likeliest tokens, nucleus 0.95 (sampled); gptft's plain uncached loop (the oracle; one prompt, fewer new
tokens, since it slows down with each); and transformers' generate, in fp32 and bf16. Each is in a fresh process. Timed
is all of it, the prompt's pass included, after one short generation to warm up. In fp32 all that is greedy must give
the same ids.

--model takes a real pretrained model instead, --data the prompts from its first records, in the model's own template.
Where llama-cpp-python is there, or GPTFT_LLAMACPP_PYTHON names a Python that has it, llama.cpp decodes the same weights
in fp32 and in Q8_0, and the GGUF file that was given as it is. `benchmarks/ceiling.py` says what the ceilings are.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import common, real, results
from gptft.errors import UserError

PROMPT, NEW, NEW_PLAIN = 64, 256, 32
KINDS = ("", " bf16", " int8")  # of the weights of gptft; "": fp32, as those of transformers
CONTENDERS = ("gptft, 1", "transformers, 1", "gptft uncached, 1", "gptft, 8", "transformers, 8")
ROUNDED = tuple(f"{who}, {n}" for n in (1, 8) for who in ("gptft bf16", "gptft int8", "transformers bf16"))
SAMPLED = ("gptft sampled, 1", "gptft sampled, 8")
CEILINGS = tuple(f"ceiling of gptft{kind}, {n}" for n in (1, 8) for kind in KINDS)
AS_GREEDY = {(name, name.replace(" sampled", "")): 0.9 for name in SAMPLED}
# times the other's tokens a second: on GPT-2, and on a real model
TARGETS = {
    ("gptft, 1", "transformers, 1"): 1.15,
    ("gptft bf16, 1", "transformers bf16, 1"): 1.3,
    ("gptft int8, 1", "transformers, 1"): 2.8,
} | AS_GREEDY
REAL_TARGETS = {
    ("gptft, 1", "transformers, 1"): 1.6,
    ("gptft bf16, 1", "transformers bf16, 1"): 1.5,
    ("gptft int8, 1", "transformers, 1"): 4.0,
    ("gptft, 8", "transformers, 8"): 1.4,
    ("gptft bf16, 8", "transformers bf16, 8"): 1.4,
} | AS_GREEDY
OF_LLAMACPP = 0.6  # of its tokens a second in 8 bits
SHARE = 0.85  # of the ceiling at one prompt, where that forbids the target
PROMPTS = 8
REFERENCE = "transformers, 8"
LLAMACPP, LLAMACPP_INT8 = "llama.cpp, 1", "llama.cpp Q8_0, 1"
NEAR = 1e-3  # logits nearer than this may change places between libraries


# the other side: each of these runs in a fresh process


def work(task: dict) -> dict:
    """In a fresh process: make the weights, say how near two logits lie, or decode as one contender."""
    if task["do"] == "make":
        return make(task)
    if task["do"] == "gaps":
        return gaps(task)
    import torch

    if task["do"] in CEILINGS:
        return find_ceiling(task)
    who, count = task["do"].split(", ")
    who, _, kind = who.partition(" ")
    prompts = (task.get("prompts") or random_prompts(50256, task["prompt"]))[: int(count)]
    new = task["new_plain"] if kind == "uncached" else task["new"]
    run = (with_transformers if who == "transformers" else with_gptft)(task, kind)
    with torch.inference_mode():
        run(prompts, 4)
        began = time.perf_counter()
        ids = run(prompts, new)
        seconds = time.perf_counter() - began
    return {"tokens_per_second": len(prompts) * new / seconds, "ids": ids}


def find_ceiling(task: dict) -> dict:
    """What the machine would allow a contender of gptft."""
    import gptft
    from benchmarks.ceiling import of_decoding

    who, count = task["do"].split(", ")
    kind = who.partition("gptft")[2].strip() or "fp32"
    found = of_decoding(gptft.load(task["model"])[0], kind, int(count))
    return found | {"tokens_per_second": int(count) / found["seconds"]}


def make(task: dict) -> dict:
    """The weights for all, and of a real model or real records the prompts' ids. With `gguf`, also GGUF files of the
    weights in fp32 and, as `gguf_int8`, in 8 bits, and how the given one stores its own, None where none was given or
    it is in fp32 itself."""
    made = real.make(task)
    if not task.get("source") and not task.get("data"):
        return made
    import gptft
    from gptft.formats.gguf_file import is_gguf, read_gguf

    model, tokenizer = gptft.load(made["model"])
    made["prompts"] = random_prompts(model.config.vocab_size, task["prompt"])
    if task.get("data"):
        made["prompts"] = record_prompts(tokenizer, Path(task["data"]))
    longest = max(map(len, made["prompts"]))
    if longest + task["new"] > model.config.block_size:
        raise UserError(f"--data: a prompt of {longest} tokens leaves no room for {task['new']} new ones", 1)
    if task.get("gguf"):
        import gguf

        from gptft.export.llamacpp import export_gguf

        export_gguf(model, tokenizer, task["gguf"], "fp32")
        export_gguf(model, tokenizer, task["gguf_int8"], "q8_0")
        if task.get("source") and is_gguf(Path(task["source"])):
            number = read_gguf(Path(task["source"])).settings.get("general.file_type")
            stored = "as given" if number is None else gguf.LlamaFileType(int(number)).name.removeprefix("MOSTLY_")
            made["stored"] = None if stored == "ALL_F32" else stored
    return made


def random_prompts(n_vocab: int, length: int) -> list[list[int]]:
    """PROMPTS prompts of random ids below `n_vocab`, the same ones always."""
    import torch

    return torch.randint(n_vocab, (PROMPTS, length), generator=torch.Generator().manual_seed(0)).tolist()


def record_prompts(tokenizer, data: Path) -> list[list[int]]:
    """The prompts of the first records in the model's own template, else in the one that the records ask for."""
    from gptft.data.shapes import recognise
    from gptft.generation import prompt_ids

    tokenizer.template = tokenizer.template or real.template_of(data)
    records = real.read_records(data)[:PROMPTS]
    if len(records) < PROMPTS:
        raise UserError(f"--data {data.name} has {len(records)} records, and {PROMPTS} are needed", 1)
    return [prompt_ids(tokenizer, recognise(record)) for record in records]


def gaps(task: dict) -> dict:
    """By how much the logits of two ids differ after each of some texts: {"gaps": [...]}, from gptft without a cache.
    `texts` holds (ids, one id, the other)."""
    import torch

    import gptft

    model, _ = gptft.load(task["model"])
    found = []
    with torch.inference_mode():
        for ids, a, b in task["texts"]:
            logits = model.head(model.hidden(torch.tensor([ids]))[:, -1])[0]
            found.append(abs(logits[a] - logits[b]).item())
    return {"gaps": found}


def with_gptft(task: dict, kind: str):
    """As `python -m gptft generate` decodes; "uncached": the plain loop."""
    import gptft
    from gptft.decoding import GREEDY, Sampling, decode_plain
    from gptft.fast.continuous import decode_continuously
    from gptft.fast.decoding_model import arranged

    model, _ = gptft.load(task["model"])
    n_vocab = model.config.vocab_size
    never = ()  # nothing stops early
    rows = int(task["do"].split(", ")[1])
    sampling = Sampling(0.8, top_k=50, top_p=0.95) if kind == "sampled" else GREEDY
    asked = "auto" if kind in ("", "sampled") else kind
    fast = model if kind == "uncached" else arranged(model, asked, rows, task["new"], take=True)

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        if kind == "uncached":
            return [decode_plain(model, prompt, new, never, n_vocab) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        for pairs in decode_continuously(fast, prompts, new, never, n_vocab, sampling):
            for row, token in pairs:
                answers[row].append(token)
        return answers

    return run


def with_transformers(task: dict, kind: str):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.bfloat16 if kind else torch.float32).eval()
    model.generation_config.eos_token_id = None  # nothing stops early
    model.generation_config.pad_token_id = padding = model.config.vocab_size - 1

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        # prompts of unequal length end together, as transformers wants them
        T = max(map(len, prompts))
        idx = torch.tensor([[padding] * (T - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(idx, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return out[:, T:].tolist()

    return run


# this side


def main(argv: list[str]) -> None:
    parser = common.parser("decode", __doc__, rounds=5)
    real.add_options(parser)
    options = parser.parse_args(argv)
    common.need("torch", "transformers", "safetensors")
    common.instructions(options)  # GPT-2's vocabulary lies beside them
    model, data = real.model_path(options.model), real.data_path(options.data)
    sizes = {"prompt": PROMPT, "new": NEW, "new_plain": NEW_PLAIN}
    if options.quick:
        sizes = {"prompt": 8, "new": 8, "new_plain": 4}
    rounds = min(options.rounds, 1 if model else 2) if options.quick else options.rounds
    settings = {**sizes, "rounds": rounds, "quick": options.quick}
    result = common.header("decode", options, settings, ["torch", "transformers"])
    given = real.describe("decode", argv, model, data)
    result |= {"real": given} if given else {}
    with common.temporary() as folder:
        env = common.environment(options) | {"HF_HOME": f"{folder}/hf", "GPTFT_CACHE": f"{folder}/cache"}
        task = {"model": f"{folder}/model", "quick": options.quick, **sizes}
        task |= {"source": model and str(model), "data": data and str(data)}
        task["gguf"] = f"{folder}/model.gguf" if given and real.llamacpp_python() else None
        task["gguf_int8"] = f"{folder}/model-q8_0.gguf"
        made = common.call("decode", {**task, "do": "make"}, env)
        settings["parameters"], task["model"], task["prompts"] = made["parameters"], made["model"], made.get("prompts")
        files = {LLAMACPP: task["gguf"], LLAMACPP_INT8: task["gguf_int8"]} if task["gguf"] else {}
        if made.get("stored"):
            files[f"llama.cpp {made['stored']}, 1"] = str(model)

        def measure(name: str, _: int) -> dict:
            if name in files:
                return real.run_llamacpp(files[name], task["prompts"][0], task["new"], options.threads)
            return common.call("decode", {**task, "do": name}, env)

        who = [*CONTENDERS, *ROUNDED, *SAMPLED, *files, *CEILINGS]
        measured = common.interleave(who, rounds, measure, "tokens_per_second")
        ceilings = [{name: once.pop(name) for name in CEILINGS} for once in measured]
        exact = {name: outcome for name, outcome in measured[0].items() if name not in (*ROUNDED, *SAMPLED)}
        if given:
            settings["prompt_lengths"] = [len(prompt) for prompt in task["prompts"]]
            departures = check_near(exact, task, env)
        else:
            check_ids(exact)
    if files:
        result["versions"]["llama-cpp-python"] = measured[0][LLAMACPP]["version"]
    result["rounds"] = [
        {name: {"tokens_per_second": outcome["tokens_per_second"]} for name, outcome in once.items()}
        for once in measured
    ]
    result["ceilings"] = ceilings
    result["summary"] = summarise(measured, ceilings, REAL_TARGETS if given and given["model"] else TARGETS)
    result["summary"] |= {"ids": departures} if given else {}
    results.save(result, common.results_folder(options))


def summarise(measured: list[dict], ceilings: list[dict], targets: dict) -> dict:
    """Medians and spreads over the rounds, and the ratios formed in each."""

    def ratio(of: str, to: str) -> dict:
        return common.ratios(measured, of, to, "tokens_per_second")

    summary = {
        "tokens_per_second": common.spreads(measured, "tokens_per_second"),
        "ratios": {
            f"{kind}, {count}".removeprefix(", ").strip(): ratio(f"gptft{kind}, {count}", f"transformers, {count}")
            for kind in KINDS
            for count in ("1", "8")
        },
    }
    summary["targets"] = [[of, to, target, ratio(of, to)] for (of, to), target in targets.items()]
    if LLAMACPP_INT8 in measured[0]:
        summary["targets"].append(["gptft int8, 1", LLAMACPP_INT8, OF_LLAMACPP, ratio("gptft int8, 1", LLAMACPP_INT8)])
    summary["ceiling"] = {}
    for name in CEILINGS:
        of = name.removeprefix("ceiling of ")
        pairs = [(once[of], one[name]) for once, one in zip(measured, ceilings, strict=True)]
        summary["ceiling"][of] = {
            "tokens_per_second": common.spread([one["tokens_per_second"] for _, one in pairs]),
            "bytes_per_second": common.spread([one["bytes_per_second"] for _, one in pairs]),
            "share": common.spread([own["tokens_per_second"] / one["tokens_per_second"] for own, one in pairs]),
            "layouts": pairs[0][1]["layouts"],
        }
    if LLAMACPP in measured[0]:
        names = [name for name in measured[0] if name.startswith("llama.cpp")]
        summary["over_llamacpp"] = {name: ratio("gptft, 1", name) for name in names}
    return summary


def departures_of(outcomes: dict[str, dict], reference: str = REFERENCE) -> list[tuple[str, int, int]]:
    """Where a contender departs from the reference's ids, as far as it went: (contender, prompt, new token), from 0."""
    expected, found = outcomes[reference]["ids"], []
    for name, outcome in outcomes.items():
        for row, ids in enumerate(outcome["ids"]):
            if ids != expected[row][: len(ids)]:
                at = next(n for n, (a, b) in enumerate(zip(ids, expected[row], strict=False)) if a != b)
                found.append((name, row, at))
    return found


def check_ids(outcomes: dict[str, dict]) -> None:
    """Raise UserError unless every contender gave the same ids, as far as each went."""
    for name, row, at in departures_of(outcomes):
        raise UserError(f"{name}: prompt {row + 1} departs from transformers' ids at new token {at + 1}", 1)


def check_near(outcomes: dict[str, dict], task: dict, env: dict) -> dict:
    """As `check_ids`, but a departure is let pass where two logits lie within NEAR of one another, which on a real
    model happens; and that of a file whose numbers are rounded is only told.

    -> {"near_ties": how many were let pass, "largest_gap": of those, "rounded": {contender: ids before it departs}}
    """
    exact = [name for name in outcomes if name == LLAMACPP or not name.startswith("llama.cpp")]
    rounded = {name: len(outcome["ids"][0]) for name, outcome in outcomes.items() if name not in exact}
    departures = departures_of(outcomes)
    rounded |= {name: at for name, _, at in departures if name in rounded}
    departures = [departure for departure in departures if departure[0] in exact]
    return check_gaps(departures, outcomes, task, env) | {"rounded": rounded}


def check_gaps(
    departures: list[tuple[str, int, int]], outcomes: dict[str, dict], task: dict, env: dict, reference: str = REFERENCE
) -> dict:
    """Raise UserError for a departure where the two logits are further apart than NEAR; `task` has the model and the
    prompts' ids. -> {"near_ties": how many were let pass, "largest_gap": of those}"""
    expected = outcomes[reference]["ids"]
    texts = [
        (task["prompts"][row] + expected[row][:at], outcomes[name]["ids"][row][at], expected[row][at])
        for name, row, at in departures
    ]
    found = common.call("decode", {"do": "gaps", "model": task["model"], "texts": texts}, env)["gaps"] if texts else []
    for (name, row, at), gap in zip(departures, found, strict=True):
        where = f"{name}: prompt {row + 1} departs from the ids of {reference} at new token {at + 1}"
        print(f"{where}, where the two logits differ by {gap:.1e}", flush=True)
        if gap >= NEAR:
            raise UserError(f"{where}, and the two logits differ by {gap:.1e}", 1)
    return {"near_ties": len(found), "largest_gap": max(found, default=0.0)}


def rows_of(result: dict) -> list[list[str]]:
    """Who, prompts at once, new tokens each, tokens a second, and how often the speed of transformers."""
    summary, settings = result["summary"], result["settings"]
    rows = []
    for name, speed in summary["tokens_per_second"].items():
        who, count = name.split(", ")
        ratio = summary["ratios"].get(name.removeprefix("gptft").lstrip(", "))
        ratio = f"{results.shown(ratio)}x" if ratio and who.startswith("gptft") else ""
        new = settings["new_plain"] if "uncached" in who else settings["new"]
        rows.append([who, count, str(new), results.shown(speed, 1), ratio])
    return rows


def table(result: dict) -> str:
    settings = result["settings"]
    size = f"{settings['parameters'] / 1e6:.0f} million parameters"
    lengths = settings.get("prompt_lengths", [settings["prompt"]])
    length = " - ".join(map(str, sorted({min(lengths), max(lengths)})))
    found = result["summary"].get("ids")
    ids = describe_ids(result) if found else "All in fp32 gave the same ids."
    head = ["who", "prompts at once", "new tokens each", "tokens/s", "over transformers, by round"]
    return "\n\n".join(
        [
            results.markdown(head, rows_of(result)),
            f"{size}, prompts of {length} tokens. {ids}",
            *([tell_targets(result["summary"]), tell_ceilings(result["summary"])] if "ceilings" in result else []),
        ]
    )


def tell_targets(summary: dict) -> str:
    """The ratios that have a target."""
    rows = [
        [f"{of} / {to}", f"{results.shown(ratio)}x", results.verdict(ratio["median"], target, "x", at_least=True)]
        for of, to, target, ratio in summary["targets"]
    ]
    return results.markdown(["ratio of tokens/s", "by round", "target"], rows)


def tell_ceilings(summary: dict) -> str:
    """What share of the ceilings was reached; it counts where a target was missed."""
    missed = {of for of, _, target, ratio in summary["targets"] if ratio["median"] < target}
    rows = []
    for name, found in summary["ceiling"].items():
        layouts = ", ".join(f"{count} {layout}" for layout, count in found["layouts"].items())
        rate = results.shown({key: value / 1e9 for key, value in found["bytes_per_second"].items()}, 1)
        share = results.shown(found["share"])
        met = results.verdict(found["share"]["median"], SHARE, "", at_least=True) if name in missed else ""
        rows.append([name, results.shown(found["tokens_per_second"], 1), rate, layouts, share, met])
    head = [
        "ceiling of",
        "tokens/s",
        "GB/s of weights",
        "fastest layouts at first",
        "share reached, by round",
        "target",
    ]
    return results.markdown(head, rows)


def describe_ids(result: dict) -> str:
    """Whether a real model's contenders gave the same ids, and gptft's speed over llama.cpp's, in sentences."""
    summary, new = result["summary"], result["settings"]["new"]
    found = summary["ids"]
    said = ["All in fp32 gave the same ids"]
    if ties := found["near_ties"]:
        said[0] += (
            f", but that {ties} text{'s' if ties > 1 else ''} went another way where two logits differ by at most "
            f"{found['largest_gap']:.0e}"
        )
    for name, ratio in summary.get("over_llamacpp", {}).items():
        stored = name.removesuffix(", 1")
        said.append(f"gptft has, at one prompt, {results.shown(ratio)} times the tokens/s of {stored}")
    for name, count in found["rounded"].items():
        stored = name.removesuffix(", 1")
        said.append(f"{stored}, whose numbers are rounded, gave the first {count} of {new}")
    return ". ".join(said) + "."


if __name__ == "__main__":
    common.answer(work)
