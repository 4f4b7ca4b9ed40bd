"""Weights from Hugging Face's layout, compared with transformers on the same weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hf_models import hf_gpt2
from toys import difference

from gptft import checkpoint
from gptft.errors import UserError
from gptft.formats.hf import load_hf
from gptft.loading import load

transformers = pytest.importorskip("transformers")


# fp64 leaves only the order of summation; fp32 at toy size stays near its rounding of 6e-8 times the depth
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"activation_function": "gelu"}, {"n_inner": 52, "layer_norm_epsilon": 1e-3}],
    ids=["gpt2", "untied", "exact_gelu", "inner"],
)
def test_logits_hidden_states_and_gradients_equal_transformers(tmp_path, dtype, limit, changes):
    """An exact-GELU or a wrong epsilon would be off by 1e-3, a transposed weight by far more."""
    theirs = hf_gpt2(tmp_path, dtype, **changes)
    ours = load_hf(tmp_path, dtype)
    idx = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(1))
    out = theirs(idx, output_hidden_states=True)
    assert difference(ours(idx), out.logits) < limit
    assert difference(ours.hidden(idx), out.hidden_states[-1]) < limit
    weight = torch.randn(out.logits.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    (out.logits * weight).sum().backward()
    (ours(idx) * weight).sum().backward()
    assert difference(ours.tok.weight.grad, theirs.transformer.wte.weight.grad) < limit
    assert difference(ours.pos.weight.grad[:40], theirs.transformer.wpe.weight.grad[:40]) < limit
    fused = theirs.transformer.h[1].attn.c_attn.weight.grad
    q = ours.blocks[1].attn
    assert difference(torch.cat([q.q.weight.grad, q.k.weight.grad, q.v.weight.grad]).T, fused) < limit


@pytest.mark.slow
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_gpt2_at_full_size_equals_transformers(tmp_path, dtype, limit):
    """The real architecture, 124M parameters, random weights."""
    theirs = hf_gpt2(tmp_path, dtype, vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    ours = load_hf(tmp_path, dtype)
    idx = torch.randint(0, 50257, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(ours(idx), theirs(idx).logits) < limit


@pytest.mark.parametrize("form", ["sharded", "bin", "old_bin", "bare", "prefixed"])
def test_every_form_of_the_files_loads(tmp_path, form):
    """Shards, pytorch_model.bin, names without `transformer.` as on the hub, and wrappers' prefixes."""
    theirs = hf_gpt2(tmp_path)
    if form == "sharded":
        (tmp_path / "model.safetensors").unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="40KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
    elif form.endswith("bin"):
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    else:
        from safetensors.torch import save_file

        state = {
            name.removeprefix("transformer."): t.contiguous() for name, t in theirs.transformer.state_dict().items()
        }
        state |= {f"h.{n}.attn.bias": torch.ones(1, 1, 48, 48) for n in range(3)}  # old files hold the causal mask
        if form == "prefixed":
            state = {f"_orig_mod.transformer.{name}": t for name, t in state.items()}
        save_file(state, tmp_path / "model.safetensors")
    idx = torch.arange(20)[None]
    assert difference(load_hf(tmp_path, torch.float32)(idx), theirs(idx).logits) < 1e-5


