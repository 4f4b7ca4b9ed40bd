"""Models in GGUF files: read back from what is written here, held to transformers opening the same file, and whatever a
stranger's file may do."""

import os
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import hf_families as families
import numpy as np
import pytest
import torch
from gguf_models import CASES, V
from toys import toy_model

import gptft.formats.gguf
import gptft.formats.gguf_tokenizer
from gptft import checkpoint
from gptft.adapters.frozen import freeze_layers_as, is_frozen
from gptft.adapters.lora import LoraConfig, add_lora, merge_lora
from gptft.architecture import GPTConfig
from gptft.checkpoint import model_id
from gptft.errors import UserError
from gptft.export.hf import export_hf
from gptft.export.llamacpp import KINDS, export_gguf
from gptft.formats.gguf_file import read_gguf
from gptft.formats.hf_tokenizer import read_hf_tokenizer
from gptft.generation import prompt_ids
from gptft.loading import base_of, load
from gptft.model import GPT
from gptft.prompts import TEMPLATES
from gptft.text.chat import ChatTemplate
from gptft.tokenizer import Tokenizer, embedded

gguf = pytest.importorskip("gguf")
ROOT = Path(__file__).resolve().parents[2]

# transformers opens GGUF files of these; some sizes it does not read off the file, but takes for granted
GPT2_SIZES = {"vocab_size": 50257, "block_size": 1024}
THEIRS = {
    "gpt2": GPT2_SIZES,
    "gpt2-untied": {**GPT2_SIZES, "n_inner": 256},
    "llama2": {},
    "llama3-grouped": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_size": 128},
}


def make(case, **changes):
    return toy_model(torch.float32, **{**CASES[case][1], **changes})


def rewritten(source, target, changes, more=()):
    """The same file with other settings, and with more tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", *changes):
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])
    for name, value in changes.items():
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, str: writer.add_string}
        add[list] = writer.add_array
        add[type(value)](name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, value in dict(more).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits_of(model):
    idx = torch.randint(0, V, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(idx)


@pytest.fixture
def as_strangers(monkeypatch):
    """Files as others write them: what gptft says of itself in them is not looked for."""
    monkeypatch.setattr(gptft.formats.gguf, "OWN_CONFIG", "nothing.there")
    monkeypatch.setattr(gptft.formats.gguf_tokenizer, "OWN", "nothing.there")


@pytest.mark.parametrize("case", CASES)
def test_our_own_file_gives_the_model_back_bit_for_bit(case, tmp_path):
    model = make(case)
    export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    again, tokenizer = load(tmp_path / "m.gguf")
    assert tokenizer is None and again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model_id(again, None) == model_id(model, None)


@pytest.mark.parametrize("case", [case for case in CASES if case != "llama3.2-scaled"])
def test_the_architecture_is_read_off_the_settings_of_llama_cpp(case, tmp_path, as_strangers):
    """A wrong epsilon, base of the rotary frequencies or order of the rows shows in the logits."""
    model = make(case)
    export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    again, _ = load(tmp_path / "m.gguf")
    assert again.config.activation == ("gelu" if "neox" in case or case == "pythia" else model.config.activation)
    if again.config.activation == model.config.activation:
        assert torch.equal(logits_of(again), logits_of(model))
    again = dict(again.named_parameters())  # llama.cpp's gptneox has biases always, zeros perhaps
    assert all(torch.equal(parameter, again[name]) for name, parameter in model.named_parameters())


def test_the_stretching_of_llama_3_is_found_from_its_outcome(tmp_path, as_strangers):
    """The file holds by how much each pair of channels is slowed, and not the numbers that this was made from."""
    settings = CASES["llama3.2-scaled"][1]
    model = toy_model(torch.float32, **{**settings, "rope_theta": 500000.0, "rope_original": 8192, "head_size": 64})
    export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    again, _ = load(tmp_path / "m.gguf")
    assert (again.config.rope_factor, again.config.rope_original) == (8.0, 8192)
    assert torch.equal(logits_of(again), logits_of(model))
    odd = make("llama3.2-scaled")  # 32 tokens stretched: no model's numbers
    export_gguf(odd, None, tmp_path / "odd.gguf", "fp32")
    with pytest.raises(UserError, match="stretches the rotary frequencies in a way that is not known"):
        load(tmp_path / "odd.gguf")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", THEIRS)
def test_logits_are_those_of_transformers_opening_the_same_file(case, kind, tmp_path, as_strangers):
    """In fp32 the weights have the same bits, for one package dequantises for both."""
    transformers = pytest.importorskip("transformers")
    export_gguf(make(case, **THEIRS[case]), None, tmp_path / "m.gguf", kind)
    ours, _ = load(tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    state = theirs.state_dict()
    ((name, place),) = [(n, p) for n, p in state.items() if n.endswith(("embed_tokens.weight", "wte.weight"))]
    assert torch.equal(place, ours.tok.weight), name
    idx = torch.randint(0, V, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(idx).logits
        assert torch.linalg.norm(ours(idx) - expected) <= 1e-6 * torch.linalg.norm(expected)  # fp32, other kernels


@pytest.mark.parametrize("name", [q.name for q in gguf.quants._type_traits])
def test_every_type_of_the_package_is_read_by_rows_as_it_is_read_whole(name, tmp_path):
    """From random bytes: half of a block would show. What some types make of such bytes is no number: compared too."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 4 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "t.gguf")
    stored = file.tensors["t"]
    with np.errstate(all="ignore"):
        whole = torch.from_numpy(gguf.quants.dequantize(raw, kind))
        assert stored.shape == tuple(whole.shape) == (6, 4 * block) and file.types["t"] == name
        for start, stop in ((0, 6), (0, 1), (2, 5), (5, 6)):
            torch.testing.assert_close(stored.read(start, stop), whole[start:stop], rtol=0, atol=0, equal_nan=True)


