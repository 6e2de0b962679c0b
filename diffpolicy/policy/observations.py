"""Validation of a user's observations: keys, shapes, dtypes and finite values."""

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
    """Convert an observation to tensors {key: [*leading, *shape]}: vectors as float32, images as uint8.

    Args:
        leading: sizes of the leading dimensions: (batch,) or (batch, n_obs_steps).

    Raises:
        ValueError: it is not a mapping, the keys differ from those of `specs`, a shape is wrong, a value is not finite,
            or an image is not uint8.
    """
    tensors = _tensors(observation, specs, leading)
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"observation: {key} has NaN or infinite values")
    return tensors


def told_apart(
    observation: Mapping[str, npt.ArrayLike | Tensor], specs: Mapping[str, ObservationSpec], batch: int
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Like `checked_observation` for (batch,), but robots with values that are not finite are told: {robot: why}."""
    tensors = _tensors(observation, specs, (batch,))
    unseen: dict[int, str] = {}
    for key, tensor in tensors.items():
        is_finite = tensor.isfinite().flatten(1).all(1)
        for robot in (~is_finite).nonzero().squeeze(1).tolist():
            unseen[robot] = f"observation: {key} has NaN or infinite values"
    return tensors, unseen


def _tensors(
    observation: Mapping[str, npt.ArrayLike | Tensor],
    specs: Mapping[str, ObservationSpec],
    leading: tuple[int, ...],
) -> dict[str, Tensor]:
    if not isinstance(observation, Mapping):
        kind = type(observation).__name__
        raise ValueError(f"observation: is a {kind}, expected a mapping with the keys {sorted(specs)}")
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
        tensors[key] = tensor
    return tensors


def _as_kind(key: str, value: npt.ArrayLike | Tensor, spec: ObservationSpec) -> Tensor:
    if spec.kind == "vector":
        return value.float() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float32))
    image = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if image.dtype != torch.uint8:
        raise ValueError(f"observation: {key} is {image.dtype}, expected an image of uint8, 0 to 255")
    return image
