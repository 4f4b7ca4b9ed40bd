"""The limits of settings stand apart from the settings, by name."""

from gptft.config import TYPES
from gptft.settings.checks import AT_LEAST, BELOW


def test_every_limit_is_that_of_a_number_among_the_settings():
    """A field renamed in config.py alone would lose its limit without a word."""
    assert all(TYPES[name] in (int, float) for name in AT_LEAST.keys() | BELOW.keys())
