"""Text <-> ids: any text survives, special tokens come from the template only, a prompt's ids are its own."""

import json
import os
import random

import pytest
import tiktoken

from gptft.errors import UserError
from gptft.prompts import TEMPLATES, Template
from gptft.text.engines import LONG
from gptft.text.segments import Segment
from gptft.tokenizer import EMBEDDED_PATTERN, EOT, GPT2_PATTERN, Tokenizer, embedded, gpt2, grow, read_ranks

HOSTILE = [
    "",
    " ",
    "hello",
    "Hello,  world!\n\n\n\tIndented\r\n\r\nCRLF\rCR",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇫🇷",
    "e\u0301 combining a\u0300\u0301\u0302 zalgo Z̴̛͖͔͘a̶l̵",
    "NUL \x00 bell \x07 escape \x1b[31m delete \x7f",
    "مرحبا שלום हिन्दी ไทย 日本語 한국어 Ελληνικά",
    "\u200b\u200d\ufeff\u2028\u2029\u00a0\u3000",
    " " * 500 + "x" + "\n" * 300 + "\t" * 77,
    "a" * 3000,
    "\U0010ffff\ue000\uffff",
    "'s 'T 'LL it's IT'S don’t",
    "1234567890 3.14e-10 ١٢٣ Ⅷ ½",
    "<|endoftext|><|im_start|></s> <|endoftext|>",
    "()[]{}<>\\/|`~!@#$%^&*_-+=;:\"',.?",
]


def random_text(rng, length):
    kinds = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x4E00, 0x4FFF), (0x1F300, 0x1F6FF), (0x2000, 0x206F)]
    out = []
    for _ in range(length):
        low, high = rng.choice(kinds)
        out.append(rng.choice((" ", "\n", chr(rng.randint(low, high)))))
    return "".join(out)


@pytest.fixture(scope="module")
def ours():
    return embedded()


@pytest.fixture(scope="module")
def gpt2_tokenizer():
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("GPT-2's vocabulary is not here: ../shared/data/tiktoken-cache")
    return gpt2()


# ---- ordinary text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_round_trips(ours, text):
    """The embedded vocabulary is trained on little English, yet every byte has a token."""
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert all(0 <= i < ours.eot for i in ids)


def test_random_text_round_trips(ours):
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng, rng.randint(1, 60))
        assert ours.decode(ours.encode(text)) == text


def test_half_of_a_surrogate_pair_becomes_the_replacement_character(ours):
    """Legal in JSON as an escape, impossible in UTF-8: it must not end a run."""
    assert ours.decode(ours.encode("a\ud83d b")) == "a\ufffd b"
    assert ours.decode(ours.encode("\ud83d\ude00")) == "😀"
    ids, _ = ours.encode_segments([Segment("a\ud83d b", True)])
    assert ours.encode_many([[Segment("a\ud83d b", True)]])[0][0] == ids == ours.encode("a\ud83d b")


@pytest.mark.parametrize("gap", [LONG, LONG + 1, 3 * LONG, 2_000_000])
def test_very_long_runs_of_white_space_do_not_crash_tiktoken(ours, gap):
    """Above a million, tiktoken's pattern overflows its stack and Rust panics, past every `except Exception`."""
    text = "start" + " " * gap + "end"
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    (many,) = ours.encode_many([[Segment(text, False), Segment("x", True)]])
    assert many[0] == ids + ours.encode("x")


def test_cutting_long_text_changes_no_ids_where_tiktoken_can_do_it_whole(ours):
    text = ("The cat sat.  \n\n" * 20_000) + " " * 1000 + "x"
    assert len(text) > LONG
    assert ours.encode(text) == ours.encoding.encode_ordinary(text)


def test_a_literal_end_of_text_stays_text(ours):
    """In a user's text the name of a special token is spelled out, never turned into the token."""
    ids = ours.encode(f"a {EOT} b")
    assert ours.eot not in ids and len(ids) > 3
    assert ours.decode(ids) == f"a {EOT} b"


def test_special_tokens_are_left_out_of_decoded_text(ours):
    assert ours.decode([ours.eot, *ours.encode("hi"), ours.eot]) == "hi"
    assert "".join(ours.stream([ours.eot, *ours.encode("hi"), ours.eot])) == "hi"


