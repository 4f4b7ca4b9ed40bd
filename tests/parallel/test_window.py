"""The number of examples a step is the user's: any number of processes keeps it, or is refused with what would do."""

import numpy as np
import pytest

from gptft.collate import plan
from gptft.config import Config
from gptft.errors import UserError
from gptft.parallel import window
from gptft.parallel.ranks import Ranks
from gptft.parallel.window import as_asked, own_slices, settle_window


def config(**settings):
    return Config(data=("x",), **settings)


def test_a_step_has_batch_size_times_grad_accum_times_processes():
    for size in (1, 2, 3):
        settled = settle_window(config(batch_size=4, grad_accum=2), size)
        assert settled.batch_size * settled.grad_accum == 8 * size


def test_a_global_batch_gives_the_same_windows_on_any_number_of_processes_that_divides_it():
    """Scaling by the number of GPUs that happen to be there is how a recipe stops working on another cluster."""
    lengths = np.arange(100) % 17 + 2
    windows = []
    for size in (1, 2, 3, 6):
        settled = settle_window(config(batch_size=2, global_batch_size=12), size)
        windows.append(plan(lengths, settled.batch_size, settled.grad_accum, 7, 0))
    assert all(each == windows[0] for each in windows)


@pytest.mark.parametrize(
    "settings, size, earlier, said",
    [
        ({"batch_size": 8, "global_batch_size": 30}, 2, 0, "no multiple of --batch_size 8 times 2 processes; 16 or 32"),
        (
            {"batch_size": 4, "global_batch_size": 24},
            4,
            0,
            "6 micro-batches .* 4 processes cannot share .* 1, 2, 3, 6 can",
        ),
        ({"batch_size": 4, "global_batch_size": 24, "grad_accum": 2}, 2, 0, "--grad_accum 2 contradict .* has 16"),
        ({"batch_size": 4}, 4, 24, "the run has 24 examples a step: 6 micro-batches .* 1, 2, 3, 6 can"),
        ({"batch_size": 5}, 2, 24, "take a --batch_size that divides 24"),
        ({"batch_size": 4, "global_batch_size": 32}, 2, 24, "--global_batch_size is 32, and the run has 24"),
    ],
)
def test_a_window_that_cannot_be_divided_is_refused_with_what_can_be(settings, size, earlier, said):
    with pytest.raises(UserError, match=said):
        settle_window(config(**settings), size, earlier)


def test_a_run_that_is_gone_on_with_keeps_its_window():
    settled = settle_window(config(batch_size=4, grad_accum=6), 3, earlier=24)
    assert settled.grad_accum == 6 and settled.global_batch_size == 24
    again = settle_window(as_asked(settled), 2, earlier=24)
    assert again.grad_accum == 6 and as_asked(again).grad_accum == 1


def test_one_process_writes_down_what_it_was_given():
    """A config.toml of one process says nothing of windows that its user has not said."""
    given = config(batch_size=4, grad_accum=3)
    assert as_asked(settle_window(given, 1)) == given


class Part:
    lengths = np.array([5, 9, 40, 7, 8, 30, 6, 11, 12, 4, 21, 10])
    target_counts = np.array([2, 5, 9, 1, 4, 20, 3, 6, 6, 2, 9, 7])


def test_the_ranks_slices_of_a_window_are_the_window(monkeypatch):
    """No example twice, none missed, whatever the number of ranks; and each has as many micro-batches."""
    from toys import toy_model

    settled = settle_window(config(batch_size=2, global_batch_size=12), 3)
    windows = plan(Part.lengths, 2, settled.grad_accum, 0, 0)
    found = []
    for rank in range(3):
        monkeypatch.setattr(window, "here", lambda rank=rank: Ranks(rank, 3))
        found.append(list(own_slices(windows, Part, settled, toy_model())))
    for number, whole in enumerate(windows):
        slices = [found[rank][number] for rank in range(3)]
        assert sorted(i for mine in slices for batch in mine for i in batch) == sorted(i for b in whole for i in b)
        assert {len(mine) for mine in slices} == {2}
