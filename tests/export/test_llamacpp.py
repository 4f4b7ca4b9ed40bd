"""GGUF files: read back with the `gguf` package always, and run by the real llama.cpp where it is installed.

The tests marked `llamacpp` need `llama-cpp-python`, in this interpreter or in that of GPTFT_LLAMACPP_PYTHON. They train
a toy model of each shape until its margins are clear, and ask for the same greedy ids, with llama.cpp's KV cache in
fp32. With GPTFT_DIFFERENCES set they record what they found, for the README's table.
"""

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import BASE, CASES, LLAMA, LLAMA3, V
from llamacpp_runner import needs_llamacpp, run_llamacpp
from toys import difference, toy_model

from gptft.decoding import decode
from gptft.errors import UserError
from gptft.export.hf_tokenizer import write_hf_tokenizer
from gptft.export.llamacpp import KINDS, Entry, architecture_of, export_gguf, storage
from gptft.export.llamacpp_vocabulary import vocabulary_of
from gptft.formats.hf_tokenizer import read_hf_tokenizer
from gptft.loading import load
from gptft.model import GPT
from gptft.prompts import TEMPLATES, Template
from gptft.tokenizer import EOT, Tokenizer, embedded, gpt2

gguf = pytest.importorskip("gguf")

# ---- a toy task: what follows `a b` depends on two tokens further back

CYCLES = [[a for x in xs for a in (3, 4, x)] for xs in ((10, 11, 12), (10, 12, 13), (11, 10, 13))]
PROMPTS = [(CYCLES[n] * 3)[start : start + 9 + n] for n, start in ((0, 0), (1, 2), (2, 4), (0, 8))]


def train(model: GPT) -> None:
    rows = torch.tensor([(cycle * 6)[start : start + 40] for cycle in CYCLES for start in range(9)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / 300)
        logits = model(rows[:, :-1])[:, 8:]  # from here on the cycle is known
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 9:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def margins(model: GPT, prompt, ids) -> torch.Tensor:
    """How far the best logit is above the second, for each of the greedy `ids` after `prompt`."""
    best = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].topk(2).values
    return best[:, 0] - best[:, 1]


def greedy(model: GPT, prompts, n: int):
    found = [[] for _ in prompts]
    for pairs in decode(model, prompts, n, stops=(), n_vocab=V):
        for row, token in pairs:
            found[row].append(token)
    return found


def record(**row):
    if path := os.environ.get("GPTFT_DIFFERENCES"):
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


NEAR = ("fp32", "fp16", "q8_0")  # the kinds that are near enough to the model itself
FILE_TYPES = {"fp32": 0, "fp16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}


@needs_llamacpp
@pytest.mark.parametrize("case", CASES)
def test_llamacpp_gives_the_same_greedy_ids(tmp_path, case):
    """A wrong order of rotary channels, a missing bias or a wrong epsilon would show in the logits: they are compared
    too, on the prompts. Where the activation is GELU, llama.cpp looks it up in a table of fp16 numbers."""
    arch, values = CASES[case]
    model = toy_model(torch.float32, **values).train()
    train(model)
    model.eval()
    wanted = greedy(model, PROMPTS, 20)
    margin = min(margins(model, prompt, ids).min().item() for prompt, ids in zip(PROMPTS, wanted, strict=True))
    assert margin > 2, "the toy model has not learned its task"
    files = [tmp_path / f"{kind}.gguf" for kind in NEAR]
    for path, kind in zip(files, NEAR, strict=True):
        export_gguf(model, None, path, kind)
    found, logits = run_llamacpp(files, PROMPTS, n_new=20)
    for number, kind in enumerate(NEAR):
        apart, largest = 0.0, 0.0
        for prompt, theirs in zip(PROMPTS, logits[number], strict=True):
            with torch.no_grad():
                ours = model(torch.tensor([prompt]))[0]
            apart = max(apart, difference(torch.from_numpy(theirs), ours))
            largest = max(largest, (torch.from_numpy(theirs) - ours).abs().max().item())
        record(
            test="gguf",
            case=case,
            arch=arch,
            kind=kind,
            version=found["version"],
            gguf=gguf_version(),
            same=found["ids"][number] == wanted,
            relative=apart,
            largest=largest,
            margin=margin,
        )
        assert found["ids"][number] == wanted, kind
        exact = 2e-6 if values.get("activation") == "silu" else 5e-4
        assert apart < {"fp32": exact, "fp16": 2e-3, "q8_0": 3e-2}[kind], kind


@needs_llamacpp
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEAR])
@pytest.mark.parametrize("case", ["llama2", "gpt2"])
def test_llamacpp_gives_the_greedy_ids_of_the_file_read_back(tmp_path, case, kind):
    """In few bits the model is another one: the file, opened by gptft, is what llama.cpp must compute."""
    model = toy_model(torch.float32, **CASES[case][1]).train()
    train(model)
    export_gguf(model.eval(), None, tmp_path / "m.gguf", kind)
    again, _ = load(tmp_path / "m.gguf")
    wanted = greedy(again, PROMPTS, 20)
    margin = min(margins(again, prompt, ids).min().item() for prompt, ids in zip(PROMPTS, wanted, strict=True))
    assert margin > 1, "the toy model has not learned its task"
    found, _ = run_llamacpp([tmp_path / "m.gguf"], PROMPTS, n_new=20)
    assert found["ids"][0] == wanted


