"""The figures that documents show, one function for each name: a sentence or a table, made of the results."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks import (
    answers,
    common,
    core_lines,
    decode_bits,
    dense,
    forecast,
    gguf_memory,
    growth,
    harness,
    head,
    judge,
    lint,
    lookup,
    lora,
    lora_real,
    mislabelled,
    mistakes,
    ranks,
    results,
    scaling,
    smollm2,
    stream,
    threads,
)
from benchmarks.decode import tell_ceilings as decoding_ceilings
from benchmarks.default import excerpt
from benchmarks.families import EXERCISED, HUB_IDS, TITLES
from benchmarks.results import WITHOUT, is_without, markdown, read, read_given, shown
from benchmarks.sft import missed_of
from benchmarks.sft import tell_ceilings as training_ceilings
from gptft.curation import findings
from gptft.errors import UserError
from gptft.evaluation.metrics import describe_metric
from gptft.evaluation.mistakes import DEFINITIONS


def describe_where(name: str) -> str:
    """The machine, the versions and the day of a result, in a sentence's words. `NAME-real`: of the first one that was
    made on a real model, `NAME-real-without-bf16` on such a processor."""
    of, is_real, processor = name.partition("-real")
    result = on_real_model(of, bool(processor))[0] if is_real else read(name)
    versions = ", ".join(
        f"{package} {version}" for package, version in result["versions"].items() if package not in ("python", "gptft")
    )
    cores = f"{result['machine']['cores']} cores of an {results.describe_cpu(result['machine'])}"
    return f"{cores}, {versions}, {result['date']}"


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f}"


def bold(ratio: dict) -> str:
    """A ratio's spread, the median in bold: **2.44x** (2.29 - 2.49)."""
    median, _, span = shown(ratio).partition(" ")
    return f"**{median}x** {span}"


# one function for each name


def default_output() -> str:
    return "\n".join(["```", *excerpt(read("default")["console"]), "```"])


def default_scores() -> str:
    result = read("default")
    machine, first = result["machine"], result["rounds"][0]
    # a time that was taken beside other work says nothing
    idle = machine["load_before"] < machine["cores"]
    time = f"; the run took {first['seconds']:.0f} s on {machine['cores']} cores of an {machine['cpu']}" if idle else ""
    others = " and ".join(f"{once['test_exact_match']:.1%}" for once in result["rounds"][1:])
    seeds = " and ".join(once["seed"] for once in result["rounds"][1:])
    others = f" (seeds {seeds}: {others})" if others else ""
    return (
        f"{first['test_exact_match']:.1%} of the test questions exactly, {first['exact_match_before']:.1%} before"
        f"{others}{time}"
    )


def default_evaluation() -> str:
    return "\n".join(["```", *smollm2.evaluation_lines(read("default")["console"]), "```"])


def smollm2_evaluation() -> str:
    return "\n".join(["```", *read("smollm2")["summary"]["evaluation"], "```"])


def default_answer() -> str:
    result = read("default")
    return f"```\n$ python -m gptft generate {result['question']}\n{result['answer']}\n```"


def sft_ratios() -> str:
    result = read("sft")
    ratios = [
        f"{result['summary']['ratios'][f'TRL {kind}']['median']:.1f} times in {kind}" for kind in ("fp32", "bf16")
    ]
    return f"{' and '.join(ratios)}, on {result['machine']['cores']} CPU cores"


def sft() -> str:
    result = read("sft")
    summary, trl = result["summary"], result["versions"]["trl"]
    rows = []
    for kind in ("fp32", "bf16"):
        ours = [f"gptft {kind}{rest}" for rest in (", fast off", "")]
        for name in [f"TRL {kind}", *(name for name in ours if name in summary["examples_per_second"])]:
            is_peer = name.startswith("TRL")
            ratio = "" if is_peer else bold(common.ratios(result["rounds"], name, f"TRL {kind}", "examples_per_second"))
            who = f"TRL {trl} SFTTrainer" if is_peer else "gptft"
            who += " `--fast off`" * name.endswith("fast off")
            speed, peak = summary["examples_per_second"][name], summary["peak_bytes"][name]["median"]
            rows.append([who, kind, shown(speed), gigabytes(peak), ratio])
    return markdown(["who", "precision", "examples a second", "peak memory, GB", "against TRL, by round"], rows)


def sft_ceilings(result: dict) -> str:
    return training_ceilings(result["summary"], missed_of(result))


def lora_ceilings(summary: dict) -> str:
    return training_ceilings(summary, lora.missed_of(summary))


