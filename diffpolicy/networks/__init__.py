"""Networks: encoders for observations, and backbones that denoise."""

from diffpolicy.networks.backbones.dit import DiT, DiTConfig
from diffpolicy.networks.backbones.transformer import Transformer, TransformerConfig
from diffpolicy.networks.backbones.unet1d import UNet1d, UNet1dConfig
from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.encoders.low_dim import LowDimEncoder
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.networks.protocols import Backbone, Encoder, plain

__all__ = [
    "Backbone",
    "Condition",
    "ConditionShape",
    "DiT",
    "DiTConfig",
    "Encoder",
    "LowDimEncoder",
    "ObservationSpec",
    "Transformer",
    "TransformerConfig",
    "UNet1d",
    "UNet1dConfig",
    "plain",
    "vector",
]
