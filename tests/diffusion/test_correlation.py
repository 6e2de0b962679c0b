"""Correlated noise: its covariance, and exact sampling of Gaussian trajectories with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion.correlation import correlated, whitened
from diffpolicy.diffusion.likelihood import elbo
from diffpolicy.diffusion.objectives.denoising import Denoising
from diffpolicy.diffusion.parameterization import CLEAN
from diffpolicy.diffusion.reverse import reverse, warm_noise
from diffpolicy.diffusion.samplers.ancestral import DdimConfig
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedules import vp
from diffpolicy.policy.clip import identity
from diffpolicy.policy.objective_choices import build_objective
from diffpolicy.policy.sampler_choices import build_sampler, warm_sampler

LENGTH = 6
STEPS_APART = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
OF_NOISE = torch.from_numpy(0.9**STEPS_APART)
OF_DATA = torch.from_numpy(0.3 * 0.5**STEPS_APART + 0.05 * np.eye(LENGTH))
SCHEDULE = replace(vp(1000), correlation=0.9)


def factors(correlation: float) -> Tensor:
    """[waypoint, draw]: what each white draw adds to each waypoint."""
    return correlated(torch.eye(LENGTH, dtype=torch.float64)[..., None], correlation)[..., 0].T


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.99])
def test_the_covariance_falls_with_the_steps_apart_and_the_variance_is_one(correlation: float) -> None:
    found = factors(correlation)
    expected = torch.from_numpy(np.where(STEPS_APART == 0, 1.0, correlation**STEPS_APART))
    assert_close(found @ found.T, expected, rtol=0, atol=1e-12)


def test_white_noise_is_left_as_it_is_and_no_robot_changes_anothers() -> None:
    noise = torch.randn(3, 5, 16, 2)
    assert correlated(noise, 0.0) is noise
    assert whitened(noise, 0.0) is noise
    assert torch.equal(correlated(noise, 0.9)[:, 2:3], correlated(noise[:, 2:3].clone(), 0.9))


def test_whitening_is_its_inverse() -> None:
    noise = torch.randn(3, 5, 16, 2, dtype=torch.float64)
    assert_close(whitened(correlated(noise, 0.9), 0.9), noise, rtol=0, atol=1e-12)


def denoise(x: Tensor, row: Row) -> Tensor:
    """E[clean | x] of Gaussian trajectories x [batch, horizon, 1] with noise of this covariance."""
    gain = row.alpha * OF_DATA @ torch.linalg.inv(row.alpha**2 * OF_DATA + row.sigma**2 * OF_NOISE)
    return gain @ x


def covariance(table: StepTable) -> Tensor:
    """Of the samples, exact: all is linear, so that draws of which one number is 1 each give the factors."""
    units = (len(table) + 1) * LENGTH
    noise = torch.eye(units, dtype=torch.float64).view(units, len(table) + 1, LENGTH, 1).transpose(0, 1)
    factor = reverse(denoise, table, noise, identity).clean[..., 0]
    return factor.T @ factor


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m", "unipc", "predictor_corrector"])
def test_samples_with_it_have_the_covariance_of_the_data(name: str) -> None:
    table = build_sampler(SCHEDULE, {"name": name, "steps": 150})
    assert isinstance(table, StepTable)
    tolerance = 0.03 if name == "ddpm" else 0.012  # of the steps, whose error is of order 1; variances are 0.35
    assert_close(covariance(table), OF_DATA, rtol=0, atol=tolerance)
    wrong = covariance(replace(table, correlation=0.0))
    assert (wrong - OF_DATA).abs().max() > 0.05, "the noise of training counts"


def test_a_warm_start_is_the_last_plan_with_noise_of_this_covariance() -> None:
    table = warm_sampler(SCHEDULE, DdimConfig(steps=10, warm_start=4))
    assert table is not None
    noise, clean = torch.randn(2, 5, 3, LENGTH, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[Tensor] = []

    def watched(x: Tensor, row: Row) -> Tensor:
        seen.append(x)
        return x

    reverse(watched, table, warm_noise(noise, table, clean[0]), identity)
    first = table.rows[0]
    assert_close(seen[0], first.alpha * clean[0] + first.sigma * correlated(noise[0], 0.9), rtol=0, atol=1e-12)


def test_training_adds_the_noise_that_sampling_starts_from() -> None:
    objective, white = Denoising(SCHEDULE, CLEAN), Denoising(vp(1000), CLEAN)
    clean = torch.zeros(4, LENGTH, 2)
    mine, other = (one.draw(clean, torch.Generator().manual_seed(0)).noise for one in (objective, white))
    assert torch.equal(mine, correlated(other, 0.9))


@pytest.mark.parametrize("name", ["shortcut", "consistency", "progressive", "reflow", "distribution_matching"])
def test_objectives_of_few_steps_pass_it_on(name: str) -> None:
    few = build_objective({"name": name, "denoising": {"noise_correlation": 0.5}})
    assert few.schedule.correlation == 0.5
    steps = build_sampler(few.schedule, few.sampler)
    assert isinstance(steps, StepTable)
    assert steps.correlation == 0.5


def test_a_policy_samples_with_the_noise_of_training(small_policy: DiffusionPolicy) -> None:
    white = small_policy.sampler()
    assert isinstance(white, StepTable)
    assert white.correlation == 0.0
    config = small_policy.config
    diffusion = {"name": "denoising", "noise_correlation": 0.9}
    mine = DiffusionPolicy(PolicyConfig(config.observations, 2, model=config.model, diffusion=diffusion))
    table = mine.sampler()
    assert isinstance(table, StepTable)
    assert table.correlation == 0.9
    assert mine.sampling({"name": "ddim", "warm_start": 3}).warm.correlation == 0.9


def test_what_needs_white_noise_refuses_another() -> None:
    with pytest.raises(ValueError, match=r"noise of correlation 0\.9, expected white noise; train with"):
        elbo(SCHEDULE, denoise, torch.zeros(1, LENGTH, 1), 1, torch.Generator())
    with pytest.raises(ValueError, match=r"trained with noise of correlation 0\.9; give sampler=ddim"):
        build_sampler(SCHEDULE, "diffusers")
    with pytest.raises(ValueError, match=r"learned_variance with noise of correlation 0\.5, expected white noise"):
        build_objective({"name": "learned_variance", "noise_correlation": 0.5})
    with pytest.raises(ValueError, match=r"noise_correlation 1\.0 must be at least 0 and below 1"):
        build_objective({"name": "denoising", "noise_correlation": 1.0})
