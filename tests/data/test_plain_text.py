"""Long texts in pieces: the ids of the whole, in chunks that make every token but the first a target once."""

import json
import random
import subprocess
import sys
from pathlib import Path

import hf_families as families
import pytest

from gptft.data.cuts import CUT, cuts_of
from gptft.data.examples import Recipe, load_dataset
from gptft.data.plain_text import chunks, cut_pieces, text_ids
from gptft.data.sources import TextFile
from gptft.formats.hf_tokenizer import PATTERNS, read_hf_tokenizer
from gptft.prompts import TEMPLATES
from gptft.text.engines import TokenizersEngine
from gptft.tokenizer import GPT2_PATTERN, Tokenizer, embedded, gpt2

ROOT = Path(__file__).resolve().parent.parent.parent


def bytes_only(pattern):
    """A tokenizer of 256 bytes and the merges of any two of them that appear in `HOSTILE` texts: what a pattern joins
    is merged, so that a wrong cut shows."""
    ranks = {bytes([n]): n for n in range(256)}
    for a in b" \n\t\r.,'sa1\xc3\xa9":
        for b in b" \n\t\r.,'sa1\xc3\xa9":
            ranks.setdefault(bytes([a, b]), len(ranks))
    for pair in [pair for pair in list(ranks) if len(pair) == 2]:
        for b in b" \n.a":
            ranks.setdefault(pair + bytes([b]), len(ranks))
    return Tokenizer(ranks, pattern, {"<|endoftext|>": len(ranks)}, bos=len(ranks))


TOKENIZERS = {f"pattern {n}": pattern for n, pattern in enumerate(sorted({GPT2_PATTERN, *PATTERNS.values()}))}


def read_family(name, directory):
    """A tokenizer with a family's real settings, trained on the embedded text."""
    pytest.importorskip("tokenizers")
    return read_hf_tokenizer(families.write(directory, *families.FAMILIES[name]()))


@pytest.fixture(scope="module", params=["gpt2", "embedded", *TOKENIZERS, *sorted({*families.FAMILIES} - {"gpt2"})])
def tokenizer(request, tmp_path_factory):
    if request.param != "gpt2" and request.param in families.FAMILIES:
        return read_family(request.param, tmp_path_factory.mktemp(request.param))
    if request.param == "gpt2":
        request.getfixturevalue("shared")  # GPT-2's vocabulary
        return gpt2()
    return embedded() if request.param == "embedded" else bytes_only(TOKENIZERS[request.param])


