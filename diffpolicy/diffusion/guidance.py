"""Guidance: each guide wraps the denoiser, so guides compose, and the projection still runs last.

All guides act on the clean estimate. The functions that make them raise ValueError if a number is out of range. Legend:
noise estimate, (x - alpha * clean) / sigma; score, -noise / sigma.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.diffusion.parameterization import CLEAN, EPSILON, Parameterization, V
from diffpolicy.diffusion.reverse import Denoise
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedule import MAX_TERMINAL_SNR

Guide = Callable[[Denoise, Denoise | None], Denoise]
"""(denoiser, denoiser without condition) -> the denoiser to sample with.

The second is None if the network was trained without a null condition.
"""

Cost = Callable[[Tensor], Tensor]
"""Clean normalised trajectories [batch, horizon, action] -> cost [batch]."""

LogProbability = Callable[[Tensor, Row], Tensor]
"""(noisy trajectories x [batch, horizon, action], row) -> log-probability of a label at the row's level, [batch]."""


def build_guide(config: GuidanceConfig) -> Guide | None:
    """Compose the guides whose settings are not neutral, with thresholding last; None if all are neutral.

    Raises:
        ValueError: a number is out of range, or rescale is set without a weight.
    """
    neutral, guides = GuidanceConfig(), list[Guide]()
    if config.rescale != neutral.rescale and config.weight == neutral.weight:
        raise ValueError(f"guidance: rescale {config.rescale} needs a weight, which is {config.weight}")
    if config.weight != neutral.weight:
        guides.append(classifier_free(config.weight, config.rescale, config.rescale_of))
    if config.epsilon_scale != neutral.epsilon_scale:
        guides.append(epsilon_scaling(config.epsilon_scale))
    if config.threshold != neutral.threshold:
        guides.append(dynamic_threshold(config.threshold))
    return compose(*guides) if guides else None


def compose(*guides: Guide) -> Guide:
    """Apply guides one after the other; the first one is closest to the network.

    `inpaint` comes last wherever it stands, so that no other guide moves the known waypoints.
    """
    return _Composed(guides)


@dataclass(frozen=True)
class _Composed:
    guides: tuple[Guide, ...]

    def __call__(self, denoise: Denoise, without: Denoise | None) -> Denoise:
        for one in sorted(self._each(), key=lambda guide: isinstance(guide, _Inpaint)):
            denoise = one(denoise, without)
        return denoise

    def _each(self) -> list[Guide]:
        """The guides, with those of inner compositions in their place."""
        return [one for guide in self.guides for one in (guide._each() if isinstance(guide, _Composed) else [guide])]


def classifier_free(weight: float, rescale: float = 0.0, rescale_of: str = "clean") -> Guide:
    """Classifier-free guidance: score (1 + w) s_c - w s_u (Ho & Salimans 2022, eq. 6).

    The formula is the same for clean estimates, which are an affine function of the score.

    Args:
        weight: w; 0 is no guidance, -1 ignores the condition.
        rescale: phi, 0 to 1, how far the standard deviation of each sample is restored to that of the conditional one
            (Lin et al. 2024, eq. 16).
        rescale_of: what has this standard deviation: clean, epsilon or v. Lin et al. take that of v, which their
            network predicts; diffusers that of the network's output. At levels with almost no signal, which
            epsilon cannot be converted back from, nothing is rescaled.

    Raises:
        ValueError: a number is out of range, rescale_of is unknown or, when the guide is applied, the network has no
            null condition.
    """
    _check("weight", weight, -1.0)
    _check("rescale", rescale, 0.0, 1.0)
    if rescale_of not in _RESCALED:
        raise ValueError(f"guidance: rescale_of {rescale_of!r} is unknown, expected one of {', '.join(_RESCALED)}")
    meaning = _RESCALED[rescale_of]

    def guide(denoise: Denoise, without: Denoise | None) -> Denoise:
        if without is None:
            raise ValueError("guidance: classifier-free guidance needs a network with a null condition")

        def guided(x: Tensor, row: Row) -> Tensor:
            conditional = denoise(x, row)
            clean = (1.0 + weight) * conditional - weight * without(x, row)
            if rescale == 0.0 or (meaning.needs_signal and _has_no_signal(row)):
                return clean
            return _rescaled(meaning, conditional, clean, x, row, rescale)

        return guided

    return guide


def _rescaled(
    meaning: Parameterization, conditional: Tensor, clean: Tensor, x: Tensor, row: Row, rescale: float
) -> Tensor:
    outputs = [meaning.output_from_clean(one, x, row.alpha, row.sigma) for one in (conditional, clean)]
    wanted, found = (output.flatten(1).std(1) for output in outputs)
    factor = 1.0 + rescale * (wanted / found.clamp_min(1e-12) - 1.0)
    skip, out = meaning.clean_from_output(row.alpha, row.sigma)
    return skip * x + out * factor[:, None, None] * outputs[1]


