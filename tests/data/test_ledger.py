"""The law of the ledger: tokens of the user + of the template + repeated = trained + masked + cut + dropped + set
aside, per split and in all, over every path; and whose a token is, against tiktoken's own offsets.
"""

import json
import random

import hf_families as families
import numpy as np
import pytest

from gptft.config import resolve
from gptft.data.examples import Recipe, load_dataset
from gptft.data.ledger import Owners, code_points, widths
from gptft.data.shapes import recognise
from gptft.errors import BadRecord
from gptft.finetuning import load_data
from gptft.formats.hf_tokenizer import read_hf_tokenizer
from gptft.loading import preset
from gptft.prompts import TEMPLATES, Template
from gptft.text.chat import ChatTemplate
from gptft.tokenizer import embedded, grow

WORDS = [
    "plain",
    "café",
    "日本",
    " ",
    "\n",
    "\n\n",
    "12",
    "<|endoftext|>",
    "### Answer:",
    "…",
    "a",
    "👩‍👧",
    "\t",
    "The museum",
]
OWN = Template("own", prompt="Q:{instruction}|{input}|A:", lead=" -> ", tail=" !", after="\n", system="S={system};")
CHAT = ChatTemplate(
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}",
    variables={"eos_token": "<|endoftext|>"},
    specials=("<|endoftext|>",),
)
TEMPLATES_TRIED = {**TEMPLATES, "own": OWN, "chat": CHAT}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def text(rng, most=30):
    return "".join(rng.choices(WORDS, k=rng.randint(1, most)))


def record(rng, kind):
    if kind == "text":
        return {"text": text(rng, 200) + "x"}
    if kind == "messages":
        turns = [
            {"role": role, "content": text(rng) + "x"}
            for _ in range(rng.randint(1, 3))
            for role in ("user", "assistant")
        ]
        system = [{"role": "system", "content": text(rng) + "x"}] if rng.random() < 0.3 else []
        return {"messages": system + turns}
    made = {"instruction": text(rng) + "x", "output": text(rng, rng.choice([5, 80])) + "x"}
    if rng.random() < 0.5:
        made["input"] = text(rng)
    if rng.random() < 0.1:
        made["output"] = " "
    return made


def users_by_offsets(tokenizer, template, parts):
    """The tokens that hold a character of the user's, from tiktoken's own offsets: (users, all)."""
    segments = template.segments(parts)
    pieces = tokenizer.encode_parts([segments])[0]
    around = (template.lead, template.tail) if isinstance(template, Template) else ("", "")
    owned = ""  # a letter for every character of ordinary text: u or t
    for segment in segments:
        if segment.kind == "text":
            before, behind = (len(each) if segment.apart else 0 for each in around)
            owned += "t" * before + "u" * (len(segment.text) - before - behind) + "t" * behind
        elif segment.kind in ("template", "chat"):
            for piece in tokenizer._split_specials(segment.text):
                owned += "t" * len(piece) if isinstance(piece, str) else ""
    users, at = 0, 0
    for (piece, _), (ids, _) in zip(tokenizer.pieces(segments), pieces[1:], strict=True):
        if isinstance(piece, str):
            decoded, starts = tokenizer.engine.encoding.decode_with_offsets(ids)
            assert decoded == piece
            data, byte = piece.encode(), 0
            for i in ids:
                end = byte + len(tokenizer.token_bytes(i))
                first = len(data[:byte].decode(errors="ignore")) if byte else 0
                last = len(data[:end].decode(errors="replace"))
                users += "u" in owned[at + first : at + last]
                byte = end
            assert len(starts) == len(ids)
            at += len(piece)
    assert at == len(owned)
    return users, len(grow(pieces)[0])


@pytest.mark.parametrize("name", TEMPLATES_TRIED)
def test_a_token_is_the_templates_when_no_byte_of_it_is_the_users(name, monkeypatch):
    rng, template, tokenizer = random.Random(name), TEMPLATES_TRIED[name], embedded()
    tokenizer.template = template
    examples, expected = [], []
    for kind in ("record", "messages"):
        for _ in range(150):
            try:
                parts = recognise(record(rng, kind))
                segments = template.segments(parts)
            except BadRecord:
                continue
            pieces = tokenizer.encode_parts([segments])[0]
            users, every = users_by_offsets(tokenizer, template, parts)
            examples.append((segments, pieces))
            expected.append(every - users)
    assert len(examples) > 50
    assert Owners(tokenizer, template).count_template(examples) == expected
    monkeypatch.setattr("gptft.data.ledger.AT_ONCE", 300)  # so that there are many stretches
    assert Owners(tokenizer, template).count_template(examples) == expected


