"""The tensors of a published network under our names."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system import tensor_file


def network_tensors(
    config: PolicyConfig, found: Mapping[str, Tensor], published: Callable[[str], str], prefix: str, where: str
) -> dict[str, Tensor]:
    """Our names -> tensors of a network for `config`.

    Args:
        found: the tensors of the other library, of which all whose names begin with `prefix` must be used.
        published: our name, without "network." -> theirs.
        where: begins the messages of errors.

    Raises:
        ValueError: tensors are missing, unknown, or of a shape that differs from that of the settings.
    """
    specs = expected_of(config, "network.")
    names = {name: published(name.removeprefix("network.")) for name in specs}
    own = {name: value.float() for name, value in found.items() if name.startswith(prefix)}
    tensor_file.check(tensor_file.specs(own), {names[name]: spec for name, spec in specs.items()}, where)
    return {name: own[theirs] for name, theirs in names.items()}


def expected_of(config: PolicyConfig, prefix: str) -> dict[str, tensor_file.Spec]:
    """What tensors of our policy must be, by the names that begin with `prefix`."""
    with torch.device("meta"):
        state = DiffusionPolicy(config).acting_state()
    return {name: spec for name, spec in tensor_file.specs(state).items() if name.startswith(prefix)}
