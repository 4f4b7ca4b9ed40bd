"""One GPU: training GPT-2 124M and a Llama of 1B, whole and by LoRA, beside transformers, and greedy decoding.

Weights are random, from a seed, the same for all; records are made from seeds: short ones with lengths as instruction
data has them (57 tokens on average, 23% of them targets), and dense rows of 1,024. Training is in bf16 autocast over
fp32 weights, AdamW fused, gradients clipped at 1.0. `transformers` is its model in a plain loop on the same batches;
TRL's trainer stands beside them where it is installed. `packed` has flex attention (`--packing flex`). All run in this
process, interleaved round by round, one first round apart. Decoding is in bf16 weights, 64 prompt tokens, 128 new ones;
`recorded passes` is `--decode graph`, and transformers has a static cache, too.

The rate of a matrix product of 8,192 x 8,192 in bf16, measured in the same run, is what speeds are a share of.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks import common, results
from benchmarks.gpu_contenders import (
    RANK,
    Rows,
    gptft_trainer,
    make_ours,
    make_rows,
    make_theirs,
    synchronize,
    transformers_trainer,
    trl_trainer,
)
from gptft.errors import UserError

PROMPT, NEW = 64, 128
GPT2 = {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {  # Llama-3.2-1B's config.json
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
MODELS = {"GPT-2 124M": GPT2, "Llama 1B": LLAMA}
TINY = {
    "GPT-2 124M": GPT2 | {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 2},
    "Llama 1B": LLAMA
    | {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
# per model and kind of data: examples a step, steps a round
SIZES = {
    ("GPT-2 124M", "short"): (64, 20),
    ("GPT-2 124M", "dense"): (16, 10),
    ("Llama 1B", "short"): (64, 8),
    ("Llama 1B", "dense"): (4, 8),
}
PROMPTS = (1, 32)  # prompts at once in decoding


def timed(device, run: Callable, *args) -> dict:
    """Time a run, and see the most memory that it took beyond what lay on the device before, bytes (CUDA alone)."""
    import torch

    held = 0
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    outcome = run(*args)
    synchronize(device)
    outcome.setdefault("seconds", time.perf_counter() - began)
    if device.type == "cuda":
        outcome["peak_bytes"] = torch.cuda.max_memory_allocated(device) - held
    return outcome


def state_bytes(model, optimizer) -> int:
    """Memory of weights and optimizer state."""
    import torch

    states = optimizer.state.values() if optimizer else ()
    tensors = [*model.parameters(), *model.buffers(), *itertools.chain(*(state.values() for state in states))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


def matrix_rate(device, n: int) -> float:
    """FLOP/s of an (n, n) by (n, n) product in bf16, the median of ten after three."""
    import torch

    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [timed(device, lambda: {"product": a @ b})["seconds"] for _ in range(13)]
    return 2 * n**3 / statistics.median(seconds[3:])


class Budget:
    """Seconds for all of it, shared out evenly among the sections that are still to come."""

    def __init__(self, seconds: float, sections: int) -> None:
        self.end, self.sections, self.left_out = time.perf_counter() + seconds, sections, []

    def rounds(self, name: str, count: int):
        """Numbers up to `count`; stops, noting it, once the section's share is used. None at all when all time is."""
        began = time.perf_counter()
        share, self.sections = (self.end - began) / max(self.sections, 1), self.sections - 1
        for number in range(count):
            if time.perf_counter() >= (self.end if number == 0 else began + share):
                self.left_out.append(f"{name}: {count - number} of {count} rounds")
                return
            yield number


def measure_rounds(name: str, who: dict, rounds, device, *args) -> list[dict]:
    """Contenders interleaved round by round: what `timed` says of each."""
    measured = []
    for number in rounds:
        measured.append({})
        for contender, run in who.items():
            measured[-1][contender] = outcome = timed(device, run, *args)
            said = f"{outcome['tokens'] / outcome['seconds']:,.0f} tokens/s"
            print(f"{name}  round {number + 1}  {contender:<22}{said}", file=sys.stderr, flush=True)
    return measured


