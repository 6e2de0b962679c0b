"""Our policies as checkpoints of LeRobot (0.4): a U-Net on vectors, the statistics, and the two pipelines."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.interop import schedulers
from diffpolicy.interop.lerobot import ENVIRONMENT, HEAD_GROUPS, STATE
from diffpolicy.interop.lerobot_statistics import ACTION, EPS
from diffpolicy.interop.unet_names import LEROBOT, columns, published_name, reordered
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.files import staging

KINDS = {STATE: "STATE", ENVIRONMENT: "ENV", ACTION: "ACTION"}


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
        names: our observation -> observation.state or observation.environment_state, of which LeRobot needs both.
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
    normalizers: dict[str, Any] = dict(zip(sorted(config.observations), policy.normalizers, strict=True))
    by_name: dict[str, Any] = {**{theirs: normalizers[key] for theirs, key in ours.items()}, ACTION: policy.codec}
    features = {name: len(one.scale) for name, one in by_name.items()}
    modes = {"VISUAL": "MEAN_STD", **{KINDS[name]: _mode(one) for name, one in by_name.items()}}
    settings = _settings(config, features, modes, scheduler, steps)
    statistics = {
        f"{name}.{key}": value for name, one in by_name.items() for key, value in _statistics(name, one).items()
    }
    with staging(folder) as unfinished:
        unfinished.mkdir()
        _write(unfinished / "config.json", settings)
        _write_tensors(unfinished / "model.safetensors", _network(policy, ours))
        _write_pipelines(unfinished, settings, statistics)


def _check(config: PolicyConfig, ours: Mapping[str, str]) -> None:
    model, length = config.model, config.window.horizon
    if set(ours) != {STATE, ENVIRONMENT} or set(ours.values()) != set(config.observations):
        raise ValueError(
            f"to_lerobot: the observations are {', '.join(config.observations)}; LeRobot needs {STATE} and "
            f"{ENVIRONMENT}, two vectors: give names={{OURS: {STATE!r}, OTHER: {ENVIRONMENT!r}}}"
        )
    if config.diffusion.name != "denoising":
        raise ValueError(f"to_lerobot: diffusion {config.diffusion.name} is not exported; denoising is")
    if config.diffusion.noise_correlation:
        raise ValueError(f"to_lerobot: expected noise_correlation 0, found {config.diffusion.noise_correlation}")
    if not isinstance(model, UNet1dConfig) or config.encoder.name != "low_dim" or config.codec.name != "normalizer":
        raise ValueError(
            f"to_lerobot: model {model.name}, encoder {config.encoder.name}, codec {config.codec.name} are not "
            "exported; unet1d, low_dim, normalizer are"
        )
    if (model.head_groups or model.groups) != HEAD_GROUPS:
        raise ValueError(f"to_lerobot: the last block has {model.head_groups or model.groups} groups, LeRobot's has 8")
    if length % 2 ** len(model.widths):
        raise ValueError(f"to_lerobot: horizon {length} must be divisible by {2 ** len(model.widths)} in LeRobot")


def _network(policy: DiffusionPolicy, ours: Mapping[str, str]) -> dict[str, Tensor]:
    specs = policy.config.observations
    order = columns(
        sorted(specs),
        [ours[STATE], ours[ENVIRONMENT]],
        {key: spec.features for key, spec in specs.items()},
        policy.config.window.n_obs_steps,
    )
    state = {
        name.removeprefix("network."): value for name, value in policy.acting_state().items() if "network." in name
    }
    named = partial(published_name, style=LEROBOT)
    return {named(name): value.float() for name, value in reordered(state, order).items()}


def _mode(normalizer: Normalizer) -> str:
    return "MIN_MAX" if normalizer.kind == "limits" else "MEAN_STD"


def _statistics(name: str, normalizer: Normalizer) -> dict[str, Tensor]:
    """What gives the same scale and offset there. LeRobot encodes a feature without a range as -1, ours as 0."""
    scale, offset = normalizer.scale.double().cpu(), normalizer.offset.double().cpu()
    middle, radius = -offset / scale, 1.0 / scale
    if name == ACTION:
        radius = torch.where(normalizer.is_constant.cpu(), 0.0, radius)
    if _mode(normalizer) == "MIN_MAX":
        return {"min": (middle - radius).float(), "max": (middle + radius).float()}
    return {"mean": middle.float(), "std": (radius if name == ACTION else radius - EPS).float()}


def _settings(
    config: PolicyConfig, features: Mapping[str, int], modes: Mapping[str, str], scheduler: str, steps: int | None
) -> dict[str, Any]:
    described = {name: {"type": KINDS[name], "shape": [count]} for name, count in features.items()}
    return {
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
