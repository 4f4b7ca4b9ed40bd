"""Tokenizers of the Hugging Face kind: the ids of AutoTokenizer for every family, and back into files."""

import itertools
import json
import os
import random
import sys

import hf_families as families
import pytest

from gptft.errors import UserError
from gptft.export.hf_tokenizer import write_hf_tokenizer
from gptft.formats.hf_tokenizer import has_tokenizer, read_hf_tokenizer
from gptft.generation import prompt_ids
from gptft.prompts import TEMPLATES
from gptft.text.engines import CHARACTER, TiktokenEngine, TokenizersEngine, derivations
from gptft.text.segments import Segment
from gptft.tokenizer import EMBEDDED_PATTERN, EOT, GPT2_PATTERN, Tokenizer, embedded, gpt2

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TIKTOKEN = {"gpt2", "llama3"}
PREFIXED = ["llama2", "llama2-legacy", "llama2-as-it-stands", "mistral", "mistral3"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """family -> (our tokenizer, transformers', the directory), each read once."""
    made = {}

    def load(name):
        if name not in made:
            directory = families.write(tmp_path_factory.mktemp(name), *families.FAMILIES[name]())
            made[name] = read_hf_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory), directory
        return made[name]

    return load


@pytest.fixture(scope="module")
def texts():
    return families.texts()


# ---- the same ids


@pytest.mark.parametrize("name", families.FAMILIES)
def test_ids_are_those_of_transformers(loaded, texts, name):
    """Thousands of real and hostile texts: one pattern, normalizer or merge read otherwise would show in some."""
    ours, theirs, _ = loaded(name)
    assert len(texts) > 3000
    assert type(ours.engine) is (TiktokenEngine if name in TIKTOKEN else TokenizersEngine)
    plain = theirs(texts, add_special_tokens=False)["input_ids"]
    whole = theirs(texts)["input_ids"]
    many = ours.encode_many([[Segment(text, False)] for text in texts])
    for text, expected, with_beginning, (ids, _) in zip(texts, plain, whole, many, strict=True):
        assert ours.encode(text) == expected, repr(text)
        assert ids == with_beginning == prompt_ids(ours, text, raw=True), repr(text)
    assert ours.eot == theirs.eos_token_id and ours.n_vocab == len(theirs) == 1 + max(theirs.get_vocab().values())


@pytest.mark.parametrize("name", families.FAMILIES)
def test_decoded_text_is_that_of_transformers(loaded, texts, name):
    """Special tokens left out, and Llama's first space."""
    ours, theirs, _ = loaded(name)
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == expected, repr(text)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_streaming_never_shows_half_a_character(loaded, texts, name):
    """Characters whose bytes lie in several tokens, byte fallbacks too, come whole."""
    ours, _, _ = loaded(name)
    for text in texts[::7]:
        ids = ours.encode(text)
        pieces = list(ours.stream(ids))
        assert "".join(pieces) == ours.decode(ids) and all(pieces)
        assert ("\ufffd" in "".join(pieces)) == ("\ufffd" in text)
    assert len(list(ours.stream(ours.encode("a b c 😀 d")))) > 3


@pytest.mark.parametrize("name", families.FAMILIES)
def test_special_tokens_in_a_text_stay_text(loaded, name):
    """The one stated difference: transformers would take them for the tokens."""
    ours, theirs, _ = loaded(name)
    for special in ours.specials:
        text = f"a {special} b{special}"
        ids = ours.encode(text)
        assert not ours.special_ids & {*ids} and ours.decode(ids) == text
        assert ours.specials[special] in theirs(text)["input_ids"]
        assert ours.encode_segments([Segment(special, False, "template")])[0][-1] == ours.specials[special]


def test_a_special_token_that_is_a_word_of_the_vocabulary_stays_text(tmp_path):
    """Where whole words are looked up first, `</s>` would be found as one."""
    values, config, model_type = families.tekken()
    values["pre_tokenizer"] = families.split(r"\S+|\s+")
    ours = read_hf_tokenizer(families.write(tmp_path, values, config, model_type))
    ids = ours.encode("</s> x <s>")
    assert not ours.special_ids & {*ids} and ours.decode(ids) == "</s> x <s>"


