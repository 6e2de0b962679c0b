"""A plan may start from the last one, noised to the level of the first of the last steps."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy
from diffpolicy.diffusion.diffusers_sampler import DiffusersConfig
from diffpolicy.diffusion.reverse import reverse, warm_noise
from diffpolicy.diffusion.samplers.ancestral import DdimConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels
from diffpolicy.policy.objective_choices import OBJECTIVES
from diffpolicy.policy.sampler_choices import TABLES, AutoConfig, build_sampler, warm_sampler
from diffpolicy.policy.settings import PolicyConfig

SEEN = {"position": torch.full((2, 2, 3), 0.3), "goal": torch.full((2, 2, 2), 0.6)}
ON_COSINE = sorted(set(TABLES) - {"flow_heun"})


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(2)]


def last_plan() -> torch.Tensor:
    """Plans [2, 16, 2] within the range of the actions."""
    return 1.0 + 8.0 * torch.rand(2, 16, 2, generator=torch.Generator().manual_seed(7))


class FirstSight:
    """A guide that changes nothing, and remembers the first x and row that the denoiser is called with."""

    def __init__(self) -> None:
        self.x: torch.Tensor | None = None
        self.row: Any = None

    def __call__(self, denoise, unconditional):
        def watched(x, row):
            if self.x is None:
                self.x, self.row = x.clone(), row
            return denoise(x, row)

        return watched


@over("name", ON_COSINE)
def test_it_starts_at_alpha_times_the_last_plan_plus_sigma_times_noise(small_policy, name: str) -> None:
    sampling, first = small_policy.sampling({"name": name, "steps": 8, "warm_start": 3}), FirstSight()
    plan = small_policy.predict_action_chunk(SEEN, generators(), sampling.warm, None, first, last_plan()).plan
    assert plan.isfinite().all()
    noise = torch.stack([torch.randn(len(sampling.warm) + 1, 16, 2, generator=each)[0] for each in generators()])
    expected = first.row.alpha * small_policy.codec.encode(last_plan()) + first.row.sigma * noise
    # float32: alpha / sigma, up to about 1e2 at the lowest levels, and back
    torch.testing.assert_close(first.x, expected, rtol=1e-5, atol=1e-5)


@over("name", ON_COSINE)
def test_it_runs_the_last_levels_of_the_whole_table(small_policy, name: str) -> None:
    sampling = small_policy.sampling({"name": name, "steps": 8, "warm_start": 3})
    whole, warm = sampling.sampler.now, sampling.warm.now
    assert len(warm) < len(whole)
    np.testing.assert_array_equal(warm.time, whole.time[-len(warm) :])
    np.testing.assert_array_equal(warm.sigma, whole.sigma[-len(warm) :])


def test_the_level_is_that_of_the_first_of_the_last_steps(small_policy) -> None:
    """Of 10 trailing steps on 100 levels the last 4 begin at the levels 40, 30, 20 and 10."""
    sampling = small_policy.sampling("ddim", 10)
    assert sampling.warm is None
    warm = small_policy.sampling(DdimConfig(warm_start=4)).warm
    levels = small_policy.objective.schedule.levels
    np.testing.assert_array_equal(warm.now.sigma, levels.sigma[[39, 29, 19, 9]])


@over("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
def test_a_sampler_that_looks_back_begins_with_nothing_to_look_back_on(small_policy, name: str) -> None:
    sampling = small_policy.sampling({"name": name, "steps": 8, "warm_start": 4})
    assert np.any(sampling.sampler.c[-4] != 0.0)
    np.testing.assert_array_equal(sampling.warm.c[0], 0.0)


def test_the_loop_starts_from_the_noised_plan() -> None:
    """The first step of this table keeps x, and the denoiser returns it."""
    levels = Levels(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([2.0, 1.0]), np.ones(2))
    table = StepTable(levels, a=np.array([1.0, 0.0]), b=np.array([0.0, 1.0]), s=np.zeros(2))
    noise, clean = torch.randn(3, 1, 4, 2), torch.full((1, 4, 2), 5.0)
    found = reverse(lambda x, row: x, table, warm_noise(noise, table, clean), lambda plan, row, step: plan).clean
    torch.testing.assert_close(found, 0.6 * clean + 0.8 * noise[0])  # float32 rounding, as by default


def test_auto_passes_it_on(small_policy) -> None:
    assert small_policy.sampling({"name": "auto", "warm_start": 4}).settings == DdimConfig(warm_start=4)
    assert len(small_policy.sampling(AutoConfig(steps=20, warm_start=5)).warm) == 5


def test_the_start_of_pure_noise_is_not_that_of_a_warm_start(small_policy) -> None:
    sampling = small_policy.sampling({"name": "ddim", "warm_start": 4, "start": 1.0})
    assert sampling.sampler.start == 1.0
    assert sampling.warm.start is None


@over(
    "settings, message",
    [
        (
            {"steps": 10, "warm_start": 10},
            "warm_start 10 is beyond the schedule of 10 steps; give sampler.warm_start=9",
        ),
        ({"steps": 10, "warm_start": 12}, "warm_start 12 is beyond the schedule of 10 steps"),
        ({"steps": 1, "warm_start": 1}, "beyond the schedule of 1 steps; leave it out, or give more steps"),
        ({"warm_start": 0}, "warm_start 0 must be between 1 and 10000"),
        ({"warm_start": 2.5}, "warm_start is 2.5, expected int"),
        ({"name": "diffusers", "warm_start": 2}, "has no setting warm_start"),
    ],
)
def test_a_warm_start_that_does_not_fit_is_refused(small_policy, settings, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small_policy.sampling({"name": "ddim", **settings})


def test_a_scheduler_of_diffusers_has_no_warm_start_and_takes_no_last_plan(small_policy) -> None:
    pytest.importorskip("diffusers")
    sampling = small_policy.sampling(DiffusersConfig())
    assert sampling.warm is None
    with pytest.raises(ValueError, match="a DiffusersSampler cannot start from a previous plan"):
        small_policy.predict_action_chunk(SEEN, generators(), sampling.sampler, previous=last_plan())


@over(
    "previous, shape",
    [
        (torch.zeros(1, 16, 2), "[1, 16, 2]"),
        (torch.zeros(2, 15, 2), "[2, 15, 2]"),
        (torch.full((2, 16, 2), torch.nan), "[2, 16, 2]"),
    ],
)
def test_a_last_plan_of_another_shape_or_with_nan_is_refused(small_policy, previous, shape: str) -> None:
    warm = small_policy.sampling(DdimConfig(warm_start=4)).warm
    message = f"policy: previous has shape {shape}, expected finite values of [2, 16, 2]"
    with pytest.raises(ValueError, match=re.escape(message)):
        small_policy.predict_action_chunk(SEEN, generators(), warm, previous=previous)


def test_a_table_that_starts_without_noise_cannot_start_from_a_last_plan() -> None:
    levels = Levels(np.array([0.6]), np.array([0.8]), np.ones(1), np.ones(1))
    table = StepTable(levels, a=np.zeros(1), b=np.ones(1), s=np.zeros(1), start=0.0)
    with pytest.raises(ValueError, match="starts without noise"):
        warm_noise(torch.zeros(2, 1, 4, 2), table, torch.zeros(1, 4, 2))


@over("name", ["consistency_trajectory", "shortcut"])
def test_steps_of_a_network_that_sees_their_ends_end_where_those_of_the_whole_table_do(name: str) -> None:
    policy = DiffusionPolicy(PolicyConfig({"goal": 2}, 2, diffusion=OBJECTIVES[name].settings()))
    sampling = policy.sampling({"name": "flow_map", "steps": 4, "warm_start": 2})
    np.testing.assert_array_equal(sampling.warm.stop, sampling.sampler.stop[-2:])


def test_without_a_warm_start_there_is_no_second_table(small_policy) -> None:
    schedule = small_policy.objective.schedule
    assert warm_sampler(schedule, DdimConfig()) is None
    assert warm_sampler(schedule, DiffusersConfig()) is None
    assert len(build_sampler(schedule, DdimConfig(warm_start=4))) == 10
