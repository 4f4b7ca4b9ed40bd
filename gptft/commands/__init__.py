"""The commands of `python -m gptft` and `train.py`."""