@pytest.mark.parametrize("name", families.FAMILIES)
def test_half_of_a_surrogate_pair_and_long_white_space(loaded, name):
    """`tokenizers` raises on the first; tiktoken's pattern overflows its stack on the second."""
    ours, _, _ = loaded(name)
    assert ours.decode(ours.encode("a\ud83d b")) == "a\ufffd b"
    assert ours.decode(ours.encode("\ud83d\ude00")) == "😀"
    text = "start" + " " * 250_001 + "end"
    ids, spans = ours.encode_segments([Segment(text, False), Segment("x", True)])
    assert ours.decode(ids[: spans[0][0]]) == text


def test_tokens_that_are_added_but_not_special_are_found_in_a_text(loaded):
    """Qwen3's <think> and Pythia's runs of spaces are tokens wherever they stand."""
    qwen, theirs, _ = loaded("qwen3")
    think = theirs.convert_tokens_to_ids("<think>")
    assert think in qwen.encode("a<think>b") and think not in qwen.special_ids
    assert qwen.decode(qwen.encode("a<think>b")) == "a<think>b"
    pythia, _, _ = loaded("pythia")
    assert len(pythia.encode(" " * 24)) == 1 and pythia.decode(pythia.encode(" " * 30)) == " " * 30


# ---- the space before a text


@pytest.mark.parametrize("name", PREFIXED)
def test_a_response_is_given_no_space_that_was_not_asked_for(loaded, name):
    """`[/INST]` and ` answer` are two texts; a vocabulary that puts a space before each would write two."""
    ours, theirs, _ = loaded(name)
    ids, [(start, end)] = ours.encode_segments([Segment("[INST] x [/INST]", False), Segment(" answer", True)])
    assert ids == theirs("[INST] x [/INST] answer")["input_ids"] or name == "mistral3"  # there [INST] is special
    for response in (" answer", "answer", "  answer", "\nanswer", " ", "é", " 😀", "▁x"):
        ids, [(start, end)] = ours.encode_segments([Segment("### Say:", False), Segment(response, True)])
        assert ours.decode(ids[start:end], after=ids[start - 1]) == response.replace("▁", " ")
        assert "".join(ours.stream(ids[start:end], after=ids[start - 1])) == response.replace("▁", " ")


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize("template", ["alpaca", "llama2", "chatml"])
def test_a_prompts_ids_do_not_depend_on_what_follows_it(loaded, texts, name, template):
    """Inference has the prompt alone: its ids must be those of training, in every family's vocabulary."""
    ours, _, _ = loaded(name)
    for text in texts[200:230]:
        record = {"instruction": text + "x", "response": text + "y"}
        ids, spans = ours.encode_segments(TEMPLATES[template].segments(record))
        prompt, none = ours.encode_segments(TEMPLATES[template].prompt_segments(record))
        assert ids[: len(prompt)] == prompt and none == [] and spans == [(len(prompt), len(ids))]
        assert ids.count(ours.bos) == (0 if ours.bos is None else 1)


def test_after_a_special_token_a_space_is_put_where_the_vocabulary_does_so(loaded):
    for name, spaced in (("llama2", False), ("llama2-legacy", True), ("mistral", True), ("mistral3", False)):
        ours, theirs, _ = loaded(name)
        ids, _ = ours.encode_segments([Segment("a</s>b", False, "template")])
        assert ids == theirs("a</s>b")["input_ids"]
        assert ("▁b" in theirs.convert_ids_to_tokens(ids)) == spaced


# ---- what goes to tiktoken


def changed(values, how):
    """A GPT-2-like tokenizer.json for which tiktoken would not give the same ids."""
    model = values["model"]
    if how == "order":
        model["merges"][40], model["merges"][41] = model["merges"][41], model["merges"][40]
    elif how == "unreachable":
        model["vocab"]["Ġextraordinary"] = len(model["vocab"])
    elif how == "normalizer":
        values["normalizer"] = {"type": "NFC"}
    elif how == "prefix":
        values["pre_tokenizer"] = {**values["pre_tokenizer"], "add_prefix_space": True}
    elif how == "pattern":
        values["pre_tokenizer"] = families.split(r"\p{L}+|[^\p{L}]+")
    elif how == "added":
        values["added_tokens"].append(families.token(len(model["vocab"]), "the cat", special=False, normalized=True))
    elif how == "missing byte":
        model["vocab"]["日"] = model["vocab"].pop("Ā")
    elif how == "another way":
        # "abc" by (ab, c) where (b, c) comes first: the token is never made, but tiktoken would make it
        a, b, c = "q", "j", "x"
        size = len(model["vocab"])
        model["vocab"] |= {b + c: size, a + b: size + 1, a + b + c: size + 2}
        model["merges"] += [[b, c], [a, b], [a + b, c]]
    return values