def sft_padding() -> str:
    shares = read("sft")["summary"]["real_share"]
    return (
        f"{shares['gptft fp32']['median']:.0%} of the tokens that gptft computes are no padding, "
        f"{shares['TRL fp32']['median']:.0%} of TRL's"
    )


def sft_gate() -> str:
    gate = read("sft")["gate"]
    return (
        f"{gate['records_unequal']} of {gate['records']} records differ in ids or labels; on one batch gptft has loss "
        f"{gate['loss'][0]:.5f} and gradient norm {gate['gradient_norm'][0]:.4f}, transformers {gate['loss'][1]:.5f} "
        f"and {gate['gradient_norm'][1]:.4f}"
    )


def decode() -> str:
    summary = read("decode")["summary"]
    rows = []
    for name, ratio in summary["ratios"].items():
        kind, _, count = name.rpartition(", ")
        speed = shown(summary["tokens_per_second"][f"gptft{' ' * bool(kind)}{kind}, {count}"], 1)
        said = "" if ratio["median"] >= 1 else ": slower"
        rows.append([count, kind or "fp32", speed, f"{shown(ratio)}x{said}"])
    head = ["prompts at once", "`--decode`", "tokens a second", "over transformers in fp32, by round"]
    return markdown(head, rows)


def decode_alone() -> str:
    return f"{read('decode')['summary']['ratios']['1']['median']:.2f} times"


def small() -> str:
    """Start-up, tokenising and memory, a line each."""
    startup, tokens, memory = (read(name)["summary"] for name in ("startup", "tokenize", "memory"))
    torch = "torch is imported" if startup["help_imports_torch"] else "torch is not imported"
    cold, cached = tokens["seconds"]["cold"]["median"], tokens["seconds"]["cached"]["median"]
    records = memory["tokenised"]
    again = memory["from the cache"]["load_seconds"] + memory["from the cache"]["split_seconds"]
    rows = [
        ["`import gptft` beyond `import torch`", f"{startup['gptft_beyond_torch']['median']:.2f} s"],
        ["`python train.py --help`", f"{startup['seconds']['python train.py --help']['median']:.2f} s, {torch}"],
        [
            f"tokenising {tokens['examples']:,} records ({tokens['tokens'] / 1e6:.1f} million tokens)",
            f"{cold:.1f} s; {cached:.2f} s from the cache",
        ],
        [
            f"{records['examples']:,} records of {records['tokens'] / records['examples']:.0f} tokens, streamed, split",
            f"{gigabytes(records['peak_bytes'])} GB resident at the peak, "
            f"{records['load_seconds'] + records['split_seconds']:.0f} s; from the cache {again:.1f} s",
        ],
    ]
    return markdown(["what", "measured"], rows)


def busy_neighbour() -> str:
    """The table of `threads`, and what the commands set."""
    return threads.table(read("threads"))


def ratios_by_side(summary: dict) -> dict[str, dict[str, str]]:
    """Of a result of `lora`: by contender, the ratio to each side, which the first word of a peer's name is."""
    found: dict[str, dict[str, str]] = {}
    for name, peer, ratio in summary["ratios"]:
        found.setdefault(name, {})[peer.split()[0]] = bold(ratio)
    return found


def lora_speed(name: str = "lora") -> str:
    summary = read(name)["summary"]
    ratios = ratios_by_side(summary)
    rows = []
    for name, speed in summary["examples_per_second"].items():
        trained, peak = (summary[key][name]["median"] for key in ("trained", "peak_bytes"))
        cells = [ratios.get(name, {}).get(side, "") for side in ("gptft", "PEFT")]
        rows.append([name, f"{trained:,.0f}", shown(speed), gigabytes(peak), *cells])
    head = ["who", "trained parameters", "examples a second", "peak memory, GB", "against full fine-tuning"]
    return markdown([*head, "against PEFT with TRL"], rows)


def lora_quality() -> str:
    rows = []
    for data, runs in read("lora")["quality"].items():
        for name, run in runs.items():
            match = "" if run["test_exact_match"] is None else f"{run['test_exact_match']:.1%}"
            rate = f"{run['lr']:g}" if "lr" in run else "the config's"
            rows.append([data, name, f"{run['trainable_parameters']:,}", rate, f"{run['eval_loss']:.4f}", match])
    head = ["set", "how", "trained parameters", "learning rate", "validation loss", "exact match"]
    return markdown(head, rows)


def lora_int8() -> str:
    runs = read("lora")["quality"]["GPT-2 124M"]
    losses = [runs[name]["eval_loss"] for name in ("LoRA, rank 8, base int8", "LoRA, rank 8")]
    return f"{losses[0] - losses[1]:.4f}"


