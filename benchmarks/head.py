"""The head and the loss by themselves, forward and backward: seconds, and memory beyond weights and their gradient.

Of the rows of a micro-batch 23% are targets, as in instruction-data.json. `eager` makes the logits of all rows and has
torch's cross_entropy ignore those without a target, as most frameworks do; `linear_cross_entropy` is torch's own, with
its options as they come, where this torch has it: it does not drop ignored rows either, and is given numbers in bf16
where the others have autocast, which it does not know. gptft gathers the targets' rows first: `plain` as gptft/loss.py
has it, `chunks` as gptft/fast/head.py. Each is a fresh process. Before anything is measured, the loss and the gradients
of all must be those of `eager` in the same precision.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import common, results
from gptft.errors import UserError

CASES = {  # rows, vocabulary, channels
    "GPT-2": (8192, 50257, 768),
    "Llama 3's vocabulary": (8192, 128256, 768),
    "Qwen3.5's vocabulary": (2048, 248320, 1024),
}
QUICK = {"tiny": (512, 2003, 64)}
SHARE = 0.23  # of the rows, those with a target
WHO = ("eager", "linear_cross_entropy", "gptft plain", "gptft chunks")
AGREES = {"fp32": 1e-4, "bf16": 1e-2}  # relative difference to `eager`, of the loss and of each gradient
# torch adds up the loss of bf16 numbers chunk by chunk in bf16, so that its sum is off by percents; its gradients do
# not come from that sum and are compared. How far it is off is said in the table.
LOSS_IN_BF16 = ("linear_cross_entropy", "bf16")
SECONDS, BEYOND = 0.3, 1.0  # the targets: times eager's seconds, and GB


def eager(head, h, targets, autocast):
    """-> the mean loss a target."""
    from torch.nn import functional as F

    with autocast:
        return F.cross_entropy(F.linear(h, head.weight), targets, ignore_index=-100)


def linear_cross_entropy(head, h, targets, autocast):
    import torch
    from torch.nn import functional as F

    weight, options = head.weight, torch.nn.LinearCrossEntropyOptions()
    with autocast:
        bf16 = torch.is_autocast_enabled("cpu")
    if bf16:
        h, weight = h.bfloat16(), weight.bfloat16()
    return F.linear_cross_entropy(h, weight, targets, ignore_index=-100, options=options)


def gathered(losses):
    def mean_loss(head, h, targets, autocast):
        scored = (targets != -100).nonzero().flatten()
        with autocast:
            total, _ = losses(head, h[scored], targets[scored])
        return total / len(scored)

    return mean_loss


def contender(name: str):
    from gptft.fast.head import chunked_head_losses
    from gptft.loss import head_losses

    ours = {"gptft plain": gathered(head_losses), "gptft chunks": gathered(chunked_head_losses)}
    return {"eager": eager, "linear_cross_entropy": linear_cross_entropy, **ours}[name]


def work(task: dict) -> dict:
    """In a fresh process: one pass of one contender after a small one, measured or compared."""
    import torch
    from torch import nn

    class Head(nn.Module):
        """As much of a GPT as a head is."""

        def __init__(self, V, C):
            super().__init__()
            self.lm_head = nn.Linear(C, V, bias=False)
            nn.init.normal_(self.lm_head.weight, 0, 0.02)

        weight = property(lambda self: self.lm_head.weight)

        def head(self, h):
            return self.lm_head(h)

    rows, V, C = task["shape"]
    torch.manual_seed(0)
    head, h = Head(V, C), torch.randn(rows, C).requires_grad_()
    targets = torch.full((rows,), -100)
    scored = torch.randperm(rows)[: round(SHARE * rows)]
    targets[scored] = torch.randint(0, V, scored.shape)
    mean_loss = contender(task["do"])
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=task["precision"] == "bf16")
    mean_loss(head, h[scored[:8]], targets[scored[:8]], autocast).backward()
    h.grad = head.weight.grad = None

    before, began = common.resident_memory(), time.perf_counter()
    loss = mean_loss(head, h, targets, autocast)
    loss.backward()
    seconds = time.perf_counter() - began
    beyond = common.peak_memory() - before - head.weight.nbytes  # its gradient
    found = {"loss": loss.detach().float(), "of h": h.grad, "of the weight": head.weight.grad}
    if task.get("save"):
        torch.save(found, task["save"])
    if not task.get("compare"):
        return {"seconds": seconds, "beyond_bytes": max(0, beyond), "loss": loss.item()}
    expected = torch.load(task["compare"], mmap=True)
    return {name: ((found[name] - x).norm() / x.norm()).item() for name, x in expected.items()}


def agree(who: list[str], key: str, task: dict, env: dict[str, str]) -> tuple[dict[str, float], float | None]:
    """The largest relative difference of each contender to `eager`, and that of a loss which was added up in bf16.

    Raises UserError where one of the first is too large.
    """
    worst, rounded = {}, None
    with common.temporary() as folder:
        file = str(Path(folder, "eager.pt"))
        common.call("head", {"do": "eager", "save": file, **task}, env)
        for name in who[1:]:
            found = common.call("head", {"do": name, "compare": file, **task}, env)
            if (name, task["precision"]) == LOSS_IN_BF16:
                rounded = found.pop("loss")
            worst[name] = max(found.values())
            if not worst[name] <= AGREES[task["precision"]]:
                raise UserError(f"{name} computes something else than eager, {key}: relative differences {found}", 1)
    return worst, rounded


def main(argv: list[str]) -> None:
    options = common.parser("head", __doc__, rounds=5).parse_args(argv)
    import torch

    who = [name for name in WHO if name != "linear_cross_entropy" or hasattr(torch.nn.functional, name)]
    cases, rounds = (QUICK, 2) if options.quick else (CASES, options.rounds)
    result = common.header("head", options, {"cases": cases, "rounds": rounds, "share": SHARE}, ["torch"])
    env = common.environment(options)
    result.update(rounds={}, summary={}, differences={}, rounded_loss={})
    for case, shape in cases.items():
        for precision in common.in_what_it_has(list(AGREES)):
            key, task = f"{case}, {precision}", {"shape": shape, "precision": precision}
            result["differences"][key], result["rounded_loss"][key] = agree(who, key, task, env)
            measured = common.interleave(
                who, rounds, lambda name, _, task=task: common.call("head", {"do": name, **task}, env), "seconds"
            )
            result["rounds"][key] = measured
            result["summary"][key] = {
                "seconds": common.spreads(measured, "seconds"),
                "beyond_bytes": common.spreads(measured, "beyond_bytes"),
                "over_eager": {name: common.ratios(measured, name, "eager", "seconds") for name in who},
            }
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    parts = []
    for key, summary in result["summary"].items():
        n_rows, V, C = result["settings"]["cases"][key.rpartition(", ")[0]]
        rows = []
        for name, seconds in summary["seconds"].items():
            beyond, ratio = summary["beyond_bytes"][name]["median"] / 1e9, summary["over_eager"][name]
            target = ""
            if name == "gptft chunks":
                met = results.verdict(ratio["median"], SECONDS, "x"), results.verdict(beyond, BEYOND, " GB")
                target = "; ".join(met)
            rows.append([name, results.shown(seconds), f"{results.shown(ratio)}x", f"{beyond:.2f}", target])
        head = ["who", "seconds", "over eager, by round", "memory beyond, GB", "target"]
        worst = max(result["differences"][key].values())
        what = (
            f"{key}: {n_rows:,} rows, {round(result['settings']['share'] * n_rows):,} of them targets, vocabulary "
            f"{V:,}, {C:,} channels; all agree to {worst:.0e}."
        )
        if (rounded := result["rounded_loss"][key]) is not None:
            what += (
                f" torch's linear_cross_entropy adds its loss up in bf16, {rounded:.1%} off; its gradients are right."
            )
        parts.append(f"{what}\n\n{results.markdown(head, rows)}")
    return "\n\n".join(parts)


def short_table(result: dict) -> str:
    """Seconds and memory of each, a line a case."""
    rows = []
    for key, summary in result["summary"].items():
        seconds, beyond = summary["seconds"], summary["beyond_bytes"]
        cells = [f"{results.shown(seconds[name])} s, {beyond[name]['median'] / 1e9:.1f} GB" for name in seconds]
        rows.append([key, *cells, f"**{results.shown(summary['over_eager']['gptft chunks'])}**"])
    head = ["head", *next(iter(result["summary"].values()))["seconds"], "time of the chunks over eager's, by round"]
    return results.markdown(head, rows)


if __name__ == "__main__":
    common.answer(work)
