"""The forecast from growing amounts of data, checked on real records: the full set forecast from its half and less.

`python -m gptft scaling` over gsm8k_train.jsonl, the embedded default's model from scratch, one epoch of each share;
the loss is that of the same held-out records for all.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks import common, results
from benchmarks.default import python

FRACTIONS = "0.0625,0.125,0.25,0.5,1"
WORDS = ["--init", "tiny", "--epochs", "1", "--lr", "3e-3", "--batch_size", "16", "--test_samples", "0"]
QUICK = ["--max_steps", "2"]


def main(argv: list[str]) -> None:
    options = common.parser("scaling", __doc__, rounds=1).parse_args(argv)
    data = (options.shared / "benchmarks/gsm8k_train.jsonl").resolve()
    settings = {"data": data.name, "fractions": FRACTIONS, "words": WORDS, "quick": options.quick}
    result = common.header("scaling", options, settings, ["torch"])
    with tempfile.TemporaryDirectory(prefix="gptft-bench-") as folder:
        words = ["--data", str(data), "--out_dir", "scaling", "--fractions", FRACTIONS, *WORDS]
        python(options, Path(folder), "-m", "gptft", "scaling", *words, *(QUICK if options.quick else []))
        result |= json.loads(Path(folder, "scaling/scaling.json").read_text(encoding="utf-8"))
    results.save(result, common.results_folder(options))


def describe_check(result: dict) -> str:
    """The forecast of the full set beside what it came to."""
    back, ahead = result["check"], result["forecast"]
    inside = "inside" if back["inside"] else "OUTSIDE"
    return (
        f"from {result['rows'][-2]['examples']:,} records and fewer, {back['loss']:.3f} ({back['low']:.3f} to "
        f"{back['high']:.3f}) is forecast for {back['examples']:,}; measured {back['measured']:.3f}, {inside}. For "
        f"twice as many {ahead['loss']:.3f} ({ahead['low']:.3f} to {ahead['high']:.3f})"
    )


def table(result: dict) -> str:
    rows = [
        [f"{row['fraction']:g}", f"{row['examples']:,}", f"{row['steps']:,}", f"{row['loss']:.4f}"]
        for row in result["rows"]
    ]
    return results.markdown(["share", "records", "steps", "test loss"], rows) + f"\n\n{describe_check(result)}."
