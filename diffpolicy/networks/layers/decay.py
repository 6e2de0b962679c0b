"""Which parameters weight decay applies to: the weights of linear layers and convolutions.

Norms, biases and embeddings (positions, null conditions) are left out, as is usual for transformers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

WITH_DECAY = (nn.Linear, nn.modules.conv._ConvNd)
Group = dict[str, Any]


def decay_groups(modules: Iterable[nn.Module]) -> list[Group]:
    """Two optimiser groups: the parameters of `modules` with the trainer's weight decay, and those without."""
    modules = list(modules)
    weights = {id(m.weight) for module in modules for m in module.modules() if isinstance(m, WITH_DECAY)}
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return [
        {"params": [one for one in parameters if id(one) in weights]},
        {"params": [one for one in parameters if id(one) not in weights], "weight_decay": 0.0},
    ]


def joined(groups: list[Group], modules: Iterable[nn.Module]) -> list[Group]:
    """Groups of a network and of modules that are trained with it, whose parameters come first.

    Where the network has a group without weight decay, the modules' norms, biases and embeddings join it. Otherwise all
    of them join the first group.
    """
    modules = list(modules)
    spared = next((place for place, group in enumerate(groups) if _has_no_decay(group)), None)
    if spared is None:
        return _with(groups, 0, [parameter for module in modules for parameter in module.parameters()])
    decayed, others = decay_groups(modules)
    return _with(_with(groups, 0, decayed["params"]), spared, others["params"])


def _has_no_decay(group: Mapping[str, Any]) -> bool:
    return group.get("weight_decay") == 0.0


def _with(groups: list[Group], place: int, parameters: list[nn.Parameter]) -> list[Group]:
    group = {**groups[place], "params": [*parameters, *groups[place]["params"]]}
    return [*groups[:place], group, *groups[place + 1 :]]