def gguf_version() -> str:
    return importlib.metadata.version("gguf")


# ---- the file itself, read back


def fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_file_holds_the_weights_and_the_settings(tmp_path, case, kind):
    arch, values = CASES[case]
    model = toy_model(torch.float32, **values)
    config = model.config
    export_gguf(model, None, tmp_path / "m.gguf", kind, name="toy")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = fields(reader)
    assert found["general.architecture"] == arch and found["general.name"] == "toy"
    assert found["general.file_type"] == FILE_TYPES[kind]
    for key, value in {
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner,
        "vocab_size": V,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
    }.items():
        assert found[f"{arch}.{key}"] == value, key
    epsilon = "attention.layer_norm_rms_epsilon" if config.norm == "rms" else "attention.layer_norm_epsilon"
    assert found[f"{arch}.{epsilon}"] == pytest.approx(config.norm_eps)
    if config.position == "rotary":
        assert found[f"{arch}.rope.dimension_count"] == config.rotary_size
        assert found[f"{arch}.rope.freq_base"] == config.rope_theta
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ours = dict(model.named_parameters())
    embedding = tensors["token_embd.weight"]
    assert list(embedding.shape) == [config.n_embd, V]  # ggml names the inner dimension first
    close(embedding, ours["tok.weight"])
    close(tensors["blk.1.ffn_down.weight"], ours["blocks.1.mlp.down.weight"])
    close(tensors["blk.0.attn_norm.weight"], ours["blocks.0.norm1.weight"])
    if arch in ("gpt2", "gptneox"):
        parts = [ours[f"blocks.0.attn.{x}.weight"] for x in "qkv"]
        close(tensors["blk.0.attn_qkv.weight"], torch.cat(parts))
    elif arch in ("llama", "smollm3"):  # channels 0, 1, 2, ... of a head were 0, half, 1, half + 1, ...
        hs, half = config.head_size, config.head_size // 2
        order = [
            head * hs + n + half * second for head in range(config.n_kv_head) for n in range(half) for second in (0, 1)
        ]
        close(tensors["blk.1.attn_k.weight"], ours["blocks.1.attn.k.weight"][order])
    else:
        close(tensors["blk.1.attn_k.weight"], ours["blocks.1.attn.k.weight"])
    assert ("output.weight" in tensors) == (not config.tie_embeddings or arch == "gptneox")
    assert ("rope_freqs.weight" in tensors) == bool(config.rope_original)
    for tensor in reader.tensors:
        vector = len(tensor.shape) == 1 or tensor.name == "position_embd.weight"
        blocks = tensor.shape[0] % 32 == 0
        wanted = "F32" if vector else KINDS[kind] if blocks or not kind.startswith("q") else "F16"
        if kind.startswith("q") and blocks and not vector and tensor.name in ("token_embd.weight", "output.weight"):
            wanted = "Q8_0"
        assert tensor.tensor_type.name == wanted, tensor.name


