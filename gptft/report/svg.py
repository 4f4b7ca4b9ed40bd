"""Charts as inline SVG. A line is told from another by its colour and its dashes, both given by the page's style, so
that they fit light, dark and paper and whoever sees colours otherwise."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from gptft.report.html import Element, element

WIDTH, HEIGHT = 480, 270  # small, so that its letters can still be read on a phone, where it is shown smaller
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 16, 42
AT_MOST = 300  # points of a line; of more, the lowest and highest of each stretch are drawn
LOOKS = 6  # that differ, in page.css

Point = tuple[float, float]


class Line(NamedTuple):
    """A line of a chart. `look`: which colour and dashes; `faint`: drawn thin behind the others; `dots`: with a dot at
    each point, which says its value where the pointer rests on it."""

    name: str
    points: Sequence[Point]
    look: int = 0
    faint: bool = False
    dots: bool = False


class Mark(NamedTuple):
    """A place on the horizontal axis that is worth a word."""

    x: float
    text: str


class Scale(NamedTuple):
    """From values to places on one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)


def line_chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    across: str,
    up: str,
    marks: Sequence[Mark] = (),
    above: tuple[str, Sequence[Point]] | None = None,
    show: str = ".4g",
    may_log: bool = True,
) -> Element | None:
    """A figure: the chart with its title and legend; None where no line has a point.

    `name`: unlike any other chart's of the page; `across` and `up`: what the axes are, with units; `above`: a second
    axis on top, (what it is, pairs of a place on the lower axis and the value there, both growing); `may_log`: whether
    the upright axis may be one of logarithms.
    """
    lines = [line._replace(points=thin(finite(line.points))) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    log = may_log and min(ys) > 0 and 20 * min(ys) < max(ys)  # else all but the first steps would lie on the axis
    x = Scale(min(0.0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    top = TOP + (24 if above else 0) + (14 if marks else 0)
    low, high = (min(ys), max(ys)) if log else (min(0.0, *ys), max(ys))
    y = Scale(low, high if high > low else low + 1, HEIGHT - BOTTOM, top, log)
    about = f"{up} over {across}. " + " ".join(map(describe, lines)) + "".join(f" {mark.text}." for mark in marks)
    chart = element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", about, id=f"{name}-about"),
        axes(x, y, across, up),
        axis_above(x, *above) if above else None,
        [draw_mark(x, y, mark) for mark in marks if x.low <= mark.x <= x.high],
        [draw_line(x, y, line, across, show) for line in sorted(lines, key=lambda line: not line.faint)],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-about",
    )
    return element("figure", element("figcaption", title), chart, legend(lines))


def describe(line: Line) -> str:
    """A line in words, for those who do not see it."""
    (first_x, first), (last_x, last) = line.points[0], line.points[-1]
    lowest_x, lowest = min(line.points, key=lambda point: point[1])
    return f"{line.name}: {first:.4g} at {first_x:,g}, lowest {lowest:.4g} at {lowest_x:,g}, {last:.4g} at {last_x:,g}."


def legend(lines: Sequence[Line]) -> Element:
    """Every line with a sample of it."""
    entries = []
    for line in lines:
        way = element("path", d="M0 6H30", class_=look(line))
        dot = element("circle", cx=15, cy=6, r=3, class_=look(line)) if line.dots else None
        sample = element("svg", way, dot, viewBox="0 0 30 12", width=30, height=12, aria_hidden="true")
        entries.append(element("li", sample, " ", line.name))
    return element("ul", entries, class_="legend")


def look(line: Line) -> str:
    turn = line.look // LOOKS  # of more lines than looks the further ones are thicker
    return f"line look{line.look % LOOKS}" + (f" turn{min(turn, 3)}" if turn else "") + (" faint" if line.faint else "")


def draw_line(x: Scale, y: Scale, line: Line, across: str, show: str) -> list[Element]:
    """The path of a line, and its dots."""
    way = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line.points)
    drawn = [element("path", d=f"M{way}", class_=look(line))]
    for a, b in line.points if line.dots or len(line.points) == 1 else ():
        said = element("title", f"{line.name}: {format(b, show)} at {across} {a:,g}")
        drawn.append(element("circle", said, cx=f"{x(a):.1f}", cy=f"{y(b):.1f}", r=3, class_=look(line)))
    return drawn


def draw_mark(x: Scale, y: Scale, mark: Mark) -> list[Element]:
    """An upright line with a word beside its head."""
    at = f"{x(mark.x):.1f}"
    left = x(mark.x) > (x.start + x.end) / 2  # the word goes where there is more room
    side = {"dx": -4, "text_anchor": "end"} if left else {"dx": 4}
    return [
        element("path", d=f"M{at} {y.start:.0f}V{y.end - 12:.0f}", class_="mark"),
        element("text", mark.text, x=at, y=f"{y.end - 4:.0f}", **side),
    ]


def axes(x: Scale, y: Scale, across: str, up: str) -> list[Element]:
    """Ticks with their numbers, the lines behind the chart, and what the axes are."""
    drawn = []
    for value in ticks(y):
        at = f"{y(value):.1f}"
        drawn.append(element("path", d=f"M{x.start} {at}H{x.end}", class_="grid"))
        drawn.append(element("text", short(value), x=x.start - 6, y=at, dy=".35em", text_anchor="end"))
    for value in ticks(x):
        at = f"{x(value):.1f}"
        drawn.append(element("path", d=f"M{at} {y.start}v5", class_="axis"))
        drawn.append(element("text", short(value), x=at, y=y.start + 18, text_anchor="middle"))
    drawn.append(element("path", d=f"M{x.start} {y.end}V{y.start}H{x.end}", class_="axis"))
    middle = f"{(y.start + y.end) / 2:.0f}"
    drawn.append(
        element("text", up, x=10, y=middle, text_anchor="middle", transform=f"rotate(-90 10 {middle})", class_="name")
    )
    drawn.append(element("text", across, x=x.end, y=y.start + 36, text_anchor="end", class_="name"))
    return drawn


def axis_above(x: Scale, what: str, pairs: Sequence[Point]) -> list[Element]:
    """The second axis: round values at the places of the lower one where they are reached."""
    values = [value for _, value in pairs]
    drawn = [element("text", what, x=x.end, y=13, text_anchor="end", class_="name")]
    for value in ticks(Scale(0, values[-1], 0, 1), 4)[1:]:
        n = bisect_left(values, value)
        if n >= len(values):
            continue
        before = pairs[n - 1] if n else (0.0, 0.0)
        share = (value - before[1]) / ((values[n] - before[1]) or 1)
        at = x(before[0] + share * (pairs[n][0] - before[0]))
        if x.start <= at < x.end - 12:
            drawn.append(element("path", d=f"M{at:.1f} 32v5", class_="axis"))
            drawn.append(element("text", short(value), x=f"{at:.1f}", y=28, text_anchor="middle"))
    drawn.append(element("path", d=f"M{x.start} 37H{x.end}", class_="axis"))
    return drawn


def ticks(scale: Scale, about: int = 5) -> list[float]:
    """Round values on an axis: about so many, or on one of logarithms the ones, twos and fives."""
    low, high = scale.low, scale.high
    if scale.log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if len(decades) <= 3 else (1,)
        return [value for n in decades for d in digits if low <= (value := d * 10.0**n) <= high]
    if high <= low:
        return [low]
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * d for d in (1, 2, 5, 10) if size * d >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number beside a tick: 1500 -> "1.5k"."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if all(map(math.isfinite, point))]


def thin(points: Sequence[Point]) -> list[Point]:
    """At most about AT_MOST points: of each stretch its lowest and highest, so that no peak is lost; the ends stay."""
    if len(points) <= AT_MOST:
        return list(points)
    size = math.ceil(2 * len(points) / AT_MOST)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda n: points[n][1]), max(stretch, key=lambda n: points[n][1])}
    return [points[n] for n in sorted(kept)]


def cloud_chart(name: str, title: str, points: Sequence[Point]) -> Element:
    """A dot for each (before, after), and the line on which both are alike."""
    most = max(max(point) for point in points) or 1.0
    x, y = Scale(0.0, most, LEFT, WIDTH - RIGHT), Scale(0.0, most, HEIGHT - BOTTOM, TOP)
    fell = sum(after < before for before, after in points)
    dots = [element("circle", cx=f"{x(a):.1f}", cy=f"{y(b):.1f}", r=2.5, class_="dot") for a, b in points]
    chart = element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", f"Of {len(points):,} points {fell:,} lie below the line: fell.", id=f"{name}-about"),
        axes(x, y, "before", "after"),
        element("path", d=f"M{x(0)} {y(0)}L{x(most)} {y(most)}", class_="mark"),
        dots,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-about",
    )
    return element("figure", element("figcaption", title), chart)
