"""Weights, optimiser's moments and what else training goes on from, as named tensors and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffpolicy.system import checkpoint

NUMBERS = ("best_score", "is_evaluated", "recent")


def pack(policy: nn.Module, optimizer: torch.optim.Optimizer, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names are model.NAME, optimizer.INDEX.NAME and those of `numbers`, which are NUMBERS."""
    state = {f"model.{name}": value for name, value in policy.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    return {**state, **numbers}


def unpack(state: Mapping[str, Tensor], policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load weights and moments; returns the numbers.

    Raises:
        ValueError: tensors that do not fit the policy, or numbers missing.
    """
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    checkpoint.check_tensors("training state", weights, policy.state_dict())
    missing = sorted(set(NUMBERS) - set(state))
    if missing:
        raise ValueError(f"training state: has no {', '.join(missing)}; it was written by another version")
    policy.load_state_dict(weights)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return {name: state[name] for name in NUMBERS}
