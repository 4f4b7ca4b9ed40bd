"""Records that are the same, or nearly, and leaks: against a comparison of every pair."""

import itertools
import random
import sys

import pytest

from gptft.curation.duplicates import NEAR, find_exact, find_near, shingles_of
from gptft.curation.entries import Entry
from gptft.errors import UserError

WORDS = [f"word{n}" for n in range(300)]


def entry(number, prompt, response, file="d.jsonl", context=""):
    parts = {"instruction": prompt, "response": response}
    return Entry(file, number + 1, number, prompt, [response], context, parts, parts)


def places(findings, kind):
    return [(found.line, found.other[1]) for found in findings if found.kind == kind]


def test_exact_is_but_for_case_and_white_space():
    texts = [("Why?", "So."), ("why? ", "SO."), ("Why?", "Because."), ("Who?", "So."), ("Why?", "so."), ("why?", "No.")]
    found = list(find_exact([entry(n, *pair) for n, pair in enumerate(texts)], []))
    assert places(found, "duplicate") == [(2, 1), (5, 1)]
    assert places(found, "conflict") == [(3, 1), (6, 1)]
    assert "the response is 'Because.', there 'So.'" in found[1].message and "line 1" in found[1].message


def test_a_prompt_of_the_validation_data_in_the_training_data_is_a_leak():
    train = [entry(0, "Why?", "So."), entry(1, "Who?", "I."), entry(2, "", "a text {that} leaks")]
    held_out = [entry(0, "WHO? ", "You.", "v.jsonl"), entry(1, "", "A text {that} leaks", "v.jsonl")]
    found = list(find_exact(train, held_out))
    assert places(found, "leak") == [(2, 1), (3, 2)] and "v.jsonl, line 1" in found[0].message


def test_records_that_differ_in_their_system_text_or_calls_are_not_the_same():
    pair = [
        entry(n, "Buy now!", "Yes.", context=f"Say whether it is {what}.") for n, what in enumerate(("spam", "rude"))
    ]
    assert not list(find_exact(pair, [])) and not list(find_exact(pair[:1], pair[1:]))


def variants(rng, count):
    """Texts of which some are others with a few words changed."""
    texts = []
    for _ in range(count):
        words = (
            rng.choices(WORDS, k=rng.randint(12, 60)) if rng.random() < 0.6 or not texts else rng.choice(texts).split()
        )
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def test_near_duplicates_are_those_that_a_comparison_of_every_pair_finds():
    """Candidates come from hashes, which are only probable; at this length none of 400 texts may be missed."""
    rng = random.Random(0)
    entries = [entry(n, text, "So.") for n, text in enumerate(variants(rng, 400))]
    sets = [shingles_of(f"{each.prompt}\n{each.response}") for each in entries]
    kept, expected = [], {}
    for number, shingles in enumerate(sets):
        near = {k: len(shingles & sets[k]) / len(shingles | sets[k]) for k in kept}
        near = {k: value for k, value in near.items() if value >= NEAR}
        if near:
            expected[number + 1] = max(near.values())
        else:
            kept.append(number)
    found = {finding.line: finding for finding in find_near(entries, [])}
    assert len(expected) > 50 and found.keys() == expected.keys()
    for line, similarity in expected.items():
        assert found[line].message.startswith(f"{similarity:.0%} of 3 words")


def test_near_leaks_are_found_by_the_prompt_alone():
    rng = random.Random(1)
    prompts = [" ".join(rng.choices(WORDS, k=30)) for _ in range(20)]
    train = [entry(n, prompt, f"answer {n}") for n, prompt in enumerate(prompts)]
    held_out = [entry(n, f"{prompt} indeed", f"other {n}", "v.jsonl") for n, prompt in enumerate(prompts[:5])]
    found = list(find_near(train, held_out))
    assert places(found, "near-leak") == [(n + 1, n + 1) for n in range(5)]


def test_short_texts_are_not_compared():
    assert not shingles_of("one two three four five six seven eight nine")
    assert len(shingles_of(" ".join(WORDS[:10]))) == 8
    pair = [entry(n, f"Write the plural: {noun}", f"{noun}s") for n, noun in enumerate(("cat", "dog"))]
    assert not list(find_near(pair, []))


def test_without_datasketch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'gptft\[lint\]'"):
        list(find_near([entry(0, "a", "b")], []))


def test_every_pair_of_kinds_of_files_is_compared():
    """Duplicates are looked for in the held-out data as well; between it and the training data they are leaks."""
    groups = [[entry(0, "Why?", "So."), entry(1, "Why?", "So.")] for _ in range(2)]
    found = list(find_exact(*groups))
    assert [finding.kind for finding in found] == ["duplicate", "duplicate", "leak", "leak"]
    assert all(
        a.kind != b.kind or a.line != b.line or a.kind == "duplicate" for a, b in itertools.combinations(found, 2)
    )
