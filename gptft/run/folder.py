"""A run's folder: choosing it, going on from it, and filling it while the loop goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gptft import checkpoint
from gptft.config import Config
from gptft.data.examples import Split
from gptft.errors import UserError
from gptft.loss import Objective
from gptft.run import console
from gptft.run.console import say
from gptft.run.signals import Interruption, catch_signals
from gptft.tokenizer import Tokenizer
from gptft.training import Evaluation, Step, Stopped, TrainState, total_steps, train


def choose_out_dir(config: Config) -> Path:
    """The run's folder. One that holds a run is refused unless --resume; the default name gets a number instead."""
    if config.out_dir:
        out_dir = Path(config.out_dir)
        if holds_run(out_dir) and not config.resume:
            raise UserError(f"--out_dir {out_dir} already holds a run: choose another, or go on with it by --resume")
        return out_dir
    if config.resume:
        raise UserError("--resume needs --out_dir: the folder of the run to go on with")
    init = Path(config.init)
    if init.name in ("best", "last") or init.name.startswith("step-"):
        init = init.parent  # a run's checkpoint goes by the name of its run
    stem = f"{init.name}-{Path(config.data[0].removeprefix('embedded:')).stem}"
    return numbered(Path("checkpoints") / stem)


def numbered(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... where it already holds a run."""
    candidate, number = path, 2
    while holds_run(candidate) or holds_run(candidate / "pretrain"):  # the embedded default's first stage
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def holds_run(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise UserError(f"--out_dir {path} is a file")
    return path.is_dir() and any((path / name).exists() for name in ("config.toml", "metrics.jsonl", "last", "best"))


def run_loop(
    state: TrainState,
    objective: Objective,
    config: Config,
    splits: tuple[Split, Split],
    pad_id: int,
    out_dir: Path,
    tokenizer: Tokenizer,
    fingerprint: dict,
) -> None:
    """Consume the loop's events: metrics, progress bar, checkpoints. Raises Interruption after Ctrl-C or SIGTERM."""

    def save(name: str, with_state: bool = True) -> None:
        extra = {"state": state.state_dict(), "fingerprint": fingerprint} if with_state else None
        checkpoint.save(out_dir / name, state.model, tokenizer, state.progress.step, extra)

    metrics = console.Metrics(out_dir / "metrics.jsonl", state.progress, config.log_every)
    bar = console.Bar(total_steps(len(splits[0]), config), state.progress.step)
    with contextlib.closing(metrics), contextlib.closing(bar), catch_signals() as caught:
        for event in train(state, objective, config, *splits, pad_id, lambda: bool(caught)):
            if isinstance(event, Stopped):
                if event.reason == "interrupt":
                    save("last")
                    raise Interruption(
                        f"stopped after step {event.step}; saved in {out_dir / 'last'}", caught[0], out_dir
                    )
                say(f"stopped early at step {event.step}: {config.patience} evaluations without improvement")
                continue
            metrics.write(event)
            bar.show(event)
            if isinstance(event, Evaluation) and event.improved:
                save("best", with_state=False)
            if isinstance(event, Step) and config.save_every and event.step % config.save_every == 0:
                save(f"step-{event.step:06}")
                checkpoint.prune(out_dir, config.keep, event.step)
        save("last")
