"""How many examples make a step, which is the user's to say whatever the number of processes; and which of them are
this one's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from gptft.collate import Window
from gptft.config import Config
from gptft.data.examples import Split
from gptft.errors import UserError
from gptft.model import GPT, flops_of_head, flops_per_token
from gptft.parallel.ranks import here
from gptft.parallel.slices import Work, slices


def settle_window(config: Config, size: int, earlier: int = 0) -> Config:
    """The config with `grad_accum` counting the micro-batches of a whole window, those of all `size` processes.

    `earlier`: the examples a step of the run that is gone on with, which stay. Raises UserError where a window cannot
    be divided, with the numbers that divide it.
    """
    each = config.batch_size * config.grad_accum * size
    wanted = earlier or config.global_batch_size or each
    if config.global_batch_size not in (0, wanted):
        raise UserError(
            f"--resume: --global_batch_size is {config.global_batch_size}, and the run has {wanted} examples a step"
        )
    if config.global_batch_size and not earlier and config.grad_accum > 1 and each != wanted:
        raise UserError(
            f"--global_batch_size {wanted} and --grad_accum {config.grad_accum} contradict each other: with "
            f"--batch_size {config.batch_size} and {count(size)} a step has {each} examples; leave out --grad_accum"
        )
    if wanted % (config.batch_size * size):
        raise UserError(describe_division(config, size, wanted, earlier))
    fixed = wanted if size > 1 or config.global_batch_size else 0  # one process writes down what it was given
    return dataclasses.replace(config, grad_accum=wanted // config.batch_size, global_batch_size=fixed)


def as_asked(config: Config) -> Config:
    """A settled config as it is written down: whatever number of processes reads it takes the same steps."""
    return dataclasses.replace(config, grad_accum=1) if config.global_batch_size else config


def describe_division(config: Config, size: int, wanted: int, earlier: int) -> str:
    """Why so many examples cannot be divided, and what can be."""
    batches, left = divmod(wanted, config.batch_size)
    what = f"the run has {wanted} examples a step" if earlier else f"--global_batch_size is {wanted}"
    if left:
        at = config.batch_size * size
        near = " or ".join(str(each) for each in (wanted // at * at, wanted // at * at + at) if each)
        return f"{what}, which is no multiple of --batch_size {config.batch_size} times {count(size)}; " + (
            f"{near} would be" if not earlier else f"take a --batch_size that divides {wanted}"
        )
    fitting = [str(number) for number in range(1, batches + 1) if batches % number == 0]
    return (
        f"{what}: {batches} micro-batches of --batch_size {config.batch_size}, which {count(size)} cannot share "
        f"evenly; {', '.join(fitting)} can"
    )


def count(size: int) -> str:
    return f"{size} process{'es' if size > 1 else ''}"


def own_slices(windows: Iterable[Window], part: Split, config: Config, model: GPT) -> Iterator[Window]:
    """Of each window the micro-batches of this rank; one process alone has all of them, as they are."""
    ranks = here()
    if ranks.size == 1:
        yield from windows
        return
    lengths = part.lengths - 1  # positions: the last token is a target alone
    targets = part.target_counts if config.mask_prompt else lengths
    work = work_of(model, lengths, targets, config.batch_size)
    for window in windows:
        yield slices(window, lengths, targets, ranks.size, config.grad_accum // ranks.size, work)[ranks.rank]


def work_of(model: GPT, lengths: np.ndarray, targets: np.ndarray, batch_size: int) -> Work:
    """What micro-batches of these examples cost, and may hold: what the rehearsal has run holds batch_size of the
    longest, and as many of those with the most targets."""
    per_token = flops_per_token(model.config, 0)
    return Work(
        per_token=per_token,
        per_pair=(flops_per_token(model.config, 2) - per_token) / 4,  # half of the pairs are looked at
        per_target=flops_of_head(model.config),
        most_positions=int(lengths.max()) * batch_size,
        most_targets=max(1, int(np.sort(targets)[-batch_size:].sum())),
    )