def test_weights_come_in_the_dtype_that_is_asked_for_and_a_stored_copy_of_the_embedding_is_tied(tmp_path, as_strangers):
    """Files of GPT-2 hold the embedding twice: untied, a run would train the two apart."""
    model = make("gpt2")
    export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    rewritten(tmp_path / "m.gguf", tmp_path / "twice.gguf", {}, {"output.weight": model.tok.weight.detach().numpy()})
    again, _ = load(tmp_path / "twice.gguf", dtype=torch.bfloat16)
    assert again.config.tie_embeddings and again.tok.weight.dtype == torch.bfloat16
    assert torch.equal(again.tok.weight, model.tok.weight.bfloat16())


@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize("case", ["llama3-grouped", "pythia", "qwen2"])
def test_a_base_that_is_frozen_as_it_is_read_is_that_which_is_frozen_afterwards(case, kind, tmp_path):
    """... and it is known by the same ids, those of the weights in the file."""
    export_gguf(make(case), None, tmp_path / "m.gguf", "q8_0")
    late, _ = load(tmp_path / "m.gguf")
    ids = base_of(late, None, str(tmp_path / "m.gguf")).model_id
    freeze_layers_as(late, kind)
    soon, _ = load(tmp_path / "m.gguf", freeze=kind)
    assert is_frozen(soon) and base_of(soon, None, str(tmp_path / "m.gguf")).model_id == ids
    freeze_layers_as(soon, kind)  # once more changes nothing
    assert all(torch.equal(a, b) for a, b in zip(late.state_dict().values(), soon.state_dict().values(), strict=True))
    assert torch.equal(logits_of(late), logits_of(soon))


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_rounded_layers_are_never_taken_for_the_model(kind, tmp_path):
    """They lie in buffers, or in fewer bits: an export lacked them, and a merge folded their error in for good."""
    export_gguf(make("llama2"), None, tmp_path / "m.gguf", "fp32")
    model, _ = load(tmp_path / "m.gguf", freeze=kind)
    for write in (
        lambda: export_gguf(model, None, tmp_path / "out.gguf", "fp32"),
        lambda: export_hf(model, None, tmp_path / "out"),
        lambda: checkpoint.save(tmp_path / "out", model, None, 0),
    ):
        with pytest.raises(UserError, match="held in fewer bits"):
            write()
    with pytest.raises(UserError, match="adapters are merged into exact weights"):
        merge_lora(add_lora(model, LoraConfig(rank=2)))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


