"""Tensors of ResNets that other libraries take from torchvision, under the names of our `resnet_imported`.

They name the layers as torchvision does (conv1, bn1, layer1.0.conv1, ...), or number them as in a Sequential of its
children (0, 1, 4.0.conv1, ...).
"""

import re
from collections.abc import Mapping

from torch import Tensor

NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
BATCH_EPS = 1e-5  # torchvision's
Tensors = dict[str, Tensor]


def of_lerobot(ours: Mapping[str, Tensor]) -> Tensors:
    """Tensors of our `Resnet` with group normalisation, by the names in LeRobot's encoder."""
    numbers = {layer: number for number, layer in NUMBERED.items()} | {"norm1": "1"}
    found: Tensors = {}
    for name, value in ours.items():
        first, _, rest = name.partition(".")
        if first == "colours":  # are statistics there
            continue
        part = {"pool": "pool.nets", "head": "out"}.get(first) or f"backbone.{numbers[first]}"
        inner = re.sub(r"\bnorm([12])\.", r"bn\1.", rest).removeprefix("maps.")
        found[f"{part}.{inner}"] = value.float()
    return found


def within(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def backbone(found: Mapping[str, Tensor], where: str) -> Tensors:
    """Our names -> tensors of a ResNet without pooling; batch normalisation becomes a factor and a summand.

    Raises:
        ValueError: it is no ResNet of two convolutions a block, on three colours.
    """
    named = {_named(name): value for name, value in found.items()}
    colours = named["conv1.weight"].shape if "conv1.weight" in named else None
    if colours is None or colours[:2] != (64, 3) or any(".conv3." in name for name in named):
        told = "blocks of three convolutions" if colours else "no layer conv1"
        raise ValueError(f"{where}: a network with {told} is not imported; ResNet-18 and ResNet-34 on 3 colours are")
    ours: Tensors = {}
    for name, value in named.items():
        if not re.search(r"\.(running_mean|running_var|num_batches_tracked)$", name):
            ours[re.sub(r"(^|\.)bn([12])\.", r"\1norm\2.", name)] = value.float()
    for name in [name.removesuffix(".running_var") for name in named if name.endswith(".running_var")]:
        factor, summand = _folded(named, name)
        own = re.sub(r"(^|\.)bn([12])$", r"\1norm\2", name)
        ours |= {f"{own}.weight": factor, f"{own}.bias": summand}
    return ours


def _named(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{NUMBERED.get(first, first)}.{rest}"


def _folded(named: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias as a factor and a summand."""
    weight, bias, mean, variance = (
        named[f"{name}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = weight / (variance + BATCH_EPS).sqrt()
    return factor.float(), (bias - mean * factor).float()
