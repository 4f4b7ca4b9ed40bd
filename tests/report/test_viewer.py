"""The token viewer shows what the loss receives, and nothing else."""

import html.parser
import random

import numpy as np
import pytest

from gptft.collate import IGNORE, collate
from gptft.data.examples import Example, Recipe, load_dataset
from gptft.evaluation.tokens import Token, row_tokens, token_text
from gptft.prompts import TEMPLATES
from gptft.report import viewer
from gptft.tokenizer import embedded

RECORDS = [
    {"question": "Which animal?", "answer": "A cat <b>&amp;</b> a dog."},
    {"question": "short", "answer": "x"},
    {"question": "odd 😀 é\n\n\tlines", "answer": "first\nsecond <|endoftext|> {x}\r\x1b[31mred\x00"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return embedded()


@pytest.fixture
def dataset(tokenizer, write_lines):
    return load_dataset([write_lines(RECORDS)], tokenizer, Recipe(TEMPLATES["qa"], 256))


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_tokens_agree_with_the_batch_position_by_position(tokenizer, dataset, mask_prompt):
    """A viewer with a mask of its own would show what somebody meant, not what is trained."""
    batch = collate(list(dataset), tokenizer.eot, mask_prompt)
    for row, example in enumerate(dataset):
        tokens = row_tokens(batch, row, tokenizer)
        assert [token.position for token in tokens] == list(range(len(tokens)))
        assert [token.id for token in tokens[: len(example.ids)]] == example.ids.tolist()
        for token in tokens:
            t = token.position
            target = batch.targets[row, t - 1].item() if t else IGNORE
            if token.kind == "target":
                assert target == token.id
            else:
                assert target == IGNORE and batch.idx[row, t] == token.id
                assert token.kind == ("masked" if t < batch.lengths[row] else "padding")
        kinds = [token.kind for token in tokens]
        assert kinds.count("target") == (batch.targets[row] != IGNORE).sum()
        assert len(tokens) == len(example.ids) + kinds.count("padding")


def test_a_target_that_is_changed_in_the_tensor_is_changed_in_the_view(tokenizer, dataset):
    """It reads the tensors themselves: a mask put into the batch by hand shows."""
    batch = collate([dataset[0]], tokenizer.eot)
    before = row_tokens(batch, 0, tokenizer)
    first = next(token.position for token in before if token.kind == "target")
    batch.targets[0, first - 1] = IGNORE
    after = row_tokens(batch, 0, tokenizer)
    assert before[first].kind == "target" and after[first].kind == "masked"
    assert [token for token in after if token.position != first] == [t for t in before if t.position != first]


def test_a_last_token_that_is_no_target_is_not_shown_since_the_loss_never_sees_it(tokenizer):
    """A conversation that ends with the user: its last token is neither in idx nor in targets; padding stands there."""
    short = Example(np.array([1, 2, 3, 4], dtype=np.uint16), [(1, 2)], ("d.jsonl", 1))
    long = Example(np.arange(1, 7, dtype=np.uint16), [(2, 6)], ("d.jsonl", 2))
    tokens = row_tokens(collate([short, long], tokenizer.eot), 0, tokenizer)
    assert [token.kind for token in tokens] == ["masked", "target", "masked", "padding", "padding"]
    assert [token.id for token in tokens] == [1, 2, 3, tokenizer.eot, tokenizer.eot]


def test_masks_and_targets_are_told_by_an_independent_reading_of_the_record(tokenizer, dataset):
    batch = collate(list(dataset), tokenizer.eot)
    for row, record in enumerate(RECORDS):
        tokens = row_tokens(batch, row, tokenizer)
        by_kind = {kind: [token.id for token in tokens if token.kind == kind] for kind in viewer.KINDS}
        assert tokenizer.decode(by_kind["target"]) == record["answer"]
        assert by_kind["target"][-1] == tokenizer.eot
        assert tokenizer.decode(by_kind["masked"]) == f"### Question:\n{record['question']}\n\n### Answer:\n"
        assert set(by_kind["padding"]) <= {tokenizer.eot}


def test_marks_without_colour_tell_the_kinds_apart(tokenizer, dataset):
    """Piped into a file there is no colour: targets stand in brackets, padding between tildes."""
    batch = collate([dataset[1], dataset[0]], tokenizer.eot)
    tokens = row_tokens(batch, 0, tokenizer)
    text = viewer.as_text(tokens, colour=False)
    assert "\x1b" not in text
    assert "[x][<|endoftext|>]~<|endoftext|>~" in text
    assert text.count("[") == 2 and text.startswith("### Question:\\n\nshort")


def test_text_with_colour_holds_every_token_between_its_kinds_codes(tokenizer, dataset):
    tokens = row_tokens(collate([dataset[0]], tokenizer.eot), 0, tokenizer)
    text = viewer.as_text(tokens, colour=True)
    for token in tokens:
        for part in token.text.split("\n"):
            if part:
                assert f"{viewer.COLOURS[token.kind]}{part}" in text
    assert all(line.endswith("\x1b[0m") for line in text.split("\n") if line)  # colour does not leak into the next


@pytest.mark.parametrize("colour", [True, False])
def test_control_characters_in_the_data_do_not_reach_the_terminal(tokenizer, dataset, colour):
    """A record with escape codes could colour its own tokens as targets."""
    tokens = row_tokens(collate([dataset[2]], tokenizer.eot), 0, tokenizer)
    text = viewer.as_text(tokens, colour)
    for code in ("\r", "\x00", "\x1b[31mred"):
        assert code not in text
    assert "\\x1b" in text and "\\x0d" in text and "\\x00" in text
    page = viewer.as_html([("title", tokens)])
    assert not any(code in page for code in ("\r", "\x00", "\x1b"))


class Reader(html.parser.HTMLParser):
    """What a browser makes of the page: its tags, and the text inside <pre>."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.inside = "", set(), False

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.inside |= tag == "pre"

    def handle_endtag(self, tag):
        self.inside &= tag != "pre"

    def handle_data(self, data):
        self.text += data if self.inside else ""


def test_html_is_escaped(tokenizer, dataset):
    """A record's own tags would otherwise become part of the page."""
    tokens = row_tokens(collate([dataset[0]], tokenizer.eot), 0, tokenizer)
    # the embedded vocabulary has no token that is a tag by itself; others do
    tokens += [Token(99, 7, text, "masked") for text in ("<b>", "&amp;", "</span>", '"><i>')]
    page = viewer.as_html([("<script>alert(1)</script> & co", tokens)])
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page
    reader = Reader()
    reader.feed(page)
    shown = "".join(token.text.replace("\n", "\u21b5\n") for token in tokens)
    assert reader.text == shown and reader.tags == {"html", "meta", "title", "style", "h1", "p", "h2", "pre", "span"}
    assert page.count('<span class="target" title=') == sum(token.kind == "target" for token in tokens)
    first = next(token for token in tokens if token.kind == "target")
    assert f'title="position {first.position}, id {first.id}, target"' in page


def test_the_table_has_a_line_a_token(tokenizer, dataset):
    tokens = row_tokens(collate([dataset[2]], tokenizer.eot), 0, tokenizer)
    header, *lines = viewer.as_table(tokens).split("\n")
    assert header.split() == ["position", "id", "kind", "token"] and len(lines) == len(tokens)
    for token, line in zip(tokens, lines, strict=True):
        assert line.split()[:3] == [str(token.position), str(token.id), token.kind]


def test_parts_of_a_character_are_shown_as_bytes(tokenizer):
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    shown = "".join(token_text(tokenizer, i) for i in ids)
    assert shown == "\\xf0\\x9f\\x98\\x80"
    assert token_text(tokenizer, tokenizer.eot) == "<|endoftext|>"


def test_every_id_can_be_shown(tokenizer):
    for i in random.Random(0).sample(range(tokenizer.n_vocab), 200):
        assert token_text(tokenizer, i)


def test_the_legend_names_every_kind():
    for colour in (True, False):
        assert all(kind in viewer.legend(colour) for kind in viewer.KINDS)
