"""A model that is read into the parts that the ranks hold of it, and is whole on none: what it then is, what it takes,
and that it trains as one process does. This file is also what ranks run: `torchrun test_streaming.py FOLDER TASKS`."""

import contextlib
import ctypes
import gc
import json
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torchrun import torchrun
from toys import toy_model

from gptft import checkpoint, finetune
from gptft.architecture import GPTConfig
from gptft.config import Config
from gptft.errors import UserError
from gptft.export.hf import export_hf
from gptft.export.llamacpp import export_gguf
from gptft.finetuning import load_start
from gptft.loading import load
from gptft.model import GPT
from gptft.parallel.launch import together
from gptft.parallel.ranks import local, whole
from gptft.parallel.streaming import identify
from gptft.parallel.wrap import is_sharded
from gptft.run import spread
from gptft.tokenizer import embedded

pytest.importorskip("safetensors")
pytest.importorskip("gguf")
CPU = torch.device("cpu")
PEAK = Path("/proc/self/clear_refs")
IDX = torch.arange(24).view(2, 12) * 7 % 90
SIZES = {"vocab_size": embedded().n_vocab, "block_size": 48, "n_layer": 2, "n_head": 4, "n_embd": 32}
NO_BIAS = {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
LLAMA = {"norm": "rms", "activation": "silu", "gated_mlp": True, "position": "rotary", "n_kv_head": 2, **NO_BIAS}
SHAPES = {  # 1281 ids and 53 channels are uneven for two
    "llama": {**LLAMA, "n_inner": 53},
    "gpt2": {"position": "learned"},
    "neox": {"activation": "gelu", "rope_fraction": 0.25, "parallel_residual": True, "tie_embeddings": False},
}
LARGE = {**SIZES, **LLAMA, "n_kv_head": 12, "n_layer": 10, "n_head": 12, "n_embd": 768, "n_inner": 2304}  # 271 MB
LORA = {"lora_rank": 4, "lora_targets": ("attn", "down"), "seed": 3}
HOLDS = {
    "full": {},
    "fp32": LORA,
    "bf16": {**LORA, "lora_base": "bf16"},
    "int8": {**LORA, "lora_base": "int8"},
    "dora": {**LORA, "lora_base": "int8", "lora_dora": True},
    "fp16": {**LORA, "lora_base": "bf16", "precision": "fp16"},
}
RUNS = {  # from what, how it is held, learning rate
    "full": ("llama", "full", 1e-3),
    "int8": ("gpt2", "int8", 1e-3),
    "spoilt": ("gpt2", "full", 3.0),
    "spoilt adapters": ("gpt2.gguf", "dora", 30.0),
}


def settings(path, held, **more):
    return {"data": ("x",), "init": str(path), "shard": "fsdp", "precision": "fp32"} | HOLDS[held] | more


# ---- what the ranks do


def compare(model, reference):
    """The names of tensors that differ by a bit, gathered."""
    theirs = dict(reference.state_dict()) | dict(reference.named_buffers())
    ours = dict(model.state_dict()) | dict(model.named_buffers())
    assert ours.keys() == theirs.keys() and all(t.dtype == theirs[name].dtype for name, t in ours.items())
    return [name for name, tensor in ours.items() if not torch.equal(whole(tensor.detach()), theirs[name])]


@torch.no_grad()
def spoil(model):
    """What is trained, as training leaves it: its parts changed, and what a pass has gathered of them still there."""
    model.reshard()
    for parameter in model.parameters():
        if parameter.requires_grad:
            local(parameter).add_(1.0)
    model.hidden(IDX)


def task_equal(folder):
    """Each model in each way to hold it, read in parts and read whole -> how the two differ."""
    found = {}
    with together(Config(data=("x",)), CPU) as ranks:
        for path in ("llama", "gpt2", "neox", "ours", "llama.gguf", "gpt2.gguf"):
            for held in HOLDS if path.startswith("llama") else ("full", "int8"):
                config = Config(**settings(folder / path, held))
                model, tokenizer = load_start(config, device=CPU)
                plain, _ = load_start(config)
                assert is_sharded(model) and not is_sharded(plain) and not model.training
                result = {
                    "numbers": (ranks.total(numbers_of(model))[0], numbers_of(plain)),
                    "differing": compare(model, plain),
                    "ids": (identify(model, tokenizer), identify(plain, tokenizer)),
                    "bases": [str(each.lora.base) for each in (model, plain)] if held != "full" else [],
                    "logits": difference_of_logits(model, plain),
                }
                spoil(model)
                assert spread.start_again(model, config)
                result |= {"differing again": compare(model, plain), "logits again": difference_of_logits(model, plain)}
                found[f"{path} {held}"] = result
        auto = Config(**settings(folder / "ours", "int8", shard="auto"))
        found["auto"] = [is_sharded(load_start(auto, device=CPU)[0])]
        spread.ROOM = 0.0  # no memory is free
        found["auto"] += [is_sharded(load_start(auto, device=CPU)[0])]
        if ranks.first:
            (folder / "equal.json").write_text(json.dumps(found))


def numbers_of(model):
    """How many this process holds; 8 bits are buffers in one process, and with torch 2.9."""
    return sum(local(parameter).numel() for parameter in model.parameters() if parameter.is_floating_point())


def difference_of_logits(model, reference):
    with torch.no_grad():
        theirs = reference(IDX)
        return ((model(IDX) - theirs).norm() / theirs.norm()).item()


def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))