def close(tensor, ours):
    """fp32 equal, fp16 rounded, q8_0 within half a step of its block's scale."""
    ours = ours.detach().numpy()
    stored = tensor.tensor_type.name
    value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if stored == "Q8_0":
        scale = np.abs(ours).reshape(ours.shape[0], -1, 32).max(-1, keepdims=True) / 127
        step = np.broadcast_to(scale, (*scale.shape[:2], 32)).reshape(ours.shape)
        assert np.all(np.abs(value - ours) <= step * 0.51 + 127 * step * 2**-11)  # the scale is stored in fp16
    elif stored == "F16":
        assert np.array_equal(value, ours.astype(np.float16))
    elif stored == "BF16":
        assert np.array_equal(value, torch.from_numpy(ours).bfloat16().float().numpy())
    elif stored.startswith("Q"):  # within half a step between the least and the largest of its block
        block = ours.reshape(ours.shape[0], -1, 32)
        step = 2 * np.abs(block).max(-1) / 2 ** int(stored[1])
        apart = np.abs(value - ours).reshape(block.shape).max(-1)
        assert np.all(apart <= step * (1.05 if stored.endswith("_0") else 0.6))  # _0 leaves one end of the range out
    else:
        assert np.array_equal(value, ours)


# ---- what cannot be, and failures


@pytest.mark.parametrize(
    "changes, message",
    [
        ({**LLAMA, "window": 8}, "no form for an attention window .of 8 tokens"),
        ({**LLAMA, "window": 8, "full_layers": (0,), "qkv_bias": True}, "'qwen2' has no form for an attention window"),
        ({**LLAMA, "activation": "gelu"}, "'llama' has no form for the activation 'gelu'"),
        ({**BASE, "activation": "silu"}, "'gptneox' has no form for the activation 'silu'"),
        ({**BASE, **LLAMA3}, "'gptneox' has no form for Llama 3's stretched rotary frequencies"),
        ({**LLAMA, "qkv_bias": True, **LLAMA3}, "'qwen2' has no form for Llama 3's stretched"),
        ({**LLAMA, "qkv_bias": True, "head_size": 24}, "'qwen2' has no form for a head size of its own"),
        ({**LLAMA, "qkv_bias": True, "out_bias": True, "qk_norm": True}, "'qwen3' has no form for biases"),
        ({**LLAMA, "n_layer": 4, "no_rope_layers": (1,)}, "'smollm3' has no form for layers without positions other"),
        ({**BASE, "norm": "rms"}, "none that transformers has"),
    ],
)
def test_what_llamacpp_does_not_compute_is_refused(tmp_path, changes, message):
    """llama.cpp would load most of these and compute another model: it ignores the keys it does not know."""
    with pytest.raises(UserError, match=message):
        export_gguf(toy_model(torch.float32, **changes), None, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_what_is_computed_a_little_otherwise_is_said(tmp_path):
    model = toy_model(torch.float32, **CASES["pythia"][1])
    assert "tanh" in architecture_of(model.config)[1][0]
    notes = export_gguf(model, None, tmp_path / "m.gguf")
    assert any("tanh" in note for note in notes) and any("no tokenizer" in note for note in notes)
    odd = toy_model(torch.float32, **CASES["llama-biases"][1])
    (note,) = [note for note in export_gguf(odd, None, tmp_path / "o.gguf", "q8_0") if "fp16" in note]
    assert "blk.0.ffn_down.weight" in note and "ffn_up" not in note


def test_a_failed_export_leaves_nothing_and_an_existing_file_alone(tmp_path, monkeypatch):
    model = toy_model(torch.float32, **BASE)
    (tmp_path / "there.gguf").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        export_gguf(model, None, tmp_path / "there.gguf")
    with pytest.raises(UserError, match="'q4' is no kind of GGUF file: one of fp32, fp16, bf16, q8_0"):
        export_gguf(model, None, tmp_path / "m.gguf", "q4")
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 5] = 1e5
    with pytest.raises(UserError, match=r"blk.1.ffn_up.weight holds numbers beyond fp16's 65504: choose fp32"):
        export_gguf(model, None, tmp_path / "m.gguf", "fp16")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(UserError, match=r"could not be written .No space left on device"):
        export_gguf(model, None, tmp_path / "m.gguf", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]
    assert (tmp_path / "there.gguf").read_text() == "precious"


def test_every_tensor_is_as_large_as_llamacpp_wants_it():
    """q8_0 stores 32 numbers in 34 bytes; a row that is no multiple of 32 goes to fp16, and says so."""
    assert storage(Entry("x.weight", (torch.zeros(3, 33),)), "q8_0") == "F16"
    assert storage(Entry("x.weight", (torch.zeros(3, 64),)), "q8_0") == "Q8_0"
    assert storage(Entry("x.weight", (torch.zeros(64),)), "q8_0") == "F32"
    assert storage(Entry("position_embd.weight", (torch.zeros(3, 64),)), "fp16") == "F32"