def rewrite(tmp_path, change):
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("transformer.h.1.mlp.c_fc.weight"), "the tensor 'transformer.h.1.mlp.c_fc.weight' is missing"),
        (lambda s: s.update(extra=torch.ones(2)), "unexpected tensor 'extra'"),
        (
            lambda s: s.update({"transformer.ln_f.bias": torch.ones(5)}),
            r"tensor 'transformer.ln_f.bias' has shape \(5,\)",
        ),
        (
            lambda s: s.update({"transformer.h.0.attn.c_attn.bias": torch.ones(90)}),
            r"'transformer.h.0.attn.c_attn.bias' has shape \(90,\)",
        ),
        (
            lambda s: s.update({"lm_head.weight": torch.ones(97, 32)}),
            "tie_word_embeddings is true, yet lm_head.weight differs",
        ),
    ],
    ids=["missing", "extra", "misshapen", "misshapen_qkv", "untied_head"],
)
def test_a_wrong_tensor_fails_by_name(tmp_path, change, message):
    """One project ran from random weights because names did not match and nobody looked."""
    hf_gpt2(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(UserError, match=message):
        load_hf(tmp_path, torch.float32)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    """Whichever was read last would have won without a word."""
    hf_gpt2(tmp_path)
    rewrite(tmp_path, lambda s: s.update({"_orig_mod.transformer.ln_f.bias": torch.ones(32)}))
    with pytest.raises(UserError, match=r"is there twice, also as '(_orig_mod\.)?transformer.ln_f.bias'"):
        load_hf(tmp_path, torch.float32)


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/tmp/model.safetensors", 5, None, ["a"]])
def test_an_index_names_files_of_its_own_directory(tmp_path, file):
    """A downloaded index must not read elsewhere."""
    hf_gpt2(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is no file of this directory"):
        load_hf(tmp_path, torch.float32)


@pytest.mark.parametrize(
    "values, message",
    [
        ({5: torch.ones(2)}, "something else than tensors by name"),
        ({"a": torch.ones(2, device="meta")}, "something else than tensors by name"),
        ([torch.ones(2)], "something else than tensors by name"),
        (
            {"wte.weight": torch.ones(97, 32, dtype=torch.complex64)},
            "is of type torch.complex64, which is not supported",
        ),
        ({"wte.weight": torch.ones(97, 32, dtype=torch.int64)}, "is of type torch.int64, which is not supported"),
    ],
)
def test_a_bin_of_other_things_is_refused(tmp_path, values, message):
    hf_gpt2(tmp_path, n_layer=1)
    (tmp_path / "model.safetensors").unlink()
    torch.save(values, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "config.json").read_text()), "n_layer": 1})
    )
    with pytest.raises(UserError, match=message):
        load_hf(tmp_path, torch.float32)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model_type", "mamba", "model_type = 'mamba' is not supported"),
        ("activation_function", "relu", "activation_function = 'relu' is not supported"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx = True is not supported"),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path, key, value, message):
    """What is not computed is refused, naming key and value; it is never approximated."""
    hf_gpt2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_hf(tmp_path, torch.float32)


def test_broken_files_are_named(tmp_path):
    """A truncated safetensors file, an absent shard, and a pickle with code in it."""
    hf_gpt2(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: not a whole safetensors file"):
        load_hf(tmp_path, torch.float32)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "absent.safetensors"}}')
    with pytest.raises(UserError, match=r"the shard 'absent\.safetensors', named in the index, is absent"):
        load_hf(tmp_path, torch.float32)
    (tmp_path / "model.safetensors.index.json").unlink()
    torch.save({"wte.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: cannot be loaded as weights"):
        load_hf(tmp_path, torch.float32)


def write_gpt2_vocabulary(directory):
    """GPT-2's vocab.json and merges.txt, written from tiktoken's ranks."""
    import tiktoken

    ranks = tiktoken.get_encoding("r50k_base")._mergeable_ranks
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in printable)}
    spelled = {token: "".join(characters[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | {"<|endoftext|>": 50256}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1])[256:]:
        # the last merge that made a token is the split whose parts came earliest
        cuts = [(token[:n], token[n:]) for n in range(1, len(token)) if token[:n] in ranks and token[n:] in ranks]
        left, _ = min(
            (cut for cut in cuts if max(map(ranks.get, cut)) < rank), key=lambda cut: max(map(ranks.get, cut))
        )
        n = len(left)
        merges.append(f"{spelled[token[:n]]} {spelled[token[n:]]}")
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


class Evil:
    """A pickle that runs a call when it is loaded."""

    def __reduce__(self):
        return (print, ("a checkpoint ran code",))


def test_generation_gives_transformers_greedy_ids(tmp_path):
    """Cached greedy ids in fp64 equal those of transformers' generate."""
    from gptft.decoding import decode

    theirs, ours = hf_gpt2(tmp_path, torch.float64), load_hf(tmp_path, torch.float64)
    prompt = [5, 17, 3, 88]
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=96, pad_token_id=0
    )[0, 4:].tolist()
    got = [pairs[0][1] for pairs in decode(ours, [prompt], 20, {96}, 97)]
    assert got == [i for i in expected if i != 96]


