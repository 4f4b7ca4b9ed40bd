"""A page as a tree of elements. Whatever is put in is text: it is escaped as the tree is written out, so that nothing
of a user's data can become markup or script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptft.text.printable import printable

VOID = {"meta", "input", "br"}  # elements without an end
NAME = re.compile(r"[a-zA-Z][\w-]*")
ACTS = re.compile(r"on|style$|src|action$|formaction$|srcdoc$")  # attributes that could run or load something


@dataclass(frozen=True)
class Element:
    """One element: its name, its attributes, and what is in it, texts and further elements."""

    name: str
    attributes: dict[str, str]
    children: tuple[Element | str, ...]

    def __str__(self) -> str:
        return "".join(pieces(self))


def element(name: str, /, *children, **attributes) -> Element:
    """An element. Children: elements, texts, numbers, lists of these, and None for nothing. Attributes: `class_` and
    `for_` for Python's words, `_` for a dash, None or False for one that is left out, True for one without a value.

    Raises ValueError for an attribute that could run or load something, and for a link that leads out of the page.
    """
    kept = {}
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if ACTS.match(key.lower()) or (key == "href" and not str(value).startswith("#")):
            raise ValueError(f"{name}: the attribute {key}={value!r} has no place on a page")
        if value is not None and value is not False:
            kept[key] = "" if value is True else str(value)
    if not all(map(NAME.fullmatch, (name, *kept))):
        raise ValueError(f"no names of HTML: {name!r}, {list(kept)}")
    return Element(name, kept, tuple(flat(children)))


def flat(children: Iterable) -> Iterator[Element | str]:
    """Lists opened, nothing left out, all that is no element as text."""
    for child in children:
        if isinstance(child, list | tuple):
            yield from flat(child)
        elif child is not None:
            yield child if isinstance(child, Element) else str(child)


def pieces(node: Element | str) -> Iterator[str]:
    """The tree as text, piece by piece."""
    if isinstance(node, str):
        yield html.escape(printable(node), quote=False)
        return
    values = (
        f' {key}="{html.escape(printable(value))}"' if value else f" {key}" for key, value in node.attributes.items()
    )
    yield f"<{node.name}{''.join(values)}>"
    if node.name == "style":  # a browser reads no escapes there
        sheet = "".join(map(str, node.children))
        if "<" in sheet:
            raise ValueError("a style sheet must not hold '<'")
        yield sheet
    else:
        for child in node.children:
            yield from pieces(child)
    if node.name not in VOID:
        yield f"</{node.name}>"


def table(caption: str, head: Iterable, rows: Iterable[Iterable], class_: str | None = None, first: bool = True):
    """A table in a frame that scrolls by itself where the screen is narrow, by the keyboard, too. `first`: whether the
    first cell of a row is its heading."""
    head = [element("th", cell, scope="col") for cell in head]
    body = []
    for row in rows:
        cells = list(row)
        lead = [element("th", cells[0], scope="row")] if first else [element("td", cells[0])]
        body.append(element("tr", lead, [element("td", cell) for cell in cells[1:]]))
    whole = element("table", element("caption", caption), element("thead", element("tr", head)), element("tbody", body))
    return element("div", whole, class_=f"scroll {class_ or ''}".strip(), role="region", aria_label=caption, tabindex=0)


def details(summary: str, *children) -> Element:
    """What is folded until it is asked for."""
    return element("details", element("summary", summary), *children)