@pytest.mark.parametrize(
    "how", ["order", "unreachable", "normalizer", "prefix", "pattern", "added", "missing byte", "another way"]
)
def test_what_tiktoken_would_do_otherwise_is_left_to_tokenizers(tmp_path, texts, how):
    """Each of these is a way in which ids would silently be others."""
    values, _, _ = families.gpt2()
    values = changed(values, how)
    families.write(tmp_path, values, {"tokenizer_class": "PreTrainedTokenizerFast"}, "llama", eos_token=EOT)
    ours, theirs = read_hf_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours.engine) is TokenizersEngine
    for text in [*texts[:400], "qjx qj jx", " extraordinary", "the cat sat"]:
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_merges_in_another_spelling_and_patterns_written_out_go_to_tiktoken(tmp_path, texts):
    values, config, _ = families.gpt2()
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    values["pre_tokenizer"] = families.split(pattern)
    ours = read_hf_tokenizer(families.write(tmp_path, values, config, "gpt2"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert type(ours.engine) is TiktokenEngine
    for text in texts[:600]:
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, families.LLAMA3, families.QWEN, EMBEDDED_PATTERN])
def test_patterns_are_read_alike_by_both_libraries(tmp_path, pattern):
    """Every code point, among letters, digits and spaces: two tables of Unicode would differ in some. In a vocabulary
    of all pairs of bytes a piece that begins elsewhere has other ids."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {bytes(pair): 256 + n for n, pair in enumerate(itertools.product(range(256), repeat=2))}
    ours = Tokenizer(ranks, pattern, {EOT: len(ranks)})
    write_hf_tokenizer(ours, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = random.Random(6)
    between = ("", "", "a", " ", "1", "'", "'s", "'S", "\n", "  b", "e", ".")
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    points = points[:0x3400] + points[0x3400::5] + points[0x1F000:0x20000]  # most of the rest are CJK and unassigned
    for start in range(0, len(points), 1000):
        text = "".join(chr(point) + rng.choice(between) for point in points[start : start + 1000])
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, hex(points[start])


# ---- what is read from which file


def test_the_end_of_text_is_found_in_each_place(tmp_path):
    """tokenizer_config.json, special_tokens_map.json, the model's settings, GPT-2's name, and then an error."""
    values, _, _ = families.smollm2()

    def read(settings, **files):
        for file in tmp_path.iterdir():
            file.unlink()
        families.write(tmp_path, values, settings, "llama")
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return read_hf_tokenizer(tmp_path).eot_name

    im_end = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    assert read({"eos_token": "<|im_end|>"}) == "<|im_end|>"
    assert read({"eos_token": im_end}) == "<|im_end|>"
    assert read({}, special_tokens_map={"eos_token": im_end}) == "<|im_end|>"
    assert read({"eos_token": EOT}, special_tokens_map={"eos_token": "<|im_end|>"}) == "<|im_end|>"
    assert read({"eos_token": EOT, "added_tokens_decoder": {}}, special_tokens_map={"eos_token": "<|im_end|>"}) == EOT
    assert read({}, config={"model_type": "llama", "eos_token_id": 2}) == "<|im_end|>"
    assert read({}, generation_config={"eos_token_id": [2, 0]}) == "<|im_end|>"
    assert read({}) == EOT
    values["added_tokens"][0]["content"] = "<|other|>"
    values["model"]["vocab"]["<|other|>"] = values["model"]["vocab"].pop(EOT)
    with pytest.raises(UserError, match="what ends a text"):
        read({})


def test_every_end_id_of_the_models_own_settings_is_read(tmp_path):
    """Llama 3's instruct models name three; only the first was looked at, and only where no eos_token is named."""
    values, config, _ = families.smollm2()
    families.write(tmp_path, values, config, "llama")
    assert read_hf_tokenizer(tmp_path).end_ids == ()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0, 10**6]}))
    assert read_hf_tokenizer(tmp_path).end_ids == (0, 1, 2)  # an id beyond the vocabulary is never written
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "x"}))
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id must be an id or a list of ids"):
        read_hf_tokenizer(tmp_path)


