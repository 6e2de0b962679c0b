"""The settings that define a policy, apart from its weights; a checkpoint's config.json holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.system.schema import Count, Range, check_settings, read, read_settings

Steps = Annotated[int, Range(1, 4096)]
METADATA = {  # what the trainer saves with a policy: key -> type
    "task": str | None,
    "step": Annotated[int, Range(least=0)],
    "env": Mapping[str, Any] | None,
    "training": Mapping[str, Any],
    "conditions": dict[str, str],
    "init_from": Mapping[str, Any],
    "teacher": Mapping[str, Any],
    "step_grids": Mapping[str, Any],
}


@dataclass
class WindowConfig:
    """How many time steps the policy observes, plans and executes.

    A plan made at time t with the defaults:

        time      t-1    t  t+1  t+2  t+3  t+4  t+5  t+6  t+7  t+8  t+9 t+10 t+11 t+12 t+13 t+14
        row         0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15
        observed    o    o                                                                       2 n_obs_steps
        planned     p    p    p    p    p    p    p    p    p    p    p    p    p    p    p    p  16 horizon
        executed         x    x    x    x    x    x    x    x                                    8 n_action_steps
        next plan                                                ^ made at t+8

    Attributes:
        horizon: actions in a plan; the first one belongs to the first observation. At least n_obs_steps - 1 +
            n_action_steps, and for the U-Net divisible by 2 to the power of its number of down-samplings.
        n_obs_steps: observations that the policy sees, the present one last. Row n_obs_steps - 1 is the present; the
            rows before it are the past, which a projection leaves unchanged.
        n_action_steps: actions that the robot executes, starting at the present, before the next plan.
    """

    horizon: Steps = 16
    n_obs_steps: Steps = 2
    n_action_steps: Steps = 8

    def check(self) -> None:
        """Raise ValueError unless all are between 1 and 4096 and the steps fit into the horizon."""
        check_settings(self, "window")
        needed = self.n_obs_steps - 1 + self.n_action_steps
        if needed > self.horizon:
            raise ValueError(
                f"window: horizon {self.horizon} must be at least n_obs_steps - 1 + n_action_steps = {needed}"
            )


@dataclass
class PolicyConfig:
    """Settings of a policy; a choice is a name, a mapping with a name and settings, or the settings themselves.

    Attributes:
        observations: key -> `ObservationSpec`; a number stands for a vector with that many features.
        action_dim: features of an action, 1 to 65536.
        normalizer: a choice (limits, gaussian, quantiles or none) for all vector observations and for actions, which
            the codec `vae` encodes further; or a choice for each key, e.g. {"state": "gaussian", "action":
            "quantiles"}. Keys that are left out take limits.
        window: time steps that the policy observes, plans and executes.
        model, diffusion, encoder, codec: choices.
        name: the kind of policy.
    """

    observations: Annotated[Mapping[str, Any], Count(1, 1024)]
    action_dim: Annotated[int, Range(1, 2**16)]
    normalizer: Any = "limits"
    window: WindowConfig = field(default_factory=WindowConfig)
    model: Any = "unet1d"
    diffusion: Any = "denoising"
    encoder: Any = "low_dim"
    codec: Any = "normalizer"
    name: str = "diffusion"

    def __post_init__(self) -> None:
        self.observations = {key: _spec(key, value) for key, value in self.observations.items()}


def policy_config(content: Any, where: str) -> PolicyConfig:
    """Read the settings of a policy from a checkpoint; `where` begins the error message.

    Raises:
        ValueError: a setting is unknown, missing, of the wrong type or out of range.
    """
    try:
        return read_settings(PolicyConfig, content, where)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(where) else f"{where}: {told}") from error


def check_metadata(metadata: Mapping[str, Any], where: str, required: Sequence[str] = ()) -> None:
    """Check the types of what the trainer saves with a policy; other keys are the user's.

    Raises:
        ValueError: a value is of the wrong type, or a required one is missing.
    """
    if missing := [key for key in required if key not in metadata]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    for key, hint in METADATA.items():
        if key in metadata:
            read(hint, metadata[key], f"{where}: {key}")


def _spec(key: str, value: Any) -> ObservationSpec:
    if isinstance(value, ObservationSpec):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return vector(value)
    return read_settings(ObservationSpec, value, f"observation {key!r}")