# ---- the vocabulary

TEXTS = [
    "Hello  world\n\n\n x = 12345 + 6789.10;  don't\t\tI'LL naïve café 東京 🙂🙂 ...!!!\n\n  end  ",
    "   leading",
    "a\r\n\r\nb 2024-05-06",
    "What is 17 times 3?\nIt is 51.",
    " ",
    "e\u0301",
]
CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
AFTER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE = {  # llama.cpp's name, and the steps of a tokenizer.json that it stands for
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "llama-bpe": CASELESS + r"\p{N}{1,3}" + AFTER,
    "qwen2": CASELESS + r"\p{N}" + AFTER,
}


def byte_level(directory: Path, pre: str) -> dict:
    """A tokenizer.json with the embedded vocabulary's merges, which splits text in another way; one token is added."""
    write_hf_tokenizer(embedded(), directory)
    values = json.loads((directory / "tokenizer.json").read_text())
    steps = PRE[pre]
    if isinstance(steps, str):
        steps = [{"type": "Split", "pattern": {"Regex": steps}, "behavior": "Isolated", "invert": False}]
    last = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": isinstance(PRE[pre], list),
    }
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, last]}
    (eot,) = values["added_tokens"]
    values["added_tokens"].append({**eot, "content": "<|im_end|>", "id": eot["id"] + 1})
    return values