def lora_gate() -> str:
    gate = read("lora")["gate"]
    ours, theirs = (f"loss {gate['loss'][n]:.5f}, gradient norm {gate['gradient_norm'][n]:.4f}" for n in (0, 1))
    return f"{ours}; {theirs}"


def on_real_model(name: str, without_bf16: bool) -> list[dict]:
    """A benchmark's results on real models, on one kind of processor. Raises UserError where there are none."""
    real = [result for result in read_given(name) if result["real"]["model"]]
    found = [result for result in real if is_without(result) == without_bf16]
    if not found:
        raise UserError(f"no result of {name} on a real model: python -m benchmarks {name} --model smollm2")
    return found


def sft_real(without_bf16: bool) -> str:
    rows = []
    for result in on_real_model("sft", without_bf16):
        rounds, given = result["rounds"], result["real"]
        for kind in ("fp32", "bf16"):
            ours, peer = f"gptft {kind}", f"TRL {kind}"
            if ours in rounds[0]:
                speed, peak = (result["summary"][key] for key in ("examples_per_second", "peak_bytes"))
                ratio = bold(common.ratios(rounds, ours, peer, "examples_per_second"))
                peaks = " / ".join(gigabytes(peak[name]["median"]) for name in (ours, peer))
                rows.append([given["model"], given["data"], kind, shown(speed[ours]), shown(speed[peer]), ratio, peaks])
    head = ["model", "records", "precision", "gptft, examples a second", "TRL", "ratio, by round"]
    return markdown([*head, "peak memory of the two, GB"], rows)


def decode_real(without_bf16: bool) -> str:
    rows = []
    for result in on_real_model("decode", without_bf16):
        summary = result["summary"]
        for name, speed in summary["tokens_per_second"].items():
            who, count = name.split(", ")
            other = f"transformers, {count}"
            ratio = "" if name == other else shown(common.ratios(result["rounds"], name, other, "tokens_per_second"))
            if "uncached" not in who:
                rows.append([results.describe_given(result["real"]), who, count, shown(speed, 1), ratio])
    return markdown(["model and prompts", "who", "prompts at once", "tokens a second", "over transformers"], rows)


def lora_real_speed(without_bf16: bool) -> str:
    rows = []
    for result in on_real_model("lora", without_bf16):
        ratios = ratios_by_side(result["summary"])
        for name, speed in result["summary"]["examples_per_second"].items():
            peak = gigabytes(result["summary"]["peak_bytes"][name]["median"])
            cells = [ratios.get(name, {}).get(side, "") for side in ("gptft", "PEFT", "litgpt")]
            rows.append([results.describe_given(result["real"]), name, shown(speed), peak, *cells])
    head = ["model and records", "who", "examples a second", "peak memory, GB", "against full fine-tuning"]
    return markdown([*head, "against PEFT with TRL", "against litgpt"], rows)


def lora_real_quality() -> str:
    return lora_real.table(read("lora_real"))


def families() -> str:
    rows = []
    for family, dtypes in read("families")["summary"].items():
        values = [dtypes[dtype][what] for dtype in ("float64", "float32") for what in ("logits", "gradients")]
        cells = ["same bits" if value == 0 else f"{value:.0e}" for value in values]
        rows.append([TITLES[family], ", ".join(f"`{name}`" for name in HUB_IDS[family]), EXERCISED[family], *cells])
    head = ["family", "by hub id, for example", "options exercised", "logits, fp64", "gradients, fp64"]
    return markdown([*head, "logits, fp32", "gradients, fp32"], rows)


def llamacpp() -> str:
    result = read("llamacpp")
    models, versions = result["summary"], result["versions"]
    kinds = [kind for model in models.values() for kind in model["kinds"].values()]
    same = sum(kind["same"] for kind in kinds)
    return (
        f"llama-cpp-python {versions['llama-cpp-python']}, gguf {versions['gguf']}: {same} of {len(kinds)} exports, "
        f"{len(models)} toy models in {len(kinds) // len(models)} formats each, gave the same greedy ids"
    )


def lint_kinds() -> str:
    rows = [[f"`{name}`", kind.what, kind.fix] for name, kind in findings.KINDS.items()]
    return markdown(["kind", "what it is", "under `--fix`"], rows)


def mistakes_kinds() -> str:
    return markdown(["mistake", "what it is"], [[describe_metric(name), what] for name, what in DEFINITIONS.items()])


