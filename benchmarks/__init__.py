"""Measurements against peers in the same run: `python -m benchmarks NAME`. Results are in RESULTS.md."""
