"""Names of the tensors of the published transformer (transformer_for_diffusion.py), and its settings."""

import re
from collections.abc import Mapping

from torch import Tensor

from diffpolicy.interop.reading import Settings
from diffpolicy.networks.backbones.transformer import TransformerConfig

PREFIX = "model."
NOT_LEARNED = {"model.mask", "model.memory_mask", "model._dummy_variable"}
NAMES = (  # (pattern of our names, the published name), applied in this order
    (r"^input\.", "input_emb."),
    (r"^positions$", "pos_emb"),
    (r"^memory_positions$", "cond_pos_emb"),
    (r"^observation\.", "cond_obs_emb."),
    (r"^layers\.", "decoder.layers."),
    (r"^norm\.", "ln_f."),
    (r"\.attention\.", ".self_attn."),
    (r"\.cross\.", ".multihead_attn."),
    (r"\.into\.", ".in_proj_"),
    (r"\.out\.", ".out_proj."),
    (r"\.feed_forward\.0\.", ".linear1."),
    (r"\.feed_forward\.2\.", ".linear2."),
)


def settings(model: Settings) -> TransformerConfig:
    """The settings of the network; raises ValueError if ours cannot represent it."""
    model.require("time_as_cond", True, "ours has the time as a token of the memory", True)
    model.require("obs_as_cond", True, "ours has the observations as tokens of the memory", False)
    return TransformerConfig(
        layers=model.get("n_layer", int, 12),
        heads=model.get("n_head", int, 12),
        width=model.get("n_emb", int, 768),
        condition_layers=model.get("n_cond_layers", int, 0),
        causal=model.get("causal_attn", bool, False),
    )


def published_name(name: str, condition_layers: int) -> str:
    """The name of the tensor `network.NAME` of our transformer in the published code."""
    name = re.sub(r"^condition\.", "encoder.layers." if condition_layers else "encoder.", name)
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return f"{PREFIX}{name}"


def learned(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without masks, and the positions without their dimension for the batch."""
    kept = {name: value for name, value in found.items() if name not in NOT_LEARNED}
    return {name: value.squeeze(0) if name.endswith("pos_emb") else value for name, value in kept.items()}
