"""Tables of the networks and codecs that settings can name, and the functions that build the parts of a policy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from diffpolicy.codecs.vae import VaeCodec, VaeConfig
from diffpolicy.diffusion.objectives.objective import Objective
from diffpolicy.networks.backbones.dit import DiT, DiTConfig
from diffpolicy.networks.backbones.transformer import Transformer, TransformerConfig
from diffpolicy.networks.backbones.unet1d import UNet1d, UNet1dConfig
from diffpolicy.networks.condition import ConditionShape, NotGivenError
from diffpolicy.networks.encoders import resnet, vit
from diffpolicy.networks.encoders.low_dim import LowDimEncoder
from diffpolicy.policy.normalizers import action_normalizer, normalizer_settings
from diffpolicy.policy.objective_choices import objective_settings
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.tables import Entry, NameOnly, made, settings_of

MAX_PARAMETERS = 2**31  # of a network: 8.6 GB in float32

BACKBONES: Mapping[str, Entry[nn.Module]] = {  # built from its settings, the encoded shape and the condition's shape
    "unet1d": Entry(UNet1dConfig, UNet1d.from_settings),
    "transformer": Entry(TransformerConfig, Transformer.from_settings),
    "dit": Entry(DiTConfig, DiT.from_settings),
}

ENCODERS: Mapping[str, Entry[nn.Module]] = {  # built from its settings, the observations and n_obs_steps
    "low_dim": Entry(NameOnly, lambda own, observations, n_obs_steps: LowDimEncoder(observations, n_obs_steps)),
    "resnet18": Entry(resnet.Resnet18Config, resnet.resnet18),
    "resnet18_narrow": Entry(resnet.ResnetConfig, resnet.resnet18_narrow),
    "resnet_imported": Entry(resnet.ImportedConfig, resnet.resnet_imported),
    "vit": Entry(vit.VitConfig, vit.vit),
}

CODECS: Mapping[str, Entry[nn.Module]] = {  # built from its settings and the policy's
    "normalizer": Entry(NameOnly, lambda own, policy: action_normalizer(policy)),
    "vae": Entry(
        VaeConfig,
        lambda own, policy: VaeCodec(own, action_normalizer(policy), policy.window.horizon, policy.action_dim),
    ),
}


def resolved(config: PolicyConfig) -> PolicyConfig:
    """Fill in the settings of every choice, so that a checkpoint does not depend on defaults.

    Raises:
        ValueError: a choice or a setting is unknown.
    """
    return replace(
        config,
        normalizer=normalizer_settings(config),
        model=settings_of(BACKBONES, "model", config.model),
        diffusion=objective_settings(config.diffusion),
        encoder=settings_of(ENCODERS, "encoder", config.encoder),
        codec=settings_of(CODECS, "codec", config.codec),
    )


def build_codec(config: PolicyConfig) -> Any:
    """Build the codec of the policy's actions, a `Codec`."""
    return made(CODECS, "codec", config.codec, config)


def build_encoder(config: PolicyConfig) -> Any:
    """Build the encoder of the policy's observations, an `Encoder`."""
    return made(ENCODERS, "encoder", config.encoder, config.observations, config.window.n_obs_steps)


def build_network(
    config: PolicyConfig, encoded_shape: tuple[int, int], condition: ConditionShape, objective: Objective | None = None
) -> Any:
    """Build the denoising network, a `Backbone`.

    Args:
        encoded_shape: [length, features] of the encoded trajectory.
        condition: shapes of the encoder's output.
        objective: says what the network takes and returns; None for a network that denoises.

    Raises:
        ValueError: the settings do not fit or make too large a network, or the backbone reads a field that the
            encoder does not return.
    """
    config.window.check()
    asked = () if objective is None else (objective.sees_stop, objective.outputs)
    given = (encoded_shape, condition, *(() if asked == (False, 1) else asked))
    try:
        with torch.device("meta"):  # without memory or time
            sizes = made(BACKBONES, "model", config.model, *given).parameters()
        if (count := sum(size.numel() for size in sizes)) > MAX_PARAMETERS:
            raise ValueError(f"model: has {count} parameters, expected at most {MAX_PARAMETERS}; make it narrower")
        network: Any = made(BACKBONES, "model", config.model, *given)
        if objective is not None and objective.sees_waypoint_levels:
            _check_waypoint_levels(network, config)
        for field in network.reads:
            condition.of(field)
        return network
    except NotGivenError as error:
        model = settings_of(BACKBONES, "model", config.model).name
        encoder = settings_of(ENCODERS, "encoder", config.encoder).name
        raise ValueError(
            f"model: {model} reads {error} of the condition, but the encoder {encoder} gives {condition.given()}; "
            "choose another model or encoder"
        ) from error


def _check_waypoint_levels(network: Any, config: PolicyConfig) -> None:
    """Raise ValueError, naming those that do, unless the backbone takes a time for each waypoint."""
    if not getattr(network, "takes_waypoint_times", False):
        name = settings_of(BACKBONES, "model", config.model).name
        raise ValueError(
            f"model: diffusion {config.diffusion.name} gives each waypoint a level of its own, and {name} takes one "
            "time for the whole plan; give model=dit"
        )
