"""What one record's text says by itself: every fault is found, and what only resembles one is let pass."""

import sys

import pytest

from gptft.curation.checks import look_at, mend_encoding, passes_luhn, remove_control, why_cut

LONG = "The museum opens at nine in the morning and closes at six in the evening."


def kinds(response, prompt="What is it?"):
    return {kind for kind, _ in look_at(prompt, [response], [prompt, response])}


@pytest.mark.parametrize(
    "kind, text",
    [
        ("special", "Yes.<|endoftext|>"),
        ("special", "<|im_start|>assistant\nYes."),
        ("special", "</s>"),
        ("special", "[INST] Why? [/INST]"),
        ("special", "### Response:\nNo."),
        ("special", "Yes.\n### Instruction:\nAdd.\n### Response:\nNo."),
        ("special", "<s>[INST] Why?"),
        ("control", "Yes\x00."),
        ("control", "\ufeffYes."),
        ("lost", "na\ufffdve"),
        ("control", "\u202eYes."),
        ("control", "zero\u200bwidth"),
        ("mojibake", "It’s a café.".encode().decode("cp1252")),
        ("mojibake", "Zürich".encode().decode("latin-1")),
        ("refusal", "As an AI language model, I have no opinion."),
        ("refusal", "I'm sorry, but I can't do this."),
        ("refusal", "I cannot assist with that."),
        ("refusal", "Sorry, I can't help with this one."),
        ("refusal", "I apologize, but I cannot fulfill this request."),
        ("refusal", "I’m just an AI."),
        ("refusal", "<noinput>"),
        ("cut", f"{LONG} The guide then told us that"),
        ("cut", "The three reasons for this are the price, the weather, and the"),
        ("cut", "It grows in Asia, in Africa, and on islands,"),
        ("cut", "Use this:\n```python\nprint(1)"),
        ("cut", "`````\n```\nprint(1)\n```\nand so on"),
        ("echo", "What is it? It is a tree."),
        ("personal", "Write to jane.doe@mail.net, please."),
        ("personal", "The key is AKIAIOSFODNN7EXAMPLE."),
        ("personal", "sk-abcdefghijklmnopqrstuvwx1234"),
        ("personal", "-----BEGIN RSA PRIVATE KEY-----"),
        ("personal", "My card is 4539 1488 0343 6467."),
        ("personal", "4539148803436467"),
    ],
)
def test_a_fault_is_found(kind, text):
    assert kinds(text, prompt="what is  it? It is") == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "Café, naïve, Ærø — “quoted”… 日本語 emoji 👩‍👩‍👧 done.",  # a joiner inside an emoji is seen
        "The set {a | a > 0} and <b>bold</b> and x<s and #### 42",
        "A language model predicts the next word.",
        "I hold out a tenth of my training data.",
        "Dear Anna, I'm sorry, I can't come to the party.",
        "The correct answer to this question is A",
        "The vitamin that helps most is vitamin A",
        "Ich rufe dich morgen um acht Uhr an",
        "`````\n```\nprint(1)\n```\n`````",
        "It was <s>12</s> 10 pounds.",
        "First a heading:\n\n### Answer:\n\nThen the text.",
        "\u0e01\u200b\u0e02",  # Thai parts words by what has no width
        "\u2067\u05d0\u05d1\u2069 is Hebrew.",
        "I am an AI researcher at a university.",
        "I'm sorry that you lost your keys.",
        "Paris",
        "sorted in alphabetical order: Crocodile, Elephant, Zebra",
        "1. Wash the rice\n2. Boil the water\n3. Cook it with the lid on",
        "Roses are red\nViolets are blue\nSugar is sweet\nAnd so are you",
        "def f(x):\n    return x or",
        "He said it to Mr. Smith, who is the man we met with",
        "Cities like St. John's get more snowfall than Montreal does",
        "The clubs that she is a member of",
        "Call 0800 123 4567 89, or see 1234-5678-9012-3456-7890.",
        "The number is 4539148803436468 or 1111111111111111.",
        "Write to user@example.com.",
        "Line one.\tTabbed.\r\nLine two.",
    ],
)
def test_what_only_resembles_a_fault_is_let_pass(text):
    assert kinds(text) == set()


def test_a_short_prompt_that_an_answer_begins_with_is_no_echo():
    assert kinds("Paris is in France.", prompt="Paris") == set()
    assert "echo" in kinds("name three\nprimary colours", prompt="Name three primary colours")


def test_wrongly_decoded_text_is_put_right_and_other_text_is_left_alone():
    for text in ("It’s a café – naïve", "Zürich", "“quoted"):
        assert mend_encoding(text.encode().decode("cp1252")) == text
        assert mend_encoding(text) == text
    assert remove_control("a\x00b\u200bc\n\td\r\n") == "abc\n\td\r\n"


def test_a_long_unbroken_text_comes_to_an_end():
    """An address was looked for from every letter on: 1 MB took minutes, and these would take hours."""
    for text in ("a." * 500_000, "A-_b" * 250_000, "1 " * 500_000, "@" * 500_000):
        assert kinds(text) <= {"personal", "cut"}


def test_without_ftfy_nothing_is_changed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    text = "café".encode().decode("cp1252")
    assert mend_encoding(text) == text


@pytest.mark.parametrize(
    "number, valid",
    [
        ("4539 1488 0343 6467", True),
        ("4539-1488-0343-6467", True),
        ("378282246310005", True),  # 15 digits
        ("4539 1488 0343 6468", False),
        ("4539 1488 034", False),
        ("4444 4444 4444 4448", False),  # two digits alone are a pattern, no card
    ],
)
def test_a_card_number_has_its_check_digit(number, valid):
    assert passes_luhn(number) is valid


def test_what_shows_that_an_answer_was_cut_is_said():
    assert "'morning and closes at six and'" in why_cut("The museum opens at nine in the morning and closes at six and")
    assert why_cut("```\nx\n```\nDone.") == ""
