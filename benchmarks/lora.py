"""LoRA against full fine-tuning and against PEFT with TRL: GPT-2 124M on 935 records of instruction-data.json.

Speed: batch 8, rank 8 on every linear layer of the blocks, the loss on responses only, no dropout, AdamW, gradients
clipped at 1.0, on the CPU, in fp32 and in bf16 autocast; each contender in a fresh process, as in `sft`. A first gate
shows that gptft and PEFT compute the same loss, and the same gradient of the adapters' B, from the same adapters.

Quality: GPT-2 124M, first trained whole on half of the records, then on the other half whole or by its adapters; and
the embedded default's second stage, whole or by adapters of several ranks, also beside frozen weights in bf16 and int8.

--model and --data measure the speed alone, on a real pretrained model and on other records, as in `sft`; what adapters
lose there is the matter of `lora_real`. Where litgpt is there, or GPTFT_LITGPT_PYTHON names a Python that has it, and
it knows the model, it trains the same adapters on the same records; its first loss must be gptft's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks import common, real, results, sft, sft_contenders
from gptft.errors import UserError

RANK, ALPHA = 8, 16.0
GPT2_TARGETS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]  # as PEFT calls attn and mlp
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# by transformers' families; GPT-2's q, k and v are one layer
TARGETS = {"gpt2": GPT2_TARGETS} | dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA_TARGETS)
FASTER_THAN_FULL, FASTER_THAN_PEERS = 1.3, {"fp32": 2.6, "bf16": 5.0}  # times the examples a second
NEAR = {"fp32": 1e-4, "bf16": 0.05}  # nats a target, between litgpt's first loss and gptft's in fp32
LORA = {"lora_rank": RANK, "lora_alpha": ALPHA}
PEFT, LITGPT = ("PEFT fp32", "PEFT bf16"), ("litgpt fp32", "litgpt bf16")
CONTENDERS = {
    "gptft full fp32": {},
    "gptft full bf16": {},
    "gptft LoRA fp32": LORA,
    "gptft LoRA bf16": LORA,
    "gptft LoRA bf16, base bf16": {**LORA, "lora_base": "bf16"},
    "gptft LoRA bf16, base int8": {**LORA, "lora_base": "int8"},
    "gptft DoRA bf16, base bf16": {**LORA, "lora_base": "bf16", "lora_dora": True},
}
CEILINGS = ("gptft LoRA fp32", "gptft LoRA bf16, base bf16")
EMBEDDED = {
    "full": {},
    "LoRA, rank 4": {"lora_rank": 4},
    "LoRA, rank 16": {"lora_rank": 16},
    "LoRA, rank 16, base bf16": {"lora_rank": 16, "lora_base": "bf16"},
    "LoRA, rank 16, base int8": {"lora_rank": 16, "lora_base": "int8"},
    "LoRA, rank 16, attention only": {"lora_rank": 16, "lora_targets": ["attn"]},
    "rsLoRA, rank 16": {"lora_rank": 16, "lora_rslora": True},
    "DoRA, rank 16": {"lora_rank": 16, "lora_dora": True},
}
REAL = {
    "full": {},
    f"LoRA, rank {RANK}": {"lora_rank": RANK},
    f"LoRA, rank {RANK}, base int8": {"lora_rank": RANK, "lora_base": "int8"},
}


def work(task: dict) -> dict:
    """Do one task in a fresh process."""
    if task["do"] == "make":
        return real.make(task)
    if task["do"] == "gate":
        return gate(task)
    if task["do"] == "finetune":
        return finetune(task)
    if task["do"] == "write":
        return write_examples(task)
    if task["do"].startswith(sft_contenders.CEILING):
        return sft_contenders.ceiling(task)
    return train_peft(task) if task["do"] in PEFT else sft_contenders.train_gptft(task)


def peft_settings(directory: str):
    """PEFT's adapters for every linear layer of the blocks of the model in `directory`. Raises UserError for a family
    that is not among TARGETS."""
    import peft

    kind = json.loads(Path(directory, "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind not in TARGETS:
        raise UserError(f"--model: adapters are compared on {', '.join(TARGETS)}, not on {kind}")
    return peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=TARGETS[kind],
        task_type="CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",  # its layers are Conv1D: their matrices lie the other way round
    )


def train_peft(task: dict) -> dict:
    """TRL's trainer with PEFT's adapters."""
    found = {}

    def note(trainer) -> None:
        found["trained"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)

    return sft_contenders.train_trl(task, peft_config=peft_settings(task["model"]), look=note) | found


def gate(task: dict) -> dict:
    """The same adapters, B not zero, in both: loss of one batch, and the norm of the gradients of every B."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from gptft.adapters.lora import add_lora, lora_state
    from gptft.collate import collate
    from gptft.formats.peft import read_peft
    from gptft.loss import Objective

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    theirs = peft.get_peft_model(base, peft_settings(task["model"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    theirs.save_pretrained(f"{task['scratch']}/adapters")
    model, tokenizer, dataset = sft_contenders.load_gptft(task)
    config, state = read_peft(Path(task["scratch"], "adapters"), model)
    add_lora(model, config)
    ours = lora_state(model)
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(state[name])
    batch = collate([dataset[i] for i in task["measured"][: sft.BATCH]], tokenizer.eot)
    total, _ = Objective(model.train())(batch)
    loss = total / batch.n_targets
    loss.backward()
    # padding lies on the right, so that the causal mask alone keeps it out
    logits = theirs.train()(batch.idx).logits
    peer_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    peer_loss.backward()
    norms = [
        torch.nn.utils.get_total_norm(gradients).item()
        for gradients in (
            [p.grad for name, p in ours.items() if name.endswith(".B")],
            [p.grad for name, p in theirs.named_parameters() if "lora_B" in name],
        )
    ]
    return {"loss": [loss.item(), peer_loss.item()], "gradient_norm": norms}


def write_examples(task: dict) -> dict:
    """The records of the warm-up, then those measured, as ids and labels; gptft's loss of the first batch, by the model
    as it came, whose adapters change nothing yet."""
    import torch

    from gptft.collate import IGNORE, collate
    from gptft.loss import Objective

    model, tokenizer, dataset = sft_contenders.load_gptft(task)
    examples = [dataset[i] for i in (*task["warm"], *task["measured"])]
    rows = []
    for example in examples:
        labels = [IGNORE] * len(example.ids)
        for start, end in example.spans:
            labels[start:end] = example.ids[start:end].tolist()
        rows.append({"input_ids": example.ids.tolist(), "labels": labels})
    Path(task["examples"]).write_text(json.dumps(rows), encoding="utf-8")
    batch = collate(examples[: sft.BATCH], tokenizer.eot)
    with torch.no_grad():
        return {"first_loss": Objective(model)(batch)[0].item() / batch.n_targets}


def finetune(task: dict) -> dict:
    """A whole run of gptft."""
    import gptft
    from gptft.config import resolve

    config = resolve(task.get("config", ""), task["settings"])
    summary = gptft.finetune(config).summary
    keys = (
        "eval_loss",
        "test_loss",
        "test_exact_match",
        "trainable_parameters",
        "parameters",
        "peak_memory_bytes",
        "train_samples_per_second",
    )
    return {key: summary[key] for key in keys}


# this side


def measure_speed(options, base: dict, env: dict, result: dict) -> None:
    """The gate, then the rounds."""
    named = result["real"]["model"] if "real" in result and real.litgpt_python() else None

    def measure(name: str, number: int) -> dict:
        warm, measured = sft.draw(number, options.warm_steps, options.examples, base["records"])
        task = {
            **base,
            "do": name,
            "warm": warm,
            "measured": measured,
            "settings": CONTENDERS.get(name.removeprefix(sft_contenders.CEILING)),
        }
        return common.call("lora", task, env) if name not in LITGPT else run_litgpt(task, options, env, named)

    result["gate"] = gate = measure("gate", 0)
    print(f"gate: {describe_gate(gate)}", flush=True)
    (loss, peer_loss), (norm, peer_norm) = gate["loss"], gate["gradient_norm"]
    if abs(loss - peer_loss) > 1e-4 or abs(norm - peer_norm) > 1e-3 * peer_norm:
        raise UserError("the gate is shut: gptft and PEFT do not compute the same", 1)
    who = [*CONTENDERS, *PEFT, *(LITGPT if named else ()), *(sft_contenders.CEILING + name for name in CEILINGS)]
    who = real.of_precisions(who, base["precisions"])
    result["rounds"] = common.interleave(who, options.rounds, measure, "examples_per_second")
    result["ceilings"] = sft.pop_ceilings(result["rounds"])
    of_litgpt = [once[name]["version"] for once in result["rounds"] for name in LITGPT if name in once]
    result["versions"] |= {"litgpt": of_litgpt[0]} if of_litgpt else {}


def run_litgpt(task: dict, options, env: dict, named: str) -> dict:
    """litgpt's outcome on a model of this name. Raises UserError where its first loss is not gptft's."""
    told = {"model": task["model"], "scratch": task["scratch"], "named": named, "batch": sft.BATCH, "rank": RANK}
    told |= {"alpha": ALPHA, "lr": sft_contenders.LEARNING_RATE, "precision": real.precision_of(task["do"])}
    told |= {"examples": f"{task['scratch']}/examples.json", "warm": len(task["warm"]), "threads": options.threads}
    ours = common.call("lora", {**task, "do": "write", "examples": told["examples"]}, env)["first_loss"]
    outcome = real.run_apart(real.litgpt_python(), "lora_litgpt.py", told, {**os.environ, **env})
    if abs(outcome["first_loss"] - ours) > NEAR[told["precision"]]:
        raise UserError(f"{task['do']}: the first loss is {outcome['first_loss']}, gptft's {ours}", 1)
    return outcome


def measure_quality(options, base: dict, env: dict, folder: str) -> dict:
    """Validation losses: {set: {how: what a run's summary says}}."""
    from gptft.config import shipped

    def run(settings: dict, config: str = "") -> dict:
        return common.call("lora", {**base, "do": "finetune", "config": config, "settings": settings}, env)

    records = json.loads(Path(base["data"]).read_text(encoding="utf-8"))
    halves = {"first": records[:500], "second": records[500:]}
    for name, half in halves.items():
        Path(folder, f"{name}.json").write_text(json.dumps(half), encoding="utf-8")
    quick = {"max_steps": 3} if options.quick else {}
    common_settings = {
        "test_fraction": 0.0,
        "val_fraction": 0.1,
        "template": "alpaca",
        "precision": "auto",
        "save_every": 0,
    }
    start = f"{folder}/start"
    run(
        {
            "init": base["model"],
            "data": f"{folder}/first.json",
            "out_dir": start,
            "epochs": 3,
            "lr": 2e-4,
            **common_settings,
            **quick,
        }
    )
    found: dict[str, dict] = {"GPT-2 124M": {}, "embedded": {}}
    for number, (name, settings) in enumerate(REAL.items()):
        lr = 1e-3 if settings else 1e-4
        found["GPT-2 124M"][name] = {"lr": lr} | run(
            {
                "init": f"{start}/best",
                "data": f"{folder}/second.json",
                "out_dir": f"{folder}/real-{number}",
                "epochs": 2,
                "lr": lr,
                **common_settings,
                **settings,
                **quick,
            }
        )
        print(f"GPT-2 124M, {name}: {found['GPT-2 124M'][name]}", flush=True)
    run({"out_dir": f"{folder}/pretrain", **quick}, shipped("pretrain.toml"))
    for number, (name, settings) in enumerate(EMBEDDED.items()):
        lr = {"lr": 5e-3} if settings else {}
        found["embedded"][name] = lr | run(
            {"init": f"{folder}/pretrain/best", "out_dir": f"{folder}/tuned-{number}", **lr, **settings, **quick},
            shipped("instruct.toml"),
        )
        print(f"embedded, {name}: {found['embedded'][name]}", flush=True)
    return found


def main(argv: list[str]) -> None:
    parser = common.parser("lora", __doc__, rounds=5)
    parser.add_argument("--examples", type=int, default=160, help="records measured a round [160]")
    parser.add_argument("--warm-steps", type=int, default=8, help="steps before the clock starts [8]")
    real.add_options(parser, precisions=True)
    options = parser.parse_args(argv)
    common.need("torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors")
    if options.quick:
        options.examples, options.warm_steps, options.rounds = 32, 2, min(options.rounds, 2)
    if options.quick and options.model:  # a step takes seconds
        options.examples, options.warm_steps, options.rounds = sft.BATCH, 1, 1
    precisions = real.precisions(options)
    settings = {
        "rank": RANK,
        "alpha": ALPHA,
        "examples": options.examples,
        "warm_steps": options.warm_steps,
        "rounds": options.rounds,
        "quick": options.quick,
    }
    result = common.header("lora", options, settings, ["torch", "transformers", "trl", "peft", "accelerate"])
    result |= sft.describe_given("lora", options, argv)
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache", "HF_HOME": f"{folder}/hf"}
        base = sft.prepare(options, folder) | {"precisions": precisions}
        made = common.call("lora", {**base, "do": "make", "quick": options.quick}, env)
        base["model"], settings["parameters"] = made["model"], made["parameters"]
        measure_speed(options, base, env, result)
        if "real" in result:
            settings |= {"records": base["records"], "kind": made["kind"]}
        elif len(precisions) > 1:  # lora_real measures the quality on a real model
            result["quality"] = measure_quality(options, base, env, folder)
    result["summary"] = summarise(result)
    results.save(result, common.results_folder(options))


def summarise(result: dict) -> dict:
    rounds = result["rounds"]
    pairs = [(f"gptft LoRA {p}", other) for p in ("fp32", "bf16") for other in (f"gptft full {p}", f"PEFT {p}")]
    pairs += [("gptft LoRA bf16, base bf16", other) for other in ("gptft full bf16", "PEFT bf16")]
    pairs += [(f"gptft LoRA {p}", f"litgpt {p}") for p in ("fp32", "bf16")]
    pairs = [pair for pair in pairs if {*pair} <= rounds[0].keys()]
    return {
        **{key: common.spreads(rounds, key) for key in ("examples_per_second", "loss", "peak_bytes", "trained")},
        "ratios": [[a, b, common.ratios(rounds, a, b, "examples_per_second")] for a, b in pairs],
        "ceiling": sft.summarise_ceilings(rounds, result["ceilings"], "examples_per_second"),
    }


def describe_gate(gate: dict) -> str:
    (loss, peer_loss), (norm, peer_norm) = gate["loss"], gate["gradient_norm"]
    return (
        f"on one batch, from the same adapters, gptft has loss {loss:.6f} and gradient norm of the B's {norm:.5f}, "
        f"PEFT {peer_loss:.6f} and {peer_norm:.5f}"
    )


def table(result: dict) -> str:
    summary, settings = result["summary"], result["settings"]
    rows = []
    for name, speed in summary["examples_per_second"].items():
        trained, loss, peak = (summary[key][name]["median"] for key in ("trained", "loss", "peak_bytes"))
        rows.append([name, f"{trained:,.0f}", results.shown(speed), f"{loss:.3f}", f"{peak / 1e9:.2f}"])
    head = ["contender", "trained parameters", "examples/s", "mean loss of the steps", "peak memory, GB"]
    speeds = results.markdown(head, rows)
    rows = []
    for a, b, ratio in summary["ratios"]:
        target = target_over(b)
        rows.append([f"{a} / {b}", results.shown(ratio), results.verdict(ratio["median"], target, "x", at_least=True)])
    ratios = results.markdown(["ratio of examples/s", "by round", "target"], rows)
    given = result.get("real")
    model = (given and given["model"]) or "GPT-2 124M"
    each = " PEFT has one A for q, k and v, gptft one for each." if settings.get("kind", "gpt2") == "gpt2" else ""
    notes = (
        f"{model}, batch {sft.BATCH}, rank {settings['rank']} on all linear layers of the blocks; "
        f"{settings['examples']} records a round after {settings['warm_steps']} warm-up steps. "
        f"Gate: {describe_gate(result['gate'])}.{each}"
    )
    parts = [notes, speeds, ratios, sft.tell_ceilings(summary, missed_of(summary))]
    return "\n\n".join([*parts, quality_table(result["quality"])] if "quality" in result else parts)


def target_over(peer: str) -> float:
    """Times the examples a second of a peer."""
    return FASTER_THAN_PEERS[real.precision_of(peer)] if peer in (*PEFT, *LITGPT) else FASTER_THAN_FULL


def missed_of(summary: dict) -> list[str]:
    """Who missed a target."""
    return [a for a, b, ratio in summary["ratios"] if ratio["median"] < target_over(b)]


def quality_table(quality: dict) -> str:
    """What was measured, in words, and a table of it."""
    rows = []
    for data, found in quality.items():
        for name, run in found.items():
            match = "" if run["test_exact_match"] is None else f"{run['test_exact_match']:.1%}"
            speed, peak = f"{run['train_samples_per_second']:.1f}", f"{run['peak_memory_bytes'] / 1e9:.2f}"
            trained, loss = f"{run['trainable_parameters']:,}", f"{run['eval_loss']:.4f}"
            rows.append([data, name, trained, loss, match, speed, peak])
    head = ["set", "how", "trained parameters", "validation loss", "exact match", "examples/s", "peak memory, GB"]
    what = (
        "The quality of what is learned (one run each): GPT-2 124M from random weights was first trained whole on 500 "
        "records for 3 epochs, then for 2 epochs on the other 600, a tenth of them held out; the embedded set is the "
        "default's second stage."
    )
    return f"{what}\n\n{results.markdown(head, rows)}"


if __name__ == "__main__":
    common.answer(work)
