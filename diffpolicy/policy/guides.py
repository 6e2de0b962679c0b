"""The guidance of a policy: what its sampler asks for or its user gives, if the policy can be guided so."""

from diffpolicy.codecs.codec import Codec
from diffpolicy.diffusion.guidance import Guide, build_guide, fixes_waypoints
from diffpolicy.diffusion.samplers.settings import GuidanceConfig


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