HOSTILE = [
    *[" ", " ", "\n", "\n", "\n\n", "\t", "\r", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"],
    *["a", "word", "Z", "é", "ж", "中文", "ʰ", "\u0301", "1", "23", "456", "²", "½"],
    *[
        ".",
        ",",
        "!?",
        "'s",
        "'",
        "'ll",
        "/",
        "--",
        "…",
        "😀",
        "<|endoftext|>",
        "</s>",
        "<think>",
        "▁",
        "\u200b",
        "\ufeff",
    ],
]


def whole_ids(tokenizer, text):
    return tokenizer.encode_segments(TEMPLATES["plain"].segments({"text": text}))[0]


def test_pieces_have_the_ids_of_the_whole_text(tokenizer):
    """Cut where the vocabulary's pattern joins two pieces, a text would be learned in tokens that it does not have."""
    cut = cuts_of(tokenizer)
    rng = random.Random(0)
    n_cut = 0
    for _ in range(1500):
        text = "".join(rng.choice(HOSTILE) for _ in range(rng.randint(1, 60)))
        size = rng.randint(1, 12)
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        cut_at = list(cut_pieces(pieces, cut))
        assert "".join(cut_at) == text
        n_cut += len(cut_at) - 1
        assert list(text_ids(tokenizer, TEMPLATES["plain"], pieces, cut)) == whole_ids(tokenizer, text), repr(text)
    assert n_cut > 1000


def test_a_cut_beside_any_character_leaves_the_ids_alone(tokenizer):
    """What Python and the patterns call white space, a letter or a digit could differ somewhere in Unicode."""
    characters = [chr(n) for n in [*range(0x3100), *range(0x3100, 0x30000, 61)] if not 0xD800 <= n < 0xE000]
    for start in range(0, len(characters), 4000):
        some = characters[start : start + 4000]
        for text in ("".join(f"{c} " for c in some), "".join(f"{c}\n" for c in some)):
            pieces = [text[n : n + 2] for n in range(0, len(text), 2)]
            assert list(text_ids(tokenizer, TEMPLATES["plain"], pieces, cuts_of(tokenizer))) == whole_ids(
                tokenizer, text
            )


@pytest.mark.parametrize("name", ["llama2", "mistral3"])
def test_runs_of_spaces_and_line_feeds_that_are_merged_stay_whole(name):
    """Llama 2 has tokens for runs of spaces, and takes a U+2581 in the text for one; a vocabulary may join a line feed
    with the word behind it, where nothing splits the text before merging."""
    pytest.importorskip("tokenizers")
    values = json.loads(json.dumps(families.FAMILIES[name]()[0]))
    model, added = values["model"], values["added_tokens"]
    new = max([*model["vocab"].values(), *(token["id"] for token in added)]) + 1
    for number, pair in enumerate((["▁", "▁"], ["\n", "a"], ["a", "\n"])):
        model["vocab"]["".join(pair)] = new + number
        model["merges"].insert(0, pair)
    model["vocab"].setdefault("\n", new + 3)
    values["added_tokens"] = [token for token in added if token["content"] in model["vocab"]]
    specials = {token["content"]: token["id"] for token in values["added_tokens"]}
    tokenizer = Tokenizer.over(TokenizersEngine(values), specials, "</s>", specials["<s>"])
    rng, cut = random.Random(0), cuts_of(tokenizer)
    for _ in range(500):
        text = "".join(rng.choice(["a", "b", " ", "▁", "\n"]) for _ in range(rng.randint(1, 30)))
        ids = list(text_ids(tokenizer, TEMPLATES["plain"], list(text), cut))
        assert ids == whole_ids(tokenizer, text), repr(text)


def test_a_text_without_a_place_to_cut_stays_one_piece():
    assert list(cut_pieces(["中文" * 50] * 20, CUT)) == ["中文" * 1000]
    assert list(cut_pieces(["a\n", "\nb", "  ", "\n c"], CUT)) == ["a\n\nb", "  \n c"]


def test_a_pattern_that_nobody_looked_at_is_not_cut():
    """Then the whole text is tokenised at once, as it was."""
    for pattern in (r"\p{L}+ \p{L}+|\s+|\S", r"[^|]+", GPT2_PATTERN + r"|(?=(a|b))"):
        assert cuts_of(bytes_only(pattern)) is None


def set_vocab(values):
    values["model"]["vocab"]["a▁"] = max(values["model"]["vocab"].values()) + 1


def set_merge(values):
    values["model"]["merges"].append(["</s", ">"])


def set_added(values):
    values["added_tokens"][-1].update(special=False, rstrip=True)


def set_added_behind_a_prefix(values):
    values["added_tokens"][-1].update(special=False)


def set_normalizer(values):
    values["normalizer"] = {"type": "NFKC"}


def set_pattern(values):
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\S+ \S+|\s+"}


@pytest.mark.parametrize(
    "name, change",
    [
        ("llama2", set_vocab),
        ("mistral", set_merge),
        ("qwen3", set_added),
        ("mistral3", set_added_behind_a_prefix),
        ("smollm2", set_normalizer),
        ("smollm3", set_pattern),
    ],
)
def test_what_could_join_two_pieces_is_not_cut(name, change, monkeypatch):
    """Each undoes one condition under which a cut was shown to leave the ids alone."""
    monkeypatch.setattr(TokenizersEngine, "_open", staticmethod(lambda values: None))  # it is only looked at
    pytest.importorskip("tokenizers")
    values, _, _ = families.FAMILIES[name]()

    def cuts():
        special = {token["content"]: token["id"] for token in values["added_tokens"] if token.get("special")}
        engine = TokenizersEngine(values)
        return cuts_of(Tokenizer.over(engine, special, next(iter(special))))

    values = json.loads(json.dumps(values))
    assert cuts() is not None
    change(values)
    assert cuts() is None


@pytest.mark.parametrize("max_length", [2, 3, 7, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8, 13, 14, 100])
def test_chunks_make_every_token_but_the_first_a_target_exactly_once(n, max_length):
    """Chunks without the shared token would leave the first of each unlearned; wider overlaps learn some twice."""
    ids = list(range(1000, 1000 + n))
    parts = list(chunks(ids, max_length))
    assert [token for part in parts for token in part[1:]] == ids[1:]
    assert all(len(part) <= max_length for part in parts) and parts[0][0] == ids[0]
    assert n == 1 or all(len(part) >= 2 for part in parts)


def test_the_embedded_text_has_the_ids_and_the_key_that_it_had(tmp_path, monkeypatch):
    """A run on it that an earlier commit began must go on; the key is what that commit gave it."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path))
    path, ours = ROOT / "data" / "text.txt", embedded()
    dataset = load_dataset([path], ours, Recipe(TEMPLATES["plain"], 256))
    assert dataset.meta["key"] == "575fbef9a4b4f9c9d76b58b2aebc2cf0"
    expected = whole_ids(ours, path.read_text(encoding="utf-8"))
    joined = [int(dataset.ids[0])] + [token for example in dataset for token in example.ids[1:].tolist()]
    assert joined == expected
    ledger = dataset.ledger
    assert ledger["tokens_read"] == ledger["tokens_kept"] == len(expected) == ledger["targets"] + 1
    assert ledger["tokens_repeated"] == len(dataset) - 1 and ledger["records_kept"] == ledger["records_read"] == 1


def test_a_text_file_is_read_in_pieces_as_it_is_read_whole(tmp_path, monkeypatch):
    """The byte order mark goes, and line ends are line feeds, wherever a piece ends."""
    monkeypatch.setattr("gptft.data.sources.PIECE", 3)
    path = tmp_path / "d.txt"
    path.write_bytes("\ufeffOne\r\ntwo\rthrée 😀\r\n\r\n".encode())
    pieces = list(TextFile(path).pieces())
    assert len(pieces) > 5 and "".join(pieces) == "One\ntwo\nthrée 😀\n\n"


def test_the_records_of_a_text_file_are_not_fetched(tmp_path, monkeypatch, write_lines):
    """A test split asks for the records behind its examples: a book would be read into memory as a whole."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d.txt").write_text("the cat sat on the mat. " * 40)
    lines = write_lines([{"text": "One."}])
    dataset = load_dataset([tmp_path / "d.txt", lines], embedded(), Recipe(TEMPLATES["plain"], 16))
    monkeypatch.setattr(TextFile, "pieces", None)
    assert dataset.fetch(range(len(dataset))) == [None] * (len(dataset) - 1) + [{"text": "One."}]


