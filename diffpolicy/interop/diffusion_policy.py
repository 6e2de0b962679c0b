"""Checkpoints of the published code (real-stanford/diffusion_policy, *.ckpt), as a policy of ours."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy.interop import published_statistics, schedulers, transformer_names
from diffpolicy.interop.eyes import features_of
from diffpolicy.interop.inert import TensorView
from diffpolicy.interop.network_tensors import network_tensors
from diffpolicy.interop.plain_config import plain_config
from diffpolicy.interop.published_images import Seen, of_hybrid, of_image
from diffpolicy.interop.reading import Imported, Settings
from diffpolicy.interop.torch_file import TorchFile
from diffpolicy.interop.unet_names import DIFFUSION_POLICY, columns, published_name, reordered
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.settings import PolicyConfig, WindowConfig
from diffpolicy.system.plain import shown

HEAD_GROUPS = 8  # of the last block, whatever n_groups is
OBSERVATION = "obs"
Found = tuple[PolicyConfig, dict[str, Tensor]]
UNET = {"down_dims": [256, 512, 1024], "diffusion_step_embed_dim": 256, "n_groups": 8}  # their defaults
UNET_LOW_DIM = {**UNET, "kernel_size": 3, "cond_predict_scale": False}
UNET_IMAGE = {**UNET, "kernel_size": 5, "cond_predict_scale": True}
TRANSFORMER_HYBRID = {"n_layer": 8, "n_cond_layers": 0, "n_head": 4, "n_emb": 256, "causal_attn": True}
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


def _vectors(config: Settings, *_: object) -> Seen:
    """The observations of a low-dimensional policy: one vector."""
    return Seen({OBSERVATION: config.get("obs_dim", int)}, [OBSERVATION], "low_dim", {})


def _unet(
    config: Settings, tensors: Mapping[str, Tensor], where: str, observed: Callable[..., Seen], defaults: dict[str, Any]
) -> Found:
    is_image = observed is not _vectors
    config.require("obs_as_global_cond", True, "ours conditions on all observations at once", is_image)
    config.require("obs_as_local_cond", False, "ours conditions on all observations at once", False)
    config.require("oa_step_convention", True, "ours acts from the step of the present observation on", is_image)
    own = config if is_image else config.within("model")
    seen = observed(config, tensors, where)
    policy = _policy(config, tensors, _unet_settings(own.filled(defaults)), seen, where)
    named = partial(published_name, style=DIFFUSION_POLICY)
    network = network_tensors(policy, tensors, named, DIFFUSION_POLICY.prefix, where)
    return policy, _tensors(policy, tensors, network, seen, where)


def _transformer(
    config: Settings, tensors: Mapping[str, Tensor], where: str, observed: Callable[..., Seen], defaults: dict[str, Any]
) -> Found:
    is_image = observed is not _vectors
    config.require("obs_as_cond", True, "ours has the observations as tokens of the memory", is_image)
    own = config if is_image else config.within("model")
    model = transformer_names.settings(own.filled({**defaults, "obs_as_cond": is_image}))
    seen = observed(config, tensors, where)
    policy = _policy(config, tensors, model, seen, where)
    named = partial(transformer_names.published_name, condition_layers=model.condition_layers)
    learned = transformer_names.learned(tensors)
    network = network_tensors(policy, learned, named, transformer_names.PREFIX, where)
    return policy, _tensors(policy, tensors, network, seen, where)


def _policy(config: Settings, tensors: Mapping[str, Tensor], model: Any, seen: Seen, where: str) -> PolicyConfig:
    config.require(
        "pred_action_steps_only", False, "the first row of our plans is that of the first observation", False
    )
    is_clipped = schedulers.clips(config.within("noise_scheduler"))
    return PolicyConfig(
        dict(seen.specs),
        config.get("action_dim", int) if seen.encoder == "low_dim" else _action_dim(config),
        normalizer=published_statistics.settings(tensors, _vector_keys(seen), is_clipped, where),
        window=WindowConfig(*(config.get(name, int) for name in ("horizon", "n_obs_steps", "n_action_steps"))),
        model=model,
        diffusion=schedulers.objective(config.within("noise_scheduler")),
        encoder=seen.encoder,
    )


def _action_dim(config: Settings) -> int:
    (features,) = config.within("shape_meta").within("action").get("shape", list[int])
    return features


def _vector_keys(seen: Seen) -> list[str]:
    return [key for key, spec in seen.specs.items() if isinstance(spec, int)]


def _tensors(
    policy: PolicyConfig, tensors: Mapping[str, Tensor], network: Mapping[str, Tensor], seen: Seen, where: str
) -> dict[str, Tensor]:
    order = columns(seen.order, sorted(seen.specs), features_of(policy), policy.window.n_obs_steps)
    statistics = published_statistics.buffers(tensors, _vector_keys(seen), where)
    return reordered(network, order) | seen.tensors | statistics


def _unet_settings(model: Settings) -> UNet1dConfig:
    return UNet1dConfig(
        widths=model.get("down_dims", list[int]),
        time_embedding_dim=model.get("diffusion_step_embed_dim", int),
        kernel_size=model.get("kernel_size", int),
        groups=model.get("n_groups", int),
        head_groups=HEAD_GROUPS,
        film_scale=model.get("cond_predict_scale", bool),
    )


def _sampler(config: Settings) -> dict[str, Any]:
    scheduler = config.within("noise_scheduler")
    kind = scheduler.get("_target_", str).rpartition(".")[2].removesuffix("Scheduler")
    levels = scheduler.get("num_train_timesteps", int, 1000)
    steps = config.get("num_inference_steps", int | None, None)
    eta = config.get("eta", float, 0.0)
    clipped = config.get("use_clipped_model_output", bool, False)
    return schedulers.sampler(scheduler, kind, levels if steps is None else steps, eta, clipped)


READERS: Mapping[str, Callable[[Settings, Mapping[str, Tensor], str], Found]] = {
    "DiffusionUnetLowdimPolicy": partial(_unet, observed=_vectors, defaults=UNET_LOW_DIM),
    "DiffusionTransformerLowdimPolicy": partial(_transformer, observed=_vectors, defaults={}),
    "DiffusionUnetImagePolicy": partial(_unet, observed=of_image, defaults=UNET_IMAGE),
    "DiffusionUnetHybridImagePolicy": partial(_unet, observed=of_hybrid, defaults=UNET_IMAGE),
    "DiffusionTransformerHybridImagePolicy": partial(_transformer, observed=of_hybrid, defaults=TRANSFORMER_HYBRID),
}