def grown(make):
    """By how many bytes memory grew at the most while something was made."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be taken for room
    PEAK.write_text("5")  # it starts anew
    before = kilobytes("VmRSS:")
    made = make()
    assert made is not None
    return (kilobytes("VmHWM:") - before) * 1024


def task_memory(folder):
    """The share of the model's size in fp32 by which each rank grows, read in parts, and read whole and divided."""
    found = {}
    with together(Config(data=("x",)), CPU) as ranks:
        for path in ("llama", "large"):  # the first loads code of torch's
            for held in ("full", "int8"):
                config = Config(**settings(folder / path, held))
                size = sum(file.stat().st_size for file in (folder / path).glob("*.safetensors"))
                for how, device in (("in parts", CPU), ("whole", None)):
                    made = grown(lambda config=config, device=device: load_start(config, device=device))
                    found[f"{path} {held} {how}"] = [each / size for each in ranks.gather(made)]
        if ranks.first:
            (folder / "memory.json").write_text(json.dumps(found))


def task_train(folder):
    """A few short runs, by however many processes there are."""
    several = "RANK" in os.environ
    given = {"data": (str(folder / "data.jsonl"),), "device": "cpu", "shard": "fsdp" if several else "auto"}
    given |= {"batch_size": 1, "global_batch_size": 8, "eval_every": 2, "test_samples": 0}
    for name, (path, held, lr) in RUNS.items():
        out = str(folder / ("several" if several else "one") / name)
        steps = 2 if "spoilt" in name else 4
        finetune(**settings(folder / path, held, out_dir=out, lr=lr, warmup_steps=0, max_steps=steps, **given))


TASKS = {"equal": task_equal, "memory": task_memory, "train": task_train}


# ---- what they are held to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model of each shape, in every kind of file that holds whole models."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), embedded()
    llama, gpt2, neox = (toy_model(torch.float32, seed, **SIZES | SHAPES[name]) for seed, name in enumerate(SHAPES))
    export_hf(llama, tokenizer, folder / "llama")
    export_hf(gpt2, tokenizer, folder / "gpt2")  # transposed, and q, k and v in one
    export_hf(neox, tokenizer, folder / "neox", dtype=torch.bfloat16)  # q, k and v in one, head by head
    checkpoint.save(folder / "ours", llama, tokenizer, 1)
    export_gguf(llama, tokenizer, folder / "llama.gguf", "q8_0")  # rows of q and k as neighbours
    export_gguf(gpt2, tokenizer, folder / "gpt2.gguf", "fp16")
    return folder


def do(folder, *tasks):
    status, said = torchrun(2, __file__, folder, *tasks)
    assert status == 0, said
    return said


