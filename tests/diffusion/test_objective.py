"""The objective: its table, the loss, the levels drawn, and what it refuses."""

import numpy as np
import pytest
import torch
from every import EVERY_SCHEDULE
from one_case import over

from diffpolicy.diffusion import schedules
from diffpolicy.diffusion.objectives.denoising import Denoising, DenoisingConfig, NoisyBatch
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.parameterization import CLEAN, EPSILON, V
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.diffusion.weighting import elbo, log_normal
from diffpolicy.policy.objective_choices import (
    LEVEL_DISTRIBUTIONS,
    PARAMETERIZATIONS,
    SCHEDULES,
    WEIGHTINGS,
    build_objective,
)
from diffpolicy.system.tables import made

TRAJECTORIES, NOISE = torch.randn(2, 64, 16, 2, generator=torch.Generator().manual_seed(0))
CONDITION = torch.arange(64.0)[:, None]
LEVEL = torch.arange(64) * 15 + 20  # neither end: alpha is 0 at the last of some


def silent(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


@over("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_network_that_knows_the_answer_has_no_loss_and_denoises_exactly(schedule, parameterization: str) -> None:
    """On every schedule; it is given the scaled noisy trajectory and the level's time."""
    meaning = made(PARAMETERIZATIONS, "parameterization", parameterization)
    if meaning.needs_signal and schedule.levels.alpha[-1] == 0.0:
        return  # refused: test_parameterizations
    objective = Denoising(schedule, meaning)
    now = schedule.levels[LEVEL.numpy()]
    alpha, sigma, scale = (torch.from_numpy(v)[:, None, None] for v in (now.alpha, now.sigma, now.input_scale))
    on_clean, on_noise = meaning.target(alpha, sigma)
    target = (on_clean * TRAJECTORIES + on_noise * NOISE).float()

    def knowing(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        noisy = (alpha * TRAJECTORIES + sigma * NOISE).float()
        torch.testing.assert_close(x, (scale * noisy).float(), rtol=1e-5, atol=1e-5)  # float32
        torch.testing.assert_close(time, torch.from_numpy(now.time).float())
        return target

    loss = objective.loss(knowing, NoisyBatch(TRAJECTORIES, NOISE, LEVEL))
    assert loss < 1e-12 * target.square().mean()  # float32, squared


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_of_a_silent_network_is_the_weighted_mean_square_of_the_target(weighting: str) -> None:
    schedule = schedules.vp(1000)
    objective = Denoising(schedule, EPSILON, made(WEIGHTINGS, "weighting", weighting))
    weight = objective.weighting(schedule.levels, -schedule.levels.sigma / schedule.levels.alpha)[LEVEL.numpy()]
    loss = objective.loss(silent, NoisyBatch(TRAJECTORIES, NOISE, LEVEL))
    expected = (torch.from_numpy(weight)[:, None, None] * NOISE.double().square()).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)  # float32


@over("schedule", EVERY_SCHEDULE)
def test_the_tables_columns_are_levels_target_weight_cumulative_share_and_estimate(schedule) -> None:
    distribution = log_normal(0.0, 1.0)
    table = Denoising(schedule, CLEAN, levels=distribution).table.values
    levels = schedule.levels
    one, zero = np.ones(len(schedule)), np.zeros(len(schedule))
    columns = (levels.alpha, levels.sigma, levels.time, levels.input_scale, one, zero, one)
    of_clean = (zero, one)  # skip and out
    expected = torch.from_numpy(np.stack([*columns, np.cumsum(distribution(levels)), *of_clean], axis=1)).float()
    torch.testing.assert_close(table, expected, rtol=0, atol=0)


@over("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("name", LEVEL_DISTRIBUTIONS)
def test_levels_are_drawn_as_often_as_their_distribution_says(schedule, name: str) -> None:
    """The largest gap between the two cumulative shares (Kolmogorov-Smirnov) exceeds 2.2 / sqrt(n) once in 10,000."""
    distribution, count = made(LEVEL_DISTRIBUTIONS, "level_distribution", name), 100_000
    objective = Denoising(schedule, CLEAN, levels=distribution)
    drawn = objective.draw_levels(count, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=len(schedule)) / count
    assert len(share) == len(schedule)
    gap = np.abs(share.cumsum(0).numpy() - np.cumsum(distribution(schedule.levels)))
    assert gap.max() < 2.2 / count**0.5


def test_every_level_can_be_drawn_and_none_beyond() -> None:
    objective = Denoising(schedules.cosine(10), CLEAN)
    objective.table.columns.share.mul_(0.95)  # as if rounding left the last share short of 1
    drawn = objective.draw_levels(1000, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == list(range(10))


def test_the_denoiser_feeds_the_scaled_input_and_the_time() -> None:
    """EDM's network sees unit variance and 250 log sigma (Karras et al. 2022, eq. 7)."""
    config = DenoisingConfig(schedule="karras", num_levels=1000, parameterization="edm")
    objective = build_objective(config)
    sigma, sigma_data = 80.0, 0.5
    x = sigma * NOISE
    total = sigma**2 + sigma_data**2

    def network(seen: torch.Tensor, time: float) -> torch.Tensor:
        torch.testing.assert_close(seen, x / total**0.5)
        assert time == pytest.approx(250.0 * np.log(sigma))
        return seen * CONDITION[..., None]

    row = ddim(trailing(objective.schedule, 1)).rows[0]
    found = objective.denoiser(network)(x, row)
    output = x / total**0.5 * CONDITION[..., None]
    torch.testing.assert_close(found, sigma_data**2 / total * x + sigma * sigma_data / total**0.5 * output)


def test_elbo_weights_with_levels_drawn_unevenly_are_refused() -> None:
    with pytest.raises(ValueError, match="weighting elbo is the bound's only if level_distribution is uniform"):
        Denoising(schedules.cosine(100), CLEAN, elbo, log_normal(0.0, 1.0))


@over(
    "key, table",
    [
        ("schedule", SCHEDULES),
        ("parameterization", PARAMETERIZATIONS),
        ("weighting", WEIGHTINGS),
        ("level_distribution", LEVEL_DISTRIBUTIONS),
    ],
)
def test_unknown_names_list_the_known(key: str, table: dict) -> None:
    with pytest.raises(ValueError, match=f"{key}: 'nonsense' is unknown, expected one of {', '.join(sorted(table))}"):
        build_objective(DenoisingConfig(**{key: "nonsense"}))


def test_zero_terminal_snr_is_a_setting_that_makes_100_linear_levels_usable() -> None:
    objective = build_objective(DenoisingConfig(schedule="linear", zero_terminal_snr=True, parameterization="v"))
    assert len(objective.schedule) == 100
    assert objective.schedule.levels.alpha[-1] == 0.0
    assert objective.parameterization is V


def test_several_draws_share_a_window_and_its_condition() -> None:
    """The loss is the mean over the draws, each of its own level and noise, at the window's condition."""
    objective = build_objective(DenoisingConfig(draws=3))
    network = ConditionedNetwork(lambda x, time, field: x * time[:, None, None] + field[:, :, None], [CONDITION])
    batch = objective.draw(TRAJECTORIES, torch.Generator().manual_seed(1))
    assert len(batch.level.view(3, 64).unique(dim=0)) == len(batch.noise.view(3, 64, -1).unique(dim=0)) == 3
    one = build_objective(DenoisingConfig())
    draws = [NoisyBatch(TRAJECTORIES, batch.noise[rows], batch.level[rows]) for rows in torch.arange(192).view(3, 64)]
    expected = torch.stack([one.loss(network, draw) for draw in draws]).mean()
    torch.testing.assert_close(objective.loss(network, batch), expected, rtol=1e-6, atol=0)  # another order of sums
    counts = (torch.arange(16) < 8).float().expand(64, 16)
    expected = torch.stack([one.loss(network, draw, counts=counts) for draw in draws]).mean()
    torch.testing.assert_close(objective.loss(network, batch, counts=counts), expected, rtol=1e-6, atol=0)


def test_the_parts_of_a_batch_draw_what_the_whole_batch_draws() -> None:
    objective = build_objective(DenoisingConfig(draws=3))
    whole = objective.draw(TRAJECTORIES, torch.Generator().manual_seed(1))
    halves = [
        objective.draw(half, torch.Generator().manual_seed(1), (index, 2))
        for index, half in enumerate(TRAJECTORIES.chunk(2))
    ]
    for name in ("clean", "noise", "level"):
        parts = [getattr(half, name).unflatten(0, (3, 32)) for half in halves]
        assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), getattr(whole, name))