MEMORY = """
import sys, torch
from gptft.loading import load
torch.set_num_threads(1)
import gguf, numpy  # what is there before the model
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
model, _ = load(sys.argv[1], freeze=sys.argv[2])
held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
print(peak() - before, held)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of memory")
@pytest.mark.parametrize("freeze", ["fp32", "int8"])
def test_memory_at_the_peak_is_the_model_as_it_is_held(freeze, tmp_path):
    """... and in 8 bits no more than two blocks at full width on top of it: a 7B must not be there in fp32."""
    sizes = {"vocab_size": 512, "n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 12}
    model = toy_model(torch.float32, **{**CASES["llama2"][1], **sizes})
    export_gguf(model, None, tmp_path / "m.gguf", "q8_0")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "m.gguf", freeze],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # as it is anyway for the matrices of large models
    )
    assert done.returncode == 0, done.stderr
    peak, held = map(int, done.stdout.split())
    a_block = sum(p.numel() * p.element_size() for p in model.blocks[0].parameters())
    assert peak <= (1.15 * held if freeze == "fp32" else held + 2 * a_block), (peak, held, a_block)


# ---- the tokenizer


@pytest.mark.parametrize("own", [True, False], ids=["ours", "as strangers'"])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_tokenizer_gives_the_ids_that_it_gave_before(name, own, tmp_path, monkeypatch):
    values, config, model_type = families.FAMILIES[name]()
    families.write(tmp_path / "hf", values, config, model_type)
    before = read_hf_tokenizer(tmp_path / "hf")
    model = GPT.create(GPTConfig(before.n_vocab + 3, 64, 1, 2, 16), seed=1)
    export_gguf(model, before, tmp_path / "m.gguf", "fp32")
    if not own:
        monkeypatch.setattr(gptft.formats.gguf_tokenizer, "OWN", "nothing.there")
    _, after = load(tmp_path / "m.gguf")
    assert after.n_vocab == before.n_vocab and (not own or after.eot_name == before.eot_name)
    assert after.bos == before.bos and after.specials.keys() >= before.specials.keys() - {None}
    texts = [*families.HOSTILE, *families.texts(200)]
    if not own and name == "pythia":  # such a file does not say that its tokenizer normalizes
        texts = [text for text in texts if unicodedata.normalize("NFC", text) == text]
    if not own and name in ("llama2", "llama2-legacy", "mistral3"):  # llama.cpp puts a space before a space too
        texts = [text for text in texts if not text.startswith((" ", "▁"))]
    assert len(texts) > 300
    for text in texts:
        assert after.encode(text) == before.encode(text), text
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))


def test_the_embedded_tokenizer_and_the_ends_of_answers_survive(tmp_path):
    """llama.cpp has but a nearest name for how it splits text; whoever opens the file with gptft has it exactly."""
    tokenizer = embedded()
    tokenizer.template = TEMPLATES["qa"]
    model = GPT.create(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 16), seed=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "fp32")
    again, opened = load(tmp_path / "m.gguf")
    assert opened.digest == tokenizer.digest and model_id(again, opened) == model_id(model, tokenizer)
    record = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}
    assert opened.encode_segments(opened.template.segments(record)) == tokenizer.encode_segments(
        tokenizer.template.segments(record)
    )


def small_vocabulary(path, changes=(), tokens=(), kinds=()):
    """A model and llama.cpp's kind of a byte-level vocabulary; `changes` of its settings."""
    names = ["<s>", "</s>", *(chr(n) for n in range(ord("a"), ord("z") + 1)), "ab", *tokens]
    model = toy_model(torch.float32, **{**CASES["llama2"][1], "vocab_size": len(names)})
    export_gguf(model, None, path.with_suffix(".bare"), "fp32")
    more = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(names) - 2 - len(kinds)), *kinds],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    rewritten(path.with_suffix(".bare"), path, {k: v for k, v in (more | dict(changes)).items() if v is not None})


