"""The normalisers of a policy's vector observations and of its actions, each chosen by name."""

from collections.abc import Mapping
from typing import Any

from diffpolicy.codecs.normalizer import Normalizer, NormalizerConfig, QuantilesConfig
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.tables import Entry, made, settings_of

ACTION = "action"  # the key of the actions, besides those of the observations

NORMALIZERS: Mapping[str, Entry[Normalizer]] = {  # built from its settings and the number of features
    "limits": Entry(NormalizerConfig, lambda own, features: Normalizer(features, own)),
    "gaussian": Entry(NormalizerConfig, lambda own, features: Normalizer(features, own)),
    "quantiles": Entry(QuantilesConfig, lambda own, features: Normalizer(features, own)),
    "none": Entry(NormalizerConfig, lambda own, features: Normalizer(features, own)),
}


def normalizer_settings(config: PolicyConfig) -> dict[str, NormalizerConfig]:
    """The settings of the normaliser of each vector observation and, under "action", of the actions.

    Raises:
        ValueError: a choice, a setting or a key is unknown.
    """
    keys = [*(key for key, spec in config.observations.items() if spec.kind == "vector"), ACTION]
    given: Any = config.normalizer
    if not isinstance(given, Mapping) or isinstance(given.get("name"), str):
        given = dict.fromkeys(keys, given)
    if unknown := sorted(set(given) - set(keys)):
        raise ValueError(f"normalizer: there is no {', '.join(unknown)}, expected some of {', '.join(keys)}")
    return {key: settings_of(NORMALIZERS, f"normalizer.{key}", given.get(key, "limits")) for key in keys}


def observation_normalizer(config: PolicyConfig, key: str) -> Normalizer:
    """Build the normaliser of a vector observation; raises ValueError as `normalizer_settings`."""
    return made(NORMALIZERS, "normalizer", normalizer_settings(config)[key], config.observations[key].features)


def action_normalizer(config: PolicyConfig) -> Normalizer:
    """Build the normaliser of the actions; raises ValueError as `normalizer_settings`."""
    return made(NORMALIZERS, "normalizer", normalizer_settings(config)[ACTION], config.action_dim)