def measure_training(model: str, kind: str, who: dict, budget: Budget, options, rows: Rows, steps: int) -> dict | None:
    """One model and kind of data; None where no time was left. Raises UserError where the losses are not the same."""
    device, name = options.device, f"{model}, {kind}"
    rounds = measure_rounds(name, who, budget.rounds(name, options.rounds + 1), device, rows, steps)
    if len(rounds) < 2:
        return None
    check_losses(name, rounds[0])
    whole = rounds[0]["gptft full"]
    flops_per_token = whole["flops"] / whole["tokens"]
    for once in rounds:
        for contender, outcome in once.items():
            outcome["tokens_per_second"] = outcome["tokens"] / outcome["seconds"]
            flops = outcome.pop("flops", flops_per_token * outcome["tokens"])
            outcome["flops_per_second"] = flops / outcome["seconds"]
            if "peak_bytes" in outcome:
                outcome["peak_bytes"] += state_bytes(*who[contender].parts)
    return {"rounds": rounds[1:], "first": {name: outcome["losses"][0] for name, outcome in rounds[0].items()}}


def check_losses(name: str, first: dict[str, dict]) -> None:
    """All start from the same weights on the same batch: the first losses agree to bf16's rounding."""
    reference = first["gptft full"]["losses"][0]
    for contender, outcome in first.items():
        if not math.isclose(outcome["losses"][0], reference, rel_tol=5e-3):
            raise UserError(
                f"{name}: {contender} starts from a loss of {outcome['losses'][0]:.4f}, not {reference:.4f}", 1
            )


def measure_decoding(model: str, theirs, budget: Budget, options) -> dict:
    """{prompts at once: rounds}, greedy, in bf16 weights."""
    import torch

    from gptft.decoding import decode
    from gptft.fast.decoding_model import arranged

    device, measured = options.device, {}
    ours, theirs = make_ours(theirs, device).bfloat16().eval(), theirs.bfloat16().eval()
    V, new = ours.config.vocab_size, 8 if options.quick else NEW
    theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id = None, 0

    def with_gptft(idx, model=ours) -> dict:
        return {"tokens": sum(map(len, decode(model, idx.tolist(), new, (), V)))}

    def with_transformers(idx, **how) -> dict:
        out = theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=new, do_sample=False, **how)
        return {"tokens": out.size(0) * (out.size(1) - idx.size(1))}

    who = {"gptft": with_gptft, "transformers": with_transformers}
    if device.type == "cuda":
        who["gptft, recorded passes"] = functools.partial(with_gptft, model=arranged(ours, "graph"))
        who["transformers, static cache"] = functools.partial(with_transformers, cache_implementation="static")
    for count in PROMPTS:
        generator = torch.Generator().manual_seed(count)
        idx = torch.randint(V, (count, 8 if options.quick else PROMPT), generator=generator).to(device)
        name = f"{model}, decoding {count}"
        rounds = measure_rounds(name, who, budget.rounds(name, options.rounds + 1), device, idx)
        for outcome in itertools.chain(*(once.values() for once in rounds)):
            outcome["tokens_per_second"] = outcome["tokens"] / outcome["seconds"]
        if len(rounds) > 1:
            measured[str(count)] = rounds[1:]
    return measured


def measure_model(model: str, values: dict, budget: Budget, options, scratch: str) -> tuple[dict, dict]:
    """-> ({kind of data: result}, {prompts at once: rounds}) of one model."""
    import torch

    device, training = options.device, {}
    for kind in ("short", "dense"):
        batch_size, steps = (4, 2) if options.quick else SIZES[model, kind]
        theirs = make_theirs(values, device)
        longest = 64 if options.quick else 1024
        rows = make_rows(kind, batch_size * (steps + 1), theirs.config.vocab_size, longest)
        who = {
            "gptft full": gptft_trainer(theirs, device, batch_size),
            "gptft LoRA, base bf16": gptft_trainer(theirs, device, batch_size, lora=True),
            "transformers full": transformers_trainer(theirs, device, batch_size),
        }
        if device.type == "cuda":
            who["gptft full, packed"] = gptft_trainer(theirs, device, batch_size, packed=True)
        if options.trl:
            who["TRL full"] = trl_trainer(make_theirs(values, device), device, batch_size, scratch)
        outcome = measure_training(model, kind, who, budget, options, rows, steps)
        if outcome:
            training[kind] = outcome | {"batch": batch_size, "steps": steps}
        del theirs, who
        free()
    with torch.inference_mode():
        decoding = measure_decoding(model, make_theirs(values, device), budget, options)
    free()
    return training, decoding


