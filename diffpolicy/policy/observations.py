"""Observations from outside: the right keys, shapes and finite numbers, or a ValueError that says what is wrong."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.networks.observation import ObservationSpec

AXES = {"vector": ("features",), "image": ("height", "width", "channels")}


def checked_observation(
    observation: Mapping[str, npt.ArrayLike | Tensor],
    specs: Mapping[str, ObservationSpec],
    leading: tuple[int, ...],
) -> dict[str, Tensor]:
    """The observation as tensors {key: [*leading, *shape]}: vectors as float32, images as uint8.

    Raises:
        ValueError: keys other than those of `specs`, another shape, a value that is not finite, an image that is not
            uint8.
    """
    if set(observation) != set(specs):
        raise ValueError(f"observation: keys are {sorted(observation)}, expected {sorted(specs)}")
    tensors: dict[str, Tensor] = {}
    for key, spec in specs.items():
        tensor = _as_kind(key, observation[key], spec)
        if tensor.shape != (*leading, *spec.shape):
            axes = ("batch", "n_obs_steps")[: len(leading)]
            raise ValueError(
                f"observation: {key} has shape {list(tensor.shape)}, expected {[*leading, *spec.shape]} "
                f"({', '.join([*axes, *AXES[spec.kind]])})"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"observation: {key} has NaN or infinite values")
        tensors[key] = tensor
    return tensors


def _as_kind(key: str, value: npt.ArrayLike | Tensor, spec: ObservationSpec) -> Tensor:
    if spec.kind == "vector":
        return value.float() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float32))
    image = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if image.dtype != torch.uint8:
        raise ValueError(f"observation: {key} is {image.dtype}, expected an image of uint8, 0 to 255")
    return image