WHERE = (
    "answers",
    "decode",
    "decode-real",
    f"decode-real-{WITHOUT}",
    "dense",
    "families",
    "growth",
    "harness",
    "head",
    "lint",
    "lookup",
    "lora",
    f"lora-real-{WITHOUT}",
    f"lora-{WITHOUT}",
    "lora_real",
    "mislabelled",
    "ranks",
    "sft",
    "sft-real",
    f"sft-real-{WITHOUT}",
    "smollm2",
    "startup",
)
FIGURES: dict[str, Callable[[], str]] = {
    "answers": lambda: answers.short_table(read("answers")),
    "core": core_lines.table,
    "decode": decode,
    "decode-alone": decode_alone,
    "decode-bits": lambda: decode_bits.table(read("decode_bits")),
    "decode-ceilings": lambda: decoding_ceilings(read("decode")["summary"]),
    "decode-real": functools.partial(decode_real, False),
    f"decode-real-{WITHOUT}": functools.partial(decode_real, True),
    f"decode-real-ceilings-{WITHOUT}": lambda: decoding_ceilings(on_real_model("decode", True)[0]["summary"]),
    "dense": lambda: dense.ratios_table(read("dense")),
    "dense-ceilings": lambda: training_ceilings(read("dense")["summary"], dense.missed_of(read("dense")["summary"])),
    "default-answer": default_answer,
    "default-evaluation": default_evaluation,
    "default-output": default_output,
    "default-scores": default_scores,
    "families": families,
    "forecast": forecast.table,
    "gguf-memory": lambda: gguf_memory.table(read("gguf_memory")),
    "growth-records": lambda: growth.describe_records(read("growth")["summary"]),
    "growth-terms": lambda: growth.describe_terms(read("growth")["summary"]),
    "harness": lambda: harness.table(read("harness")),
    "head": lambda: head.short_table(read("head")),
    "judge": lambda: judge.table(read("judge")),
    "judge-replies": lambda: judge.describe_replies(read("judge")),
    "lint-kinds": lint_kinds,
    "lint-planted": lambda: lint.planted_table(read("lint")),
    "lint-sets": lambda: lint.sets_table(read("lint")),
    "lint-time": lambda: lint.describe_time(read("lint")),
    "llamacpp": llamacpp,
    "lookup": lambda: lookup.short_table(read("lookup")),
    "lora-ceilings": lambda: lora_ceilings(read("lora")["summary"]),
    "lora-gate": lora_gate,
    "lora-int8": lora_int8,
    "lora-quality": lora_quality,
    "lora-real": lora_real_quality,
    f"lora-real-speed-{WITHOUT}": functools.partial(lora_real_speed, True),
    "lora-speed": lora_speed,
    "lora-speed-without-bf16": functools.partial(lora_speed, f"lora-{WITHOUT}"),
    "lora-ceilings-without-bf16": lambda: lora_ceilings(read(f"lora-{WITHOUT}")["summary"]),
    "mislabelled": lambda: mislabelled.describe(read("mislabelled")),
    "mistakes-asked": lambda: f"{read('mistakes')['settings']['asked']:,}",
    "mistakes-clean": lambda: mistakes.describe_clean(read("mistakes")),
    "mistakes-kinds": mistakes_kinds,
    "mistakes-labelled": lambda: mistakes.labelled_table(read("mistakes")),
    "mistakes-planted": lambda: mistakes.planted_table(read("mistakes")),
    "mistakes-real": lambda: mistakes.real_table(read("mistakes")),
    "ranks": lambda: ranks.table(read("ranks")),
    "ranks-died": ranks.died,
    "ranks-said": ranks.said,
    "scaling": lambda: scaling.table(read("scaling")),
    "sft": sft,
    "sft-ceilings": lambda: sft_ceilings(read("sft")),
    "sft-gate": sft_gate,
    "sft-padding": sft_padding,
    "sft-ratios": sft_ratios,
    "sft-real": functools.partial(sft_real, False),
    f"sft-real-{WITHOUT}": functools.partial(sft_real, True),
    f"sft-real-ceilings-{WITHOUT}": lambda: sft_ceilings(on_real_model("sft", True)[0]),
    "small": small,
    "smollm2-answers": lambda: smollm2.answers_table(read("smollm2")),
    "smollm2-evaluation": smollm2_evaluation,
    "smollm2-llamacpp": lambda: smollm2.describe_llamacpp(read("smollm2")),
    "smollm2-scores": lambda: smollm2.describe_scores(read("smollm2")),
    "stream": lambda: stream.table(read("stream")),
    "threads": busy_neighbour,
    **{f"where-{name}": functools.partial(describe_where, name) for name in WHERE},
}
