"""Checkpoints of the published code (real-stanford/diffusion_policy, *.ckpt), as a policy of ours."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy.interop import schedulers, statistics, transformer_names
from diffpolicy.interop.inert import TensorView
from diffpolicy.interop.network_tensors import network_tensors
from diffpolicy.interop.plain_config import plain_config
from diffpolicy.interop.reading import Imported, Settings
from diffpolicy.interop.torch_file import TorchFile
from diffpolicy.interop.unet_names import DIFFUSION_POLICY, published_name
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.settings import PolicyConfig, WindowConfig
from diffpolicy.system.plain import shown

HEAD_GROUPS = 8  # of the last block, whatever n_groups is
OBSERVATION, ACTION = "obs", "action"
Found = tuple[PolicyConfig, dict[str, Tensor]]
LOST = [
    "dropout, the optimizer's state, the step and the epoch",
    "the settings of the data set, the training and the evaluation",
]


def read_diffusion_policy(path: Path, weights: str = "ema") -> Imported:
    """Read a checkpoint of the published code.

    Args:
        weights: ema, the averaged weights, which are evaluated there; or model, those of the last step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or refused, or the policy has what ours cannot represent.
    """
    with TorchFile(path) as file:
        where = str(path)
        content = file.content
        if not isinstance(content, dict) or not isinstance(content.get("state_dicts"), dict) or "cfg" not in content:
            raise ValueError(f"{where} is no checkpoint of diffusion_policy: cfg and state_dicts are missing")
        config = Settings(plain_config(content["cfg"], f"{where}: cfg"), f"{where}: cfg").within("policy")
        tensors = _weights(file, content["state_dicts"], weights, where)
    kind = config.get("_target_", str).rpartition(".")[2]
    if kind not in READERS:
        raise ValueError(f"{config.where}: policies of class {shown(kind)} are not imported; {', '.join(READERS)} are")
    policy, own = READERS[kind](config, tensors, where)
    source = {"format": "diffusion_policy", "file": path.name, "class": kind, "weights": weights}
    return Imported(policy, own, _sampler(config), source, LOST)


def _weights(file: TorchFile, states: Mapping[str, Any], weights: str, where: str) -> dict[str, Tensor]:
    name = {"ema": "ema_model", "model": "model"}[weights]
    state = states.get(name)
    if not isinstance(state, dict):
        raise ValueError(f"{where} has no weights {name}, only {', '.join(map(str, states))}; give weights=model")
    views = {str(key): value for key, value in state.items() if isinstance(value, TensorView)}
    return {key: file.tensor(view) for key, view in views.items()}


def _unet_low_dim(config: Settings, tensors: Mapping[str, Tensor], where: str) -> Found:
    config.require("obs_as_global_cond", True, "ours conditions on all observations at once", False)
    config.require("obs_as_local_cond", False, "ours conditions on all observations at once", False)
    config.require("oa_step_convention", True, "ours acts from the step of the present observation on", False)
    policy = _low_dim(config, tensors, _unet(config.within("model")), where)
    named = partial(published_name, style=DIFFUSION_POLICY)
    network = network_tensors(policy, tensors, named, DIFFUSION_POLICY.prefix, where)
    return policy, network | _buffers(tensors, where)


def _transformer_low_dim(config: Settings, tensors: Mapping[str, Tensor], where: str) -> Found:
    config.require("obs_as_cond", True, "ours has the observations as tokens of the memory", False)
    model = transformer_names.settings(config.within("model"))
    policy = _low_dim(config, tensors, model, where)
    named = partial(transformer_names.published_name, condition_layers=model.condition_layers)
    learned = transformer_names.learned(tensors)
    network = network_tensors(policy, learned, named, transformer_names.PREFIX, where)
    return policy, network | _buffers(tensors, where)


def _low_dim(config: Settings, tensors: Mapping[str, Tensor], model: Any, where: str) -> PolicyConfig:
    config.require(
        "pred_action_steps_only", False, "the first row of our plans is that of the first observation", False
    )
    return PolicyConfig(
        {OBSERVATION: config.get("obs_dim", int)},
        config.get("action_dim", int),
        normalizer=_normalizers(config, tensors, where),
        window=WindowConfig(*(config.get(name, int) for name in ("horizon", "n_obs_steps", "n_action_steps"))),
        model=model,
        diffusion=schedulers.objective(config.within("noise_scheduler")),
    )


def _unet(model: Settings) -> UNet1dConfig:
    return UNet1dConfig(
        widths=model.get("down_dims", list[int], [256, 512, 1024]),
        time_embedding_dim=model.get("diffusion_step_embed_dim", int, 256),
        kernel_size=model.get("kernel_size", int, 3),
        groups=model.get("n_groups", int, 8),
        head_groups=HEAD_GROUPS,
        film_scale=model.get("cond_predict_scale", bool, False),
    )


def _normalizers(config: Settings, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    is_clipped = schedulers.clips(config.within("noise_scheduler"))
    return {OBSERVATION: _kind(tensors, OBSERVATION, where), ACTION: statistics.action_kind(is_clipped)}


def _kind(tensors: Mapping[str, Tensor], key: str, where: str) -> str:
    """What the statistics of a key were fitted as: limits or gaussian; none if by hand."""
    scale, offset = _parameters(tensors, key, where)
    prefix = f"normalizer.params_dict.{key}.input_stats"
    stats = {name: tensors.get(f"{prefix}.{name}") for name in ("min", "max", "mean", "std")}
    if any(value is None or value.shape != scale.shape for value in stats.values()):
        return "none"
    low, high, mean, _ = (value * scale + offset for value in stats.values() if value is not None)
    if bool(((low + 1.0).abs() < 1e-3).logical_or((low - high).abs() < 1e-3).all()):
        return "limits"
    return "gaussian" if bool((mean.abs() < 1e-3).all()) else "none"


def _buffers(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    observed, acted = (statistics.linear(*_parameters(tensors, key, where)) for key in (OBSERVATION, ACTION))
    return statistics.as_tensors("normalizers.0", observed) | statistics.as_tensors("codec", acted)


def _parameters(tensors: Mapping[str, Tensor], key: str, where: str) -> tuple[Tensor, Tensor]:
    found = [tensors.get(f"normalizer.params_dict.{key}.{name}") for name in ("scale", "offset")]
    if found[0] is None or found[1] is None:
        raise ValueError(f"{where}: the normaliser has no scale and offset of {key}")
    return found[0], found[1]


def _sampler(config: Settings) -> dict[str, Any]:
    scheduler = config.within("noise_scheduler")
    kind = scheduler.get("_target_", str).rpartition(".")[2].removesuffix("Scheduler")
    levels = scheduler.get("num_train_timesteps", int, 1000)
    steps = config.get("num_inference_steps", int | None, None)
    eta = config.get("eta", float, 0.0)
    clipped = config.get("use_clipped_model_output", bool, False)
    return schedulers.sampler(scheduler, kind, levels if steps is None else steps, eta, clipped)


READERS = {"DiffusionUnetLowdimPolicy": _unet_low_dim, "DiffusionTransformerLowdimPolicy": _transformer_low_dim}
