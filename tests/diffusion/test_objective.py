"""Parameterizations and the loss: what a perfect network outputs gives the clean trajectory, and no loss."""

import pytest
import torch

from diffpolicy.build import PARAMETERIZATIONS, build_objective
from diffpolicy.config import DiffusionConfig
from diffpolicy.diffusion.objective import Objective
from diffpolicy.diffusion.parameterization import EPSILON, Parameterization
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.schedule import Levels, Schedule, cosine, linear

EVERY = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)


@EVERY
@pytest.mark.parametrize("schedule", [cosine(100), linear(1000)], ids=["cosine", "linear"])
def test_the_target_converts_back_to_the_clean_trajectory(parameterization: Parameterization, schedule) -> None:
    clean, noise = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha, sigma in zip(schedule.levels.alpha.tolist(), schedule.levels.sigma.tolist(), strict=True):
        on_clean, on_noise = parameterization.target(alpha, sigma)
        skip, out = parameterization.clean_from_output(alpha, sigma)
        estimate = skip * (alpha * clean + sigma * noise) + out * (on_clean * clean + on_noise * noise)
        # epsilon divides by alpha, down to 1e-3: float64's 1e-16 grows to 1e-12
        torch.testing.assert_close(estimate, clean, rtol=0, atol=1e-10)


@EVERY
def test_a_network_that_knows_the_answer_has_no_loss_and_denoises_exactly(parameterization: Parameterization) -> None:
    objective = Objective(cosine(100), parameterization)
    clean = torch.rand(64, 16, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    level = torch.arange(64) + 30
    alpha, sigma = (
        torch.as_tensor(v[30:94]).float()[:, None, None]
        for v in (objective.schedule.levels.alpha, objective.schedule.levels.sigma)
    )

    def oracle(x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        assert time.tolist() == [float(i) for i in range(30, 94)]
        torch.testing.assert_close(x, alpha * clean + sigma * noise)
        pairs = [parameterization.target(float(a), float(s)) for a, s in zip(alpha, sigma, strict=True)]
        on_clean, on_noise = (torch.tensor(c)[:, None, None] for c in zip(*pairs, strict=True))
        return on_clean * clean + on_noise * noise

    loss = Objective.loss(oracle, objective.table(), clean, noise, level, torch.zeros(64, 1))
    assert loss < 1e-12

    row = ddim(objective.schedule, 10).rows[5]
    known = clean[:1]

    def knows_clean(x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        on_clean, on_noise = parameterization.target(row.alpha, row.sigma)
        return on_clean * known + on_noise * (x - row.alpha * known) / row.sigma

    x = row.alpha * known + row.sigma * noise[:1]
    estimate = objective.denoiser(knows_clean, torch.zeros(1, 1))(x, row)
    torch.testing.assert_close(estimate, known, rtol=0, atol=1e-5)  # float32 at alpha near 0.7


def test_the_loss_of_a_silent_network_is_the_mean_square_of_the_target() -> None:
    objective = Objective(cosine(100), EPSILON)
    noise = torch.randn(8, 16, 2, generator=torch.Generator().manual_seed(0))
    loss = Objective.loss(
        lambda x, time, condition: torch.zeros_like(x),
        objective.table(),
        torch.zeros_like(noise),
        noise,
        torch.zeros(8, dtype=torch.long),
        torch.zeros(8, 1),
    )
    torch.testing.assert_close(loss, noise.square().mean())


def test_epsilon_is_refused_where_alpha_reaches_zero() -> None:
    levels = cosine(100).levels
    alpha = levels.alpha.copy()
    alpha[-1] = 0.0
    schedule = Schedule(Levels(alpha, levels.sigma, levels.time, levels.input_scale))
    with pytest.raises(ValueError, match="alpha 0"):
        Objective(schedule, EPSILON)


@pytest.mark.parametrize(("key", "known"), [("schedule", "cosine, linear"), ("parameterization", "clean, epsilon, v")])
def test_unknown_names_list_the_known(key: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"'nonsense' is unknown, expected one of {known}"):
        build_objective(DiffusionConfig(**{key: "nonsense"}))
