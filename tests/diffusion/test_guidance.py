"""Guidance: the scores that the papers define, the flows they lead to, and that the projection still comes last."""

import math

import mixture
import pytest
import torch
from one_case import over

from diffpolicy.diffusion.guidance import (
    Guide,
    by_classifier,
    by_cost,
    classifier_free,
    compose,
    dynamic_threshold,
    epsilon_scaling,
    inpaint,
)
from diffpolicy.diffusion.reverse import Denoise, reverse
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.samplers.table import Row, rows_at
from diffpolicy.diffusion.schedule import MAX_TERMINAL_SNR
from diffpolicy.diffusion.schedules import linear
from diffpolicy.diffusion.spacing import log_snr, trailing
from diffpolicy.policy.objective_choices import SCHEDULES
from diffpolicy.policy.sampler_choices import TABLES, build_sampler
from diffpolicy.system.tables import made

SCHEDULE = linear(1000)
LEVELS = rows_at(trailing(SCHEDULE, 20))
CONDITIONAL = mixture.Mixture(mixture.IN_2D.means, 0.14, torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64))
WEIGHT = 1.5


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def score(mixture_, x: torch.Tensor, row: Row) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(mixture_.log_density(x, row).sum(), x)[0]


def gaussian(mean: float, std: float) -> Denoise:
    """The exact clean estimate of N(mean, std^2)."""

    def denoise(x: torch.Tensor, row: Row) -> torch.Tensor:
        gain = row.alpha * std**2 / (row.alpha**2 * std**2 + row.sigma**2)
        return mean + gain * (x - row.alpha * mean)

    return denoise


@over("row", LEVELS)
def test_the_classifier_free_score_is_1_plus_w_times_conditional_minus_w_times_unconditional(row: Row) -> None:
    x = noise(64, 1, 2)
    clean = classifier_free(WEIGHT)(CONDITIONAL.denoise, mixture.IN_2D.denoise)(x, row)
    guided = (row.alpha * clean - x) / row.sigma**2
    expected = (1 + WEIGHT) * score(CONDITIONAL, x, row) - WEIGHT * score(mixture.IN_2D, x, row)
    torch.testing.assert_close(guided, expected, rtol=1e-8, atol=1e-8)


def test_guided_samples_of_gaussians_end_where_the_closed_form_flow_ends() -> None:
    """Two Gaussians of one std: the guided estimate is that of a Gaussian whose mean is moved.

    With equal std s the two estimates differ by (m_c - m_u) sigma^2 / total, so the guided flow is that of the mean
    (1 + w) m_c - w m_u, and x at the first level goes to the mean plus its deviation times the ratio of the stds.
    """
    conditional, unconditional, std = 0.5, -0.2, 0.3
    denoise = classifier_free(WEIGHT)(gaussian(conditional, std), gaussian(unconditional, std))
    schedule = linear(1000)
    levels = log_snr(schedule, 1000)
    x = noise(1, 500, 1, 1).expand(1001, -1, -1, -1)
    ours = reverse(denoise, ddim(levels), x, lambda clean, row, step: clean).clean
    mean = (1 + WEIGHT) * conditional - WEIGHT * unconditional
    first = rows_at(levels[:1])[0]
    deviation = (first.sigma * x[0] - first.alpha * mean) / math.hypot(first.alpha * std, first.sigma)
    # the last row returns the clean estimate at the lowest level, sigma 0.01; order 1 in 1000 steps
    torch.testing.assert_close(ours, mean + std * deviation, rtol=0, atol=5e-3)


def test_guidance_of_gaussians_with_different_stds_is_not_the_tempered_density() -> None:
    """The closed-form flow, solved along the levels, against p_c^(1+w) / p_u^w, whose std is another."""
    narrow, wide = 0.2, 0.6
    denoise = classifier_free(WEIGHT)(gaussian(0.0, narrow), gaussian(0.0, wide))
    levels = log_snr(SCHEDULE, 1000)
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(1001, -1, -1, -1)
    ours = float(reverse(denoise, ddim(levels), start, lambda clean, row, step: clean).clean)
    # d log(x / alpha) / d lambda is linear in the estimates' gains, so the stretch is the product of the parts'
    alpha, sigma = levels.alpha[0], levels.sigma[0]

    def stretch(std: float) -> float:
        return alpha * std / math.hypot(alpha * std, sigma)

    ratio = levels.sigma[0] / levels.alpha[0]
    closed = ratio * stretch(narrow) ** (1 + WEIGHT) / stretch(wide) ** WEIGHT
    tempered = ((1 + WEIGHT) / narrow**2 - WEIGHT / wide**2) ** -0.5
    assert ours == pytest.approx(closed, rel=0.02)  # order 1 in 1000 steps
    assert abs(closed - tempered) > 0.02


def test_no_weight_is_no_guidance_and_minus_one_no_condition() -> None:
    x, row = noise(8, 1, 2), LEVELS[5]
    for weight, alone in ((0.0, CONDITIONAL), (-1.0, mixture.IN_2D)):
        guided = classifier_free(weight)(CONDITIONAL.denoise, mixture.IN_2D.denoise)(x, row)
        torch.testing.assert_close(guided, alone.denoise(x, row))