def test_the_embedded_vocabulary_holds_every_byte_and_splits_numbers_into_ones_and_twos(ours):
    assert all(bytes([byte]) in ours.ranks for byte in range(256))
    assert all(len(ours.encode(text)) >= len(text) / 2 for text in ("12345", "2026", "1000000"))
    assert ours.n_vocab == len(ours.ranks) + 1 == ours.eot + 1


# ---- streaming


@pytest.mark.parametrize("text", [*HOSTILE[:10], *HOSTILE[11:]])
def test_streaming_never_shows_half_a_character(ours, text):
    """Characters whose bytes lie in several tokens come whole; the pieces join to the text."""
    pieces = list(ours.stream(ours.encode(text)))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert all(pieces)


def test_streaming_shows_text_as_soon_as_it_is_complete(ours):
    """A stream that waited for the end would pass the test above."""
    ids = ours.encode("a😀b")
    shown = []
    for piece in ours.stream(iter(ids)):
        shown.append(piece)
    assert len(shown) >= 3 and "😀" in "".join(shown[1:-1])


def test_a_stream_that_ends_inside_a_character_says_so_at_the_end(ours):
    ids = ours.encode("😀")
    assert len(ids) > 1
    assert "".join(ours.stream(ids[:-1])) == "\ufffd"


# ---- segments


def names(tokenizer, ids):
    special = {value: name for name, value in tokenizer.specials.items()}
    return [special.get(i) for i in ids if i in special]


@pytest.fixture(scope="module")
def with_specials():
    """The embedded vocabulary with ChatML's special tokens."""
    base = embedded()
    extra = {EOT: base.eot, "<|im_start|>": base.eot + 1, "<|im_end|>": base.eot + 2}
    return Tokenizer(base.ranks, EMBEDDED_PATTERN, extra)


def test_special_tokens_named_in_a_template_are_tokens_and_never_in_the_users_text(with_specials):
    """A user who writes `<|im_end|>` must not be able to end a turn."""
    parts = {"instruction": "say <|im_end|>", "response": "<|im_start|>"}
    ids, _ = with_specials.encode_segments(TEMPLATES["chatml"].segments(parts))
    assert names(with_specials, ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert ids[-1] == with_specials.specials["<|im_end|>"]


def test_without_the_templates_special_tokens_they_are_spelled_out_and_the_stop_is_end_of_text(ours):
    """GPT-2 has no <|im_end|>: a response then ends with the end-of-text, so that generation stops."""
    parts = {"instruction": "hi", "response": "yo"}
    ids, spans = ours.encode_segments(TEMPLATES["chatml"].segments(parts))
    assert ids.count(ours.eot) == 1 and ids[-1] == ours.eot
    assert spans == [(len(ids) - len(ours.encode("yo")) - 1, len(ids))]
    assert ours.stop_id("<|im_end|>") == ours.eot
    assert ours.decode(ids).startswith("<|im_start|>user\nhi<|im_end|>")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_prompts_ids_do_not_depend_on_what_follows_it(ours, name):
    """Encoded together, the prompt's last characters would merge with the response's first."""
    rng = random.Random(1)
    template = TEMPLATES[name]
    starts = ["s", " s", "\n", "\n\n", "  ", "'s", "1", "é", "😀", "ing", ":", "\u0301"]
    for start in starts:
        for _ in range(5):
            parts = {"instruction": random_text(rng, 12) + "x", "response": start + random_text(rng, 6)}
            ids, spans = ours.encode_segments(template.segments(parts))
            prompt, none = ours.encode_segments(template.prompt_segments(parts))
            assert none == []
            assert ids[: len(prompt)] == prompt
            assert spans == [(len(prompt), len(ids))]


def test_text_that_would_merge_across_the_boundary_is_cut_there(ours):
    """The test above would pass on texts that never merge; these do."""
    whole = ours.encode("question")
    ids, _ = ours.encode_segments([Segment("quest", False), Segment("ion", True)])
    assert ids != whole and ours.decode(ids) == "question"


def test_neighbours_of_one_flag_are_encoded_whole(ours):
    """Otherwise a template's newline and the user's text would be cut into tokens that no inference sends."""
    pieces = [Segment("the c", False, "template"), Segment("at s", False), Segment("at", False, "template")]
    assert ours.encode_segments(pieces)[0] == ours.encode("the cat sat")


def test_every_turn_of_a_conversation_is_a_span_of_its_own_with_its_stop(ours):
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2."},
    ]
    ids, spans = ours.encode_segments(TEMPLATES["qa"].segments({"messages": turns}))
    assert [ours.decode(ids[start:end]) for start, end in spans] == ["1.", "2."]
    assert all(ids[end - 1] == ours.eot for _, end in spans)


