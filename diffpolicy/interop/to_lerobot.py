"""Our policies as checkpoints of LeRobot (0.4): a U-Net, on vectors and images, statistics, and the two pipelines."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.interop import schedulers, to_lerobot_images
from diffpolicy.interop.eyes import features_of
from diffpolicy.interop.lerobot import ENVIRONMENT, HEAD_GROUPS, STATE
from diffpolicy.interop.lerobot_statistics import ACTION, EPS
from diffpolicy.interop.resnet_names import within
from diffpolicy.interop.unet_names import LEROBOT, columns, published_name, reordered
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.files import staging

KINDS = {STATE: "STATE", ENVIRONMENT: "ENV", ACTION: "ACTION"}
IMAGE = "observation.image"  # how the names of cameras begin


def to_lerobot(
    policy: DiffusionPolicy,
    folder: str | Path,
    names: Mapping[str, str] | None = None,
    scheduler: str = "DDPM",
    steps: int | None = None,
) -> None:
    """Write a policy so that LeRobot's `DiffusionPolicy.from_pretrained` loads it.

    Args:
        folder: new.
        names: our observation -> observation.state, which LeRobot needs, observation.environment_state, or a name that
            begins with observation.image for a camera; LeRobot needs one of the latter two.
        scheduler: DDPM or DDIM.
        steps: of inference; None for all levels.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the policy has what LeRobot's cannot represent.
    """
    policy.check_fitted()
    config, folder = policy.config, Path(folder).absolute()
    ours = {theirs: key for key, theirs in (names or {key: key for key in config.observations}).items()}
    _check(config, ours)
    if folder.exists():
        raise FileExistsError(f"to_lerobot: {folder} exists already; choose another folder or remove it first")
    by_name = _normalizers(policy, ours)
    cameras = {theirs: key for theirs, key in ours.items() if theirs not in by_name}
    features = {name: [len(one.scale)] for name, one in by_name.items()}
    features |= {
        name: to_lerobot_images.channels_first(config.observations[key].shape) for name, key in cameras.items()
    }
    settings = _settings(config, features, _modes(by_name), scheduler, steps)
    statistics = {**_statistics(by_name), **to_lerobot_images.colours(policy, cameras)}
    with staging(folder) as unfinished:
        unfinished.mkdir()
        _write(unfinished / "config.json", settings)
        _write_tensors(unfinished / "model.safetensors", _network(policy, ours))
        _write_pipelines(unfinished, settings, statistics)


def _normalizers(policy: DiffusionPolicy, ours: Mapping[str, str]) -> dict[str, Any]:
    """Their name -> the normaliser of each vector and of the actions."""
    found = policy.normalizers.by_key()
    return {**{theirs: found[key] for theirs, key in ours.items() if key in found}, ACTION: policy.codec}


def _check(config: PolicyConfig, ours: Mapping[str, str]) -> None:
    model, length = config.model, config.window.horizon
    kinds = {theirs: config.observations[key].kind for theirs, key in ours.items() if key in config.observations}
    vectors = {theirs for theirs, kind in kinds.items() if kind == "vector"}
    is_named = all(theirs.startswith(IMAGE) for theirs in set(kinds) - vectors)
    if (
        set(ours.values()) != set(config.observations)
        or not is_named
        or len(kinds) < 2
        or vectors - {ENVIRONMENT} != {STATE}
    ):
        raise ValueError(
            f"to_lerobot: the observations are {', '.join(config.observations)}; LeRobot needs {STATE} and "
            f"{ENVIRONMENT}, two vectors, or images: give names={{OURS: {STATE!r}, OTHER: {ENVIRONMENT!r}, "
            f"CAMERA: '{IMAGE}s.NAME'}}"
        )
    if config.diffusion.name != "denoising":
        raise ValueError(f"to_lerobot: diffusion {config.diffusion.name} is not exported; denoising is")
    if config.diffusion.noise_correlation:
        raise ValueError(f"to_lerobot: expected noise_correlation 0, found {config.diffusion.noise_correlation}")
    if not isinstance(model, UNet1dConfig) or config.codec.name != "normalizer":
        raise ValueError(
            f"to_lerobot: model {model.name}, codec {config.codec.name} are not exported; unet1d, normalizer are"
        )
    to_lerobot_images.check(config)
    if (model.head_groups or model.groups) != HEAD_GROUPS:
        raise ValueError(f"to_lerobot: the last block has {model.head_groups or model.groups} groups, LeRobot's has 8")
    if length % 2 ** len(model.widths):
        raise ValueError(f"to_lerobot: horizon {length} must be divisible by {2 ** len(model.widths)} in LeRobot")


def _network(policy: DiffusionPolicy, ours: Mapping[str, str]) -> dict[str, Tensor]:
    specs, state = policy.config.observations, policy.acting_state()
    cameras = [key for key in ours.values() if specs[key].kind == "image"]
    last = [ours[ENVIRONMENT]] if ENVIRONMENT in ours else []
    order = columns(
        sorted(specs), [ours[STATE], *cameras, *last], features_of(policy.config), policy.config.window.n_obs_steps
    )
    named = partial(published_name, style=LEROBOT)
    unet = {named(name): value.float() for name, value in reordered(within(state, "network."), order).items()}
    return unet | to_lerobot_images.tensors(policy, cameras)


def _modes(by_name: Mapping[str, Normalizer]) -> dict[str, str]:
    return {"VISUAL": "MEAN_STD", **{KINDS[name]: _mode(one) for name, one in by_name.items()}}


def _mode(normalizer: Normalizer) -> str:
    return "MIN_MAX" if normalizer.kind == "limits" else "MEAN_STD"


def _statistics(by_name: Mapping[str, Normalizer]) -> dict[str, Tensor]:
    pairs = ((name, _statistics_of(name, one)) for name, one in by_name.items())
    return {f"{name}.{key}": value for name, found in pairs for key, value in found.items()}


def _statistics_of(name: str, normalizer: Normalizer) -> dict[str, Tensor]:
    """What gives the same scale and offset there. LeRobot encodes a feature without a range as -1, ours as 0."""
    scale, offset = normalizer.scale.double().cpu(), normalizer.offset.double().cpu()
    middle, radius = -offset / scale, 1.0 / scale
    if name == ACTION:
        radius = torch.where(normalizer.is_constant.cpu(), 0.0, radius)
    if _mode(normalizer) == "MIN_MAX":
        return {"min": (middle - radius).float(), "max": (middle + radius).float()}
    return {"mean": middle.float(), "std": (radius if name == ACTION else radius - EPS).float()}


def _settings(
    config: PolicyConfig, features: Mapping[str, list[int]], modes: Mapping[str, str], scheduler: str, steps: int | None
) -> dict[str, Any]:
    described = {name: {"type": KINDS.get(name, "VISUAL"), "shape": shape} for name, shape in features.items()}
    return {
        **to_lerobot_images.settings(config),
        "type": "diffusion",
        "n_obs_steps": config.window.n_obs_steps,
        "horizon": config.window.horizon,
        "n_action_steps": config.window.n_action_steps,
        "input_features": {name: one for name, one in described.items() if name != ACTION},
        "output_features": {ACTION: described[ACTION]},
        "normalization_mapping": dict(modes),
        "down_dims": list(config.model.widths),
        "kernel_size": config.model.kernel_size,
        "n_groups": config.model.groups,
        "diffusion_step_embed_dim": config.model.time_embedding_dim,
        "use_film_scale_modulation": config.model.film_scale,
        "noise_scheduler_type": scheduler,
        "num_inference_steps": steps,
        **schedulers.of_objective(config.diffusion),
        "clip_sample": modes["ACTION"] == "MIN_MAX",
        "clip_sample_range": 1.0,
    }


def _write_pipelines(folder: Path, settings: Mapping[str, Any], statistics: Mapping[str, Tensor]) -> None:
    outputs, modes = settings["output_features"], settings["normalization_mapping"]
    inputs = {**settings["input_features"], **outputs}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    for side, step, features, before, after in (
        ("pre", "normalizer_processor", inputs, [rename, batch, device], []),
        ("post", "unnormalizer_processor", outputs, [], [device]),
    ):
        state = f"policy_{side}processor_step_{len(before)}_{step}.safetensors"
        own = {"eps": EPS, "features": features, "norm_map": modes}
        steps = [*before, {"registry_name": step, "config": own, "state_file": state}, *after]
        _write(folder / f"policy_{side}processor.json", {"name": f"policy_{side}processor", "steps": steps})
        _write_tensors(folder / state, statistics)


def _write(path: Path, content: Any) -> None:
    path.write_bytes(json.dumps(content, indent=2, allow_nan=False).encode())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    path.write_bytes(safetensors.torch.save(contiguous, {"format": "pt"}))