def test_tokens_that_only_the_other_files_name_are_added(tmp_path):
    """A [PAD] that tokenizer_config.json alone knows widens the vocabulary: n_vocab must cover its id."""
    values, config, model_type = families.gpt2()
    config |= {"pad_token": "[PAD]", "additional_special_tokens": ["<a>", "<b>"]}
    families.write(tmp_path, values, config, model_type)
    ours, theirs = read_hf_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.n_vocab == len(theirs)
    assert ours.specials == {name: theirs.convert_tokens_to_ids(name) for name in (EOT, "[PAD]", "<a>", "<b>")}


@pytest.mark.parametrize("add", [True, False])
def test_the_beginning_of_text_goes_by_the_post_processor(tmp_path, add):
    """transformers 5 passes over add_bos_token where there is a tokenizer.json."""
    values, config, model_type = families.llama2()
    families.write(tmp_path, values, {**config, "add_bos_token": add}, model_type)
    assert read_hf_tokenizer(tmp_path).bos == 1
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"][0] == 1
    values["post_processor"] = families.byte_level()
    families.write(tmp_path, values, {**config, "add_bos_token": add}, model_type)
    assert read_hf_tokenizer(tmp_path).bos is None
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"][0] != 1


def test_white_space_beside_a_special_token_goes_where_the_vocabulary_says(tmp_path):
    """Phi-3's <|user|> takes the newline behind it."""
    values, config, model_type = families.llama2(kind="PreTrainedTokenizerFast")
    size = len(values["model"]["vocab"])
    values["added_tokens"] += [families.token(size, "<|user|>", rstrip=True)]
    values["added_tokens"] += [families.token(size + 1, "<|l|>", lstrip=True)]
    values["added_tokens"] += [families.token(size + 2, "<w>", single_word=True)]
    families.write(tmp_path, values, config, model_type)
    ours, theirs = read_hf_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("<|user|>\n a <|l|> b", "a  <|l|>  b<|user|>", "<w> a<w> <w>b . <w>."):
        assert ours.encode_segments([Segment(text, False, "template")])[0] == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda v: v.update(model={"type": "Unigram", "vocab": [["a", 0.0]]}), "its model is Unigram; only BPE"),
        (lambda v: v.update(model={"type": "WordPiece", "vocab": {"a": 0}}), "its model is WordPiece; only BPE"),
        (lambda v: v["model"].update(dropout=0.1), "model.dropout is 0.1"),
        (lambda v: v.update(decoder={"type": "WordPiece", "prefix": "##"}), r"not supported \(WordPiece\)"),
        (lambda v: v["added_tokens"][0].update(id=7777), "has the id 7777"),
        (lambda v: v["added_tokens"][0].update(id=7), r"the tokens '.' and '<.endoftext.>' have one id, 7$"),
        (lambda v: v["model"]["vocab"].update(zzzz=9), "the tokens '.' and 'zzzz' have one id, 9$"),
        (lambda v: v["added_tokens"].append(families.token(len(v["model"]["vocab"]), "")), "has the content ''"),
        (lambda v: v["added_tokens"][0].update(content=5), "has the content 5"),
        (lambda v: v.pop("model"), "not a tokenizer that can be read"),
        (lambda v: v["model"]["merges"].append(["日", "本"]), "not a tokenizer that can be read"),
    ],
)
def test_what_cannot_be_read_is_one_line_naming_the_file(tmp_path, spoil, message):
    values, config, model_type = families.gpt2()
    spoil(values)
    families.write(tmp_path, values, config, model_type)
    with pytest.raises(UserError, match=message) as caught:
        read_hf_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"eos_token": 5}, "eos_token must be a token's name"),
        ({"eos_token": {"contnt": "x"}}, "eos_token must be a token's name"),
        ({"bos_token": ["<s>"]}, "bos_token must be a token's name"),
        ({"eos_token": "<nope>"}, "eos_token '<nope>' is no token of the vocabulary"),
        ({"added_tokens_decoder": {"500": {"content": ""}}}, "has the content ''"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, message):
    """A number was passed over; an unknown end of text became a new token, which no model would ever write."""
    values, config, model_type = families.gpt2()
    families.write(tmp_path, values, {**config, **settings}, model_type)
    with pytest.raises(UserError, match="tokenizer_config.json: .*" + message):
        read_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    if "eos_token" in settings and settings["eos_token"] != "<nope>":
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match="special_tokens_map.json: .*" + message):
            read_hf_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_brackets_is_one_line(tmp_path, name):
    """Python's parser of JSON ended in a RecursionError, which is no ValueError."""
    families.write(tmp_path, *families.gpt2())
    (tmp_path / name).write_text('{"a":' + "[" * 100_000)
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        read_hf_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_tokenizers_library_it_is_said_what_to_install(loaded, monkeypatch):
    """GPT-2's and Llama 3's kind need it not."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert read_hf_tokenizer(loaded("llama3")[2]).digest == loaded("llama3")[0].digest
    with pytest.raises(UserError, match=r"needs the package 'tokenizers': pip install 'gptft\[hf\]'"):
        read_hf_tokenizer(loaded("qwen2")[2])


# ---- saved, and written for others


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_checkpoint_and_an_export_give_the_same_tokenizer(loaded, texts, name, tmp_path):
    """Read from the model's directory, from our checkpoint and from an export of that: one digest, the same ids; and
    transformers gives them from the export too."""
    ours, _, _ = loaded(name)
    ours.save(tmp_path / "checkpoint")
    saved = Tokenizer.load(tmp_path / "checkpoint")
    write_hf_tokenizer(saved, tmp_path / "export", model_max_length=99)
    (tmp_path / "export" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    exported = read_hf_tokenizer(tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert saved.digest == exported.digest == ours.digest
    assert type(saved.engine) is type(exported.engine) is type(ours.engine)
    assert (exported.bos, exported.eot, exported.specials) == (ours.bos, ours.eot, ours.specials)
    assert (theirs.eos_token_id, theirs.model_max_length) == (ours.eot, 99) and theirs.pad_token is not None
    chosen = texts[::5]
    for text, expected in zip(chosen, theirs(chosen)["input_ids"], strict=True):
        ids = ours.encode_segments([Segment(text, False)])[0]
        assert saved.encode(text) == exported.encode(text) == ours.encode(text) and ids == expected, repr(text)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_the_embedded_vocabulary_can_be_given_to_others(tmp_path, texts):
    """A model trained from scratch here is loaded by transformers with the same ids."""
    ours = embedded()
    write_hf_tokenizer(ours, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert read_hf_tokenizer(tmp_path).digest == ours.digest
    for text, expected in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours.encode(text) == expected


def test_a_broken_checkpoint_is_one_clear_line(loaded, tmp_path):
    loaded("qwen2")[0].save(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": []}')
    with pytest.raises(UserError, match="not a tokenizer of gptft"):
        Tokenizer.load(tmp_path)


def test_the_digest_tells_engines_and_beginnings_apart(loaded):
    digests = {loaded(name)[0].digest for name in families.FAMILIES}
    assert len(digests) == len(families.FAMILIES) - 1  # Mistral's is Llama 2's, taken as it stands


def test_merges_are_found_from_the_ranks():
    """The two parts of a token are those in which merging its own bytes ends."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5, b"xyz": 6}
    assert derivations(ranks) == {b"bc": (b"b", b"c"), b"ab": (b"a", b"b"), b"abc": (b"a", b"bc")}


