"""The normalisers of a policy's vector observations and of its actions, each chosen by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffpolicy.codecs.codec import DataArray
from diffpolicy.codecs.normalizer import Normalizer, NormalizerConfig, QuantilesConfig
from diffpolicy.policy.precision import like_parameters
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


class ObservationNormalizers(nn.ModuleList):
    """The normalisers of a policy's vector observations, by their keys in order; raises as `normalizer_settings`."""

    def __init__(self, config: PolicyConfig) -> None:
        self.keys = sorted(key for key, spec in config.observations.items() if spec.kind == "vector")
        settings = normalizer_settings(config)
        super().__init__(
            made(NORMALIZERS, "normalizer", settings[key], config.observations[key].features) for key in self.keys
        )

    def by_key(self) -> dict[str, Normalizer]:
        """{key: normaliser}."""
        pairs = zip(self.keys, self, strict=True)
        return {key: one for key, one in pairs if isinstance(one, Normalizer)}

    def fit(self, observations: Mapping[str, DataArray]) -> None:
        """Compute the statistics of all demonstrations {key: [rows, features]}; raises ValueError on unusable data."""
        if missing := [key for key in self.keys if key not in observations]:
            raise ValueError(f"fit: the observations lack {', '.join(missing)}; they have {sorted(observations)}")
        for key, normalizer in self.by_key().items():
            normalizer.fit(observations[key])

    def encode(self, observations: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
        """The observations with normalised vectors, of the type of the parameters of `network`."""
        vectors = {key: one.encode(like_parameters(observations[key], network)) for key, one in self.by_key().items()}
        return {**observations, **vectors}


def action_normalizer(config: PolicyConfig) -> Normalizer:
    """Build the normaliser of the actions; raises ValueError as `normalizer_settings`."""
    return made(NORMALIZERS, "normalizer", normalizer_settings(config)[ACTION], config.action_dim)