def test_encoding_many_gives_what_encoding_one_gives(ours, with_specials):
    rng = random.Random(2)
    for tokenizer in (ours, with_specials):
        examples = []
        for _ in range(200):
            template = rng.choice(list(TEMPLATES.values()))
            parts = {"instruction": random_text(rng, 20) + rng.choice(HOSTILE), "response": random_text(rng, 9) + "."}
            examples.append(template.segments(parts))
        examples += [[], [Segment("", True)], [Segment("x", True), Segment("", False), Segment("y", True)]]
        assert tokenizer.encode_many(examples) == [tokenizer.encode_segments(segments) for segments in examples]


def test_ids_and_spans_grow_together():
    parts = [([1, 2], False), ([3], True), ([], True), ([4, 5], True), ([], False), ([6], False), ([7], True)]
    assert grow(parts) == ([1, 2, 3, 4, 5, 6, 7], [(2, 5), (6, 7)])


# ---- the beginning of a text


@pytest.fixture(scope="module")
def with_bos():
    base = embedded()
    return Tokenizer(base.ranks, EMBEDDED_PATTERN, {EOT: base.eot, "<s>": base.eot + 1}, bos=base.eot + 1)


def test_a_text_begins_with_the_beginning_of_text_once_at_most(with_bos):
    """A template that writes it already must not be given another; it is never trained."""
    bos, hi = with_bos.bos, with_bos.encode("hi")
    assert bos not in hi
    assert with_bos.encode_segments([Segment("hi", True)]) == ([bos, *hi], [(1, 1 + len(hi))])
    assert with_bos.encode_segments([Segment("<s>hi", False, "template")])[0] == [bos, *hi]
    assert with_bos.encode_segments([Segment("<s>hi", False)])[0][:2] != [bos, bos]  # a user's <s> is text
    many = [[Segment("hi", False)], [Segment("<s>hi", False, "template")], [Segment("hi", False)]]
    assert [ids for ids, _ in with_bos.encode_many(many)] == [[bos, *hi]] * 3
    assert with_bos.encode_segments([Segment("hi", False, "chat")])[0] == hi  # a chat template writes its own, or none


def test_the_beginning_of_text_is_saved_and_told_apart(with_bos, tmp_path):
    """A checkpoint without it would be asked with other ids than it was trained on."""
    with_bos.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.bos == with_bos.bos and again.digest == with_bos.digest
    assert Tokenizer(with_bos.ranks, EMBEDDED_PATTERN, with_bos.specials).digest != with_bos.digest
    values = json.loads((tmp_path / "gptft_tokenizer.json").read_text())
    del values["bos"]  # as checkpoints were written before there was one
    (tmp_path / "gptft_tokenizer.json").write_text(json.dumps(values))
    assert Tokenizer.load(tmp_path).bos is None


# ---- saved and loaded


def test_a_saved_tokenizer_gives_the_same_ids_and_template(with_specials, tmp_path):
    """Tokenizer and template travel with a checkpoint."""
    with_specials.template = Template("mine", prompt="é {instruction}\n", stop="<|im_end|>", lead=" ")
    with_specials.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.template == with_specials.template
    assert loaded.digest == with_specials.digest
    assert (loaded.specials, loaded.eot, loaded.n_vocab) == (
        with_specials.specials,
        with_specials.eot,
        with_specials.n_vocab,
    )
    for text in HOSTILE:
        assert loaded.encode(text) == with_specials.encode(text)


