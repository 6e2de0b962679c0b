"""The encoder of an imported policy: the networks for its cameras, their colours and crops, and where each stands."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy.interop.resnet_names import Tensors
from diffpolicy.networks.encoders.imagenet import MEAN, STD
from diffpolicy.networks.encoders.resnet import ImportedConfig
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.plain import shown


def encoder(
    eyes: Mapping[str, Tensors], is_shared: bool, is_batch: bool, crop: float, where: str
) -> tuple[Any, Tensors]:
    """The settings and the tensors of our encoder.

    Args:
        eyes: camera -> the tensors of its network, by their names in our `Resnet`.
        is_shared: whether all cameras have the same network. If their colours differ, each gets a copy of it.
        is_batch: whether it has batch normalisation.
        crop: our setting.

    Raises:
        ValueError: the networks of the cameras have different layers.
    """
    each = [eyes[key] for key in sorted(eyes)]
    shapes = [{name: value.shape for name, value in one.items()} for one in each]
    if any(one != shapes[0] for one in shapes):
        raise ValueError(f"{where}: the networks of the cameras have different layers, which is not imported")
    names = ("colours.scale", "colours.shift")
    is_shared = is_shared and all(one[name].equal(each[0][name]) for one in each for name in names)
    kept = each[:1] if is_shared else each
    tensors = {f"encoder.eyes.{index}.{name}": value for index, one in enumerate(kept) for name, value in one.items()}
    return _settings(each[0], is_shared, is_batch, crop), tensors


def _settings(eye: Tensors, is_shared: bool, is_batch: bool, crop: float) -> ImportedConfig:
    stages = [{name.split(".")[1] for name in eye if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    points, head = eye.get("pool.maps.weight"), eye.get("head.weight")
    pooled = 512 if points is None else 2 * len(points)
    return ImportedConfig(
        blocks=[len(one) for one in stages],
        norm="batch" if is_batch else "group",
        head=head is not None,
        features=pooled if head is None else len(head),
        pool="average" if points is None else "keypoints",
        keypoints=ImportedConfig.keypoints if points is None else len(points),
        crop=crop,
        shared=is_shared,
    )


def colours(scale: Tensor, shift: Tensor) -> Tensors:
    """What makes `scale` * x + `shift` of colours x in [0, 1], from ours in [-1, 1]; each [1] or [3]."""
    half = (0.5 * scale.double()).expand(3)
    return {"colours.scale": half.float(), "colours.shift": (half + shift.double()).float()}


def of_imagenet(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift of colours that are standardised by ImageNet's mean and deviation afterwards."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
    return scale.double() / std, (shift.double() - mean) / std


def crop_of(size: tuple[int, int], crop: tuple[int, int] | None, where: str) -> float:
    """Our setting `crop` for a crop in pixels.

    Raises:
        ValueError: no part of both sides gives its size, or it does not lie in the middle as ours.
    """
    if crop is None or crop == size:
        return 1.0
    part = crop[0] / size[0]
    ours = tuple(round(part * side) for side in size)
    # theirs is shifted by round(margin / 2), ours by margin // 2: another pixel for margins 3, 7, 11, ...
    is_shifted = any((side - kept) % 4 == 3 for side, kept in zip(size, crop, strict=True))
    if ours != crop or is_shifted or not 0.0 < part < 1.0:
        raise ValueError(
            f"{where}: a crop of {shown(list(crop))} of {shown(list(size))} pixels is not imported: ours keeps the "
            "same part of both sides, in the middle"
        )
    return part


def camera(shape: list[int], where: str) -> ObservationSpec:
    """The observation of a camera whose images have the shape [3, height, width]; raises ValueError on others."""
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"{where} has shape {shown(shape)}, expected [3, height, width]")
    return ObservationSpec("image", (shape[1], shape[2], 3))


def features_of(config: PolicyConfig) -> dict[str, int]:
    """How many numbers each observation has in the condition of a step."""
    specs = config.observations
    return {key: spec.features if spec.kind == "vector" else config.encoder.features for key, spec in specs.items()}
