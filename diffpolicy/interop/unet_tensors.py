"""The tensors of a published U-Net under our names, with the condition in our order."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffpolicy.interop.unet_names import Style, published_name, reordered
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system import tensor_file


def unet_tensors(
    config: PolicyConfig, found: Mapping[str, Tensor], style: Style, order: Tensor, where: str
) -> dict[str, Tensor]:
    """Our names -> tensors of a network for `config`.

    Args:
        found: the tensors of the other library, of which all in `style.prefix` must be used.
        order: see `columns`.

    Raises:
        ValueError: tensors are missing, unknown, or of a shape that differs from that of the settings.
    """
    names = {name: published_name(name.removeprefix("network."), style) for name in expected_of(config, "network.")}
    own = {name: value for name, value in found.items() if name.startswith(style.prefix)}
    expected = {names[name]: spec for name, spec in expected_of(config, "network.").items()}
    tensor_file.check(tensor_file.specs({name: value.float() for name, value in own.items()}), expected, where)
    taken = {name: own[theirs].float() for name, theirs in names.items()}
    return {name: reordered(value, order) if name.endswith("film.1.weight") else value for name, value in taken.items()}


def expected_of(config: PolicyConfig, prefix: str) -> dict[str, tensor_file.Spec]:
    """What tensors of our policy must be, by the names that begin with `prefix`."""
    with torch.device("meta"):
        state = DiffusionPolicy(config).acting_state()
    return {name: spec for name, spec in tensor_file.specs(state).items() if name.startswith(prefix)}