def free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: list[str]) -> None:
    parser = common.parser("gpu", __doc__, rounds=5)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --tiny [cuda]")
    parser.add_argument("--tiny", action="store_true", dest="quick", help="the same as --quick")
    parser.add_argument("--budget_s", type=float, default=420.0, help="seconds, after which rounds are left out [420]")
    options = parser.parse_args(argv)
    common.need("torch", "transformers")
    import torch

    from gptft.device import pick_device

    if options.device == "cpu" and not options.quick:
        raise UserError("--device cpu needs --tiny: this benchmark is for a GPU")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA device, and this machine has none; --device cpu --tiny tries it")
    options.device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")  # the rest of bf16 training is in fp32, for all contenders
    peers = [name for name in ("trl", "datasets", "tokenizers") if importlib.util.find_spec(name)]
    options.trl = len(peers) == 3
    settings = {"rounds": options.rounds, "quick": options.quick, "rank": RANK, "prompt": PROMPT, "new": NEW}
    result = common.header("gpu", options, settings, ["torch", "transformers", *(["trl"] if options.trl else [])])
    if options.device.type == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name(options.device)
    result["matrix_flops_per_second"] = matrix_rate(options.device, 256 if options.quick else 8192)
    budget = Budget(options.budget_s, len(MODELS) * (2 + len(PROMPTS)))
    result["training"], result["decoding"] = {}, {}
    with common.temporary() as scratch:
        for model, values in (TINY if options.quick else MODELS).items():
            training, decoding = measure_model(model, values, budget, options, scratch)
            result["training"][model], result["decoding"][model] = training, decoding
    result["left_out"] = [*([] if options.trl else ["TRL: it is not installed"]), *budget.left_out]
    result["summary"] = summarise(result)
    results.save(result, common.results_folder(options))
    print(json.dumps({name: result[name] for name in ("machine", "versions", "date", "summary", "left_out")}))


def summarise(result: dict) -> dict:
    """{"model, records or prompts at once, who": median tokens a second}, of training and of decoding."""
    training = ((model, *item) for model, kinds in result["training"].items() for item in kinds.items())
    decoding = ((model, *item) for model, counts in result["decoding"].items() for item in counts.items())
    summary = {"matrix_flops_per_second": result["matrix_flops_per_second"], "training": {}, "decoding": {}}
    for model, kind, outcome in training:
        for who, speed in common.spreads(outcome["rounds"], "tokens_per_second").items():
            summary["training"][f"{model}, {kind}, {who}"] = round(speed["median"], 1)
    for model, count, rounds in decoding:
        for who, speed in common.spreads(rounds, "tokens_per_second").items():
            summary["decoding"][f"{model}, {count}, {who}"] = round(speed["median"], 1)
    return summary


def table(result: dict) -> str:
    rate = result["matrix_flops_per_second"]
    rows = []
    for model, kinds in result["training"].items():
        for kind, outcome in kinds.items():
            rounds = outcome["rounds"]
            for contender in rounds[0]:
                speed, flops = (
                    common.spread([once[contender][key] for once in rounds])
                    for key in ("tokens_per_second", "flops_per_second")
                )
                peaks = [once[contender]["peak_bytes"] for once in rounds if "peak_bytes" in once[contender]]
                peak = f"{max(peaks) / 1e9:.1f}" if peaks else ""
                ratio = common.ratios(rounds, contender, "transformers full", "tokens_per_second")
                share = f"{flops['median'] / rate:.0%}"
                data = f"{kind}, {outcome['batch']} a step"
                rows.append([model, data, contender, results.shown(speed, 0), share, peak, f"{results.shown(ratio)}x"])
    head = ["model", "records", "who", "tokens/s", "share of the matrix rate", "peak memory, GB", "over transformers"]
    training = results.markdown(head, rows)
    rows = []
    for model, counts in result["decoding"].items():
        for count, rounds in counts.items():
            for who in rounds[0]:
                speed = common.spread([once[who]["tokens_per_second"] for once in rounds])
                ratio = common.ratios(rounds, who, "transformers", "tokens_per_second")
                rows.append([model, count, who, results.shown(speed, 0), f"{results.shown(ratio)}x"])
    decoding = results.markdown(["model", "prompts at once", "who", "tokens/s", "over transformers"], rows)
    notes = (
        f"bf16. The rate of a large matrix product: {rate / 1e12:.1f} TFLOP/s. Tokens are real ones, padding left out; "
        "the share counts the operations that real tokens need, a head at targets alone, whoever computes more. "
        f"LoRA has rank {result['settings']['rank']} on all linear layers of the blocks."
    )
    left_out = f"Left out: {'; '.join(result['left_out'])}." if result["left_out"] else ""
    return "\n\n".join(part for part in (notes, training, decoding, left_out) if part)
