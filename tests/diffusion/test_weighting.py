"""How much each level counts, and how often it is drawn: against the published formulas."""

import math

import numpy as np
import pytest
from every import EVERY_SCHEDULE
from one_case import over

from diffpolicy.diffusion import schedules, weighting
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.diffusion.samplers.ancestral import ddpm
from diffpolicy.diffusion.schedule import FloatArray, Schedule
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.policy.objective_choices import LEVEL_DISTRIBUTIONS, PARAMETERIZATIONS, WEIGHTINGS
from diffpolicy.system.tables import made

DEFAULT = DenoisingConfig()
VP = schedules.vp(1000)
SNR = VP.levels.snr


def weights(schedule: Schedule, name: str, parameterization: str) -> FloatArray:
    """Of the output's squared error, [levels]."""
    levels = schedule.levels
    _, out = made(PARAMETERIZATIONS, "parameterization", parameterization).clean_from_output(levels.alpha, levels.sigma)
    return made(WEIGHTINGS, "weighting", name)(levels, np.broadcast_to(out, len(levels)))


@over("schedule", EVERY_SCHEDULE)
@over("parameterization", ["clean", "v", "flow", "edm"])  # defined also where alpha is 0
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_and_not_negative_on_every_schedule(schedule, name: str, parameterization: str) -> None:
    found = weights(schedule, name, parameterization)
    assert found.shape == (len(schedule),)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found.max() > 0


@pytest.mark.parametrize(
    ("name", "parameterization", "expected"),
    [
        ("simple", "clean", np.ones(1000)),
        ("simple", "score", np.ones(1000)),
        ("snr", "epsilon", np.ones(1000)),
        ("snr", "score", VP.levels.sigma**2),
        ("snr", "clean", SNR),
        ("edm", "edm", np.ones(1000)),
        ("min_snr", "clean", np.minimum(SNR, 5.0)),  # Hang et al. 2023, eq. 6
        ("min_snr", "epsilon", np.minimum(SNR, 5.0) / SNR),  # their section 3.4
        ("min_snr", "v", np.minimum(SNR, 5.0) / (SNR + 1.0)),
        ("p2", "epsilon", 1.0 / (1.0 + SNR)),  # Choi et al. 2022, eq. 8
        ("edm", "clean", (VP.levels.sigma**2 + (0.5 * VP.levels.alpha) ** 2) / (VP.levels.sigma * 0.5) ** 2),
    ],
)
def test_weights_are_the_published(name: str, parameterization: str, expected: FloatArray) -> None:
    np.testing.assert_allclose(weights(VP, name, parameterization), expected, rtol=1e-10)


@over("gamma, k", [(0.0, 1.0), (0.5, 2.0), (2.0, 1.0)])
def test_gammas_shape_p2_and_min_snr(gamma: float, k: float) -> None:
    on_noise = -VP.levels.sigma / VP.levels.alpha
    np.testing.assert_allclose(weighting.p2(gamma, k)(VP.levels, on_noise), (k + SNR) ** -gamma, rtol=1e-10)
    np.testing.assert_allclose(weighting.min_snr(gamma)(VP.levels, on_noise), np.minimum(SNR, gamma) / SNR, rtol=1e-10)


@over("schedule", EVERY_SCHEDULE)
def test_elbo_weights_telescope(schedule) -> None:
    """Reconstruction takes half the first level's SNR; the drops add up to half of the first minus the last."""
    found, snr = weighting.elbo_weights(schedule.levels), schedule.levels.snr
    assert found[0] == pytest.approx(snr[0] / 2)
    assert found[1:].sum() == pytest.approx((snr[0] - snr[-1]) / 2)


@over("schedule", EVERY_SCHEDULE)
def test_elbo_weights_are_ddpms_divergence(schedule) -> None:
    """The divergence of two Gaussians with the posterior's variance s^2, means b * clean apart: b^2 / (2 s^2)."""
    table = ddpm(trailing(schedule, len(schedule)))  # from the last level down; the last step is the reconstruction
    divergence = table.b[:-1] ** 2 / (2 * table.s[:-1] ** 2)
    expected = weighting.elbo_weights(schedule.levels)[:0:-1]
    np.testing.assert_allclose(divergence, expected, rtol=1e-6)  # differences of levels that lie close together


@over("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("name", LEVEL_DISTRIBUTIONS)
def test_shares_of_levels_add_up_to_1(schedule, name: str) -> None:
    share = made(LEVEL_DISTRIBUTIONS, "level_distribution", name)(schedule.levels)
    assert share.shape == (len(schedule),)
    assert (share >= 0).all()
    assert share.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "fine", "mean", "std"),
    [
        ("log_normal", schedules.ve(4000, 1e-5, 1e5, 0.5), -1.2, 1.2),  # Karras et al. 2022, table 1
        ("logit_normal", schedules.flow(4000), 0.0, 1.0),  # Esser et al. 2024: logit(t) = log(sigma / alpha)
    ],
)
def test_log_sigma_over_alpha_is_normal(name: str, fine: Schedule, mean: float, std: float) -> None:
    share = made(LEVEL_DISTRIBUTIONS, "level_distribution", name)(fine.levels)
    position = -fine.levels.lambdas
    is_drawn = share > 0  # flow's last level, at infinity, is not
    found = (share[is_drawn] * position[is_drawn]).sum()
    assert found == pytest.approx(mean, abs=1e-3)  # 4000 levels
    spread = (share[is_drawn] * (position[is_drawn] - mean) ** 2).sum() ** 0.5
    assert spread == pytest.approx(std, rel=1e-3)
    below = np.interp(mean + std, (position[1:] + position[:-1]) / 2, np.cumsum(share)[:-1])
    assert below == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), abs=1e-4)


def test_logit_normal_has_its_density_on_flow() -> None:
    """Esser et al. 2024, eq. 19: exp(-logit(t)^2 / 2) / (sqrt(2 pi) t (1 - t))."""
    t = schedules.flow(2000).levels.sigma[:-1]
    density = np.exp(-0.5 * np.log(t / (1 - t)) ** 2) / (math.sqrt(2 * math.pi) * t * (1 - t))
    share = made(LEVEL_DISTRIBUTIONS, "level_distribution", "logit_normal")(schedules.flow(2000).levels)[:-1]
    np.testing.assert_allclose(2000 * share, density, atol=2e-4)  # the density's curvature over one level


@over("std", [0.0, -1.0, math.inf, math.nan])
def test_a_level_distribution_without_spread_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=f"std {std} must be above 0"):
        weighting.log_normal(0.0, std)
