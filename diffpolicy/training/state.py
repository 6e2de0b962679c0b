"""Conversion of the training state (weights, optimiser moments, counters) to named tensors and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffpolicy.policy.protocol import Policy
from diffpolicy.system import checkpoint

NUMBERS = ("best_score", "is_evaluated", "recent")


def pack(policy: Policy, optimizer: torch.optim.Optimizer, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack the training state under the names model.NAME, optimizer.NAME.MOMENT and those of `numbers`, NUMBERS."""
    state = {f"model.{name}": value for name, value in policy.state_dict().items()}
    names = _names(policy, optimizer)
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{names[index]}.{name}": value for name, value in moments.items()}
    return {**state, **numbers}


def unpack(state: Mapping[str, Tensor], policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load the weights and moments of a packed state; returns its numbers.

    Raises:
        ValueError: the tensors do not fit the policy, or a number is missing.
    """
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    checkpoint.check_tensors("training state", weights, policy.state_dict())
    missing = sorted(set(NUMBERS) - set(state))
    if missing:
        raise ValueError(f"training state: has no {', '.join(missing)}; it was written by another version")
    policy.load_state_dict(weights)
    index_of = {name: index for index, name in enumerate(_names(policy, optimizer))}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            parameter, _, moment = name.removeprefix("optimizer.").rpartition(".")
            index = int(parameter) if parameter.isdecimal() else index_of.get(parameter)  # format 1 used indices
            if index is None:
                raise ValueError(f"training state: moments of {parameter}, which the policy does not have")
            moments.setdefault(index, {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    for parameter, own in optimizer.state.items():  # in the memory order of the parameter, as AdamW made them
        for name, value in own.items():
            own[name] = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
    return {name: state[name] for name in NUMBERS}


def _names(policy: Policy, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the parameters, in the optimiser's order."""
    name_of = {id(parameter): name for name, parameter in policy.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