def test_rescaling_restores_the_standard_deviation_of_the_conditional_estimate() -> None:
    x, row = noise(8, 16, 2), LEVELS[5]
    guided = classifier_free(4.0, rescale=1.0)(CONDITIONAL.denoise, mixture.IN_2D.denoise)(x, row)
    torch.testing.assert_close(guided.flatten(1).std(1), CONDITIONAL.denoise(x, row).flatten(1).std(1))


@pytest.mark.parametrize("of", ["epsilon", "v"])
def test_rescaling_in_the_published_form_is_of_the_networks_output(of: str) -> None:
    """Lin et al. 2024, eq. 15 and 16, sample by sample, on what their network predicts (v) or diffusers' (epsilon)."""
    phi, weight = 0.7, 4.0
    for row in LEVELS:
        x = noise(8, 16, 2)
        if (row.alpha / row.sigma) ** 2 <= MAX_TERMINAL_SNR:
            continue

        def output(clean: torch.Tensor, row: Row = row, x: torch.Tensor = x) -> torch.Tensor:
            epsilon = (x - row.alpha * clean) / row.sigma
            return epsilon if of == "epsilon" else row.alpha * epsilon - row.sigma * clean

        positive, negative = output(CONDITIONAL.denoise(x, row)), output(mixture.IN_2D.denoise(x, row))
        guided = negative + (1 + weight) * (positive - negative)
        factor = positive.flatten(1).std(1) / guided.flatten(1).std(1)
        expected = phi * factor[:, None, None] * guided + (1 - phi) * guided
        found = classifier_free(weight, phi, of)(CONDITIONAL.denoise, mixture.IN_2D.denoise)(x, row)
        torch.testing.assert_close(output(found), expected, rtol=1e-9, atol=1e-9)  # float64


def test_dynamic_thresholding_scales_what_exceeds_the_limits_and_leaves_the_rest() -> None:
    clean = torch.stack([torch.linspace(-2, 2, 32), torch.linspace(-0.5, 0.5, 32)]).reshape(2, 16, 2)
    found = dynamic_threshold(0.9)(lambda x, row: clean, None)(clean, LEVELS[0])
    assert float(found[0].abs().max()) == 1.0
    assert 3 <= int((found[0].abs() == 1.0).sum()) <= 4  # the tenth above the quantile is cut, what is below is scaled
    torch.testing.assert_close(found[1], clean[1], rtol=0, atol=0)


def test_a_cost_moves_the_score_by_its_gradient_through_the_estimate() -> None:
    """For a Gaussian the estimate is linear in x with a known gain, so the gradient is known."""
    mean, std, target, scale = 0.3, 0.4, 1.0, 0.7
    guided = by_cost(lambda clean: 0.5 * (clean - target).square().sum((1, 2)), scale)(gaussian(mean, std), None)
    for row in LEVELS:
        x = noise(16, 4, 2)
        clean = gaussian(mean, std)(x, row)
        if (row.alpha / row.sigma) ** 2 <= MAX_TERMINAL_SNR:  # next to no signal: left alone
            assert torch.equal(guided(x, row), clean)
            continue
        gain = row.alpha * std**2 / (row.alpha**2 * std**2 + row.sigma**2)
        moved = (row.alpha * guided(x, row) - row.alpha * clean) / row.sigma**2
        torch.testing.assert_close(moved, -scale * gain * (clean - target), rtol=1e-9, atol=1e-9)


def test_inpainting_keeps_known_waypoints_to_the_end_and_leaves_the_others_free() -> None:
    known, is_known = torch.full((1, 8, 2), 0.25, dtype=torch.float64), torch.zeros(8, 2, dtype=torch.bool)
    is_known[:3] = True
    denoise = inpaint(known, is_known)(mixture.IN_2D.denoise, None)
    plan = reverse(denoise, ddim(trailing(SCHEDULE, 10)), noise(11, 4, 8, 2), lambda clean, row, step: clean).clean
    assert (plan[:, :3] == 0.25).all()
    assert (plan[:, 3:] != 0.25).all()


def test_known_waypoints_stay_in_any_order_of_guides() -> None:
    known, is_known = torch.full((1, 8, 2), 0.25, dtype=torch.float64), torch.zeros(8, 2, dtype=torch.bool)
    is_known[:3] = True
    fixed = inpaint(known, is_known)
    for name, other in EVERY_GUIDE.items():
        if name in ("inpaint", "all"):
            continue
        for guide in (compose(fixed, other), compose(other, fixed), compose(compose(fixed), other)):
            clean = guide(CONDITIONAL.denoise, mixture.IN_2D.denoise)(noise(4, 8, 2), LEVELS[10])
            assert (clean[:, :3] == 0.25).all(), name
            assert (clean[:, 3:] != 0.25).all(), name


def is_left(x: torch.Tensor, row: Row) -> torch.Tensor:
    """The exact log p(first component | x) of noisy waypoints, [batch]."""
    return torch.log_softmax(mixture.IN_2D._fit(x, row), dim=-1)[..., 0].sum(1)