@pytest.mark.parametrize("pre, bos", [("llama-bpe", 0), ("tekken", 0), ("qwen2", None), ("gpt-2", None)])
def test_where_a_file_does_not_say_llama_cpps_own_rule_puts_the_beginning_of_text(pre, bos, tmp_path):
    small_vocabulary(tmp_path / "m.gguf", {"tokenizer.ggml.pre": pre})
    assert load(tmp_path / "m.gguf")[1].bos == bos


@pytest.mark.parametrize("ab, bc, ids", [(-5.0, -1.0, [2, 29]), (-1.0, -5.0, [28, 4])])
def test_sentencepieces_pairs_are_merged_by_score_and_not_by_id(ab, bc, ids, tmp_path):
    """In `abc`, of `ab` and `bc` the one that scores higher."""
    changes = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [0.0] * 28 + [ab, bc],
        "tokenizer.ggml.add_space_prefix": False,
    }
    small_vocabulary(tmp_path / "m.gguf", changes, ["bc"])
    assert load(tmp_path / "m.gguf")[1].encode("abc") == ids


def test_an_id_beyond_the_vocabulary_that_nothing_needs_is_passed_over(tmp_path):
    small_vocabulary(tmp_path / "m.gguf", {"tokenizer.ggml.padding_token_id": 4294967295})
    assert load(tmp_path / "m.gguf")[1].encode("ab") == [28]


ODD = {
    "another model": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model = 'bert' is not supported"),
    "a number for a model": ({"tokenizer.ggml.model": 3}, "tokenizer.ggml.model = 3 is not supported"),
    "another way to split": ({"tokenizer.ggml.pre": "chameleon"}, "how its tokenizer splits text is not known here"),
    "no end": ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing: what ends a text"),
    "an end beyond": ({"tokenizer.ggml.eos_token_id": 99}, "eos_token_id cannot be 99"),
    "a beginning beyond": ({"tokenizer.ggml.bos_token_id": 99}, "bos_token_id cannot be 99"),
    "a text for a flag": (
        {"tokenizer.ggml.add_bos_token": "false"},
        "add_bos_token must be true or false, not 'false'",
    ),
    "no merges": ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is no list of texts"),
    "odd merges": ({"tokenizer.ggml.merges": ["abc"]}, "its tokenizer cannot be read"),
    "too few kinds": ({"tokenizer.ggml.token_type": [1, 1]}, "2 kinds .* for 29 tokens"),
    "own, and no object": ({"gptft.tokenizer": "[1]"}, "gptft.tokenizer is not what gptft writes there"),
    "a layer's own head size": ({"llama.attention.key_length": [16, 8]}, "head_dim|key_length"),
}


@pytest.mark.parametrize("what", ODD)
def test_a_tokenizer_that_cannot_be_used_is_one_line(what, tmp_path):
    changes, message = ODD[what]
    small_vocabulary(tmp_path / "m.gguf", changes)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "m.gguf")
    assert "m.gguf" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tokens, kinds, changes, message",
    [
        (["q"], (), {}, "'q' twice"),
        (["x" * 5000], (), {}, "has one of 5,000 characters"),
        (["[PAD]"] * 3, (5, 5, 5), {"tokenizer.ggml.bos_token_id": 31}, "bos_token_id cannot be 31"),
    ],
)
def test_tokens_that_cannot_be_used_are_one_line(tokens, kinds, changes, message, tmp_path):
    small_vocabulary(tmp_path / "m.gguf", changes, tokens, kinds)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "m.gguf")


