"""report.html in a real browser: its parts, its filters by the keyboard, phone, dark and paper, and hostile data."""

import json
import re
from itertools import pairwise

import pytest
from browser import Browser, find_browser

from gptft.report import page
from gptft.report.page import PARTS, page_of, write_page
from gptft.report.run_files import read_run
from gptft.report.several import page_of_several

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed (apt-get install chromium)")
VISIBLE = "[...document.querySelectorAll('.answers tbody tr')].filter(row => row.getClientRects().length).length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def opened(browser, finished, tmp_path):
    """The browser with the page of a finished run, as on a large screen by day."""
    path = tmp_path / page.NAME
    write_page(path, page_of(read_run(finished)))
    browser.resize(1200)
    browser.emulate()
    browser.open(path)
    yield browser
    assert browser.complaints() == [] and browser.requests() == [path.resolve().as_uri()]


def test_every_part_is_found_and_drawn_and_nothing_is_loaded(opened):
    parts = opened.evaluate("[...document.querySelectorAll('main > section')].map(each => each.id)")
    assert parts == list(PARTS)
    for anchor, (heading, _) in PARTS.items():
        there = f"document.querySelector('#{anchor}')"
        assert opened.evaluate(f"{there}.querySelector('h2').textContent") == heading
        assert opened.evaluate(f"{there}.getBoundingClientRect().height") > 60
        assert opened.evaluate(f"document.querySelector('nav a[href=\"#{anchor}\"]').textContent") == heading
    drawn = "[...document.querySelectorAll('figure path.line')].map(each => each.getTotalLength())"
    assert len(opened.evaluate(drawn)) >= 9 and min(opened.evaluate(drawn)) > 20
    strokes = (
        "new Set([...document.querySelectorAll('#curves path.line')].map(each => getComputedStyle(each).stroke)).size"
    )
    assert opened.evaluate(strokes) >= 4
    assert opened.evaluate("document.scripts.length") == 0  # nothing needs JavaScript


def press_until(browser, key, condition, at_most=200):
    for _ in range(at_most):
        if browser.evaluate(condition):
            return
        browser.press(key)
    raise AssertionError(f"{at_most} times {key} do not lead to {condition}")


def test_the_answers_are_filtered_by_the_keyboard(opened):
    """Tab leads to the buttons, the arrows choose, and what stays is what the files say; two filters hold together."""
    every = opened.evaluate(VISIBLE)
    press_until(opened, "Tab", "document.activeElement.id === 'family-all'")
    assert opened.evaluate("getComputedStyle(document.activeElement.nextSibling).outlineStyle") == "solid"
    opened.press("ArrowRight")
    family = opened.evaluate("document.querySelector('input[name=family]:checked').parentElement.textContent")
    name, count = re.fullmatch(r"(\w+) \((\d+)\)", family).groups()
    assert opened.evaluate(VISIBLE) == int(count) == 10 < every == 20
    shown = "[...document.querySelectorAll('.answers tbody tr')].filter(row => row.getClientRects().length)"
    families = f"{shown}.map(row => row.querySelector('small').textContent)"
    assert set(opened.evaluate(families)) == {name}
    press_until(opened, "Tab", "document.activeElement.id === 'mistake-all'")
    opened.press("ArrowRight")
    both = opened.evaluate(VISIBLE)
    assert 0 < both < 10
    mistake = "document.querySelector('input[name=mistake]:checked').parentElement.textContent.split(' (')[0]"
    marked = f"{shown}.every(row => [...row.querySelectorAll('.mistake')].some(each => each.textContent === {mistake}))"
    assert opened.evaluate(marked)
    # the number beside the table counts what is seen, for a screen reader, too
    tree = opened.ask("Accessibility.getFullAXTree")["nodes"]
    words = [node.get("name", {}).get("value") for node in tree if node["role"]["value"] == "StaticText"]
    assert words[words.index(" shown") - 1] == str(both)
    opened.press("ArrowLeft")
    assert opened.evaluate(VISIBLE) == 10


def test_a_mistake_leads_to_its_answer(opened):
    opened.evaluate("document.querySelector('#mistakes a[href=\"#answer-4\"]').focus()")
    opened.press("Enter")
    assert opened.evaluate("document.querySelector(':target').id") == "answer-4"
    assert opened.evaluate("document.querySelector(':target').getBoundingClientRect().top") >= 0


@pytest.mark.parametrize("width", [320, 400, 800])
def test_no_part_is_wider_than_the_screen(opened, width):
    """Tables scroll in their frames; the page itself never sideways."""
    opened.resize(width)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    for kind in ("figure > svg", ".scroll", "pre", "fieldset", "p"):
        widest = (
            f"Math.max(...[...document.querySelectorAll('{kind}')].map(each => each.getBoundingClientRect().right))"
        )
        assert opened.evaluate(widest) <= width
    size = "document.querySelector('figure > svg').getBoundingClientRect().width / 480 * 13"
    assert opened.evaluate(size) >= 7.5  # pixels of the letters in a chart
    buttons = "Math.min(...[...document.querySelectorAll('label')].map(each => each.getBoundingClientRect().height))"
    assert opened.evaluate(buttons) >= 24  # that a finger finds (WCAG 2.5.8)


