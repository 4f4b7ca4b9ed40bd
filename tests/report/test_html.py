"""What is put into a page is text, whatever it holds."""

import html.parser

import pytest

from gptft.report.html import details, element, table

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(2)</script>",
    "</title></svg></table><iframe src=javascript:alert(3)>",
    "<!-- --><![CDATA[",
    "&lt;b&gt; &amp;#60;script&amp;#62;",
    "a\x00b\x1b[31m\x08",
    "\u202eright to left\u2066",
    "half \ud83d of a pair",
    "javascript:alert(4)",
]


class Reader(html.parser.HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup_and_none_is_lost(text):
    page = str(element("p", element("b", text), text, title=text, aria_label=text))
    reader = Reader(page)
    assert reader.tags == ["p", "b"]
    shown = text.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\x08", "\\x08")
    shown = shown.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066").replace("\ud83d", "\\ud83d")
    assert reader.text == 2 * shown and reader.attributes == [("title", shown), ("aria-label", shown)]
    page.encode()  # half of a pair would end the writing of the file


def test_all_of_unicode_goes_in_and_no_control_comes_out():
    text = "".join(map(chr, range(0x110000)))
    page = str(element("p", text))
    assert page.encode()
    assert not set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2067])) & set(page)
    assert page.count("<") == 2 and Reader(page).text.startswith("\\x00\\x01")


@pytest.mark.parametrize(
    "attribute",
    [
        {"onclick": "x"},
        {"ONLOAD": "x"},
        {"src": "x"},
        {"srcset": "x"},
        {"style": "color: red"},
        {"href": "https://example.com"},
        {"href": "javascript:alert(1)"},
        {"formaction": "x"},
        {'a="b" c': "x"},
    ],
)
def test_an_attribute_that_runs_or_loads_something_is_refused(attribute):
    """A mistake in a part of the page would otherwise open what escaping closes."""
    with pytest.raises(ValueError):
        element("a", "text", **attribute)


def test_a_style_sheet_that_could_end_itself_is_refused():
    assert str(element("style", "a > b { color: red }")) == "<style>a > b { color: red }</style>"
    with pytest.raises(ValueError, match="style sheet"):
        str(element("style", "</style><script>"))


def test_nothing_is_left_out_true_has_no_value_and_lists_are_opened():
    page = element("input", class_="x", checked=True, disabled=False, for_=None, aria_label="y")
    assert str(page) == '<input class="x" checked aria-label="y">'
    assert str(element("p", None, ["a", ["b", element("br")]], 0, 1.5)) == "<p>ab<br>01.5</p>"


def test_a_table_has_a_caption_and_says_what_its_headings_head():
    page = str(table("Figures & co", ["metric", "n"], [["loss", 3]]))
    assert "<caption>Figures &amp; co</caption>" in page
    assert page.count('<th scope="col">') == 2 and '<th scope="row">loss</th><td>3</td>' in page
    assert 'role="region" aria-label="Figures &amp; co" tabindex="0"' in page  # it scrolls by the keyboard
    assert "<th" not in str(table("x", [], [["a", "b"]], first=False)).partition("<tbody>")[2]


def test_what_is_folded_has_its_words_in_the_summary():
    assert str(details("more", "text")) == "<details><summary>more</summary>text</details>"