def test_what_a_template_calls_its_beginning_survives_where_none_is_put_before_a_text(tmp_path):
    """SmolLM2's template may write `bos_token`, its tokenizer puts none: the file said the end-of-text was it."""
    tokenizer = embedded()
    names = {"<|endoftext|>": tokenizer.eot, "<|first|>": tokenizer.n_vocab}
    tokenizer = Tokenizer(tokenizer.ranks, tokenizer.pattern, names)
    source = "{{ bos_token }}{% for m in messages %}{{ m['content'] + '<|endoftext|>' }}{% endfor %}"
    tokenizer.template = ChatTemplate(source, {"bos_token": "<|first|>", "unk_token": "<|first|>"}, tuple(names))
    model = GPT.create(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 16), seed=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "fp32")
    assert read_gguf(tmp_path / "m.gguf").settings["tokenizer.ggml.bos_token_id"] == names["<|first|>"]
    _, opened = load(tmp_path / "m.gguf")
    assert prompt_ids(opened, "Hi.") == prompt_ids(tokenizer, "Hi.") and opened.bos is None
    assert opened.template.variables["unk_token"] == "<|first|>"


# ---- hostile files


def parts(path):
    """A small file's bytes, and where its settings and tensors begin."""
    export_gguf(make("llama2"), None, path, "fp32")
    return bytearray(path.read_bytes())


def number(data, place, value, form="<Q"):
    struct.pack_into(form, data, place, value)


def hostile():
    """name -> (what is done to the bytes of a file, what is said)"""

    def at(text):
        return lambda data: data.index(text)

    def counted(text, after, value, form="<Q"):
        return lambda data: number(data, data.index(text) + len(text) + after, value, form)

    name = b"blk.0.attn_q.weight"
    return {
        "cut in the header": (lambda data: data.__delitem__(slice(200, None)), "cut short or damaged"),
        "cut in the tensors": (lambda data: data.__delitem__(slice(-100, None)), "it is cut short or damaged"),
        "empty": (lambda data: data.clear(), "cut short|not a GGUF file"),
        "another magic": (lambda data: data.__setitem__(slice(0, 4), b"GGML"), "not a GGUF file"),
        "version 1": (lambda data: number(data, 4, 1, "<I"), "version 1 of GGUF"),
        "big-endian": (lambda data: number(data, 4, 3 << 24, "<I"), "big-endian"),
        "2^60 tensors": (lambda data: number(data, 8, 1 << 60), "the number of tensors is 1,152,921,504,606,846,976"),
        "2^60 settings": (
            lambda data: number(data, 16, 1 << 60),
            "the number of settings is 1,152,921,504,606,846,976",
        ),
        "a text of 2^40": (lambda data: number(data, 24, 1 << 40), "the length of the name of setting 1 is"),
        "an unknown kind": (counted(b"general.architecture", 0, 99, "<I"), "'general.architecture' is of kind 99"),
        "another architecture": (
            lambda data: data.__setitem__(slice(data.index(b"llama"), data.index(b"llama") + 5), b"lemma"),
            "architecture 'lemma' is not supported",
        ),
        "an unknown type": (counted(name, 4 + 16, 77, "<I"), "ggml's type 77"),
        "an offset outside": (counted(name, 4 + 16 + 4, 1 << 50), "should have .* bytes from"),
        "an offset between": (counted(name, 4 + 16 + 4, 3), "should have .* bytes from"),
        "a shape that does not fit": (counted(name, 4, 32), "has shape|should have"),
        "a shape of 2^60": (counted(name, 4, 1 << 60), "should have|no multiple"),
        "an empty tensor": (counted(name, 4, 0), "it is empty"),
        "99 dimensions": (counted(name, 0, 99, "<I"), "has 99 dimensions"),
        "2^31 layers": (counted(b"llama.block_count", 4, (1 << 31) - 1, "<I"), "block_count|layers"),
        "no layer": (counted(b"llama.block_count", 4, 0, "<I"), "block_count|num_hidden_layers"),
        "another base": (counted(b"llama.rope.freq_base", 4, float("nan"), "<f"), "freq_base|rope_theta"),
        "no text": (lambda data: data.__setitem__(at(b"general.name")(data), 0xFF), "is no UTF-8"),
        "twice the same": (
            lambda data: data.__setitem__(
                slice(at(b"blk.0.attn_k.weight")(data), at(b"blk.0.attn_k.weight")(data) + 19), name
            ),
            "'blk.0.attn_q.weight' is there twice",
        ),
        "an unexpected tensor": (
            lambda data: data.__setitem__(at(name)(data), ord("x")),
            "'xlk.0.attn_q.weight'|'blk.0.attn_q.weight' is missing",
        ),
    }


