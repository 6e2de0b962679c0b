"""Windows cover every episode as Diffusion Policy's sequence sampler does and never reach into a neighbour."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_case import over

from diffpolicy.data.windows import padded_steps, split_episodes, window_indices, windows_per_episode


def reference(ends, horizon, pad_before, pad_after):
    """Row by row, as the published sampler describes it: buffer range, then repeat the edges."""
    windows, start = [], 0
    for end in ends:
        for first in range(-pad_before, end - start - horizon + pad_after + 1):
            windows.append([start + min(max(first + i, 0), end - start - 1) for i in range(horizon)])
        start = end
    return np.array(windows, dtype=np.int64).reshape(-1, horizon)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    horizon=st.integers(1, 8),
    data=st.data(),
)
def test_equals_a_row_by_row_reference(lengths, horizon, data):
    pad_before, pad_after = (data.draw(st.integers(0, horizon - 1)) for _ in range(2))
    ends = np.cumsum(lengths)
    expected = reference(ends, horizon, pad_before, pad_after)
    if not len(expected):
        with pytest.raises(ValueError, match="no window"):
            window_indices(ends, horizon, pad_before, pad_after)
        return
    found = window_indices(ends, horizon, pad_before, pad_after)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6), data=st.data())
def test_chosen_episodes_give_only_their_own_rows(lengths, data):
    ends = np.cumsum(lengths)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(ends), max_size=len(ends))))
    if not mask.any():
        return
    rows = window_indices(ends, 4, 3, 3, episodes=mask)
    np.testing.assert_array_equal(rows, window_indices(ends, 4, 3, 3, episodes=np.flatnonzero(mask)))
    owner = np.searchsorted(ends, rows, side="right")
    assert (owner == owner[:, :1]).all()
    assert set(owner.ravel()) == set(np.flatnonzero(mask))


def test_padded_steps_are_those_outside_the_episode():
    padded = padded_steps(np.array([3, 5]), horizon=4, pad_before=1, pad_after=2)
    rows = window_indices(np.array([3, 5]), horizon=4, pad_before=1, pad_after=2)
    inside = [row[~outside].tolist() for row, outside in zip(rows, padded, strict=True)]
    assert inside == [[0, 1, 2], [0, 1, 2], [1, 2], [3, 4], [3, 4]]
    assert (padded[:, 0] == [True, False, False, True, False]).all()


def test_every_step_is_executed_first_once_with_the_usual_padding():
    """pad_before = n_obs_steps - 1 puts each of the first L - (horizon - 1 - pads) steps once at the present."""
    rows = window_indices(np.array([20]), horizon=16, pad_before=1, pad_after=7)
    present = rows[:, 1]
    assert present.tolist() == list(range(0, 13))
    assert rows[0].tolist() == [0, *range(15)]
    assert rows[-1].tolist() == [*range(11, 20), *[19] * 7]


@over(
    "arguments, message",
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": 4, "pad_before": 4}, "pad_before is 4, expected 0 to 3"),
        ({"horizon": 4, "pad_after": -1}, "pad_after is -1"),
        ({"horizon": 40}, r"no window of horizon 40 .*longest: 6 steps"),
        ({"horizon": 2, "episodes": np.array([3])}, "episode 3 is not one of the 3"),
        ({"horizon": 2, "episodes": np.array([True])}, "mask has shape"),
        ({"horizon": 2, "episodes": np.array([], dtype=int)}, "no window"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        window_indices(np.array([4, 5, 11]), **arguments)


@given(n=st.integers(2, 200), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_split_is_a_seeded_partition_with_both_sides(n, fraction, seed):
    train, validation = split_episodes(n, fraction, seed)
    assert len(train) >= 1
    assert len(validation) == min(max(round(n * fraction), 1), n - 1)
    assert sorted([*train, *validation]) == list(range(n))
    again = split_episodes(n, fraction, seed)
    np.testing.assert_array_equal(train, again[0])
    np.testing.assert_array_equal(validation, again[1])


@over("lengths", [[3, 20, 3, 20, 3, 3], [20, 3], [3, 3, 3, 20, 20], [20] * 9 + [1]])
@over("fraction", [0.02, 0.3, 0.9])
def test_an_episode_too_short_for_a_window_is_never_drawn_for_validation(lengths, fraction):
    counts = windows_per_episode(np.cumsum(lengths), 16, 1, 7)
    assert (counts > 0).tolist() == [length > 8 for length in lengths]
    if (counts > 0).sum() == 1:
        with pytest.raises(ValueError, match=r"only 1 of 2 episodes is long enough .*data.validation_fraction=0"):
            split_episodes(len(lengths), fraction, 0, counts > 0)
        return
    for seed in range(200):
        train, validation = split_episodes(len(lengths), fraction, seed, counts > 0)
        assert counts[train].any()
        assert counts[validation].all()
        assert len(validation) >= 1
        assert sorted([*train, *validation]) == list(range(len(lengths)))


def test_without_short_episodes_the_split_is_that_of_all():
    for seed in range(20):
        for one, other in zip(
            split_episodes(50, 0.1, seed), split_episodes(50, 0.1, seed, np.full(50, True)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_another_seed_is_another_split_and_zero_keeps_everything():
    assert split_episodes(100, 0.1, 0)[1].tolist() != split_episodes(100, 0.1, 1)[1].tolist()
    train, validation = split_episodes(1, 0.0, 0)
    assert (train.tolist(), validation.tolist()) == ([0], [])


@over("n, fraction", [(0, 0.1), (5, 1.0), (5, -0.1), (1, 0.1), (5, float("nan"))])
def test_impossible_splits_are_refused(n, fraction):
    with pytest.raises(ValueError, match="split: "):
        split_episodes(n, fraction, 0)
