"""Every setting, its unit and its default. Values come from the defaults, then a TOML file, then the command line.

What a value may be, and how text becomes one, is in `gptft/settings/`. Nothing here or there imports torch, so
`python train.py --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field

from gptft.errors import UserError, hint
from gptft.files import resource
from gptft.settings.checks import check
from gptft.settings.toml import read_toml, toml_value
from gptft.settings.values import coerce


def setting(default, doc: str, choices: tuple[str, ...] = ()):
    """A config field: its default, one sentence with the unit, and the legal words where there are few."""
    metadata = {"doc": doc, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Every optimizer that can be asked for, and what torch.optim calls it; optim.py hands it the settings that were given.
OPTIMIZERS = {"adamw": "AdamW", "adafactor": "Adafactor"}


@dataclass
class Config:
    """One training run. See `python train.py --help` for the same list."""

    # what is trained
    init: str = setting(
        "gpt2",
        "what to start from: a hub id, a local Hugging Face directory, a GGUF file, a checkpoint of gptft, "
        "or 'tiny' (from scratch, embedded vocabulary)",
    )
    out_dir: str = setting("", "folder of the run; empty: checkpoints/<init>-<data>, numbered if it exists")
    resume: bool = setting(False, "go on from the newest valid checkpoint in out_dir")
    seed: int = setting(123, "seed of the split, the order, dropout and initialisation")

    # data
    data: tuple[str, ...] = setting(
        (),
        "training files: .json, .jsonl, .csv, .tsv, .parquet or .txt, also as .gz, .bz2 or .zst, folders of them, or "
        "data sets of the hub as hf:NAME[@REVISION][:CONFIG[:SPLIT]]; several may be given",
    )
    val_data: tuple[str, ...] = setting((), "validation files; given, val_fraction is not used")
    test_data: tuple[str, ...] = setting((), "test files; given, test_fraction is not used")
    val_fraction: float = setting(0.05, "share of the training files held out for validation, 0 to 1")
    test_fraction: float = setting(0.1, "share of the training files held out for the test, 0 to 1")
    data_fraction: float = setting(
        1.0,
        "share of the training split that is trained on, above 0 up to 1, by the seed; a smaller one lies in a larger",
    )
    stream: bool = setting(
        False,
        "read the data as a stream, for corpora: tokens are made beside the training, a shard at a time; needs "
        "max_steps, and test_data for a test",
    )
    mix: tuple[float, ...] = setting(
        (),
        "with stream: the share of the tokens that each word of data is to have, as 0.7 0.3; none: one after the other",
    )
    shard_tokens: int = setting(4_000_000, "with stream: tokens of a shard, which are made and shuffled together")
    fields: dict[str, str] = setting(
        {}, "which key of a record plays which part: instruction=KEY input=KEY response=KEY text=KEY"
    )
    template: str = setting(
        "auto",
        "prompt template: alpaca, qa, phi3, llama2, chatml, plain, or a TOML file; auto: the checkpoint's own, else by "
        "the keys of all records: chatml for messages, plain for text, qa for question/answer, else alpaca",
    )
    thinking: str = setting(
        "auto",
        "reasoning in the answers, under a model's own chat template: keep trains it, strip takes it away, mask shows "
        "it untrained; auto: as the checkpoint was trained, else keep",
        ("auto", "keep", "strip", "mask"),
    )
    mask_prompt: bool = setting(True, "score responses only; false scores the prompt's tokens too")
    max_length: int = setting(0, "longest example, prompt and response, tokens; 0: block_size, at most 1024")
    truncation: str = setting(
        "right",
        "what to do with longer examples: cut the response's end, cut the prompt's start, or drop",
        ("right", "left", "drop"),
    )
    bad_records: str = setting("stop", "records that cannot be used: stop before training, or drop", ("stop", "drop"))

    # how long
    epochs: float = setting(1.0, "passes over the training split; fractions are allowed")
    max_steps: int = setting(0, "optimizer steps; above 0 it overrides epochs")
    batch_size: int = setting(8, "examples a micro-batch; of several processes, in the mean")
    grad_accum: int = setting(1, "micro-batches a step and process; one normalisation over all their targets")
    global_batch_size: int = setting(
        0,
        "examples a step over all processes, a multiple of batch_size times their number; given, grad_accum follows; "
        "0: batch_size x grad_accum x processes",
    )
    batching: str = setting(
        "length",
        "how examples are grouped: of like length (little padding) or at random",
        ("length", "random"),
    )

    # optimisation
    optimizer: str = setting("adamw", "how weights are moved; decay is on matrices only", tuple(OPTIMIZERS))
    lr: float = setting(5e-5, "peak learning rate")
    min_lr: float = setting(0.0, "learning rate at the schedule's end")
    warmup_steps: int = setting(10, "steps of linear warm-up, at most half of the run")
    schedule: str = setting("cosine", "shape after the warm-up", ("cosine", "linear", "constant"))
    weight_decay: float = setting(0.1, "decoupled weight decay, matrices only")
    betas: tuple[float, ...] = setting((), "the moments' two decay rates; none: the optimizer's own (AdamW 0.9 0.999)")
    eps: float = setting(0.0, "what keeps the optimizer from dividing by 0; 0: its own (AdamW 1e-8)")
    grad_clip: float = setting(1.0, "largest gradient norm; 0: no clipping")
    dropout: float = setting(0.0, "dropout probability while training, 0 to 1")

    # adapters
    lora_rank: int = setting(
        0,
        "rank of low-rank adapters (LoRA), all that is trained then, with an lr of 2e-4 to 1e-3; 0: all weights",
    )
    lora_alpha: float = setting(16.0, "strength of the adapters: their product is scaled by alpha / rank")
    lora_targets: tuple[str, ...] = setting(
        ("attn", "mlp"),
        "which linear layers get one: all four of attn, all of mlp, or single ones, as in q,v",
        ("all", "attn", "mlp", "q", "k", "v", "out", "gate", "up", "down"),
    )
    lora_rslora: bool = setting(False, "scale by alpha / sqrt(rank) instead, so that high ranks keep learning (rsLoRA)")
    lora_dropout: float = setting(0.0, "dropout probability on what the adapters read, 0 to 1")
    lora_dora: bool = setting(False, "train each row's magnitude apart from its direction (DoRA)")
    lora_base: str = setting(
        "fp32",
        "how the frozen linear layers are held in memory while training (bf16 is fp16 where --precision is fp16); the "
        "run's own figures are measured so",
        ("fp32", "bf16", "int8"),
    )

    # evaluation
    eval_every: int = setting(0, "steps between evaluations; 0: ten times a run")
    eval_batch_size: int = setting(16, "examples a batch in evaluation; the result does not depend on it")
    patience: int = setting(0, "evaluations without improvement before an early stop; 0: never")
    best_by: str = setting("loss", "what makes a checkpoint the best: loss, or a metric of answers: token_f1, ...")
    test_samples: int = setting(
        100,
        "test records answered before and after training, but for those whose prompt leaves no room for the response, "
        "which are named and left out of the score; 0: none",
    )
    max_new_tokens: int = setting(100, "longest generated response, tokens")

    # checkpoints and logging
    save_every: int = setting(500, "steps between resumable checkpoints; 0: only at the end")
    keep: int = setting(1, "how many step-NNNNNN checkpoints are kept")
    log_every: int = setting(1, "steps between lines in metrics.jsonl")
    loggers: tuple[str, ...] = setting((), "what else gets the metrics, in the run's folder", ("tensorboard",))

    # the machine
    device: str = setting("auto", "auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps")
    threads: int = setting(0, "CPU threads; 0: torch's own choice")
    precision: str = setting(
        "auto",
        "auto: bf16 where the hardware has it, else fp16 on CUDA, fp32 on CPU; weights stay in fp32",
        ("auto", "fp32", "bf16", "fp16"),
    )
    keep_memory: str = setting(
        "auto",
        "CPU on Linux: keep freed memory instead of giving it back; auto: where there is plenty",
        ("auto", "on", "off"),
    )
    fast: str = setting(
        "auto", "faster ways to the same gradient: auto, those that pay on this machine; off, none", ("auto", "off")
    )
    packing: str = setting(
        "auto",
        "the tokens of a micro-batch behind one another, without padding: auto, where that saves a tenth of them; "
        "flex: on CUDA, with one call of flex attention for all examples",
        ("auto", "on", "flex", "off"),
    )
    share_prefix: str = setting(
        "auto",
        "compute the tokens that the examples of a micro-batch begin with alike once for all; needs dropout 0",
        ("auto", "on", "off"),
    )
    copies: str = setting(
        "auto",
        "in bf16, let the linear layers compute with copies of their weights, which the optimizer's step renews; those "
        "of frozen weights are made once",
        ("auto", "on", "off"),
    )
    chunk_head: str = setting(
        "auto",
        "compute the head and the loss some rows at a time, so that the logits of a micro-batch never exist whole",
        ("auto", "on", "off"),
    )
    windows: str = setting(
        "auto",
        "compute sliding windows block by block, on the keys that they reach, in rows of 512 tokens and more",
        ("auto", "on", "off"),
    )
    compile: bool = setting(False, "compile the blocks with torch.compile")
    checkpoint_activations: bool = setting(False, "recompute activations in backward: less memory, more time")
    shard: str = setting(
        "auto",
        "of several processes (torchrun), what each holds: ddp, the whole model; fsdp, a part of every tensor; auto: "
        "ddp where that fits",
        ("auto", "ddp", "fsdp"),
    )
    stall_timeout: float = setting(
        10.0, "of several processes, minutes without a sign of life after which one is given up and named; 0: never"
    )


FIELDS = {f.name: f for f in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)

# the headings of --help, each by the first field under it; they stand as comments in Config too
HEADINGS = {
    "init": "what is trained",
    "data": "data",
    "epochs": "how long",
    "optimizer": "optimisation",
    "lora_rank": "adapters",
    "eval_every": "evaluation",
    "save_every": "checkpoints and logging",
    "device": "the machine",
}


def fields_by_heading() -> dict[str, list[str]]:
    """{heading: the fields under it}, in the order of Config."""
    groups: dict[str, list[str]] = {}
    for name in FIELDS:
        if name in HEADINGS:
            groups[HEADINGS[name]] = names = []
        names.append(name)
    return groups


def check_names(values: dict, where: str) -> dict:
    """Coerce every value; an unknown key is refused with the nearest valid one."""
    for key in values:
        if key not in FIELDS:
            raise UserError(f"{where}: unknown key {key!r}{hint(key, FIELDS)}")
    return {key: coerce(key, TYPES[key], as_word(key, value), f"{where}: {key}") for key, value in values.items()}


def as_word(key: str, value):
    """True and false, of a field that is on or off or auto, as the word."""
    if "on" not in FIELDS[key].metadata["choices"] or not isinstance(value, bool | str):
        return value
    return {True: "on", False: "off", "true": "on", "false": "off"}.get(value, value)


def resolve(config_path: str = "", given: dict | None = None) -> Config:
    """defaults <- file <- given; then every value is checked."""
    values = check_names(read_toml(config_path), config_path) if config_path else {}
    values.update(check_names(given or {}, "settings"))
    return check(Config(**values))


def to_toml(config: Config, leave_out: tuple[str, ...] = ("out_dir", "resume", "shard")) -> str:
    """The whole configuration, comments included, so that `--config` on it repeats the run."""
    lines = []
    for name, item in FIELDS.items():
        if name not in leave_out:
            lines += [f"# {item.metadata['doc']}", f"{name} = {toml_value(getattr(config, name))}", ""]
    return "\n".join(lines)


def shipped(name: str) -> str:
    """Path of a config that gptft carries, such as `pretrain.toml`."""
    return str(resource(f"configs/{name}"))
