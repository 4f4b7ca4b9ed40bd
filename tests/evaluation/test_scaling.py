"""The forecast from runs on growing amounts of data, against numpy's regression and a simulation; and the command."""

import json
import math

import numpy as np
import pytest

from gptft.__main__ import main
from gptft.errors import UserError
from gptft.evaluation.scaling import T, forecast
from gptft.report.scaling import describe

POINTS = [(100, 3.1), (200, 2.7), (400, 2.2), (800, 2.0)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_the_line_is_that_of_numpys_least_squares():
    x, y = np.log([n for n, _ in POINTS]), np.log([loss for _, loss in POINTS])
    (slope, constant), cov = np.polyfit(x, y, 1, cov="unscaled")
    found = forecast(POINTS, 1600)
    assert found.exponent == pytest.approx(slope, rel=1e-9)
    assert math.log(found.loss) == pytest.approx(slope * math.log(1600) + constant, rel=1e-9)
    # the variance of a new observation: that about the line, and that of the line where it is asked
    at = np.array([math.log(1600), 1.0])
    residual = float(((y - slope * x - constant) ** 2).sum()) / 2
    width = T[1] * math.sqrt(residual * (1 + at @ cov @ at))
    assert math.log(found.high) - math.log(found.loss) == pytest.approx(width, rel=1e-9)
    assert math.log(found.loss) - math.log(found.low) == pytest.approx(width, rel=1e-9)


def test_an_exact_power_law_is_forecast_exactly():
    found = forecast([(n, 5 * n**-0.3) for n in (10, 50, 300)], 1000)
    assert found.loss == pytest.approx(5 * 1000**-0.3, rel=1e-12) and found.exponent == pytest.approx(-0.3)
    assert found.low == pytest.approx(found.high, rel=1e-6)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_ninety_five_of_a_hundred_further_runs_lie_in_the_interval(count):
    rng = np.random.default_rng(0)
    examples = [100 * 2**n for n in range(count)]
    inside, trials = 0, 4000
    for _ in range(trials):
        losses = np.exp(1 - 0.2 * np.log(examples) + rng.normal(0, 0.03, count))
        found = forecast(list(zip(examples, losses.tolist(), strict=True)), 2 * examples[-1])
        inside += found.low <= math.exp(1 - 0.2 * math.log(2 * examples[-1]) + rng.normal(0, 0.03)) <= found.high
    assert abs(inside / trials - 0.95) < 0.015  # four standard deviations of a share of 4,000


def test_the_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    assert np.allclose([stats.t.ppf(0.975, n) for n in range(1, len(T) + 1)], T, atol=5e-4)


@pytest.mark.parametrize(
    "points, message",
    [
        (POINTS[:2], "at least three runs"),
        ([(100, 2.0)] * 3, "different amounts"),
        ([(100, 2.0), (200, 0.0), (300, 1.0)], "losses above 0"),
    ],
)
def test_no_forecast_is_made_where_there_is_nothing_to_make_it_from(points, message):
    with pytest.raises(UserError, match=message):
        forecast(points, 1000)


def records(path, count=120):
    path.write_text(
        "".join(json.dumps({"question": f"Say {n % 40}.", "answer": f"{n % 40}"}) + "\n" for n in range(count))
    )


SHORT = ["--init", "tiny", "--epochs", "1", "--lr", "1e-3", "--test_samples", "4", "--max_new_tokens", "4"]


def test_growing_shares_are_run_and_forecast_and_finished_ones_are_not_made_again(tmp_path, capsys):
    records(tmp_path / "d.jsonl")
    words = ["scaling", "--data", "d.jsonl", "--fractions", "1,0.25,0.5,0.75", "--out_dir", "s", *SHORT]
    main(words)
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "s/scaling.json").read_text())
    examples = [row["examples"] for row in result["rows"]]
    assert [row["fraction"] for row in result["rows"]] == [0.25, 0.5, 0.75, 1] and examples == sorted(examples)
    assert examples[0] == round(0.25 * examples[-1]) and result["forecast"]["examples"] == 2 * examples[-1]
    assert "twice as many: " in out and "as a check, the last from those before it" in out
    assert (tmp_path / "s/scaling.png").exists() and (tmp_path / "s/fraction-0.25/best").exists()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/fraction-*/summary.json")}
    main(words)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert capsys.readouterr().out.count("finished before") == 4


def test_runs_of_other_settings_or_data_are_not_taken_for_those_that_were_asked_for(tmp_path):
    records(tmp_path / "d.jsonl")
    words = ["scaling", "--data", "d.jsonl", "--fractions", "0.5", "--out_dir", "s", *SHORT]
    main([*words, "--max_steps", "1"])
    with pytest.raises(UserError, match=r"fraction-0.5 holds a run with --weight_decay 0.1, not 0.0"):
        main([*words, "--max_steps", "1", "--weight_decay", "0"])
    records(tmp_path / "d.jsonl", 121)
    with pytest.raises(UserError, match="s holds runs on other data"):
        main([*words, "--max_steps", "1"])


def test_too_few_amounts_are_no_end_of_the_report():
    rows = [
        {"fraction": f, "examples": n, "steps": 1, "loss": 2.0 - f, "exact_match": None}
        for f, n in enumerate((1, 1, 1, 2))
    ]
    found = describe([{**row, "loss": 2.0} for row in rows])
    assert found["forecast"] and found["check"] is None


@pytest.mark.parametrize(
    "text, message", [("0.5,x", "must be numbers"), ("0.5,1.5", "above 0"), ("1,1", "twice"), ("", "above 0")]
)
def test_fractions_that_are_none_are_one_line_before_anything_runs(tmp_path, text, message):
    records(tmp_path / "d.jsonl")
    with pytest.raises(UserError, match=message):
        main(["scaling", "--data", "d.jsonl", "--fractions", text, *SHORT])
    assert not (tmp_path / "checkpoints").exists()
