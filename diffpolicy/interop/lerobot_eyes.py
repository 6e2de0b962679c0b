"""The image encoder of LeRobot's diffusion policies, DiffusionRgbEncoder: a ResNet, spatial softmax, a linear layer.

diffusion.rgb_encoder.{backbone.*, pool.nets.*, out.*}    of all cameras
diffusion.rgb_encoder.0.{...}, .1.{...}                   or one of each
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy.interop.eyes import colours, crop_of
from diffpolicy.interop.eyes import encoder as encoder_of
from diffpolicy.interop.lerobot_statistics import EPS, Statistics
from diffpolicy.interop.reading import Settings
from diffpolicy.interop.resnet_names import Tensors, backbone, within
from diffpolicy.networks.observation import ObservationSpec

PREFIX = "diffusion.rgb_encoder."


def encoder(
    config: Settings,
    cameras: Mapping[str, ObservationSpec],
    statistics: Statistics,
    tensors: Mapping[str, Tensor],
    where: str,
) -> tuple[Any, Tensors]:
    """The settings and the tensors of our encoder.

    Args:
        cameras: in LeRobot's order.

    Raises:
        ValueError: ours cannot represent it, or tensors or statistics are missing.
    """
    config.require("resize_shape", None, "ours does not resize; resize the images before", None)
    is_separate = config.get("use_separate_rgb_encoder_per_camera", bool, False)
    crop = config.get("crop_shape", list[int] | None, None)
    pixels = None if crop is None else (crop[0], crop[-1])
    parts = {crop_of((one.shape[0], one.shape[1]), pixels, f"{config.where}: {key}") for key, one in cameras.items()}
    if len(parts) > 1:
        raise ValueError(f"{config.where}: cameras of several sizes are not imported, as LeRobot's policy knows none")
    found, eyes = within(tensors, PREFIX), {}
    for index, key in enumerate(cameras):
        network = within(found, f"{index}.") if is_separate else found
        eye = backbone(within(network, "backbone."), f"{where}: {key}")
        eye |= {f"pool.maps.{name}": value.float() for name, value in within(network, "pool.nets.").items()}
        eye |= {f"head.{name}": value.float() for name, value in within(network, "out.").items()}
        eyes[key] = eye | colours(*_standardised(statistics, key))
    return encoder_of(eyes, not is_separate, not config.get("use_group_norm", bool), parts.pop(), where)


def _standardised(statistics: Statistics, key: str) -> tuple[Tensor, Tensor]:
    """The scale and shift of colours in [0, 1]; raises ValueError if the statistics are missing."""
    found = statistics.of(key, "VISUAL", (3, 1, 1))
    if found is None:
        return torch.ones(3), torch.zeros(3)
    if "min" in found:
        scale = 2.0 / (found["max"] - found["min"])
        return scale, -1.0 - found["min"] * scale
    scale = 1.0 / (found["std"] + EPS)
    return scale, -found["mean"] * scale