def test_a_text_file_beside_fields_that_it_lacks_is_a_bad_record(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d.txt").write_text("the cat sat")
    recipe = Recipe(TEMPLATES["qa"], 16, fields={"instruction": "q", "response": "a"})
    with pytest.raises(Exception, match=r"line 1: key 'q' \(for instruction\) is missing; it has 'text'"):
        load_dataset([tmp_path / "d.txt"], embedded(), recipe)


MEASURE = """
import json, resource, sys
from pathlib import Path
from gptft.data.examples import Recipe, load_dataset
from gptft.data.readings import choose_template
from gptft.tokenizer import embedded

tokenizer, out = embedded(), []
for path in map(Path, sys.argv[1:]):
    template, _ = choose_template("auto", {}, None, [path])
    dataset = load_dataset([path], tokenizer, Recipe(template, 256))
    dataset.fetch([0, 1])
    out.append((dataset.ledger["tokens_read"], len(dataset), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
print(json.dumps(out))
"""


@pytest.mark.slow
def test_the_memory_of_a_text_file_does_not_grow_with_it(tmp_path):
    """It took 20 bytes a byte of text; now nothing but an index grows, by 40 bytes an example."""
    pytest.importorskip("resource", reason="memory cannot be measured here")
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in other units here")
    text = (ROOT / "data" / "text.txt").read_text(encoding="utf-8")
    (tmp_path / "warm.txt").write_text(text)
    (tmp_path / "large.txt").write_text(text * 10)
    command = [sys.executable, "-c", MEASURE, tmp_path / "warm.txt", tmp_path / "large.txt"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (_, _, before), (tokens, examples, after) = json.loads(run.stdout)
    assert tokens > 5_000_000 and examples > 20_000
    assert after - before < 8e6, f"{after - before:,} bytes more for {len(text) * 10:,} of text"