# ---- GPT-2's own two files


def spell(token):
    return "".join(CHARACTER[byte] for byte in token)


def write_gpt2_files(directory, ranks, specials):
    ordered, derived = sorted(ranks, key=ranks.__getitem__), derivations(ranks)
    values = {spell(token): ranks[token] for token in ordered} | specials
    (directory / "vocab.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(map(spell, derived[token])) for token in ordered if len(token) > 1]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def gpt2_tokenizer():
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("GPT-2's vocabulary is not here: ../shared/data/tiktoken-cache")
    return gpt2()


@pytest.fixture(scope="module")
def gpt2_directory(gpt2_tokenizer, tmp_path_factory):
    """GPT-2's vocab.json and merges.txt, written out from tiktoken's ranks."""
    directory = tmp_path_factory.mktemp("gpt2")
    write_gpt2_files(directory, gpt2_tokenizer.ranks, gpt2_tokenizer.specials)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    return directory


def test_gpt2s_real_vocabulary_from_its_two_files(gpt2_tokenizer, gpt2_directory, shared, texts):
    """A local directory needs no download; its ids are tiktoken's and transformers'."""
    local = read_hf_tokenizer(gpt2_directory)
    theirs = transformers.AutoTokenizer.from_pretrained(gpt2_directory)
    assert local.ranks == gpt2_tokenizer.ranks and local.digest == gpt2_tokenizer.digest
    records = json.loads((shared / "instruction-data.json").read_text())[:300]
    chosen = [*texts[:600], *(value for record in records for value in record.values())]
    for text, expected in zip(chosen, theirs(chosen)["input_ids"], strict=True):
        assert local.encode(text) == gpt2_tokenizer.encode(text) == expected, repr(text)


def test_vocab_and_merges_of_any_size_are_read(tmp_path, texts):
    """The embedded vocabulary written in GPT-2's two files gives itself back, without any network."""
    ours = embedded()
    assert not has_tokenizer(tmp_path)
    write_gpt2_files(tmp_path, ours.ranks, ours.specials)
    local = read_hf_tokenizer(tmp_path)
    assert has_tokenizer(tmp_path) and local.ranks == ours.ranks
    reference = Tokenizer(ours.ranks, GPT2_PATTERN, ours.specials)
    for text in texts[:100]:
        assert local.encode(text) == reference.encode(text)


def test_the_two_files_go_by_add_bos_token(tmp_path):
    """Without a tokenizer.json nothing else says it."""
    write_gpt2_files(tmp_path, embedded().ranks, embedded().specials)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": EOT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = read_hf_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_ids(ours, "hi there", raw=True) == theirs("hi there")["input_ids"]
    assert ours.bos == ours.eot
    config["tokenizer_class"] = "Qwen2Tokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"a Qwen2Tokenizer needs its tokenizer.json"):
        read_hf_tokenizer(tmp_path)


def spoil(directory, how):
    vocab = json.loads((directory / "vocab.json").read_text())
    merges = (directory / "merges.txt").read_text().split("\n")
    if how == "order":
        merges[1], merges[2] = merges[2], merges[1]
    elif how == "missing byte":
        vocab["ĀĀ"] = vocab.pop("Ā")
    elif how == "extra token":
        vocab["Ġextraordinary"] = len(vocab)
    elif how == "foreign":
        vocab["▁the"] = len(vocab)
    elif how == "no end":
        del vocab[EOT]
    elif how == "merge":
        merges[5] = "日 本"
    (directory / "vocab.json").write_text("[1, 2]" if how == "list" else json.dumps(vocab))
    (directory / "merges.txt").write_bytes(b"\xff\xfe" if how == "bytes" else "\n".join(merges).encode())


@pytest.mark.parametrize("how", ["order", "missing byte", "extra token", "foreign"])
def test_two_files_that_tiktoken_would_read_otherwise_are_left_to_tokenizers(tmp_path, texts, how):
    """tiktoken merges by rank: where ids do not follow the merges it would silently tokenise differently."""
    write_gpt2_files(tmp_path, embedded().ranks, embedded().specials)
    spoil(tmp_path, how)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    ours, theirs = read_hf_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours.engine) is TokenizersEngine
    for text in texts[:200]:
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("how", ["no end", "merge", "list", "bytes"])
def test_two_files_that_cannot_be_read_are_one_line_naming_them(tmp_path, how):
    """Several of these once ended in a traceback."""
    write_gpt2_files(tmp_path, embedded().ranks, embedded().specials)
    spoil(tmp_path, how)
    with pytest.raises(UserError) as caught:
        read_hf_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_generated_answer_keeps_its_first_space(loaded, monkeypatch):
    """An answer goes on from its prompt: only a text of its own has a space before it that nobody wrote."""
    from types import SimpleNamespace

    from gptft import generation

    ours, _, _ = loaded("llama2")
    model = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    model.config = SimpleNamespace(block_size=999)
    prompt, answer = "Say:", "  two spaces"
    ids, [(start, end)] = ours.encode_segments([Segment(prompt, False), Segment(answer, True)])
    monkeypatch.setattr(generation, "decode_continuously", lambda *_: ([(0, i)] for i in ids[start:end]))
    assert generation.generate(model, ours, [prompt], raw=True, lookup=False, decode="plain") == [answer]