@pytest.mark.parametrize("what", hostile())
def test_a_hostile_file_is_one_line(what, tmp_path):
    damage, message = hostile()[what]
    data = parts(tmp_path / "good.gguf")
    damage(data)
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "bad.gguf")
    assert "bad.gguf" in str(error.value) and "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_one_line(tmp_path):
    data = parts(tmp_path / "good.gguf")
    bad = tmp_path / "bad.gguf"
    for n in [*range(0, 2000, 37), *range(2000, len(data), len(data) // 50)]:
        bad.write_bytes(data[:n])
        with pytest.raises(UserError, match=r"bad\.gguf"):
            load(bad)


def test_flipped_bytes_of_a_header_never_end_in_a_traceback(tmp_path):
    data = parts(tmp_path / "good.gguf")
    rng = np.random.default_rng(0)
    end = data.index(b"output_norm.weight") + 60
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, end, 3):
            broken[place] = rng.integers(0, 256)
        (tmp_path / "bad.gguf").write_bytes(broken)
        try:
            load(tmp_path / "bad.gguf")
        except UserError:  # anything else fails this test; some flips change a setting that nothing reads
            refused += 1
    assert refused


def test_what_a_list_may_hold_is_bounded(tmp_path, monkeypatch):
    """Empty texts take eight bytes of a file and far more of memory."""
    monkeypatch.setattr("gptft.formats.gguf_file.MOST_VALUES", 100)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", [""] * 101)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="its lists hold more than 100 texts"):
        read_gguf(tmp_path / "m.gguf")


def test_a_hostile_count_takes_no_memory(tmp_path):
    """In a process with little room above what it has: 2^40 bytes are refused before they are asked for."""
    data = parts(tmp_path / "good.gguf")
    number(data, 24, 1 << 40)
    (tmp_path / "bad.gguf").write_bytes(data)
    code = (
        "import resource, sys; from gptft.formats.gguf_file import read_gguf; import gguf, pathlib\n"
        "from gptft.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_gguf(pathlib.Path(sys.argv[1]))\n"
        "except UserError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "bad.gguf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 * 1024  # kilobytes


SETTINGS = {
    "llama.rope.scaling.type": ("yarn", "rope.scaling.type = 'yarn' is not supported"),
    "llama.expert_count": (8, "expert_count = 8 is not supported"),
    "llama.attention.sliding_window": (16, "attention.sliding_window = 16 is not supported"),
    "llama.logit_scale": (0.5, "logit_scale = 0.5 is not supported"),
    "llama.attention.head_count_kv": (3, "n_head 4 is no multiple of n_kv_head 3|head_count_kv"),
    "llama.something.new": (True, "something.new = True is not supported"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_may_change_the_result_is_refused_by_name(setting, tmp_path, as_strangers):
    value, message = SETTINGS[setting]
    export_gguf(make("llama2"), None, tmp_path / "m.gguf", "fp32")
    rewritten(tmp_path / "m.gguf", tmp_path / "other.gguf", {setting: value})
    with pytest.raises(UserError, match=message):
        load(tmp_path / "other.gguf")


def test_settings_without_effect_are_passed_over(tmp_path, as_strangers):
    model = make("llama2")
    export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    more = {
        "llama.rope.scaling.type": "none",
        "llama.expert_count": 0,
        "llama.tensor_data_layout": "Meta AI original pth",
    }
    rewritten(tmp_path / "m.gguf", tmp_path / "other.gguf", more)
    assert torch.equal(logits_of(load(tmp_path / "other.gguf")[0]), logits_of(model))
