"""`report.html`: a run as one page that opens by itself, made of the files in the run's folder and of nothing else.

It holds no script and loads nothing: its policy (Content-Security-Policy) allows its own style sheet, by its hash, and
nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gptft.errors import UserError
from gptft.files import atomic_write
from gptft.parallel.ranks import here
from gptft.report.html import element
from gptft.report.parts.answers import RULES, answers
from gptft.report.parts.data import data
from gptft.report.parts.knowledge import forgetting, stubborn
from gptft.report.parts.scores import losses, metrics, mistakes
from gptft.report.parts.setup import setup
from gptft.report.parts.tokens import tokens
from gptft.report.parts.training import curves, speed
from gptft.report.run_files import RunFiles, read_run
from gptft.report.story import tell
from gptft.run.console import say
from gptft.training import Evaluation, Event

NAME = "report.html"
SIGN = '<meta name="generator" content="gptft report">'  # by which a page of ours is known
UNMADE = "This part could not be made of the files"
AGAIN = 30  # seconds after which the page of a run that is going on is loaded anew
SHARE = 0.05  # of a run's time, that its page may take at most

# anchor -> the heading, and the function that makes what stands under it
PARTS = {
    "curves": ("Curves", curves),
    "metrics": ("Before and after, measured", metrics),
    "answers": ("Answers", answers),
    "mistakes": ("Mistakes by kind", mistakes),
    "forgetting": ("What it forgets", forgetting),
    "tokens": ("Token by token", tokens),
    "losses": ("Losses by record", losses),
    "stubborn": ("Training records that were learned last", stubborn),
    "data": ("The data", data),
    "speed": ("Speed, memory, arithmetic", speed),
    "setup": ("Settings, versions, and how to repeat it", setup),
}


def page_of(run: RunFiles) -> str:
    """The page of one run."""
    sections = {
        anchor: (heading, part)
        for anchor, (heading, make) in PARTS.items()
        if (part := try_part(make, run)) is not None
    }
    state = "going on; this page is renewed at each evaluation" if run.going_on else "finished"
    if not run.going_on and not run.summary:
        state = "not finished"
    lead = [element("p", state, class_="state"), element("p", try_part(tell, run), class_="story")]
    return whole_page(f"Run {run.name}", lead, sections, AGAIN if run.going_on else None)


def try_part(make: Callable[[Any], list | str | None], run: RunFiles | dict[str, RunFiles]) -> list | str | None:
    """A part of a page, of one run or of several; where the files are not as it expects them, of another version
    perhaps, the words that say so."""
    try:
        return make(run)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return f"{UNMADE} ({type(error).__name__}: {error})."


def whole_page(title: str, lead: list, sections: dict[str, tuple[str, list]], again: int | None = None) -> str:
    """A page by itself: {anchor: (heading, what stands under it)}. `again`: seconds until it is loaded anew."""
    links = [element("li", element("a", heading, href=f"#{anchor}")) for anchor, (heading, _) in sections.items()]
    main = [
        element(
            "section",
            element("h2", heading, id=f"{anchor}-heading"),
            part,
            id=anchor,
            aria_labelledby=f"{anchor}-heading",
        )
        for anchor, (heading, part) in sections.items()
    ]
    body = element(
        "body",
        element("a", "To the content", href="#content", class_="skip"),
        element("header", element("h1", title), lead, element("nav", element("ul", links), aria_label="Parts")),
        element("main", main, id="content", tabindex=-1),
        element("footer", "Made by gptft from the files in the run's folder; it loads nothing and runs no script."),
    )
    style = f"{Path(__file__).with_name('page.css').read_text(encoding='utf-8')}{RULES}\n"
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="generator", content="gptft report"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="refresh", content=again) if again else None,
        element("title", title),
        element("style", style),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def write_page(path: Path, page: str) -> None:
    """Write a page whole. Raises UserError where something else lies there: nothing but a report is overwritten."""
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if SIGN not in file.read(2000):
                raise UserError(f"{path} is there already, and is no report of gptft: name another file")
    with atomic_write(path) as file:
        file.write(page)


def write_report(out_dir: Path, going_on: bool = False) -> None:
    """Make a run's report.html. It never ends a run: what goes wrong is said, in one line."""
    try:
        write_page(out_dir / NAME, page_of(read_run(out_dir, going_on)))
    except Exception as error:
        say(f"no {NAME}: {type(error).__name__}: {' '.join(str(error).split())}")


def refresh_report(out_dir: Path, events: Iterable[Event]) -> Iterator[Event]:
    """The events of the loop as they come; when an evaluation has been kept, the page is made anew, unless that would
    take more than SHARE of the time."""
    ended, took = -float("inf"), 0.0
    for event in events:
        yield event
        began = time.perf_counter()
        if isinstance(event, Evaluation) and here().first and took <= SHARE * (began - ended):
            write_report(out_dir, going_on=True)
            ended = time.perf_counter()
            took = ended - began


@contextlib.contextmanager
def last_report(out_dir: Path) -> Iterator[None]:
    """Around all that keeps something of a run: where it is stopped or fails, wherever that is, its page no longer says
    that it goes on."""
    try:
        yield
    except BaseException:
        if here().first and says_going_on(out_dir / NAME):
            write_report(out_dir)
        raise


def says_going_on(path: Path) -> bool:
    """Whether a page loads itself anew."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return 'http-equiv="refresh"' in file.read(2000)
    return False
