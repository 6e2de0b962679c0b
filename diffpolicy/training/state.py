"""Conversion of the training state (weights, optimiser moments, counters) to named tensors and back."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffpolicy.policy.protocol import Policy
from diffpolicy.system.tensor_file import Spec, check, check_finite, specs

NUMBERS = {
    "best_score": Spec(torch.float64, ()),
    "is_evaluated": Spec(torch.bool, ()),
    "recent": Spec(torch.float32, (None, 2)),
}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW
WHERE = "training state"


def pack(policy: Policy, optimizer: torch.optim.Optimizer, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack the training state under the names model.NAME, optimizer.NAME.MOMENT and those of `numbers`, NUMBERS.

    A parameter that has had no gradient yet has no moments; zeros, from which they start, are packed for it.
    """
    state = {f"model.{name}": value for name, value in policy.state_dict().items()}
    return {**state, **_moments(policy, optimizer, torch.zeros_like), **numbers}


def unpack_average(model: Mapping[str, Tensor], average: Policy) -> None:
    """Load the averaged weights of a checkpoint; raises ValueError as `unpack`."""
    check(specs(model), specs(average.acting_state()), "checkpoint: model")
    check_finite(model, "checkpoint: model")
    average.load_state_dict(model, strict=False)


def _expected(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Spec]:
    """The specs of all tensors of a packed state."""
    weights = {f"model.{name}": value for name, value in policy.state_dict().items()}
    return {**specs({**weights, **_moments(policy, optimizer, torch.empty_like)}), **NUMBERS}


def unpack(
    state: Mapping[str, Tensor], policy: Policy, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, Tensor]:
    """Load the weights and moments of the packed state of optimiser step `step`; returns its numbers.

    Raises:
        ValueError: a tensor is missing, unknown or of the wrong shape or dtype, or holds values that no training gives.
            Nothing has been loaded then.
    """
    renamed = _renamed_moments(policy, optimizer)
    state = {renamed(name): value for name, value in state.items()}
    check(specs(state), _expected(policy, optimizer), WHERE)
    _check_values(state, step)
    policy.load_state_dict({name: state[f"model.{name}"] for name in policy.state_dict()})
    names = _names(policy, optimizer)
    moments = {i: {moment: state[f"optimizer.{name}.{moment}"] for moment in MOMENTS} for i, name in enumerate(names)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return {name: state[name] for name in NUMBERS}


def _renamed_moments(policy: Policy, optimizer: torch.optim.Optimizer) -> Callable[[str], str]:
    """The function that turns optimizer.INDEX.MOMENT, as format 1 named the moments, into the current name."""
    names = _names(policy, optimizer)

    def renamed(name: str) -> str:
        first, _, rest = name.partition(".")
        index, _, moment = rest.partition(".")
        is_old = first == "optimizer" and index.isdecimal() and int(index) < len(names)
        return f"optimizer.{names[int(index)]}.{moment}" if is_old else name

    return renamed


def _moments(policy: Policy, optimizer: torch.optim.Optimizer, new: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """AdamW's moments of every parameter by name; `new` makes those that it has not made yet."""
    names, parameters = _names(policy, optimizer), dict(policy.named_parameters())
    made = optimizer.state_dict()["state"]
    found: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        like = parameters[name].detach()
        of_one = made.get(index) or {"step": new(torch.zeros(())), "exp_avg": new(like), "exp_avg_sq": new(like)}
        found |= {f"optimizer.{name}.{moment}": of_one[moment] for moment in MOMENTS}
    return found


def _check_values(state: Mapping[str, Tensor], step: int) -> None:
    check_finite({name: value for name, value in state.items() if name != "best_score"}, WHERE)
    if bool(state["best_score"].isnan()) or float(state["best_score"]) == torch.inf:
        raise ValueError(f"{WHERE}: best_score is {float(state['best_score'])}, expected a number, or -inf for none")
    moments = {name: value for name, value in state.items() if name.startswith("optimizer.")}
    for name, value in moments.items():
        if name.endswith((".step", ".exp_avg_sq")) and bool((value < 0).any()):
            raise ValueError(f"{WHERE}: {name} is negative")
    counted = max((float(value) for name, value in moments.items() if name.endswith(".step")), default=0.0)
    if counted != step or len(state["recent"]) > step:
        raise ValueError(
            f"{WHERE}: the moments are of step {counted:.0f}, with {len(state['recent'])} recent losses, but the "
            f"checkpoint is of step {step}"
        )


def _names(policy: Policy, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of the parameters, in the optimiser's order."""
    name_of = {id(parameter): name for name, parameter in policy.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
