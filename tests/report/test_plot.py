"""The picture of a run."""

import warnings

import pytest

pytest.importorskip("matplotlib")
from gptft.report.plot import plot_losses


@pytest.mark.parametrize(
    "rows",
    [
        [],  # --log_every above the number of steps, and no validation data
        [{"step": 1, "loss": 2.0}],
        [{"step": 0, "eval_loss": 2.0}],
        [{"step": n, "loss": 1 / n} for n in range(1, 90)] + [{"step": 90, "eval_loss": 0.001}],
    ],
)
def test_a_picture_is_drawn_whatever_was_logged(tmp_path, rows):
    """With nothing to name in the legend matplotlib's warning came on the console at the run's end."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot_losses(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
