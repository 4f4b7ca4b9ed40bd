"""Charts: what is drawn where, and what is said of it."""

import math
import random
import re

import pytest

from gptft.report import svg
from gptft.report.svg import Line, Mark, Scale, line_chart, thin, ticks


def places(page):
    """(x, y) of every point of the chart's paths that are lines of data."""
    ways = re.findall(r'<path d="M([^"]*)" class="line look', page)
    return [[tuple(map(float, point.split())) for point in way.split("L")] for way in ways if "H" not in way]


def test_a_line_goes_through_its_points():
    (drawn,) = places(str(line_chart("a", "A", [Line("x", [(0, 0), (5, 10), (10, 5)])], "step", "loss")))
    x, y = Scale(0, 10, svg.LEFT, svg.WIDTH - svg.RIGHT), Scale(0, 10, svg.HEIGHT - svg.BOTTOM, svg.TOP)
    assert drawn == [pytest.approx((x(a), y(b)), abs=0.06) for a, b in [(0, 0), (5, 10), (10, 5)]]
    assert drawn[1][1] < drawn[2][1] < drawn[0][1]  # up is up


def test_an_axis_of_logarithms_is_taken_where_the_first_steps_would_hide_the_others():
    steep = [Line("x", [(0, 100.0), (1, 1.0), (2, 0.01)])]
    (drawn,) = places(str(line_chart("a", "A", steep, "step", "loss")))
    assert drawn[1][1] == pytest.approx((drawn[0][1] + drawn[2][1]) / 2, abs=0.2)
    (drawn,) = places(str(line_chart("a", "A", steep, "step", "loss", may_log=False)))
    assert drawn[1][1] > drawn[0][1] + 0.98 * (drawn[2][1] - drawn[0][1])


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0)],
        [(3, 5)],
        [(0, 1), (1, 1)],
        [(0, -1), (1, -2)],
        [(0, 1e-300), (1, 1e300)],
        [(0, math.nan), (1, 2.0), (2, math.inf), (3, 1.0)],
        [(1, 0.0), (2, 0.0)],
    ],
)
def test_any_figures_make_a_chart_whose_points_lie_inside(points):
    page = str(line_chart("a", "A", [Line("x", points, dots=True)], "step", "loss", [Mark(1, "here")]))
    assert "nan" not in page and "inf" not in page.replace("information", "")
    for way in places(page):
        assert all(0 <= x <= svg.WIDTH and 0 <= y <= svg.HEIGHT for x, y in way)


def test_where_nothing_was_logged_there_is_no_chart():
    assert line_chart("a", "A", [Line("x", []), Line("y", [(1, math.nan)])], "step", "loss") is None


def test_a_long_line_keeps_its_ends_and_every_peak():
    """Every tenth point, as charts are often thinned, would lose the one step whose loss jumped."""
    rng = random.Random(0)
    points = [(n, rng.random()) for n in range(20_000)]
    points[12_345], points[777] = (12_345, 50.0), (777, -50.0)
    kept = thin(points)
    assert len(kept) <= svg.AT_MOST + 4 and {points[0], points[-1], points[12_345], points[777]} <= set(kept)
    assert kept == sorted(kept) and thin(points[:100]) == points[:100]


@pytest.mark.parametrize(
    "low, high, log, wanted",
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (0, 639, False, [0, 200, 400, 600]),
        (0, 5e-5, False, [0, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        (0.5, 5, True, [0.5, 1, 2, 5]),
        (1e-4, 100, True, [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100]),
        (3, 3, False, [3]),
    ],
)
def test_ticks_are_round(low, high, log, wanted):
    assert ticks(Scale(low, high, 0, 1, log)) == pytest.approx(wanted)


def test_numbers_beside_ticks_are_short():
    assert [svg.short(v) for v in (0, 0.001, 5e-5, 12, 1500, 2_000_000)] == ["0", "0.001", "5e-05", "12", "1.5k", "2M"]


def test_the_axis_above_has_its_values_where_they_are_reached():
    """Tokens grow unevenly with steps: their axis must not be a second linear one."""
    read = [(1.0, 10.0), (2.0, 20.0), (3.0, 100.0), (4.0, 200.0)]
    page = str(line_chart("a", "A", [Line("x", [(0, 1), (4, 2)])], "step", "loss", above=("tokens", read)))
    x = Scale(0, 4, svg.LEFT, svg.WIDTH - svg.RIGHT)
    found = dict(re.findall(r'<text x="([\d.]+)" y="28" text-anchor="middle">(\w+)<', page))
    assert list(found.values()) == ["50", "100", "150"]
    assert list(map(float, found)) == pytest.approx([x(2 + 30 / 80), x(3), x(3.5)], abs=0.06)


def test_who_does_not_see_the_chart_is_told_it():
    page = str(line_chart("loss", "Loss", [Line("validation", [(0, 4.0), (5, 1.0), (9, 2.0)], 1)], "step", "nats"))
    assert 'role="img" aria-labelledby="loss-title loss-about"' in page
    assert '<title id="loss-title">Loss</title>' in page
    assert "validation: 4 at 0, lowest 1 at 5, 2 at 9." in page


def test_lines_differ_by_dashes_as_by_colours():
    """In print without colours, and to the colour-blind, dashes alone tell them apart."""
    sheet = (svg.__file__).replace("svg.py", "page.css")
    with open(sheet, encoding="utf-8") as file:
        looks = re.findall(r"^\.look(\d) \{ stroke: var\(--look\d\);(.*?) \}", file.read(), flags=re.M)
    assert [int(number) for number, _ in looks] == list(range(svg.LOOKS))
    assert len({dashes for _, dashes in looks}) == svg.LOOKS
