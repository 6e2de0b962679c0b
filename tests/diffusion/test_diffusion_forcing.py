"""Levels of their own for waypoints: the objective, the sampler that denoises near ones first, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion.objectives.denoising import Denoising, NoisyBatch
from diffpolicy.diffusion.objectives.diffusion_forcing import DiffusionForcing
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.parameterization import CLEAN, EPSILON
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.samplers.pyramid import pyramid, to_lowest
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedules import cosine, vp
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.networks.backbones.dit import DiTConfig
from diffpolicy.policy.clip import identity
from diffpolicy.policy.sampler_choices import Given, build_sampler, sampler_settings

SCHEDULE = vp(1000)
STEPS = ddim(to_lowest(trailing(SCHEDULE, 10), SCHEDULE))  # of 11 levels


def denoise(x: Tensor, row: Row) -> Tensor:
    """Exact for independent Gaussian waypoints of mean 0.3 and variance 0.2."""
    return 0.3 + 0.2 * row.alpha / (0.2 * row.alpha**2 + row.sigma**2) * (x - row.alpha * 0.3)


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0, 2.3])
def test_every_waypoint_takes_the_steps_of_ddim_whenever_it_starts(delay: float) -> None:
    table = pyramid(STEPS, 8, delay)
    noise = torch.randn(1, 64, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = reverse(denoise, table, noise.expand(len(table) + 1, -1, -1, -1), identity).clean
    expected = reverse(denoise, STEPS, noise.expand(len(STEPS) + 1, -1, -1, -1), identity).clean
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_samples_of_dependent_waypoints_have_the_covariance_of_the_data() -> None:
    """Levels of their own keep the flow exact: each waypoint moves along the score at the levels of all."""
    length, apart = 4, np.subtract.outer(np.arange(4), np.arange(4))
    data = torch.from_numpy(0.3 * 0.8 ** np.abs(apart))

    def together(x: Tensor, row: Row) -> Tensor:
        alpha, sigma = ((one * torch.ones(length, 1)).squeeze(1).double().diag() for one in (row.alpha, row.sigma))
        return data @ alpha @ torch.linalg.inv(alpha @ data @ alpha + sigma @ sigma) @ x

    def error(steps: int) -> float:
        table = build_sampler(SCHEDULE, {"name": "pyramid", "delay": 0.3 * steps}, steps, Given(length))
        assert isinstance(table, StepTable)
        units = torch.eye(length, dtype=torch.float64)[:, :, None].expand(len(table) + 1, -1, -1, -1)
        factor = reverse(together, table, units, identity).clean[..., 0]
        return float((factor.T @ factor - data).abs().max())

    assert error(400) < 0.01
    assert error(400) < 0.6 * error(200), "of order 1"


def test_near_waypoints_are_ahead_of_far_ones_and_nobody_goes_back() -> None:
    table = pyramid(STEPS, 8, 1.5)
    assert len(table) == 11 + 10
    sigma = torch.from_numpy(table.now.sigma)  # [rows, horizon]
    assert (sigma[:, 1:] >= sigma[:, :-1]).all()
    assert (sigma[1:] <= sigma[:-1]).all()
    assert sigma[0].unique().numel() == 1
    assert float(sigma[11, 0]) == SCHEDULE.levels.sigma[0] < float(sigma[11, -1])


def test_the_loss_is_that_of_each_waypoint_at_its_own_level() -> None:
    objective, plain = DiffusionForcing(Denoising(SCHEDULE, EPSILON)), Denoising(SCHEDULE, EPSILON)
    clean, noise = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    level = torch.randint(1000, (3, 4), generator=torch.Generator().manual_seed(1))

    def network(x: Tensor, time: Tensor) -> Tensor:
        return 0.5 * x + 0.001 * time.view(len(x), -1, 1)

    found = objective.loss(ConditionedNetwork(network, []), NoisyBatch(clean, noise, level))
    alone = [
        plain.loss(ConditionedNetwork(network, []), NoisyBatch(clean[:, [i]], noise[:, [i]], level[:, i]))
        for i in range(4)
    ]
    assert_close(found, torch.stack(alone).mean(), rtol=1e-6, atol=0)  # the order of a sum, in float32


def test_levels_are_independent_between_waypoints_and_parts_are_slices_of_the_whole() -> None:
    objective = DiffusionForcing(Denoising(cosine(100), CLEAN))
    clean = torch.zeros(2000, 4, 1)
    whole = objective.draw(clean, torch.Generator().manual_seed(0))
    assert whole.level.shape == (2000, 4)
    together = torch.corrcoef(whole.level.T.double())
    assert_close(together, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.08)  # 3.5 standard errors
    part = objective.draw(clean[1000:], torch.Generator().manual_seed(0), (1, 2))
    assert torch.equal(part.level, whole.level[1000:])
    assert torch.equal(part.noise, whole.noise[1000:])


def test_a_policy_with_it_trains_and_samples_with_the_pyramid_and_with_ddim() -> None:
    torch.manual_seed(0)
    model = DiTConfig(layers=2, heads=2, width=8)
    policy = DiffusionPolicy(PolicyConfig({"state": 3}, 2, model=model, diffusion="diffusion_forcing"))
    policy.fit({"state": torch.randn(50, 3)}, torch.randn(50, 2))
    seen = {"state": torch.randn(4, 2, 3)}
    policy.loss(seen, torch.randn(4, 16, 2), torch.Generator().manual_seed(0)).backward()
    for sampler in ("ddim", {"name": "pyramid", "delay": 0.5}):
        table = policy.sampler(sampler, 4)
        plan = policy.predict_action_chunk(seen, [torch.Generator().manual_seed(i) for i in range(4)], table).plan
        assert plan.isfinite().all()
    assert len(policy.sampler("pyramid", 4)) == 5 + 7


def test_networks_and_policies_without_levels_of_waypoints_refuse_it_by_name() -> None:
    for model in ("unet1d", "transformer"):
        with pytest.raises(ValueError, match=rf"diffusion_forcing gives each .*, and {model} takes one .*model=dit"):
            DiffusionPolicy(PolicyConfig({"state": 3}, 2, model=model, diffusion="diffusion_forcing"))
    with pytest.raises(ValueError, match="pyramid needs a policy trained with a level for each waypoint"):
        Denoising(SCHEDULE, CLEAN).check_sampler(sampler_settings("pyramid"))
    assert len(build_sampler(SCHEDULE, "pyramid", given=Given(1))) == 11
