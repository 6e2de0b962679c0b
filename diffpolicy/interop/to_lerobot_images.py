"""The image encoder of a policy in LeRobot's layout: its settings, tensors and statistics of colours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy.interop.eyes import crop_of
from diffpolicy.interop.lerobot_eyes import PREFIX
from diffpolicy.interop.lerobot_statistics import EPS
from diffpolicy.interop.resnet_names import of_lerobot, within
from diffpolicy.networks.encoders.resnet import SHRINKAGE, ImportedConfig
from diffpolicy.networks.layers.crops import crop_size
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig


def check(config: PolicyConfig) -> None:
    """Raise ValueError unless LeRobot can represent the encoder."""
    own: Any = config.encoder
    if own.name == "low_dim":
        return
    is_ours = own.name == "resnet18" and own.weights is None
    is_theirs = own.name == "resnet_imported" and own.norm == "group" and own.head and _backbone(own) is not None
    if not (is_ours or is_theirs) or own.pool != "keypoints" or own.features != 2 * own.keypoints:
        raise ValueError(
            "to_lerobot: of image encoders, LeRobot has ResNets with group normalisation, keypoints, and two features "
            f"for each of them (encoder=resnet18 without weights); found {own}"
        )
    for key, spec in config.observations.items():
        if spec.kind == "image":
            crop_of(spec.shape[:2], crop_size((spec.shape[0], spec.shape[1]), own.crop), f"to_lerobot: {key}")
    sizes = {spec.shape for spec in config.observations.values() if spec.kind == "image"}
    if len(sizes) > 1:
        raise ValueError(f"to_lerobot: LeRobot's cameras have one size, found {sorted(sizes)}")


def settings(config: PolicyConfig) -> dict[str, Any]:
    """LeRobot's settings of the encoder; none without images."""
    own: Any = config.encoder
    images = [spec for spec in config.observations.values() if spec.kind == "image"]
    if not images:
        return {}
    return {
        "vision_backbone": _backbone(own),
        "crop_shape": None if own.crop == 1.0 else list(crop_size(images[0].shape[:2], own.crop)),
        "crop_is_random": True,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "spatial_softmax_num_keypoints": own.keypoints,
        "use_separate_rgb_encoder_per_camera": not own.shared,
    }


def tensors(policy: DiffusionPolicy, cameras: list[str]) -> dict[str, Tensor]:
    """The tensors of the encoder by LeRobot's names; `cameras` are ours in LeRobot's order."""
    state, specs, own = policy.acting_state(), policy.config.observations, policy.config.encoder
    found: dict[str, Tensor] = {}
    for place, key in enumerate(cameras):
        size = crop_size((specs[key].shape[0], specs[key].shape[1]), own.crop)
        network = {**of_lerobot(within(state, _eye(policy, key))), "pool.pos_grid": _places(size)}
        prefix = PREFIX if own.shared else f"{PREFIX}{place}."
        found |= {f"{prefix}{name}": value for name, value in network.items()}
    return found


def colours(policy: DiffusionPolicy, cameras: Mapping[str, str]) -> dict[str, Tensor]:
    """The mean and deviation of colours from 0 to 1 that give what our network sees."""
    found, state = {}, policy.acting_state()
    for name, key in cameras.items():
        own = within(state, f"{_eye(policy, key)}colours.")
        scale, shift = (
            own.get(key, torch.full((3,), other)).double() for key, other in (("scale", 1.0), ("shift", 0.0))
        )
        found[f"{name}.mean"] = (0.5 * (scale - shift) / scale).float().view(3, 1, 1)
        found[f"{name}.std"] = (0.5 / scale - EPS).float().view(3, 1, 1)
    return found


def channels_first(shape: tuple[int, ...]) -> list[int]:
    """[height, width, channels] -> [channels, height, width]."""
    return [shape[2], shape[0], shape[1]]


def _backbone(own: Any) -> str | None:
    blocks = own.blocks if isinstance(own, ImportedConfig) else [2, 2, 2, 2]
    known: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
    return known.get(tuple(blocks))


def _eye(policy: DiffusionPolicy, camera: str) -> str:
    """How the names of the tensors of its network begin."""
    cameras = sorted(key for key, spec in policy.config.observations.items() if spec.kind == "image")
    return f"encoder.eyes.{0 if policy.config.encoder.shared else cameras.index(camera)}."


def _places(size: tuple[int, int]) -> Tensor:
    """The x and y of every place of the last map, which LeRobot keeps with the weights: [rows * columns, 2]."""
    y, x = torch.meshgrid(*(torch.linspace(-1.0, 1.0, -(-side // SHRINKAGE)) for side in size), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