def sentencepiece_like() -> dict:
    """A tokenizer.json of Llama 2's kind: spaces as ▁, unknown characters as bytes, every way to merge a token."""
    pieces = ["▁the", "▁of", "▁and", "▁is", "▁It", "▁What", "▁times", "▁leading", "▁world", "▁Hello", "▁end", "▁naïve"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    grown = sorted({piece[:n] for piece in pieces for n in range(2, len(piece) + 1)}, key=lambda p: (len(p), p))
    for token in [*grown, *sorted({character for piece in pieces for character in piece})]:
        vocab[token] = len(vocab)
    merges = [
        [token[:n], token[n:]]
        for token in grown
        for n in range(1, len(token))
        if token[:n] in vocab and token[n:] in vocab
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": name, **flags} for n, name in enumerate(["<unk>", "<s>", "</s>"])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def foreign(directory: Path, values: dict, eos: str) -> Tokenizer:
    pytest.importorskip("tokenizers")
    (directory / "tokenizer.json").write_text(json.dumps(values))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return read_hf_tokenizer(directory)


def vocabulary(name: str, directory: Path) -> Tokenizer:
    if name == "embedded":
        return embedded()
    if name == "llama":
        return foreign(directory, sentencepiece_like(), "</s>")
    return foreign(directory, byte_level(directory, name), "<|im_end|>")


@needs_llamacpp
@pytest.mark.parametrize("name", [*PRE, "llama"])
def test_llamacpp_gives_texts_the_same_ids(tmp_path, name):
    """Each way of splitting text that has a name in llama.cpp, with numbers, contractions, white space and bytes."""
    tokenizer = vocabulary(name, tmp_path)
    model = toy_model(torch.float32, **{**BASE, "vocab_size": tokenizer.n_vocab + 3})
    assert export_gguf(model, tokenizer, tmp_path / "m.gguf") == []
    found, _ = run_llamacpp([tmp_path / "m.gguf"], texts=TEXTS)
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    assert found["texts"][0] == [start + tokenizer.encode(text) for text in TEXTS]


@needs_llamacpp
def test_gpt2s_own_vocabulary_gives_texts_the_same_ids(tmp_path, shared):
    tokenizer = gpt2()
    records = json.loads((shared / "instruction-data.json").read_text())
    texts = TEXTS + [record["instruction"] + "\n" + record["output"] for record in records[:300]]
    model = toy_model(torch.float32, **{**BASE, "position": "learned", "vocab_size": 50304})
    assert export_gguf(model, tokenizer, tmp_path / "m.gguf") == []
    found, _ = run_llamacpp([tmp_path / "m.gguf"], texts=texts)
    assert found["texts"][0] == [tokenizer.encode(text) for text in texts]


@needs_llamacpp
def test_the_embedded_vocabulary_is_split_nearly_the_same_and_it_is_said(tmp_path, shared):
    """llama.cpp has no name for numbers in ones and twos. Of those it has, the one that agrees the most is taken."""
    tokenizer = embedded()
    records = json.loads((shared / "instruction-data.json").read_text())
    texts = [record["instruction"] + "\n" + record["output"] for record in records[:300]]
    model = toy_model(torch.float32, **{**BASE, "vocab_size": tokenizer.n_vocab})
    (note,) = export_gguf(model, tokenizer, tmp_path / "m.gguf")
    assert "most, not all, texts get the same ids" in note
    found, _ = run_llamacpp([tmp_path / "m.gguf"], texts=texts)
    same = [ids == tokenizer.encode(text) for ids, text in zip(found["texts"][0], texts, strict=True)]
    record(test="embedded vocabulary", same=sum(same), texts=len(texts))
    assert sum(same) > 0.9 * len(texts)


@pytest.mark.parametrize("name", [*PRE, "llama", "embedded"])
def test_the_file_holds_the_vocabulary(tmp_path, name):
    tokenizer = vocabulary(name, tmp_path)
    size = tokenizer.n_vocab + 2
    export_gguf(toy_model(torch.float32, **{**BASE, "vocab_size": size}), tokenizer, tmp_path / "m.gguf")
    found = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in fields(gguf.GGUFReader(tmp_path / "m.gguf")).items()
    }
    types, tokens = found["token_type"], found["tokens"]
    assert found["eos_token_id"] == tokenizer.eot and not found["add_eos_token"]
    assert found["bos_token_id"] == (tokenizer.eot if tokenizer.bos is None else tokenizer.bos)
    assert found["add_bos_token"] == (tokenizer.bos is not None)
    assert tokens[-2:] == [f"[PAD{size - 2}]", f"[PAD{size - 1}]"] and types[-2:] == [gguf.TokenType.UNUSED] * 2
    assert [types[i] for i in tokenizer.special_ids - {0}] == [gguf.TokenType.CONTROL] * len(
        tokenizer.special_ids - {0}
    )
    if name == "llama":
        assert found["model"] == "llama" and found["add_space_prefix"] and "merges" not in found
        assert types[:4] == [
            gguf.TokenType.UNKNOWN,
            gguf.TokenType.CONTROL,
            gguf.TokenType.CONTROL,
            gguf.TokenType.BYTE,
        ]
        scores = dict(zip(tokens, found["scores"], strict=True))
        assert scores["▁w"] > scores["▁wo"] > scores["▁world"]
    else:
        assert found["model"] == "gpt2" and found["pre"] == (name if name in PRE else "llama-bpe")
        assert "Ġthe" in tokens and "Ġt he" in found["merges"]


def test_the_end_of_a_response_and_the_chat_template_travel_along(tmp_path):
    """llama.cpp stops at eos_token_id: under a template that is the token which ends a response."""
    tokenizer = foreign(tmp_path, byte_level(tmp_path, "qwen2"), EOT)
    tokenizer.template = TEMPLATES["chatml"]
    found = vocabulary_of(tokenizer, tokenizer.n_vocab)
    assert found.eos == tokenizer.specials["<|im_end|>"] and found.bos == tokenizer.specials[EOT]
    assert "<|im_start|>user" in found.chat_template


def test_a_template_that_is_no_chat_template_is_left_out_and_it_is_said():
    tokenizer = embedded()
    tokenizer.template = Template("own", prompt="{context} {prompt}")
    found = vocabulary_of(tokenizer, tokenizer.n_vocab)
    assert found.chat_template == "" and "no chat template is carried along" in found.notes[0]
    with pytest.raises(UserError, match="more than the 7 rows of the embedding"):
        vocabulary_of(tokenizer, 7)


def test_text_that_llamacpp_would_split_or_change_otherwise_is_said(tmp_path):
    values = byte_level(tmp_path, "qwen2")
    values["normalizer"] = {"type": "NFC"}
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\P{L}+"
    found = vocabulary_of(foreign(tmp_path, values, EOT), 2000)
    assert found.pre == "default" and len(found.notes) == 2
    assert (
        "no exact name for how this tokenizer splits text" in found.notes[0]
        and "normalize text (NFC)" in found.notes[1]
    )
