"""Tokenizers of each family, trained here on the project's own text with the families' real settings, and texts to
try them on."""

import json
import random
from functools import cache
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"

HOSTILE = [
    "",
    " ",
    "hello",
    " hello",
    "  two spaces",
    "trailing  ",
    "\n",
    "\n\n x",
    "Hello,  world!\n\n\n\tIndented\r\n\r\nCRLF\rCR",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇫🇷",
    "e\u0301 combining a\u0300\u0301\u0302 zalgo Z̴̛͖͔͘a̶l̵ \u1e9b\u0323 \u212b",
    "NUL \x00 bell \x07 escape \x1b[31m delete \x7f",
    "مرحبا שלום हिन्दी ไทย 日本語 한국어 Ελληνικά",
    "\u200b\u200d\ufeff\u2028\u2029\u00a0\u3000\u0085\u180e",
    " " * 500 + "x" + "\n" * 300 + "\t" * 77,
    "a" * 3000,
    "\U0010ffff\ue000\uffff",
    "'s 'T 'LL it's IT'S don’t x'ſ 'K 'ſ 'ſt 'ﬅ we'VE",
    "1234567890 3.14e-10 ١٢٣ Ⅷ ½ ²³ 1 22 333 4444 55555",
    "()[]{}<>\\/|`~!@#$%^&*_-+=;:\"',.?",
    "▁▁ already ▁ marked <0x0A> <0xE2>",
    "<think> not special </think> <tool_call>",
    "ß ẞ ſ ﬁ Ǆ İ ı",
    "x\u0300\u0301" * 50,
    "\r\n \r\n\t \n  \n",
]
RANGES = [
    (0, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x2000, 0x206F),
    (0x2150, 0x218F),
    (0x4E00, 0x4FFF),
    (0xAC00, 0xB000),
    (0xFB00, 0xFB06),
    (0x1D7CE, 0x1D7FF),
    (0x1F1E6, 0x1F1FF),
    (0x1F300, 0x1F6FF),
    (0x20000, 0x20050),
    (0xE0100, 0xE0110),
]
SCRAPS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "'s",
    "'RE",
    "'ſ",
    "the",
    " The",
    "12",
    "3456",
    "...",
    "!?\n",
    "▁",
    "=",
]


def hostile(count, seed=0):
    """Texts of mixed scripts, white space, marks, digits and scraps of English."""
    rng = random.Random(seed)
    texts = list(HOSTILE)
    for _ in range(count):
        kinds = rng.sample(RANGES, rng.randint(1, 3))
        out = []
        for _ in range(rng.randint(1, 40)):
            low, high = rng.choice(kinds)
            out.append(rng.choice((*SCRAPS, chr(rng.randint(low, high)), chr(rng.randint(low, high)))))
        texts.append("".join(out))
    return texts


def real(count):
    """Lines of the project's own text and instructions."""
    lines = [json.loads(line) for line in (DATA / "instructions.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [value for record in lines for value in record.values() if isinstance(value, str)]
    found += (DATA / "text.txt").read_text(encoding="utf-8")[:300_000].split("\n")
    return random.Random(1).sample(found, min(count, len(found)))


def texts(count=1500):
    return hostile(count) + real(count)


# ---- the families

CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CASELESS + r"\p{N}{1,3}" + REST
QWEN = CASELESS + r"\p{N}" + REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex=True):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(pattern):
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, byte_level(False)]}


def token(i, content, special=True, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": i, "content": content, **plain, **flags}


def begins_with(name, i):
    """Llama's and Llama 3's post-processor: the beginning-of-text before every text."""
    special, a, b = {"SpecialToken": {"id": name, "type_id": 0}}, "A", "B"
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": a, "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": a, "type_id": 0}}, special, {"Sequence": {"id": b, "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}},
    }


@cache
def trained(pre_tokenizer, size=1200, normalizer="null", spaced=False):
    """(vocab, merges) of a BPE trained under a pre-tokenizer, given as JSON."""
    import tokenizers

    blank = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "post_processor": None,
        "normalizer": json.loads(normalizer),
        "pre_tokenizer": json.loads(pre_tokenizer),
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {},
            "merges": [],
        },
    }
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(blank))
    alphabet = [] if spaced else tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    more = [
        "日本語 テキスト 한국어 Ελληνικά русский текст العربية 😀😀 1234 12 345 2024",
        "Don't we're I'LL THEY'VE  x",
    ] * 20
    tokenizer.train_from_iterator([*real(1500), *more], trainer)
    values = json.loads(tokenizer.to_str())["model"]
    return values["vocab"], values["merges"]


def model(vocab, merges, **changes):
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": [list(merge) for merge in merges],
        **changes,
    }


def ordered(pre_tokenizer, first=0, **kw):
    """A trained byte-level vocabulary whose ids start at `first`."""
    vocab, merges = trained(json.dumps(pre_tokenizer), **kw)
    return {name: i + first for name, i in vocab.items()}, merges


def as_json(body, added, pre_tokenizer, normalizer=None, post_processor=None, decoder=None):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor or byte_level(),
        "decoder": decoder or byte_level(),
        "model": body,
    }


def gpt2():
    vocab, merges = ordered(byte_level())
    vocab["<|endoftext|>"] = len(vocab)
    values = as_json(model(vocab, merges), [token(len(vocab) - 1, "<|endoftext|>", normalized=True)], byte_level())
    return values, {"tokenizer_class": "GPT2Tokenizer"}, "gpt2"


