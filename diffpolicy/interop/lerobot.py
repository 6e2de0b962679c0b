"""Diffusion policies of LeRobot: config.json, model.safetensors and the statistics, as a policy of ours."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy.interop import lerobot_eyes, schedulers, statistics
from diffpolicy.interop.eyes import camera, features_of
from diffpolicy.interop.lerobot_statistics import ACTION, Statistics
from diffpolicy.interop.network_tensors import network_tensors
from diffpolicy.interop.reading import Imported, Settings, read_json, read_safetensors
from diffpolicy.interop.unet_names import LEROBOT, columns, published_name, reordered
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.settings import PolicyConfig, WindowConfig

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
HEAD_GROUPS = 8  # of the last block, whatever n_groups is
LOST = [
    "do_mask_loss_for_padding, drop_n_last_frames and all settings of the optimizer",
    "crop_is_random and the file's own version of LeRobot",
]


def read_lerobot(folder: Path) -> Imported:
    """Read a diffusion policy that LeRobot has saved (`save_pretrained`).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the policy has what ours cannot represent.
    """
    config = read_json(folder / "config.json")
    config.require("type", "diffusion", "only diffusion policies are", "unknown")
    vectors, cameras = _observations(config)
    (action_dim,) = _shape(config, "output_features", ACTION)
    tensors = read_safetensors(folder / "model.safetensors")
    found = Statistics(folder, config, tensors)
    settings, buffers = _normalizers(found, vectors)
    settings[ACTION], values = _action(found, action_dim, schedulers.clips(config))
    where = str(folder / "model.safetensors")
    encoder, eyes = lerobot_eyes.encoder(config, cameras, found, tensors, where) if cameras else ("low_dim", {})
    policy = PolicyConfig(
        {**vectors, **cameras},
        action_dim,
        normalizer=settings,
        window=WindowConfig(*(config.get(name, int) for name in ("horizon", "n_obs_steps", "n_action_steps"))),
        model=_model(config),
        diffusion=schedulers.objective(config),
        encoder=encoder,
    )
    theirs = [STATE, *cameras, *([ENVIRONMENT] if ENVIRONMENT in vectors else [])]
    order = columns(theirs, sorted(theirs), features_of(policy), policy.window.n_obs_steps)
    network = network_tensors(policy, tensors, partial(published_name, style=LEROBOT), LEROBOT.prefix, where)
    return Imported(
        policy,
        {**reordered(network, order), **eyes, **buffers, **statistics.as_tensors("codec", values)},
        _sampler(config),
        {"format": "lerobot", "file": folder.name},
        LOST,
    )


def _observations(config: Settings) -> tuple[dict[str, int], dict[str, ObservationSpec]]:
    """The features of each vector, and the cameras in LeRobot's order."""
    vectors: dict[str, int] = {}
    cameras: dict[str, ObservationSpec] = {}
    for key in config.get("input_features", dict[str, Any]):
        feature = config.within("input_features").within(key)
        if feature.get("type", str) == "VISUAL":
            cameras[key] = camera(feature.get("shape", list[int]), feature.where)
        elif key in (STATE, ENVIRONMENT):
            (vectors[key],) = _shape(config, "input_features", key)
        else:
            raise ValueError(
                f"{config.where}: the observation {key} is not imported; {STATE}, {ENVIRONMENT} and images are"
            )
    if STATE not in vectors:
        raise ValueError(f"{config.where}: input_features has no {STATE}, which LeRobot's policy needs")
    return vectors, cameras


def _shape(config: Settings, group: str, key: str) -> list[int]:
    return config.within(group).within(key).get("shape", list[int])


def _normalizers(found: Statistics, vectors: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the buffers of the normaliser of each vector."""
    settings: dict[str, Any] = {}
    buffers: dict[str, Tensor] = {}
    for index, key in enumerate(sorted(vectors)):
        settings[key], values = found.normalizer(key, "ENV" if key == ENVIRONMENT else "STATE", vectors[key])
        buffers |= statistics.as_tensors(f"normalizers.{index}", values)
    return settings, buffers


def _action(found: Statistics, features: int, is_clipped: bool) -> tuple[Any, dict[str, Tensor]]:
    """The normaliser of the actions: whatever the statistics are, `limits` alone clips estimates to [-1, 1]."""
    name, values = found.normalizer(ACTION, "ACTION", features)
    if is_clipped:
        return "limits", values
    return (dict(statistics.QUANTILES_OF_ALL) if name == "limits" else name), values


def _model(config: Settings) -> UNet1dConfig:
    return UNet1dConfig(
        widths=config.get("down_dims", list[int]),
        time_embedding_dim=config.get("diffusion_step_embed_dim", int),
        kernel_size=config.get("kernel_size", int),
        groups=config.get("n_groups", int),
        head_groups=HEAD_GROUPS,
        film_scale=config.get("use_film_scale_modulation", bool),
    )


def _sampler(config: Settings) -> dict[str, Any]:
    levels = config.get("num_train_timesteps", int)
    steps = config.get("num_inference_steps", int | None, None)
    return schedulers.sampler(config, config.get("noise_scheduler_type", str), levels if steps is None else steps)
