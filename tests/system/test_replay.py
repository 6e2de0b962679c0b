"""Recordings: when they are made, kept, shared and dropped; tests/policy/test_compile.py has what they replay."""

import copy
import threading

import pytest
from torch import Tensor
from torch.testing import assert_close
from traced import compiled, in_place, make_policy, new_memory, plan, recorded

from diffpolicy.system import replay as graph


def test_what_was_recorded_for_memory_that_is_gone_goes_too(traced) -> None:
    policy = compiled(make_policy())
    for batch in (1, 2):
        plan(policy, batch=batch)
    assert len(policy._replays._recordings) == 2
    new_memory(policy)
    plan(policy)
    assert len(policy._replays._recordings) == 1


def test_a_plan_is_not_overwritten_by_the_next(traced) -> None:
    policy = compiled(make_policy())
    first = plan(policy, 0)
    kept = first.clone()
    plan(policy, 1)
    assert_close(first, kept, rtol=0, atol=0)


def test_the_latest_recordings_are_kept(traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_RECORDINGS", 2)
    policy = compiled(make_policy())
    for batch, count in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        plan(policy, batch=batch)
        assert recorded(policy) == count
        assert len(policy._replays._recordings) <= 2


def test_compiling_again_forgets(traced) -> None:
    policy = compiled(make_policy())
    plan(policy)
    policy.capture()
    assert not policy._replays._recordings


def test_threads_share_a_policy(traced) -> None:
    policy = compiled(make_policy())
    expected = [plan(policy, seed) for seed in range(8)]
    found: dict[int, Tensor] = {}

    def work(seeds: range) -> None:
        for seed in seeds:
            found[seed] = plan(policy, seed)

    threads = [threading.Thread(target=work, args=(range(first, 8, 2),)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, one in enumerate(expected):
        assert_close(found[seed], one, rtol=0, atol=0)


def test_a_copy_records_for_itself(traced) -> None:
    policy = compiled(make_policy())
    plan(policy)
    other = copy.deepcopy(policy)
    in_place(other)
    assert not other._replays._recordings
    assert (plan(other) - plan(policy)).abs().max() > 1e-3
