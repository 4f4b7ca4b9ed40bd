"""TensorBoard (extra `log`), from the same events as metrics.jsonl and under the same names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gptft.config import Config
from gptft.errors import need_extra
from gptft.run.metrics_file import row_of
from gptft.training import Evaluation, Progress, Step


def check_loggers(config: Config) -> None:
    """Raise UserError where the package of a logger is not installed."""
    if "tensorboard" in config.loggers and importlib.util.find_spec("tensorboard") is None:
        raise need_extra("tensorboard", "log", "--loggers tensorboard")


def open_loggers(config: Config, out_dir: Path, progress: Progress) -> list[TensorBoard]:
    """Those that the config asks for, to be written to and closed."""
    return [TensorBoard(out_dir / name, progress, config.log_every) for name in dict.fromkeys(config.loggers)]


class TensorBoard:
    """A scalar for every figure of a logged event. What an earlier part of the run wrote beyond the step from which it
    goes on is taken back."""

    def __init__(self, folder: Path, progress: Progress, log_every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=progress.step + 1 if progress.step else 0)
        self.log_every = log_every

    def write(self, event: Step | Evaluation, of_ranks: dict) -> None:
        row = (row_of(event, self.log_every) or {}) | of_ranks
        left_out = ("step", "epoch") if isinstance(event, Evaluation) else ("step",)
        for name, value in row.items():
            if name not in left_out:
                for rank, one in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    self.writer.add_scalar(name if rank is None else f"{name}/{rank}", one, event.step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
