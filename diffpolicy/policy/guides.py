"""The guidance of a policy: what its sampler asks for or its user gives, if the policy can be guided so."""

from torch import Tensor

from diffpolicy.codecs.codec import Codec
from diffpolicy.diffusion.guidance import Guide, build_guide, fixes_waypoints
from diffpolicy.diffusion.reverse import Denoise, Estimate
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.diffusion.samplers.table import Row


def guide_for(config: GuidanceConfig, has_null_condition: bool, codec: Codec) -> Guide | None:
    """Build the guide of a policy with this codec, or None if the settings ask for none.

    Raises:
        ValueError: the policy was not trained for it.
    """
    if config.weight != 0.0 and not has_null_condition:
        raise ValueError(
            f"guidance: weight {config.weight} needs a policy trained with diffusion.condition_dropout above 0 "
            "(typically 0.1), which learns a null condition; this one was trained without"
        )
    if config.threshold != 1.0 and codec.limits != (-1.0, 1.0):
        raise ValueError(
            f"guidance: threshold {config.threshold} needs actions encoded into [-1, 1]: codec=normalizer with "
            f"data.normalizer=limits; this policy's {type(codec).__name__} has limits {codec.limits}"
        )
    return build_guide(config)


def check_guide(guide: Guide | None, codec: Codec) -> None:
    """Raise ValueError if the guide fixes waypoints and the codec's encoding has none."""
    if guide is not None and codec.metric is None and fixes_waypoints(guide):
        raise ValueError(
            f"guidance: inpaint fixes waypoints, and no number that {type(codec).__name__} encodes belongs to one "
            "waypoint; use a policy with codec=normalizer, or constrain, which acts on the plan"
        )


def guided(guide: Guide, denoise: Denoise, without: Denoise | None) -> Denoise:
    """Apply a guide to the clean estimate; a learned variance stays that of the denoiser with the condition."""

    def of_row(x: Tensor, row: Row) -> Tensor | Estimate:
        if not row.has_spread:
            return guide(denoise, without)(x, row)
        fractions: list[Tensor] = []

        def clean(x: Tensor, row: Row) -> Tensor:
            found = denoise(x, row)
            fractions.append(found.fraction)
            return found.clean

        return Estimate(guide(clean, without and _clean_of(without))(x, row), fractions[-1].detach())

    return of_row


def _clean_of(denoise: Denoise) -> Denoise:
    return lambda x, row: denoise(x, row).clean