def test_a_vocabulary_that_puts_a_space_before_a_text_is_counted_by_its_bytes(tmp_path):
    """Against the offsets of `tokenizers` itself: the space is nobody's, and shifts all tokens behind it by a byte."""
    tokenizer, rng = read_hf_tokenizer(families.write(tmp_path / "llama2", *families.llama2())), random.Random(0)
    template = TEMPLATES["qa"]
    owners = Owners(tokenizer, template)
    for _ in range(50):
        question = " ".join(rng.choices(["How", "do", "I", "reset", "12", "it?"], k=rng.randint(1, 9)))
        segments = template.segments({"instruction": question, "response": "So."})
        pieces = tokenizer.encode_parts([segments])[0]
        prompt = tokenizer.pieces(segments)[0][0]
        encoded = tokenizer.engine.first.encode(prompt, add_special_tokens=False)
        assert pieces[1][0] == encoded.ids
        start = prompt.index(question)
        users = sum(begin < start + len(question) and end > start for begin, end in encoded.offsets)
        # besides them the answer is the user's; the beginning-of-text, the heading and the stop are the template's
        expected = 1 + len(encoded.ids) - users + 1
        assert owners.count_template([(segments, pieces)]) == [expected]


def test_bytes_are_counted_as_utf8_has_them():
    text = "aé€😀\x00\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff\ud83d"
    expected = [len(character.encode(errors="surrogatepass")) for character in text]
    assert widths(code_points(text)).tolist() == expected


def law(books):
    left = books["tokens_user"] + books["tokens_template"] + books["tokens_repeated"]
    gone = books.get("tokens_dropped", 0) + books.get("tokens_set_aside", 0)
    return left - books["targets"] - books["tokens_masked"] - books["tokens_cut"] - gone


@pytest.mark.parametrize("truncation", ["right", "left", "drop"])
@pytest.mark.parametrize("seed", range(6))
def test_the_law_holds_in_all_and_in_every_split(tmp_path, truncation, seed):
    rng = random.Random(f"{truncation} {seed}")
    kind = rng.choice(["record", "messages", "text"])
    name = {"messages": "chatml", "text": "plain"}.get(kind) or rng.choice(["qa", "alpaca", "chatml", "phi3", "llama2"])
    for number in range(2):
        lines = [json.dumps(record(rng, kind)) for _ in range(60)]
        lines[7], lines[30] = '{"broken', "[]"
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    files = ["0.jsonl", "1.jsonl"]
    if kind == "text":
        (tmp_path / "t.txt").write_text("".join(rng.choices(WORDS, k=3000)))
        files.append("t.txt")
    (tmp_path / "v.jsonl").write_text("\n".join(json.dumps(record(rng, kind)) for _ in range(20)) + "\n")
    settings = {"data": files, "template": name, "truncation": truncation, "max_length": 200, "bad_records": "drop"}
    settings |= {"init": "tiny", "seed": seed, "data_fraction": rng.choice([1.0, 0.3]), "mask_prompt": seed != 3}
    settings |= {"val_data": ["v.jsonl"]} if seed % 2 else {}
    tokenizer = embedded()
    datasets, (train_set, val_set, test_set) = load_data(resolve("", settings), preset("tiny", 0), tokenizer)
    for name, dataset in datasets.items():
        ledger = dataset.ledger
        assert law(ledger) == 0 and ledger["tokens_read"] == ledger["tokens_user"] + ledger["tokens_template"], name
        assert ledger["tokens_user"] > 0 and ledger["tokens_template"] > 0
        splits, aside = list(ledger["splits"].values()), ledger.get("set_aside")
        parts = [*splits, aside] if aside else splits
        assert all(law(part) == 0 for part in parts)
        for key in ("targets", "tokens_masked", "tokens_cut"):
            assert sum(part[key] for part in splits) == ledger[key], key
        assert sum(part["tokens_repeated"] for part in parts) == ledger["tokens_repeated"]
        assert sum(part["examples"] for part in parts) == ledger["examples"]
    ledger = datasets["data"].ledger
    assert ledger["bytes_unread"] >= 2 * len('{"broken' + "[]")
    for name, split in (("data", train_set), ("val_data", val_set), ("test_data", test_set)):
        dataset = next(each for each in datasets.values() if name in each.ledger["splits"])
        its = dataset.ledger["splits"][name]
        assert its["examples"] == len(split) and its["targets"] + its["tokens_masked"] == int(split.lengths.sum())
    assert (ledger.get("set_aside") is not None) == (settings["data_fraction"] < 1)


def test_repeated_tokens_of_a_long_text_are_counted_once_a_chunk(tmp_path):
    (tmp_path / "t.txt").write_text("The museum opens at nine. " * 60)
    dataset = load_dataset([tmp_path / "t.txt"], embedded(), Recipe(TEMPLATES["plain"], 40))
    user, template, repeated, cut = dataset.origin.sum(0).tolist()
    assert (template, repeated, cut) == (1, len(dataset) - 1, 0)  # the stop, and a token a chunk but the first
    assert user == len(embedded().encode("The museum opens at nine. " * 60))
    assert dataset.origin[-1, 1] == 1 and not dataset.origin[:-1, 1].any()
    assert (dataset.origin.sum(1) == np.diff(dataset.offsets)).all()


def test_what_could_not_be_read_counts_as_bytes(tmp_path):
    good, bad = json.dumps({"question": "Why?", "answer": "So."}), '{"question": "é'
    (tmp_path / "d.jsonl").write_text(f"{good}\n{bad}\n[1]\n")
    dataset = load_dataset([tmp_path / "d.jsonl"], embedded(), Recipe(TEMPLATES["qa"], 64, bad_records="drop"))
    assert dataset.ledger["bytes_unread"] == len(bad.encode()) + 3
