"""Observations from outside: the right keys, shapes and finite numbers, or a ValueError that says what is wrong."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def checked_observation(
    observation: Mapping[str, npt.ArrayLike | Tensor], dims: Mapping[str, int], leading: tuple[int, ...]
) -> dict[str, Tensor]:
    """The observation as float32 tensors {key: [*leading, dim]}.

    Raises:
        ValueError: keys other than those of `dims`, another shape, a value that is not finite.
    """
    if set(observation) != set(dims):
        raise ValueError(f"observation: keys are {sorted(observation)}, expected {sorted(dims)}")
    tensors: dict[str, Tensor] = {}
    for key, dim in dims.items():
        value = observation[key]
        tensor = value.float() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float32))
        if tensor.shape != (*leading, dim):
            raise ValueError(
                f"observation: {key} has shape {list(tensor.shape)}, expected {[*leading, dim]} "
                f"({'batch, features' if len(leading) == 1 else 'batch, n_obs_steps, features'})"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"observation: {key} has NaN or infinite values")
        tensors[key] = tensor
    return tensors
