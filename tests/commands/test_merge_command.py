"""`python -m gptft merge`: adapters folded into their base, or nothing."""

import os

from cli import GPTFT, is_one_line

from gptft import generation, loading


def test_merge_writes_a_model_that_answers_as_the_adapters_did(ask, adapted, place):
    path, base, model, tokenizer = adapted
    expected = generation.generate(model, tokenizer, ["Hello"], 12)[0]
    assert expected != generation.generate(*loading.load(base), ["Hello"], 12)[0]
    assert ask(GPTFT, "generate", path, "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")
    assert ask(GPTFT, "merge", path, "out/merged") == (0, "out/merged\n", "")
    assert ask(GPTFT, "generate", "out/merged", "Hello", "--max_new_tokens", 12) == (0, expected + "\n", "")


def test_merge_says_what_is_wrong_and_writes_nothing(ask, adapted, saved, place):
    """Adapters on another base, a whole model in their place, an OUT that exists: one line each."""
    path, base, _, _ = adapted
    other = saved("other", n_layer=1)
    os.mkdir("taken")
    for words, parts in (
        ([path, "out", "--base", other], ["adapters for another base", str(base), str(other), "--base"]),
        ([base, "out"], ["base is a whole model: there are no adapters to merge"]),
        ([path, "taken"], ["taken exists already"]),
        (["nowhere", "out"], ["'nowhere' is no directory, not in the local cache, and the hub cannot be reached"]),
        ([path, "out", "--bas", other], ["unknown argument --bas; did you mean '--base'?"]),
        ([path], ["the following arguments are required: out"]),
    ):
        status, out, err = ask(GPTFT, "merge", *words)
        assert status == 2 and out == "" and os.listdir(place) == ["taken"]
        is_one_line(err, *parts)