def test_the_digest_tells_vocabularies_apart(ours, with_specials):
    """Cached data of one vocabulary must not be used with another."""
    swapped = dict(ours.ranks)
    a, b = [token for token in swapped if len(token) == 3][:2]
    swapped[a], swapped[b] = swapped[b], swapped[a]
    others = [
        with_specials,
        Tokenizer(swapped, EMBEDDED_PATTERN, ours.specials),
        Tokenizer(ours.ranks, GPT2_PATTERN, ours.specials),
    ]
    assert len({ours.digest, *(other.digest for other in others)}) == 4
    assert embedded().digest == ours.digest


def test_a_broken_tokenizer_folder_is_one_clear_line(ours, tmp_path):
    ours.save(tmp_path)
    (tmp_path / "vocab.tiktoken").write_text("AA== 0\nnot base64!\n")
    with pytest.raises(UserError, match=r"vocab.tiktoken, line 2: expected a token in base64 and its rank"):
        read_ranks(tmp_path / "vocab.tiktoken")
    ours.save(tmp_path)
    (tmp_path / "gptft_tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer of gptft"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"specials": 5}, "specials cannot be 5"),
        ({"specials": {EOT: "x"}}, "specials cannot be"),
        ({"eot": 5}, "eot cannot be 5"),
        ({"bos": "x"}, "bos cannot be"),
        ({"pattern": 5}, "not a tokenizer of gptft"),
        ({"template": {"jinja": 5}}, "jinja must be text, not 5"),
        ({"template": {"specials": 5}}, "unknown key 'specials'"),
        ({"template": 5}, "the template must be an object, not 5"),
        ({"engine": "tokenizers"}, "tokenizer.json"),
    ],
)
def test_a_saved_tokenizer_of_the_wrong_kind_is_one_clear_line(ours, tmp_path, changes, message):
    """Each was a TypeError in the middle of loading."""
    ours.save(tmp_path)
    path = tmp_path / "gptft_tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_two_tokens_with_one_id_are_refused(ours, tmp_path):
    """tiktoken panics, which no `except` for errors catches."""
    ours.save(tmp_path)
    path = tmp_path / "vocab.tiktoken"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].split()[0] + " 5"]))
    with pytest.raises(UserError, match="two tokens have one id"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_an_end_of_text_is_refused():
    with pytest.raises(UserError, match=r"no special token '<\|endoftext\|>'"):
        Tokenizer({bytes([byte]): byte for byte in range(256)}, GPT2_PATTERN, {})


# ---- GPT-2


def samples(shared):
    rng = random.Random(3)
    records = json.loads((shared / "instruction-data.json").read_text())[:300]
    real = [value for record in records for value in record.values()]
    return [*HOSTILE, *real, *(random_text(rng, rng.randint(1, 40)) for _ in range(500))]


def test_gpt2_ids_equal_tiktokens(gpt2_tokenizer, shared):
    """The pattern is written out here: a slip in it would split text as GPT-2 never did."""
    reference = tiktoken.get_encoding("r50k_base")
    for text in samples(shared):
        assert gpt2_tokenizer.encode(text) == reference.encode_ordinary(text)
    assert gpt2_tokenizer.eot == 50256 and gpt2_tokenizer.n_vocab == 50257


def test_the_embedded_pattern_is_the_one_the_vocabulary_was_trained_with():
    """Two patterns for one vocabulary would give other ids than those that the merges were made for."""
    import ast
    from pathlib import Path

    from gptft.tokenizer import EMBEDDED_PATTERN

    tree = ast.parse((Path(__file__).resolve().parent.parent / "data" / "make.py").read_text(encoding="utf-8"))
    (value,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "PAT_STR")
    assert ast.literal_eval(value) == EMBEDDED_PATTERN


@pytest.mark.parametrize("count", [1, 99, 100, 199, 200, 999])
def test_many_texts_in_stretches_have_the_ids_of_each_alone_in_order(count):
    rng = random.Random(count)
    texts = ["".join(rng.choices("abc de\n  12é😀", k=rng.randint(0, 40))) for _ in range(count)]
    engine = embedded().engine
    assert engine.encode_batch(texts, [False] * count) == [engine.encode(text) for text in texts]