@pytest.mark.parametrize("row", [row for row in LEVELS if (row.alpha / row.sigma) ** 2 > MAX_TERMINAL_SNR], ids=str)
def test_an_exact_classifier_turns_the_estimate_into_that_of_its_label(row: Row) -> None:
    """Bayes' rule: grad log p(x | label) = grad log p(x) + grad log p(label | x)."""
    only = mixture.Mixture(mixture.IN_2D.means[:1], mixture.IN_2D.std, torch.ones(1, dtype=torch.float64))
    x = noise(64, 1, 2)
    guided = by_classifier(is_left)(mixture.IN_2D.denoise, None)(x, row)
    torch.testing.assert_close(guided, only.denoise(x, row), rtol=0, atol=1e-9)  # rounding, times sigma^2 / alpha


def test_a_stronger_classifier_scales_the_gradient_in_the_score() -> None:
    x, row = noise(64, 1, 2), LEVELS[10]
    one, two, three = (
        score_of_estimate(by_classifier(is_left, scale)(mixture.IN_2D.denoise, None)(x, row), x, row)
        for scale in (0.0, 1.0, 3.0)
    )
    torch.testing.assert_close(three - one, 3.0 * (two - one))


def score_of_estimate(clean: torch.Tensor, x: torch.Tensor, row: Row) -> torch.Tensor:
    return (row.alpha * clean - x) / row.sigma**2


def test_a_classifier_guides_all_samples_to_the_mode_of_its_label() -> None:
    """Without it, half of them end there; with few steps the estimate at the first level is that of all modes."""
    table = ddim(log_snr(SCHEDULE, 50))
    draws = noise(51, 400, 1, 2)
    left = mixture.IN_2D.means[0]

    def share(denoise: Denoise) -> float:
        ends = reverse(denoise, table, draws, lambda clean, row, step: clean).clean[:, 0]
        return float(((ends - left).norm(dim=-1) < 5 * mixture.IN_2D.std).double().mean())

    assert share(mixture.IN_2D.denoise) == pytest.approx(0.5, abs=0.08)  # three standard errors of 400 draws
    assert share(by_classifier(is_left)(mixture.IN_2D.denoise, None)) == 1.0


def test_epsilon_scaling_divides_the_noise_estimate() -> None:
    x, row = noise(8, 1, 2), LEVELS[15]
    clean = epsilon_scaling(1.01)(mixture.IN_2D.denoise, None)(x, row)
    before = (x - row.alpha * mixture.IN_2D.denoise(x, row)) / row.sigma
    torch.testing.assert_close((x - row.alpha * clean) / row.sigma, before / 1.01)


EVERY_GUIDE = {
    "classifier_free": classifier_free(2.0, 0.5),
    "dynamic_threshold": dynamic_threshold(0.9),
    "by_cost": by_cost(lambda clean: clean.square().sum((1, 2)), 0.1),
    "by_classifier": by_classifier(lambda x, row: -x.square().sum((1, 2)), 0.1),
    "inpaint": inpaint(torch.zeros(1, 8, 2, dtype=torch.float64), torch.ones(8, 2, dtype=torch.bool)),
    "epsilon_scaling": epsilon_scaling(1.02),
}
EVERY_GUIDE["all"] = compose(*EVERY_GUIDE.values())


@over("guide", EVERY_GUIDE)
@pytest.mark.parametrize("sampler", TABLES)
def test_the_projection_comes_after_every_guide_in_every_sampler(sampler: str, guide: Guide) -> None:
    name = "flow" if sampler.startswith("flow") else "vp"
    schedule = made(SCHEDULES, "schedule", name, 100)
    table = build_sampler(schedule, {"name": sampler, "steps": 5})
    denoise = guide(CONDITIONAL.denoise, mixture.IN_2D.denoise)
    plan = reverse(denoise, table, noise(len(table) + 1, 3, 8, 2), lambda clean, row, step: clean.clamp(0.1, 0.2)).clean
    assert plan.isfinite().all()
    assert ((plan >= 0.1) & (plan <= 0.2)).all()


@over(
    "make, reason",
    [
        (lambda: classifier_free(-1.5), "weight -1.5 must be between -1.0"),
        (lambda: classifier_free(float("nan")), "weight nan"),
        (lambda: classifier_free(1.0, 1.5), "rescale 1.5"),
        (
            lambda: classifier_free(1.0, 0.5, "score"),
            "rescale_of 'score' is unknown, expected one of clean, epsilon, v",
        ),
        (lambda: dynamic_threshold(0.0), "threshold 0.0"),
        (lambda: by_cost(torch.sum, -1.0), "scale -1.0"),
        (lambda: by_classifier(lambda x, row: x.sum((1, 2)), -1.0), "scale -1.0"),
        (lambda: epsilon_scaling(0.0), "epsilon_scale 0.0"),
        (lambda: classifier_free(1.0)(CONDITIONAL.denoise, None), "null condition"),
    ],
)
def test_numbers_out_of_range_and_a_missing_null_condition_are_refused(make, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