def test_load_takes_a_directory_with_gpt2s_own_vocabulary_files(tmp_path, shared):
    """`gptft.load` of a local directory: the model and GPT-2's tokenizer, without a network."""
    hf_gpt2(tmp_path, vocab_size=50257)
    model, tokenizer = load(tmp_path)
    assert tokenizer.encode("Hello world") == [15496, 995] and not model.training
    assert model.config.vocab_size == tokenizer.n_vocab == 50257


def test_a_directory_without_a_tokenizer_gives_none(tmp_path):
    """A model of another vocabulary size and no files of its own: no tokenizer is made up for it."""
    hf_gpt2(tmp_path, vocab_size=1000)
    model, tokenizer = load(tmp_path)
    assert tokenizer is None and model.config.vocab_size == 1000


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, shared):
    hf_gpt2(tmp_path, vocab_size=1000)
    write_gpt2_vocabulary(tmp_path)
    with pytest.raises(UserError, match="its tokenizer has 50257 ids, more than the 1000 rows"):
        load(tmp_path)


def test_a_hub_id_loads_from_the_hubs_cache_without_a_network(tmp_path):
    """By hub id, through huggingface_hub: here from its cache, laid out as a download leaves it."""
    snapshot = tmp_path / "hub" / "models--someone--toy-gpt2" / "snapshots" / ("0" * 40)
    theirs = hf_gpt2(snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    code = (
        "import gptft, torch; model, tokenizer = gptft.load('someone/toy-gpt2'); "
        "torch.save(model(torch.arange(20)[None]).detach(), 'logits.pt')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert difference(logits, theirs(torch.arange(20)[None]).logits) < 1e-5


PYTHIA_70M = {
    "vocab_size": 50304,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "stored, wanted, form",
    [
        ("float32", "float32", "safetensors"),
        ("float16", "float32", "safetensors"),
        ("float32", "bfloat16", "safetensors"),
        ("float32", "bfloat16", "bin"),
        ("float32", "bfloat16", "gptft"),
    ],
)
def test_loading_takes_the_memory_of_the_model_and_no_more(tmp_path, stored, wanted, form):
    """A checkpoint that is read whole, or converted whole, takes twice the model or more: a 7B in bf16 would not load
    where it fits. At Pythia-70m's real size, whose embedding alone is a third of it."""
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**PYTHIA_70M)).to(getattr(torch, stored))
    if form == "bin":
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path, max_shard_size="150MB")
    if form == "gptft":  # a checkpoint of ours, made of it
        checkpoint.save(tmp_path / "ours", *load(tmp_path), step=0)
        tmp_path = tmp_path / "ours"
    code = f"""
import sys, threading, torch
from gptft.loading import (load)

def anonymous():  # what is mapped of a file can be dropped by the kernel at any time, and it keeps more or less of it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:"))

import safetensors
from gptft.architecture import GPTConfig
from gptft.model import GPT
with torch.device("meta"):
    GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=1, n_embd=8))  # loads code of torch's, 75 MB of it
before, peak, done = anonymous(), 0, threading.Event()

def sample():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

sampler = threading.Thread(target=sample)
sampler.start()
model, _ = load({str(tmp_path)!r}, dtype=torch.{wanted})
done.set()
sampler.join()
size = sum(p.numel() * p.element_size() for p in model.parameters())
assert all(p.dtype == torch.{wanted} for p in model.parameters())
print((max(peak, anonymous()) - before) * 1024 / size)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.1  # 1.00 to 1.03 seen, with one tensor on its way