CONTRAST = """
(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  const ratios = {};
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    if (!node.getClientRects().length || node.classList.contains('skip')) continue;
    const style = getComputedStyle(node), svg = node.closest('svg');
    if (svg && !['text'].includes(node.localName)) continue;
    const pair = [light(svg ? style.fill : style.color), light(behind(svg ? svg : node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05), name = node.localName + '.' + node.getAttribute('class');
    ratios[name] = Math.min(ratios[name] ?? 99, ratio);
  }
  return ratios;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_letter_stands_out_by_day_and_in_the_dark(opened, dark):
    """WCAG's contrast for text, 4.5, of every letter on what is behind it."""
    opened.emulate(dark=dark)
    ratios = opened.evaluate(CONTRAST)
    assert len(ratios) > 20 and not {name: ratio for name, ratio in ratios.items() if ratio < 4.5}
    (r, *_) = map(int, re.findall(r"\d+", opened.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert r < 60 if dark else r > 200


def test_on_paper_it_is_black_on_white_and_whole_in_the_dark_too(opened):
    opened.emulate(media="print", dark=True)
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.evaluate("document.querySelector('nav').getClientRects().length") == 0
    assert opened.evaluate("getComputedStyle(document.querySelector('.answers')).maxHeight") == "none"
    document = opened.pdf()
    assert document.startswith(b"%PDF") and len(document) > 20_000


def test_a_screen_reader_finds_names_for_all_it_meets(opened):
    """The tree that a browser hands to it: landmarks, one first heading, a name for each chart, button and table."""
    nodes = [node for node in opened.ask("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    by_role = {}
    for node in nodes:
        by_role.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert len(by_role["main"]) == len(by_role["navigation"]) == 1 and by_role["banner"]
    for role in ("image", "radio", "table", "region", "link", "heading"):
        assert by_role.get(role) and all(by_role[role]), role
    assert {heading for heading, _ in PARTS.values()} <= set(by_role["heading"])
    assert opened.evaluate("document.documentElement.lang") == "en"
    levels = opened.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(each => +each.localName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    opened.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


def test_the_first_key_leads_past_the_contents(opened):
    opened.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "To the content"
    assert opened.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    opened.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "content"


def test_hostile_data_is_text_and_the_policy_stands_behind_that(browser, hostile, tmp_path):
    path = tmp_path / page.NAME
    write_page(path, page_of(read_run(hostile)))
    browser.resize(1200)
    browser.emulate()
    browser.open(path)
    assert browser.complaints() == [] and browser.requests() == [path.resolve().as_uri()]
    assert "owned" not in browser.evaluate("document.title") and browser.evaluate("document.title") != "1"
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, embed, link, base').length") == 0
    attributes = "[...document.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
    assert not [name for name in browser.evaluate(attributes) if re.match("on|src|style$", name)]
    assert browser.evaluate("document.querySelector('main').lastElementChild.id") == "setup"  # none was closed too soon
    for text in ("<script>document.title = 'owned'</script>", "</style><script>", "\\\\u202egnirts", "a\\\\x00b"):
        assert browser.evaluate(f"document.body.textContent.includes('{text.replace(chr(39), chr(92) + chr(39))}')"), (
            text
        )
    # a filter by a hostile name hides the other rows, and nothing else
    every = browser.evaluate(VISIBLE)
    browser.evaluate("document.querySelector('#mistake-1').click()")
    assert (
        0 < browser.evaluate(VISIBLE) < every and browser.evaluate("getComputedStyle(document.body).display") == "block"
    )
    # were something of it markup all the same, it would not run
    browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=2'}))"
    )
    assert browser.evaluate("document.title") not in ("1", "2")
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    refused = [json.dumps(given) for method, given in browser.events if method == "Log.entryAdded"]
    assert any("Content Security Policy" in entry for entry in refused)


def test_several_runs_stand_side_by_side(browser, finished, hostile, tmp_path):
    path = tmp_path / page.NAME
    write_page(path, page_of_several([read_run(finished), read_run(hostile)]))
    browser.resize(400)
    browser.open(path)
    assert browser.complaints() == [] and browser.requests() == [path.resolve().as_uri()]
    assert browser.evaluate("document.querySelectorAll('#steps-title, #tokens-title').length") == 2
    assert browser.evaluate("document.querySelector('#curves figure').querySelectorAll('path.line').length") == 4
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") == 400
    assert "lr" in browser.evaluate("document.querySelector('#settings table').textContent")