def pythia():
    """GPT-NeoX: NFC, and runs of spaces as added tokens that are not special."""
    vocab, merges = ordered(byte_level(), first=2, normalizer='{"type": "NFC"}')
    vocab |= {"<|endoftext|>": 0, "<|padding|>": 1}
    added = [token(0, "<|endoftext|>"), token(1, "<|padding|>")]
    added += [token(len(vocab) + n, " " * (24 - n), special=False) for n in range(22)]
    values = as_json(model(vocab, merges), added, byte_level(), {"type": "NFC"})
    config = {
        "tokenizer_class": "GPTNeoXTokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_prefix_space": False,
    }
    return values, config, "gpt_neox"


def sentencepiece(metaspace=None):
    """(model, added, normalizer, pre_tokenizer, decoder) of a vocabulary in the manner of sentencepiece's BPE."""
    marked = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    learned, merges = trained(json.dumps(marked), spaced=True)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {name: i for i, name in enumerate(names)}
    for piece in sorted(learned, key=lambda piece: (len(piece) == 1, learned[piece])):
        vocab.setdefault(piece, len(vocab))
    body = model(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    added = [token(i, name) for i, name in enumerate(names[:3])]
    if metaspace:
        return (
            body,
            added,
            None,
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": metaspace, "split": False},
            decoder,
        )
    return body, added, normalizer, None, decoder


def llama2(legacy=False, model_type="llama", kind="LlamaTokenizer"):
    body, added, normalizer, pre_tokenizer, decoder = sentencepiece()
    values = as_json(body, added, pre_tokenizer, normalizer, begins_with("<s>", 1), decoder)
    config = {
        "tokenizer_class": kind,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": legacy,
    }
    return values, config, model_type


def mistral():
    """Mistral 7B v0.1: its tokenizer.json is as Llama 2's, and transformers takes it as it stands."""
    return llama2(legacy=True, model_type="mistral")


def mistral3():
    """Mistral 7B v0.3: Metaspace, and [INST] as control tokens."""
    body, added, normalizer, pre_tokenizer, decoder = sentencepiece("first")
    for name in ("[INST]", "[/INST]"):
        body["vocab"][name] = len(body["vocab"])
        added.append(token(body["vocab"][name], name))
    values = as_json(body, added, pre_tokenizer, normalizer, begins_with("<s>", 1), decoder)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "add_bos_token": True,
    }
    return values, config, "mistral"


def tekken():
    """Mistral's later vocabularies: byte-level, with a pattern that knows capitals."""
    vocab, merges = ordered(split(TEKKEN), first=3)
    added = [token(i, name) for i, name in enumerate(("<unk>", "<s>", "</s>"))]
    vocab |= {entry["content"]: entry["id"] for entry in added}
    post = {"type": "Sequence", "processors": [byte_level(), begins_with("<s>", 1)]}
    values = as_json(model(vocab, merges, ignore_merges=True), added, split(TEKKEN), None, post)
    return values, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}, "mistral"


LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def llama3():
    """Every way to split a token is among the merges, as the conversion from tiktoken leaves them."""
    vocab, _ = ordered(split(LLAMA3), size=1500)
    merges = []
    for name, _ in sorted(vocab.items(), key=lambda item: item[1]):
        ways = [(name[:n], name[n:]) for n in range(1, len(name)) if name[:n] in vocab and name[n:] in vocab]
        merges += sorted(ways, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    added = [token(len(vocab) + n, name) for n, name in enumerate(LLAMA3_SPECIALS)]
    post = {"type": "Sequence", "processors": [byte_level(), begins_with("<|begin_of_text|>", len(vocab))]}
    values = as_json(model(vocab, merges, ignore_merges=True), added, split(LLAMA3), None, post)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "added_tokens_decoder": decoder_of(added),
    }
    return values, config, "llama"


def decoder_of(added):
    return {str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added}


def qwen(version=2):
    vocab, merges = ordered(split(QWEN), normalizer='{"type": "NFC"}')
    added = [token(len(vocab) + n, name) for n, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))]
    if version == 3:
        names = ("<tool_call>", "</tool_call>", "<think>", "</think>")
        added += [token(len(vocab) + 3 + n, name, special=False, normalized=False) for n, name in enumerate(names)]
    values = as_json(model(vocab, merges), added, split(QWEN), {"type": "NFC"})
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "unk_token": None,
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "added_tokens_decoder": decoder_of(added),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    return values, config, f"qwen{version}"


def smollm2():
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}
    vocab, merges = ordered(steps, first=17)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<reserved_{n}>" for n in range(14))]
    vocab |= {name: i for i, name in enumerate(names)}
    values = as_json(model(vocab, merges), [token(i, name) for i, name in enumerate(names)], steps)
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "add_prefix_space": False,
    }
    return values, config, "llama"


def smollm3():
    """SmolLM3 has Llama 3's pattern and vocabulary, with names of its own for the special tokens."""
    values, config, _ = llama3()
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<think>", "<|im_end|>"]
    for entry, name in zip(values["added_tokens"], names, strict=True):
        entry["content"], entry["special"] = name, name != "<think>"
    config |= {"eos_token": "<|im_end|>", "added_tokens_decoder": decoder_of(values["added_tokens"])}
    return values, config, "smollm3"


FAMILIES = {
    "gpt2": gpt2,
    "pythia": pythia,
    "llama2": llama2,
    "llama2-legacy": lambda: llama2(legacy=True),
    "llama2-as-it-stands": lambda: llama2(kind="PreTrainedTokenizerFast"),
    "mistral": mistral,
    "mistral3": mistral3,
    "tekken": tekken,
    "llama3": llama3,
    "qwen2": qwen,
    "qwen3": lambda: qwen(3),
    "smollm2": smollm2,
    "smollm3": smollm3,
}


def write(directory, values, config, model_type, **more):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, **more}), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory
