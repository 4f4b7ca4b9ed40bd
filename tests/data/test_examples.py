"""Records -> examples: nothing is cut, dropped or moved between splits without being counted and named."""

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gptft.data.build import truncate
from gptft.data.cache import cache_directory
from gptft.data.examples import Dataset, Recipe, load_dataset, split, subset
from gptft.errors import UserError
from gptft.prompts import TEMPLATES, Template
from gptft.run.console import describe_ledger
from gptft.tokenizer import Tokenizer, embedded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return embedded()


def load(tokenizer, paths, max_length=64, template="qa", **recipe) -> Dataset:
    paths = [Path(path) for path in ([paths] if isinstance(paths, Path) else paths)]
    chosen = template if isinstance(template, Template) else TEMPLATES[template]
    return load_dataset(paths, tokenizer, Recipe(chosen, max_length, **recipe))


# ---- truncation


def random_example(rng):
    """Random ids and trained spans, of which no two touch; the last reaches the end or stops before it."""
    flags = []
    for _ in range(rng.randint(1, 4)):
        flags += [False] * rng.randint(1, 5) + [True] * rng.randint(1, 5)
    flags += [False] * rng.choice((0, 0, 2))
    if rng.random() < 0.2:
        flags = flags[next(n for n, flag in enumerate(flags) if flag) :]  # a response without a prompt
    return list(range(100, 100 + len(flags))), flags


def spans_of(flags):
    """The maximal runs of True as [start, end)."""
    edges = [n for n, (a, b) in enumerate(zip([False, *flags], [*flags, False], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def truncate_by_flags(ids, flags, max_length, how):
    """The definition, token by token: keep an end of the list, and see whether there is anything left to learn."""
    if len(ids) <= max_length:
        return ids, spans_of(flags)
    if how == "drop":
        return None
    if how == "right":
        ids, flags = ids[:max_length], flags[:max_length]
        return (ids, spans_of(flags)) if any(flags[1:]) else None
    first_of_last = spans_of(flags)[-1][0]
    if first_of_last - (len(ids) - max_length) < 1:  # the last response is not whole with a token before it
        return None
    return ids[-max_length:], spans_of(flags[-max_length:])


@pytest.mark.parametrize("how", ["right", "left", "drop"])
def test_truncation_equals_a_token_by_token_reference(how):
    """Over random conversations: what is kept, which of it is trained, and what is dropped."""
    rng = random.Random(0)
    outcomes = set()
    for _ in range(3000):
        ids, flags = random_example(rng)
        max_length = rng.randint(2, 25)
        result = truncate(ids, spans_of(flags), max_length, how)
        assert result == truncate_by_flags(ids, flags, max_length, how), (flags, max_length)
        outcomes.add("dropped" if result is None else "cut" if len(result[0]) < len(ids) else "whole")
    assert outcomes == {"dropped", "whole"} | ({"cut"} if how != "drop" else set())


def test_left_truncation_keeps_the_beginning_of_text_and_counts_it():
    """A model never saw a text without it; it was the first token to be cut."""
    rng = random.Random(1)
    outcomes = set()
    for _ in range(3000):
        ids, flags = random_example(rng)
        ids, flags = [1, *ids], [False, *flags]
        max_length = rng.randint(2, 25)
        result = truncate(ids, spans_of(flags), max_length, "left", beginnings={1})
        expected = truncate_by_flags(ids[1:], flags[1:], max_length - 1, "left")  # of what follows the first
        wanted = expected and ([1, *expected[0]], [(start + 1, end + 1) for start, end in expected[1]])
        assert result == wanted, (flags, max_length)
        outcomes.add("dropped" if result is None else "cut" if len(result[0]) < len(ids) else "whole")
        # where 1 is no beginning-of-text, it is cut like any other token
        assert truncate(ids, spans_of(flags), max_length, "left") == truncate_by_flags(ids, flags, max_length, "left")
    assert outcomes == {"dropped", "cut", "whole"}


def test_a_cut_conversation_begins_with_its_beginning_of_text(write_lines):
    """From the record on: the vocabulary's own id stands at position 0, and max_length counts it."""
    plain = embedded()
    tokenizer = Tokenizer(plain.ranks, plain.pattern, {**plain.specials, "<s>": plain.n_vocab}, bos=plain.n_vocab)
    path = write_lines([{"question": "word " * 100, "answer": "the cat sat"}])
    (example,) = load(tokenizer, path, max_length=30, truncation="left")
    assert example.ids[0] == tokenizer.bos and len(example.ids) == 30 and example.spans[0][1] == 30
    whole, _ = tokenizer.encode_segments(
        TEMPLATES["qa"].segments({"instruction": "word " * 100, "response": "the cat sat"})
    )
    assert example.ids.tolist() == [whole[0], *whole[-29:]]


def test_a_cut_response_has_no_end_of_text(tokenizer, write_lines):
    """An end made up after the cut would teach the model to stop in mid-sentence."""
    path = write_lines([{"question": "Tell me.", "answer": "the cat sat on the mat and looked at the dog " * 9}])
    dataset = load(tokenizer, path, max_length=30)
    assert len(dataset[0].ids) == 30 and tokenizer.eot not in dataset[0].ids
    assert dataset.ledger["records_cut"] == 1


def test_left_truncation_keeps_the_response_and_its_end_whole(tokenizer, write_lines):
    path = write_lines([{"question": "word " * 100, "answer": "the cat sat"}])
    (example,) = load(tokenizer, path, max_length=30, truncation="left")
    (start, end) = example.spans[0]
    assert tokenizer.decode(example.ids[start : end - 1]) == "the cat sat"
    assert end == len(example.ids) == 30 and example.ids[-1] == tokenizer.eot


@pytest.mark.parametrize(
    "how, message",
    [("right", "its prompt alone fills max_length 12"), ("left", "no whole response"), ("drop", "above max_length 12")],
)
def test_an_example_whose_response_does_not_survive_is_dropped_counted_and_named(tokenizer, write_lines, how, message):
    """Trained on, it would give a NaN or a loss of 0."""
    long = "word " * 50
    bad = {"question": long, "answer": long if how == "left" else "x"}
    path = write_lines([{"question": "a", "answer": "b"}, bad])
    template = Template("bare", prompt="{prompt}")
    dataset = load(tokenizer, path, max_length=12, template=template, truncation=how)
    assert len(dataset) == 1 and dataset.ledger["records_dropped"] == {"too long": 1}
    (lost,) = dataset.lost()
    assert (lost["file"], lost["line"], lost["what"]) == (str(path), 2, "dropped") and message in lost["why"]
    assert "1 dropped (1 too long)" in describe_ledger("data", dataset.ledger)


# ---- plain text


def test_text_is_trained_on_whole_and_cut_into_chunks(tokenizer, tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("the cat sat on the mat. " * 40)
    dataset = load(tokenizer, path, max_length=16)
    ids = [*tokenizer.encode(path.read_text()), tokenizer.eot]
    targets = [int(t) for example in dataset for a, b in example.spans for t in example.ids[max(a, 1) : b]]
    assert targets == ids[1:]
    assert dataset.ledger["targets"] == dataset.ledger["tokens_read"] - 1 == len(ids) - 1
    assert dataset.ledger["records_kept"] == 1 and dataset.ledger["examples"] == len(dataset) > 10
    assert list(dataset.lost()) == []


# ---- the ledger


def random_records(rng, count):
    """Records of every kind, of every length, some of them bad."""
    records = []
    for n in range(count):
        words = " ".join(rng.choice(("cat", "dog", "é", "😀", "42", "\n")) for _ in range(rng.choice((1, 5, 30, 90))))
        short = f"say {rng.randint(0, 9)}"
        records.append(
            rng.choice(
                [
                    {"question": short, "answer": words + "x"},
                    {"question": words + "?", "answer": short},
                    {"instruction": short, "input": words + "i", "output": short},
                    {"text": words + "."},
                    {"question": short, "answer": " "},
                    {"question": n, "answer": short},
                    {"nothing": "known"},
                    {
                        "messages": [
                            {"role": "user", "content": short},
                            {"role": "assistant", "content": words + "a"},
                            {"role": "user", "content": words + "b"},
                            {"role": "assistant", "content": short},
                        ]
                    },
                ]
            )
        )
    return records


@pytest.mark.parametrize("how", ["right", "left", "drop"])
@pytest.mark.parametrize("seed", range(4))
def test_the_ledger_accounts_for_every_record_and_every_token(tokenizer, tmp_path, how, seed):
    """ "Data lost without a word" is what the ledger guards: its sums must close over random files."""
    rng = random.Random(seed)
    paths = []
    for name, kind in (("a.jsonl", "lines"), ("b.json", "array")):
        records, path = random_records(rng, 60), tmp_path / name
        lines = [json.dumps(record) for record in records]
        if kind == "lines":
            lines.insert(7, '{"broken": ')
            path.write_text("\n".join(lines))
        else:
            path.write_text("[" + ", ".join(lines) + "]")  # all of them on one line
        paths.append(path)
    dataset = load(tokenizer, paths, max_length=40, truncation=how, bad_records="drop")
    ledger, lost = dataset.ledger, list(dataset.lost())
    dropped = ledger["records_dropped"]

    assert ledger["records_read"] == 121 == ledger["records_kept"] + sum(dropped.values())
    assert ledger["tokens_read"] == ledger["tokens_kept"] + ledger["tokens_cut"] + ledger["tokens_dropped"]
    assert len(dataset.ids) == ledger["tokens_kept"] + ledger["tokens_repeated"]
    assert ledger["examples"] == len(dataset)

    targets = sum(end - max(start, 1) for example in dataset for start, end in example.spans)
    assert ledger["targets"] == targets
    assert all(any(end > max(start, 1) for start, end in example.spans) for example in dataset)
    assert all(2 <= len(example.ids) <= 40 for example in dataset)

    # every record is an example or is named in lost(), and not both; what is cut is both
    where = {(dataset.name(i), int(dataset.sources[i][2])) for i in range(len(dataset))}
    assert len(where) == ledger["records_kept"]
    gone = [entry for entry in lost if entry["what"] == "dropped"]
    cut = [entry for entry in lost if entry["what"] == "cut"]
    assert len(gone) == sum(dropped.values()) and len(cut) == ledger["records_cut"]
    assert sum(entry["tokens"] for entry in cut) == ledger["tokens_cut"]
    assert sum(entry["tokens"] for entry in gone) == ledger["tokens_dropped"]
    lines = {line for (file, line), _ in where if file == str(paths[0])}
    assert lines.isdisjoint(entry["line"] for entry in gone if entry["file"] == str(paths[0]))
    assert len(lines) + sum(entry["file"] == str(paths[0]) for entry in gone) == 61


def test_an_unmasked_prompt_counts_as_targets(tokenizer, write_lines):
    """With --mask_prompt false the console once still said that only the responses were targets."""
    dataset = load(tokenizer, write_lines([{"question": "a b c", "answer": "d"}, {"question": "e", "answer": "f"}]))
    dataset.score_prompts()
    assert dataset.ledger["targets"] == dataset.ledger["tokens_kept"] - 2


# ---- bad records


BAD = [
    ('{"question": "a", "answer": "b"}', None),
    ('{"question": "a", "answer": }', "broken JSON: Expecting value (column 29)"),
    ('{"question": "a"}', "key 'answer' is missing; it has 'question'"),
    ('{"question": "a", "answer": ""}', "key 'answer' is empty"),
    ('["a"]', "a record must be a JSON object, not a list"),
]


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n\n".join(line for line, _ in BAD))
    return path


def test_bad_records_stop_with_file_line_key_and_count_and_nothing_in_the_cache(tokenizer, bad, cache):
    """Half-tokenised data in the cache would be trained on by the next run."""
    with pytest.raises(UserError) as caught:
        load(tokenizer, bad)
    first, *lines = str(caught.value).split("\n")
    assert first == "4 bad records (--bad_records drop goes on without them):"
    expected = [(1 + 2 * n, why) for n, (_, why) in enumerate(BAD) if why]
    assert len(lines) == 4
    for text, (line, why) in zip(lines, expected, strict=True):
        assert text.startswith(f"  {bad}, line {line}: ") and why in text
    assert os.listdir(cache) == []


def test_many_bad_records_are_counted_and_the_first_named(tokenizer, write_lines):
    path = write_lines([{"question": "a", "answer": ""}] * 30)
    with pytest.raises(UserError) as caught:
        load(tokenizer, path)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("30 bad records") and lines[-1] == "  ... and 25 more" and len(lines) == 7


def test_records_that_are_too_long_are_not_counted_as_bad(tokenizer, write_lines):
    """They are dropped by the truncation rule; counted in, they once made one bad record look like thirty."""
    long = {"question": "word " * 90, "answer": "x"}
    path = write_lines([*[long] * 29, {"question": "a", "answer": ""}])
    with pytest.raises(UserError) as caught:
        load(tokenizer, path)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("1 bad record (") and len(lines) == 2 and "line 30: key 'answer'" in lines[1]


def test_dropped_bad_records_are_counted_and_named(tokenizer, bad):
    dataset = load(tokenizer, bad, bad_records="drop")
    assert len(dataset) == 1 and dataset.ledger["records_dropped"] == {"bad record": 4}
    assert [(entry["line"], entry["what"]) for entry in dataset.lost()] == [(n, "dropped") for n in (3, 5, 7, 9)]


def test_a_record_for_which_the_template_has_no_place_is_a_bad_record(tokenizer, write_lines):
    path = write_lines([{"question": "a", "answer": "b"}, {"question": "a", "answer": "b", "system": "s"}])
    with pytest.raises(UserError, match=r"line 2: it has a text for 'system'"):
        load(tokenizer, path)


def test_files_without_a_usable_record_are_refused_with_the_reasons(tokenizer, tmp_path, write_lines):
    empty = tmp_path / "e.json"
    empty.write_text("[]")
    with pytest.raises(UserError, match=r"e.json: no record is left to use \(there is none\)"):
        load(tokenizer, empty)
    bad = write_lines([{"question": "", "answer": ""}, {"question": "word " * 90, "answer": "x"}])
    with pytest.raises(UserError, match=r"no record is left to use \(1 bad record, 1 too long\)"):
        load(tokenizer, bad, bad_records="drop")


# ---- the cache


class Counting(Tokenizer):
    """The real tokenizer, which counts how often it is asked."""

    calls = 0

    def encode_many(self, examples):
        self.calls += 1
        return super().encode_many(examples)


@pytest.fixture
def counting(tokenizer):
    return Counting(tokenizer.ranks, tokenizer.pattern, tokenizer.specials)


def same(a, b):
    return (
        len(a) == len(b)
        and all(
            np.array_equal(x.ids, y.ids) and x.spans == y.spans and x.record == y.record
            for x, y in zip(a, b, strict=True)
        )
        and a.ledger == b.ledger
        and list(a.lost()) == list(b.lost())
    )


def test_a_second_start_finds_the_same_and_does_not_tokenise_again(counting, write_lines, pairs, cache):
    path = write_lines(pairs(50))
    first = load(counting, path, max_length=40)
    calls = counting.calls
    second = load(counting, path, max_length=40)
    assert calls >= 1 and counting.calls == calls
    assert same(first, second)
    assert len(os.listdir(cache)) == 1  # and no temporary folder is left


def test_the_same_content_elsewhere_is_found_and_named_by_its_new_place(counting, write_lines, pairs):
    """A cache that remembered paths would name files that are gone."""
    load(counting, write_lines(pairs(9), "a.jsonl"))
    path = write_lines(pairs(9), "b.jsonl")
    dataset = load(counting, path)
    assert counting.calls == 1 and dataset.name(0) == (str(path), 1)


def change_content(path, recipe, ranks):
    """One letter; size and time stay."""
    before = path.stat()
    path.write_text(path.read_text().replace("What", "whaT", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "content": change_content,
    "template": lambda path, recipe, ranks: recipe.update(template="chatml"),
    "max_length": lambda path, recipe, ranks: recipe.update(max_length=61),
    "truncation": lambda path, recipe, ranks: recipe.update(truncation="left"),
    "fields": lambda path, recipe, ranks: recipe.update(fields={"instruction": "answer", "response": "question"}),
    "bad_records": lambda path, recipe, ranks: recipe.update(bad_records="drop"),
    "tokenizer": lambda path, recipe, ranks: ranks.popitem(),
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_whatever_decides_the_examples_is_part_of_the_key(tokenizer, write_lines, pairs, cache, what):
    """Stale examples would train a run on other data than its config says."""
    path, recipe, ranks = write_lines(pairs(9)), {"max_length": 60}, dict(tokenizer.ranks)
    load(tokenizer, path, **recipe)
    CHANGES[what](path, recipe, ranks)
    other = Tokenizer(ranks, tokenizer.pattern, {name: len(ranks) for name in tokenizer.specials})
    load(other if what == "tokenizer" else tokenizer, path, **recipe)
    assert len(os.listdir(cache)) == 2


def test_a_new_edition_of_the_cache_is_made_anew_under_the_key_that_runs_know(
    tokenizer, write_lines, pairs, cache, monkeypatch
):
    """Examples that an earlier commit made otherwise must not be used, and its unfinished runs must go on."""
    path = write_lines(pairs(9))
    before = load(tokenizer, path)
    monkeypatch.setattr("gptft.data.examples.EDITION", 1000)
    after = load(tokenizer, path)
    assert len(os.listdir(cache)) == 2 and before.meta["key"] == after.meta["key"]
    assert split(before, 0.1, 0.1, 1)[0].digest() == split(after, 0.1, 0.1, 1)[0].digest()


def test_data_that_an_earlier_version_made_otherwise_has_another_key(tokenizer, write_lines, pairs, monkeypatch):
    """An unfinished run of it would go on with other targets and not notice; every other run must go on."""
    recipe = Recipe(TEMPLATES["chatml"], 60)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yo.", "weight": 0}]
    paths = [write_lines(pairs(9), "a.jsonl")], [write_lines([{"messages": turns}], "b.jsonl")]
    now = [recipe.key(tokenizer, path) for path in paths]
    monkeypatch.setattr(Recipe, "_changes", lambda *_: [])
    before = [recipe.key(tokenizer, path) for path in paths]
    assert now[0] == before[0] and now[1] != before[1]


def test_the_kind_of_a_compressed_file_is_part_of_the_key(tokenizer, tmp_path):
    """The same bytes are one text, or records, by the name of the file."""
    packed = gzip.compress(b'{"question": "a", "answer": "b"}\n' * 2)
    (tmp_path / "x.txt.gz").write_bytes(packed)
    (tmp_path / "x.jsonl.gz").write_bytes(packed)
    recipe = Recipe(TEMPLATES["qa"], 60)
    read = [load_dataset([tmp_path / f"x.{kind}.gz"], tokenizer, recipe).ledger for kind in ("txt", "jsonl")]
    assert [ledger["records_read"] for ledger in read] == [1, 2]


def test_a_cache_that_cannot_be_used_is_one_clear_line(tokenizer, write_lines, pairs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"set GPTFT_CACHE to another"):
        load(tokenizer, write_lines(pairs(2)))


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("GPTFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_directory() == Path("/somewhere/gptft")


def test_a_vocabulary_above_65536_is_stored_whole(write_lines, pairs):
    """16 bits would wrap the ids of a large vocabulary around, silently."""
    base = embedded()
    ranks = dict(base.ranks)
    rng = random.Random(0)
    while len(ranks) < 70_000:
        ranks.setdefault(bytes(rng.randint(0, 255) for _ in range(8)), len(ranks))
    large = Tokenizer(ranks, base.pattern, {"<|endoftext|>": len(ranks)})
    dataset = load(large, write_lines(pairs(3)))
    assert all(example.ids[-1] == 70_000 for example in dataset)


# ---- fetching records back


@pytest.mark.parametrize("kind", ["lines", "array", "array on one line"])
def test_fetch_gives_the_records_behind_examples_in_the_order_asked(tokenizer, tmp_path, kind):
    """Looked up by line, records that share a line would all come back as one of them."""
    records = [{"question": f"q{n}", "answer": "a" * (1 + n % 3), "id": n} for n in range(30)]
    records[4]["answer"] = records[11]["answer"] = ""  # dropped: numbers of examples and records differ
    path = tmp_path / ("d.jsonl" if kind == "lines" else "d.json")
    if kind == "lines":
        path.write_text("\n\n".join(map(json.dumps, records)))
    else:
        path.write_text(json.dumps(records, indent=None if "one line" in kind else 1))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": "other", "answer": "b", "id": 99}))
    dataset = load(tokenizer, [path, other], bad_records="drop")
    asked = [28, 3, 17, 3, 0, 9]
    kept = [record for record in records if record["answer"]]
    expected = [99 if i == 28 else kept[i]["id"] for i in asked]
    assert [record["id"] for record in dataset.fetch(asked)] == expected
    assert f"q{kept[9]['id']}\n" in tokenizer.decode(dataset[9].ids)


# ---- splits


def prompts(tokenizer, part):
    return {tokenizer.decode(example.ids[: example.spans[0][0]]) for example in (part[i] for i in range(len(part)))}


def test_splits_have_their_sizes_and_share_nothing(tokenizer, write_lines, pairs):
    dataset = load(tokenizer, write_lines(pairs(200)))
    train, val, test = split(dataset, 0.05, 0.1, seed=1)
    assert (len(train), len(val), len(test)) == (170, 10, 20)
    assert sorted([*train.indices, *val.indices, *test.indices]) == list(range(200))
    assert prompts(tokenizer, train).isdisjoint(prompts(tokenizer, test) | prompts(tokenizer, val))


def test_splits_depend_on_the_seed_alone(tokenizer, write_lines, pairs):
    dataset = load(tokenizer, write_lines(pairs(100)))
    first, again, other = (split(dataset, 0.1, 0.1, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(first, again, strict=True))
    assert [part.digest() for part in first] == [part.digest() for part in again]
    assert not np.array_equal(first[2].indices, other[2].indices)
    assert list(first[2].indices) != list(range(90, 100))  # shuffled, not the file's end


def test_records_with_the_same_prompt_stay_on_one_side(tokenizer, write_lines):
    """A prompt seen in training, asked again in the test, measures memory."""
    records = [{"question": f"prompt {n % 40}", "answer": f"answer {n}"} for n in range(200)]
    for seed in range(5):
        parts = split(load(tokenizer, write_lines(records)), 0.2, 0.3, seed)
        sides = [prompts(tokenizer, part) for part in parts]
        assert [len(part) for part in parts] == [100, 40, 60]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_one_very_common_prompt_does_not_leave_the_test_empty(tokenizer, write_lines):
    """Drawn first, a group larger than the whole share once closed the validation and test splits, silently."""
    records = [{"question": "Summarise." if n < 60 else f"q{n}", "answer": f"a{n}"} for n in range(100)]
    dataset = load(tokenizer, write_lines(records))
    for seed in range(20):
        assert [len(part) for part in split(dataset, 0.1, 0.2, seed)] == [70, 10, 20]


def test_a_split_of_size_zero_is_legal(tokenizer, write_lines, pairs):
    train, val, test = split(load(tokenizer, write_lines(pairs(10))), 0.0, 0.0, seed=1)
    assert (len(train), len(val), len(test)) == (10, 0, 0)
    assert list(train.indices) == list(range(10)) and len(val.lengths) == 0 and test.records([]) == []


def test_a_splits_lengths_and_records_are_its_own(tokenizer, write_lines, pairs):
    records = pairs(60)
    _, _, test = split(load(tokenizer, write_lines(records)), 0.1, 0.2, seed=3)
    assert test.lengths.tolist() == [len(test[i].ids) for i in range(len(test))]
    for i, record in enumerate(test.records(range(len(test)))):
        assert record == records[test.indices[i]]
        assert record["question"] in tokenizer.decode(test[i].ids)


def test_the_digest_of_a_split_follows_its_data(tokenizer, write_lines, pairs):
    """--resume compares it: changed data must not be taken for the same."""
    a = split(load(tokenizer, write_lines(pairs(20))), 0.1, 0.1, 1)[0].digest()
    b = split(load(tokenizer, write_lines([*pairs(19), {"question": "new", "answer": "x"}])), 0.1, 0.1, 1)[0].digest()
    assert a != b


# ---- size


MEASURE = """
import json, resource, sys
from pathlib import Path
from gptft.data.examples import Recipe, load_dataset
from gptft.prompts import TEMPLATES
from gptft.tokenizer import embedded

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

tokenizer = embedded()
out = []
for name in sys.argv[1:]:
    dataset = load_dataset([Path(name)], tokenizer, Recipe(TEMPLATES["qa"], 256))
    out.append((len(dataset), dataset.ledger["tokens_kept"], peak()))
print(json.dumps(out))
"""


@pytest.mark.slow
def test_json_lines_are_streamed_into_compact_storage(tmp_path):
    """A million records of 60 tokens are to peak under 1 GB: so 50,000 more may add what offsets, spans and sources
    take, about 45 bytes each, and not the records, of which each costs a kilobyte as Python objects.

    The first file warms up everything that does not grow; both measurements are of one process's peak.
    """
    pytest.importorskip("resource", reason="memory cannot be measured here")
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in other units here")
    for name, count in (("warm.jsonl", 3000), ("large.jsonl", 53_000)):
        with open(tmp_path / name, "w") as file:
            for n in range(count):
                words = "the cat sat on the mat and looked at the dog in the garden " * 3
                file.write(json.dumps({"question": f"{n} {words}", "answer": f"{words}{n}"}) + "\n")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "warm.jsonl", tmp_path / "large.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    )
    (_, _, before), (count, tokens, after) = json.loads(run.stdout)
    assert count == 53_000 and tokens / count >= 60
    growth = (after - before) / 50_000
    assert growth < 300, f"{growth:.0f} bytes a record"  # a million records: 300 MB on top of torch and Python


def test_keys_that_play_no_part_are_named(tmp_path, write_lines):
    """A `topic` beside instruction and response is not trained on; it must not be left out without a word."""
    records = [{"instruction": f"Do {i}", "topic": "c", "response": "r"} for i in range(3)]
    dataset = load_dataset([write_lines(records)], embedded(), Recipe(TEMPLATES["alpaca"], 256))
    assert dataset.ledger["unused_keys"] == {"topic": 3}
    mapped = Recipe(
        TEMPLATES["alpaca"], 256, fields={"instruction": "instruction", "input": "topic", "response": "response"}
    )
    assert load_dataset([write_lines(records)], embedded(), mapped).ledger["unused_keys"] == {}


# ---- a share of the training split


def test_a_share_is_seeded_nested_and_in_order(write_lines):
    path = write_lines([{"question": f"{n}?", "answer": str(n)} for n in range(200)])
    dataset = load_dataset([path], embedded(), Recipe(TEMPLATES["qa"], 64))
    train, val, test = split(dataset, 0.1, 0.1, 0)
    shares = {fraction: subset(train, fraction, 5) for fraction in (0.001, 0.1, 0.25, 0.5, 1)}
    assert [len(share) for share in shares.values()] == [1, 16, 40, 80, 160]
    ordered = [share.indices.tolist() for share in shares.values()]
    for smaller, larger in itertools.pairwise(ordered):
        assert set(smaller) < set(larger) and smaller == sorted(smaller)
    assert ordered[-1] == train.indices.tolist() and not set(ordered[-1]) & {*val.indices, *test.indices}
    assert subset(train, 0.25, 5).digest() == shares[0.25].digest() != subset(train, 0.25, 6).digest()
