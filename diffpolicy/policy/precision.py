"""The precision that a policy can be kept in: float32 or float64."""

import torch
from torch import Tensor, nn


def check_precision(dtype: torch.dtype) -> None:
    """Raise ValueError unless a policy can be kept in `dtype`."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"policy: in {dtype} its normalisation statistics would be too coarse (at 512 it resolves "
            f"{512 * torch.finfo(dtype).eps:g}); "
            "keep it in float32 and run it under torch.autocast, or train with trainer.precision=bfloat16"
        )


def like_parameters(values: Tensor, module: nn.Module) -> Tensor:
    """`values` in the precision and on the device of the parameters of `module`."""
    return values.to(next(module.parameters()))
