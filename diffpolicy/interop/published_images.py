"""Encoders of images in checkpoints of the published code.

image    MultiImageObsEncoder: a ResNet and the mean over its last map; vectors behind the cameras, each in
         alphabetical order
hybrid   the encoder of robomimic 0.2: a ResNet-18, spatial softmax and a linear layer; all in the order of shape_meta
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffpolicy.interop import published_statistics
from diffpolicy.interop.eyes import camera, colours, crop_of, encoder, of_imagenet
from diffpolicy.interop.reading import Settings
from diffpolicy.interop.resnet_names import Tensors, backbone, within

PREFIX = "obs_encoder."


@dataclass(frozen=True)
class Seen:
    """What an importer finds of the observations.

    Attributes:
        specs: what `PolicyConfig` takes as observations.
        order: the observations in the order of the other library's condition.
        encoder: its settings.
        tensors: of the encoder, by our names.
    """

    specs: Mapping[str, Any]
    order: list[str]
    encoder: Any
    tensors: Tensors


def of_image(config: Settings, tensors: Mapping[str, Tensor], where: str) -> Seen:
    """The observations of an image policy; raises ValueError if ours cannot represent its encoder."""
    specs, own = _specs(config), config.within("obs_encoder")
    own.require("resize_shape", None, "ours does not resize; resize the images before", None)
    cameras = [key for key in sorted(specs) if not isinstance(specs[key], int)]
    is_shared = own.get("share_rgb_model", bool, False)
    crop = own.get("crop_shape", list[int] | None, None)
    # Where the crop is not random, the published code crops nothing: it overwrites the layer that would.
    part = _crop(specs, cameras, crop if own.get("random_crop", bool, True) else None, own.where)
    found, eyes = within(tensors, f"{PREFIX}key_model_map."), {}
    for key in cameras:
        network = within(found, "rgb." if is_shared else f"{key}.")
        scale, shift = published_statistics.parameters(tensors, key, where)
        if own.get("imagenet_norm", bool, False):
            scale, shift = of_imagenet(scale, shift)
        eyes[key] = backbone(network, f"{where}: {key}") | colours(scale, shift)
    settings, own_tensors = encoder(eyes, is_shared, not own.get("use_group_norm", bool, False), part, where)
    order = [*cameras, *sorted(set(specs) - set(cameras))]
    return Seen(specs, order, settings, own_tensors)


def of_hybrid(config: Settings, tensors: Mapping[str, Tensor], where: str) -> Seen:
    """The observations of a hybrid policy; raises ValueError if ours cannot represent its encoder."""
    specs = _specs(config)
    cameras = [key for key in specs if not isinstance(specs[key], int)]
    crop = config.get("crop_shape", list[int] | None, [76, 76])
    if crop is not None:
        config.require("eval_fixed_crop", True, "without it theirs crops at random when it acts, too", False)
    part, eyes = _crop(specs, cameras, crop, config.where), {}
    for key in cameras:
        # The layers lie there twice: as nets.0, nets.1, ... and by their names.
        found = within(tensors, f"{PREFIX}obs_nets.{key}.")
        if not bool((found.get("pool.temperature", torch.zeros(1)) == 1.0).all()):
            raise ValueError(f"{where}: {key} has no spatial softmax of temperature 1, which is not imported otherwise")
        eye = backbone(within(found, "backbone.nets."), f"{where}: {key}")
        eye |= {f"pool.maps.{name}": value.float() for name, value in within(found, "pool.nets.").items()}
        eye |= {f"head.{name}": value.float() for name, value in within(found, "nets.3.").items()}
        eyes[key] = eye | colours(*published_statistics.parameters(tensors, key, where))
    is_batch = not config.get("obs_encoder_group_norm", bool, False)
    settings, own_tensors = encoder(eyes, False, is_batch, part, where)
    return Seen(specs, list(specs), settings, own_tensors)


Observed = Callable[[Settings, Mapping[str, Tensor], str], Seen]


def _specs(config: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, content in config.within("shape_meta").get("obs", dict[str, Any]).items():
        one = Settings(content, f"{config.where}: shape_meta: {key}")
        kind, shape = one.get("type", str, "low_dim"), one.get("shape", list[int])
        if kind == "rgb":
            found[key] = camera(shape, one.where)
        elif kind == "low_dim" and len(shape) == 1:
            found[key] = shape[0]
        else:
            raise ValueError(f"{one.where} is of type {kind}, shape {shape}; rgb and low_dim vectors are imported")
    if all(isinstance(spec, int) for spec in found.values()):
        raise ValueError(f"{config.where}: shape_meta has no image")
    return found


def _crop(specs: Mapping[str, Any], cameras: list[str], crop: list[int] | None, where: str) -> float:
    pixels = None if crop is None else (crop[0], crop[-1])
    parts = {crop_of(specs[key].shape[:2], pixels, f"{where}: {key}") for key in cameras}
    if len(parts) > 1:
        raise ValueError(f"{where}: crop_shape {crop} of cameras of several sizes is not imported")
    return parts.pop()
