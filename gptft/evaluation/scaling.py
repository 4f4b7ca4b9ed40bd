"""How much more data would help: a power law through losses over amounts of data, and what it says of twice as many.

Losses of language models fall with the data as a power of it (Hestness et al. 2017; Kaplan et al. 2020): a straight
line in logarithms. It is fitted by least squares, and a forecast comes with the interval in which a further run would
lie with a probability of 95%, if the line is right and runs scatter about it as those do that were made (Draper and
Smith, Applied Regression Analysis, on the prediction of a new observation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gptft.errors import UserError

# Student's t, 97.5%, by degrees of freedom; from the last on it hardly changes
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.960


class Forecast(NamedTuple):
    """A loss (nats a target) that is expected of so many examples, and the interval of 95%; `exponent` is that of the
    power law: the loss goes with examples to this power."""

    examples: int
    loss: float
    low: float
    high: float
    exponent: float

    def __str__(self) -> str:
        return f"{self.loss:.4f} ({self.low:.4f} to {self.high:.4f}, 95%) from {self.examples:,} examples"


def forecast(points: Sequence[tuple[int, float]], examples: int) -> Forecast:
    """What a power law through (examples, loss) says of another number of examples.

    Raises UserError for fewer than three points, which leave nothing to tell the uncertainty from, for amounts that are
    all alike, and for losses that are not above 0.
    """
    if len(points) < 3:
        raise UserError("a forecast needs at least three runs: two make a line with no word on how sure it is")
    if any(n < 1 or not 0 < loss < math.inf for n, loss in points):
        raise UserError("a forecast needs losses above 0")
    x, y = [math.log(n) for n, _ in points], [math.log(loss) for _, loss in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    if not spread:
        raise UserError("a forecast needs runs on different amounts of data")
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    free = len(points) - 2
    residual = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True)) / free
    at = math.log(examples)
    middle = mean_y + slope * (at - mean_x)
    deviation = math.sqrt(residual * (1 + 1 / len(points) + (at - mean_x) ** 2 / spread))
    width = (T[free - 1] if free <= len(T) else NORMAL) * deviation
    return Forecast(examples, math.exp(middle), math.exp(middle - width), math.exp(middle + width), slope)
