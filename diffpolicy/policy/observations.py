"""Validation of a user's observations: keys, shapes, dtypes and values; images become uint8, channels last."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.system.pixels import converted

IMAGE_AXES = {"last": ("height", "width", "channels"), "first": ("channels", "height", "width")}

Given = npt.ArrayLike | Tensor | Sequence[npt.ArrayLike | None]
"""An observation of all robots; as a list, None stands for the image of a camera that delivered nothing."""

Unseen = dict[int, str]
"""{index along all leading dimensions: why its observation cannot be used}."""


def checked_observation(
    observation: Mapping[str, Given],
    specs: Mapping[str, ObservationSpec],
    leading: tuple[int, ...],
) -> dict[str, Tensor]:
    """Convert an observation to tensors {key: [*leading, *shape]}: vectors as float32, images as uint8.

    An image is delivered as its spec says, or as uint8 [height, width, 3]. Instead of an array, there may be a list of
    images, one for each index of the first dimension, with None where the camera delivered nothing.

    Args:
        leading: sizes of the leading dimensions: (batch,) or (batch, n_obs_steps).

    Raises:
        ValueError: it is not a mapping, the keys differ from those of `specs`, a shape is wrong, a value is not finite,
            or an image does not have the values that its spec says.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in _values(observation, specs).items():
        tensors[key], unseen = _checked(key, value, specs[key], leading)
        for reason in unseen.values():
            raise ValueError(reason)
    return tensors


def told_apart(
    observation: Mapping[str, Given], specs: Mapping[str, ObservationSpec], batch: int
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Like `checked_observation` for (batch,), but robots with values that cannot be used are told: {robot: why}."""
    tensors: dict[str, Tensor] = {}
    unseen: Unseen = {}
    for key, value in _values(observation, specs).items():
        tensors[key], found = _checked(key, value, specs[key], (batch,))
        unseen |= found
    return tensors, unseen


def _values(observation: Mapping[str, Given], specs: Mapping[str, ObservationSpec]) -> dict[str, Given]:
    if not isinstance(observation, Mapping):
        kind = type(observation).__name__
        raise ValueError(f"observation: is a {kind}, expected a mapping with the keys {sorted(specs)}")
    if set(observation) != set(specs):
        raise ValueError(f"observation: keys are {sorted(observation)}, expected {sorted(specs)}")
    return {key: observation[key] for key in specs}


def _checked(key: str, value: Given, spec: ObservationSpec, leading: tuple[int, ...]) -> tuple[Tensor, Unseen]:
    if spec.kind == "image":
        return _image(key, value, spec, leading)
    tensor = value.float() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float32))
    if tensor.shape != (*leading, *spec.shape):
        raise ValueError(_wrong_shape(key, tensor, leading, spec.shape, ("features",)))
    is_finite = tensor.isfinite()
    if bool(is_finite.all()):
        return tensor, {}
    is_finite = is_finite.reshape(math.prod(leading), *spec.shape).all(1)
    reason = f"observation: {key} has NaN or infinite values"
    return tensor, dict.fromkeys((~is_finite).nonzero().squeeze(1).tolist(), reason)


def _image(key: str, value: Given, spec: ObservationSpec, leading: tuple[int, ...]) -> tuple[Tensor, Unseen]:
    if isinstance(value, list) and any(frame is None for frame in value):
        return _image_of_some(key, value, spec, leading)
    image = value if isinstance(value, Tensor) else _as_tensor(key, np.asarray(value))
    if image.dtype == torch.uint8 and image.shape == (*leading, *spec.shape):  # as policies hold it
        return image, {}
    delivered = spec.pixels.delivered(spec.shape)
    if image.shape != (*leading, *delivered):
        told = _wrong_shape(key, image, leading, delivered, IMAGE_AXES[spec.channels])
        other = "first" if spec.channels == "last" else "last"
        if image.shape[len(leading) :] == ObservationSpec("image", spec.shape, other).pixels.delivered(spec.shape):
            told += f"; move the axis, or train with 'data.images={{{key}: {{channels: {other}}}}}'"
        raise ValueError(told)
    frames, reasons = converted(image.reshape(-1, *delivered), spec.pixels)
    unseen = {index: f"observation: {key} {why}{_cure(key, why)}" for index, why in reasons.items()}
    return frames.reshape(*leading, *spec.shape), unseen


def _image_of_some(
    key: str, value: Sequence[npt.ArrayLike | None], spec: ObservationSpec, leading: tuple[int, ...]
) -> tuple[Tensor, Unseen]:
    """Like `_image` for a list that has None where a camera delivered nothing, which comes out black."""
    there = next((np.asarray(frame) for frame in value if frame is not None), None)
    empty = np.zeros((*leading[1:], *spec.shape), np.uint8) if there is None else np.zeros_like(there)
    image, unseen = _image(key, np.stack([empty if frame is None else frame for frame in value]), spec, leading)
    each = math.prod(leading[1:])
    lost = [each * index + step for index, frame in enumerate(value) if frame is None for step in range(each)]
    return image, unseen | dict.fromkeys(lost, f"observation: {key} is None, expected an image")


def _cure(key: str, why: str) -> str:
    for values, work in (("unit", "multiply by 255 and round"), ("bytes", "divide by 255")):
        if f"values: {values} takes" in why:
            return f"; {work}, or train with 'data.images={{{key}: {{values: {values}}}}}'"
    return ""


def _as_tensor(key: str, image: np.ndarray) -> Tensor:
    if image.dtype.kind not in "buif":
        raise ValueError(f"observation: {key} is {image.dtype}, expected an image: numbers, usually uint8")
    if image.dtype.kind == "u" and image.dtype != np.uint8:
        image = image.astype(np.int64)  # torch computes little with other unsigned types
    return torch.as_tensor(np.ascontiguousarray(image))  # frames of a simulator are often flipped views


def _wrong_shape(
    key: str, found: Tensor, leading: tuple[int, ...], expected: tuple[int, ...], axes: tuple[str, ...]
) -> str:
    names = ", ".join([*("batch", "n_obs_steps")[: len(leading)], *axes])
    return f"observation: {key} has shape {list(found.shape)}, expected {[*leading, *expected]} ({names})"
