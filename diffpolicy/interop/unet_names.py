"""Names of the tensors of a U-Net in other libraries, and the order of the observations in its condition."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Style:
    """How a library names parts of the published U-Net.

    Attributes:
        prefix: of the whole network.
        blocks: the two convolution blocks of a residual block.
        resampling: of the layers that halve or double the length.
    """

    prefix: str
    blocks: tuple[str, str]
    resampling: str


DIFFUSION_POLICY = Style("model.", ("blocks.0.block.", "blocks.1.block."), ".conv")
LEROBOT = Style("diffusion.unet.", ("conv1.block.", "conv2.block."), "")
INDEX = {"first": "0", "second": "1"}
SIDES = {"down": "down_modules", "up": "up_modules", "shrink": "down_modules", "grow": "up_modules"}


def published_name(name: str, style: Style) -> str:
    """The name of the tensor `network.NAME` of our U-Net in another library."""
    part, _, rest = name.partition(".")
    if part == "time_encoder":
        return f"{style.prefix}diffusion_step_encoder.{rest}"
    if part == "head":
        return f"{style.prefix}final_conv.{re.sub(r'^0[.]', '0.block.', rest)}"
    index, _, rest = (f"mid.{rest}" if part == "middle" else rest).partition(".")
    if part in ("shrink", "grow"):
        return f"{style.prefix}{SIDES[part]}.{index}.2{style.resampling}.{rest}"
    block, _, rest = rest.partition(".")
    level = f"mid_modules.{INDEX[block]}" if part == "middle" else f"{SIDES[part]}.{index}.{INDEX[block]}"
    rest = re.sub(r"^(first|second)[.]", lambda found: style.blocks[int(INDEX[found[1]])], rest)
    rest = re.sub(r"^film[.]", "cond_encoder.", re.sub(r"^residual[.]", "residual_conv.", rest))
    return f"{style.prefix}{level}.{rest}"


def columns(theirs: Sequence[str], ours: Sequence[str], features: Mapping[str, int], steps: int) -> Tensor:
    """For each number of our condition, which number of theirs it is: int64 [steps * sum of features].

    Args:
        theirs, ours: the names of the observations in the order of the two conditions.
        features: of each observation at one time step.
        steps: time steps; all observations of a step stand together.
    """
    starts, at = {}, 0
    for key in theirs:
        starts[key], at = at, at + features[key]
    step = [start for key in ours for start in range(starts[key], starts[key] + features[key])]
    return (torch.tensor(step) + at * torch.arange(steps)[:, None]).flatten()


def reordered(tensors: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """Our tensors of a U-Net or transformer for a condition whose numbers are in this order, of `columns`."""

    def moved(name: str, value: Tensor) -> Tensor:
        if name.endswith("film.1.weight"):  # [channels, time + condition]
            time = value.shape[1] - len(order)
            return torch.cat([value[:, :time], value[:, time:][:, order]], dim=1)
        if name.endswith("network.observation.weight"):  # [width, condition of a step]
            return value[:, order[: value.shape[1]]]
        return value

    return {name: moved(name, value) for name, value in tensors.items()}