@pytest.fixture(scope="module")
def found(folder):
    """What two ranks found of these models, of one that is larger, and what they said."""
    export_hf(GPT.create(GPTConfig(**LARGE)), embedded(), folder / "large")
    tasks = ("memory", "equal") if PEAK.exists() else ("equal",)
    said = do(folder, *tasks)
    return {task: json.loads((folder / f"{task}.json").read_text()) for task in tasks} | {"said": said}


def test_what_is_read_in_parts_is_what_is_read_whole(found):
    """To the bit, every tensor, gathered: rows put a row too far where they are uneven; a scale, a length of DoRA's or
    a part of q, k and v that only one rank knows; A drawn anew on each rank. Base and start are known by the ids that
    one process gives them, and when nothing better was found training ends at that start, not at what a pass had
    gathered before. With --shard auto it is decided before the model takes any memory."""
    assert found["equal"].pop("auto") == [False, True] and "(whole it takes" in found["said"]
    assert len(found["equal"]) == 20
    for name, result in found["equal"].items():
        assert result["differing"] == result["differing again"] == [], name
        assert result["ids"][0] == result["ids"][1] and len(set(result["bases"])) <= 1, name
        assert result["logits"] < 1e-6 and result["logits again"] < 1e-6, name
        assert result["numbers"][0] == result["numbers"][1], f"{name}: the ranks together hold more than one model"


@pytest.mark.skipif(not PEAK.exists(), reason="the peak of memory is read from Linux's /proc")
def test_a_rank_takes_the_memory_of_its_part(found):
    """Every rank once held the whole model on the CPU, and cut it then: eight ranks of a 7B took 224 GB of their host.
    Shares of the model in fp32, 271 MB; 8 bits shared by two are an eighth, and a quarter with torch 2.9, which cannot
    share them; hashing takes 40 MB at a time."""
    found = found["memory"]
    assert max(found["large full in parts"]) < 0.6 < 0.95 < min(found["large full whole"]), found
    assert max(found["large int8 in parts"]) < 0.45 < 0.95 < min(found["large int8 whole"]), found


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_numbers_beyond_fp16_are_refused_as_they_are_read(tmp_path, where):
    """No model is there to be looked over before it is frozen, and as infinities they would make every loss a nan."""
    model = toy_model(torch.float32, **SIZES | SHAPES["gpt2"])
    with torch.no_grad():
        getattr(model.blocks[1].attn.k, where)[-1] = 7e4
    export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    with pytest.raises(UserError, match=r"^blocks.1.attn.k holds numbers beyond fp16's 65504"):
        load(tmp_path / "m.gguf", freeze="fp16")
    assert load(tmp_path / "m.gguf", freeze="int8")


def test_training_has_the_losses_of_one_process(folder, pairs):
    """Also from a base in 8 bits. Where no step was better, the model in `best` is the start: read again in parts, it
    once came with every rank loading all of it, on top of optimizer state."""
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pairs(40)))
    task_train(folder)
    said = do(folder, "train")
    assert said.count("fsdp: each holds a part of every tensor") == len(RUNS) and "has loaded" not in said
    for name, (path, held, _) in RUNS.items():
        one, several = (folder / who / name for who in ("one", "several"))
        metrics = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (one, several)]
        summaries = [json.loads((run / "summary.json").read_text()) for run in (one, several)]
        assert summaries[0]["best_step"] == summaries[1]["best_step"] == (0 if "spoilt" in name else 4)
        if "spoilt" in name:
            assert summaries[0]["model_id"] == summaries[1]["model_id"], (path, held)
            assert summaries[0]["test_loss"] == pytest.approx(summaries[1]["test_loss"], rel=1e-5)
            continue
        for a, b in zip(*metrics, strict=True):
            for key in {"loss", "eval_loss"} & a.keys():
                assert b[key] == pytest.approx(a[key], rel=1e-5), (name, a, b)
        assert all(summaries[0][key] == summaries[1][key] for key in ("parameters", "trainable_parameters"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        TASKS[name](Path(sys.argv[1]))
