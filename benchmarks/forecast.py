"""What to expect of 8 and of 64 GPUs: arithmetic on data sheets, and no measurement. Nothing here was run on a GPU.

A step of t tokens a GPU on a model of P parameters:

    compute    6 P t FLOP (2 forward, 4 backward; arXiv 2001.08361), at a share of the data sheet's rate
    ddp        an all-reduce of the gradients in fp32: 2 (N-1)/N 4P bytes a GPU
    fsdp       the weights gathered twice in bf16, the gradients scattered in fp32: (N-1)/N (2 + 2 + 4) P bytes a GPU
    memory     weights, gradients and AdamW's two moments in fp32: 16 P bytes, under fsdp 16 P / N; activations on top

Communication goes on beside the backward pass (and the next block's weights beside this one's products), so a step
takes between the longer of the two and their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import markdown


@dataclass(frozen=True)
class Cluster:
    """One of NVIDIA's DGX H100, by its data sheet: bf16 without sparsity, NVLink each way, a 400 Gb/s adapter a GPU."""

    flops: float = 989e12  # FLOP/s
    reached: float = 0.4  # of these, which well-made training loops report on such models
    memory: float = 80e9  # bytes
    nvlink: float = 450e9  # bytes a second each way, within a machine of 8
    network: float = 50e9  # bytes a second each way, between machines
    on_machine: int = 8


H100 = Cluster()
MODELS = {"1B": 1.24e9, "7B": 6.74e9}  # parameters, as Llama 3.2 1B and Llama 2 7B have them
TOKENS = 16_384  # of a step, on each GPU


@dataclass(frozen=True)
class Forecast:
    compute: float  # seconds of a step
    moved: float  # bytes a step and GPU
    talk: float  # seconds
    held: float  # bytes a GPU, without activations


def forecast(parameters: float, n: int, engine: str, cluster: Cluster = H100, tokens: int = TOKENS) -> Forecast:
    """The arithmetic above."""
    share = (n - 1) / n
    moved = share * parameters * (2 * 4 if engine == "ddp" else 2 + 2 + 4)
    held = 16 * parameters / (1 if engine == "ddp" else n)
    speed = cluster.nvlink if n <= cluster.on_machine else cluster.network
    return Forecast(6 * parameters * tokens / (cluster.flops * cluster.reached), moved, moved / speed, held)


def table() -> str:
    rows = []
    for name, parameters in MODELS.items():
        for n in (8, 64):
            for engine in ("ddp", "fsdp"):
                found = forecast(parameters, n, engine)
                fits = found.held < H100.memory
                best, worst = max(found.compute, found.talk), found.compute + found.talk
                rows.append(
                    [
                        name,
                        str(n),
                        engine,
                        f"{found.held / 1e9:.1f} GB" + ("" if fits else ": does not fit"),
                        f"{found.compute:.2f} s",
                        f"{found.moved / 1e9:.1f} GB, {found.talk:.2f} s",
                        f"{best:.2f} to {worst:.2f} s" if fits else "",
                        f"{n * TOKENS / worst / 1e3:,.0f} to {n * TOKENS / best / 1e3:,.0f}" if fits else "",
                    ]
                )
    heads = ["model", "GPUs", "", "held a GPU", "compute a step", "moved a GPU", "a step", "thousand tokens a second"]
    return markdown(heads, rows)