def dynamic_threshold(quantile: float) -> Guide:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3).

    Let s be the `quantile` (0.5 to 1) of the absolute values of an estimate. If s exceeds 1, clamp to [-s, s] and
    divide by s.
    """
    _check("threshold", quantile, 0.5, 1.0)

    def guide(denoise: Denoise, without: Denoise | None) -> Denoise:
        def thresholded(x: Tensor, row: Row) -> Tensor:
            clean = denoise(x, row)
            limit = torch.quantile(clean.flatten(1).abs(), quantile, dim=1).clamp_min(1.0)[:, None, None]
            return clean.clamp(-limit, limit) / limit

        return thresholded

    return guide


def by_cost(cost: Cost, scale: float) -> Guide:
    """Subtract from the score `scale` times the gradient in x of the clean estimate's cost (Chung et al. 2023, eq. 16).

    The gradient is backpropagated through the network. The clean estimate moves by -scale * sigma^2 / alpha * gradient.
    At levels with almost no signal, where this factor is unbounded, it is left unchanged.
    """
    _check("scale", scale, 0.0)

    def guide(denoise: Denoise, without: Denoise | None) -> Denoise:
        def guided(x: Tensor, row: Row) -> Tensor:
            if _has_no_signal(row):
                return denoise(x, row)
            with torch.enable_grad():
                tracked = x.detach().requires_grad_()
                clean = denoise(tracked, row)
                (gradient,) = torch.autograd.grad(cost(clean).sum(), tracked)
            return clean.detach() - scale * row.sigma**2 / row.alpha * gradient

        return guided

    return guide


def by_classifier(log_probability: LogProbability, scale: float = 1.0) -> Guide:
    """Add to the score `scale` times the gradient of log p(label | x, level) (Dhariwal and Nichol 2021, section 4.1).

    With scale 1 and an exact classifier, this is the score of the plans with that label, by Bayes' rule. The clean
    estimate moves by scale * sigma^2 / alpha * gradient. At levels with almost no signal, where this factor is
    unbounded, it is left unchanged.

    Args:
        log_probability: of a classifier that was trained on noisy trajectories at all levels.
    """
    _check("scale", scale, 0.0)

    def guide(denoise: Denoise, without: Denoise | None) -> Denoise:
        def guided(x: Tensor, row: Row) -> Tensor:
            clean = denoise(x, row)
            if _has_no_signal(row):
                return clean
            with torch.enable_grad():
                tracked = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(log_probability(tracked, row).sum(), tracked)
            return clean + scale * row.sigma**2 / row.alpha * gradient

        return guided

    return guide


def inpaint(known: Tensor, is_known: Tensor) -> Guide:
    """Fix known waypoints: the estimate takes their values at every level (Janner et al. 2022, section 3.4).

    Args:
        known: normalised trajectories [batch or 1, horizon, action]; use 1 in a controller, whose batch size varies.
        is_known: bool mask that broadcasts with `known`.
    """
    return _Inpaint(known, is_known)


def fixes_waypoints(guide: Guide) -> bool:
    """Whether `inpaint` is this guide or among those that it is composed of."""
    return isinstance(guide, _Inpaint) or (
        isinstance(guide, _Composed) and any(fixes_waypoints(one) for one in guide.guides)
    )


@dataclass(frozen=True)
class _Inpaint:
    known: Tensor
    is_known: Tensor

    def __call__(self, denoise: Denoise, without: Denoise | None) -> Denoise:
        return lambda x, row: torch.where(self.is_known.to(x.device), self.known.to(x), denoise(x, row))


def epsilon_scaling(factor: float) -> Guide:
    """Divide the noise estimate by `factor`, slightly above 1, to reduce exposure bias (Ning et al. 2024, eq. 11).

    Levels with almost no signal are left unchanged, because there a small change of the noise estimate is a large
    change of the clean estimate.
    """
    _check("epsilon_scale", factor, 0.5, 2.0)

    def guide(denoise: Denoise, without: Denoise | None) -> Denoise:
        def scaled(x: Tensor, row: Row) -> Tensor:
            clean = denoise(x, row)
            return clean if _has_no_signal(row) else (x - (x - row.alpha * clean) / factor) / row.alpha

        return scaled

    return guide


_RESCALED = {"clean": CLEAN, "epsilon": EPSILON, "v": V}


def _has_no_signal(row: Row) -> bool:
    return (row.alpha / row.sigma) ** 2 <= MAX_TERMINAL_SNR


def _check(name: str, value: float, low: float, high: float = 1e6) -> None:
    if not low <= value <= high:
        raise ValueError(f"guidance: {name} {value} must be between {low} and {high}")
