"""The interface of a codec, which converts actions to the encoding that is denoised, and back."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class DataArray(Protocol):
    """A tensor [rows, dim], or rows on disk that are read block by block."""

    @property
    def shape(self) -> Sequence[int]:
        """[rows, dim]."""
        ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """All rows in order, in blocks of at most `size`."""
        ...


class Windows(Protocol):
    """The action windows of training, in physical units: a tensor [N, horizon, action], or what is cut from one."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The windows at `index`, int64 [B] on the CPU: [B, horizon, action]."""
        ...


class Codec(Protocol):
    """Maps actions [batch, horizon, action] in physical units to an encoding [batch, *encoded_shape], and back.

    A codec is an `nn.Module`. Whatever it learns from the data is a buffer or parameter, saved with the weights.
    """

    @property
    def is_fitted(self) -> bool:
        """Whether it has usable statistics or weights. Reading this copies them to the host."""
        ...

    @property
    def is_invertible(self) -> bool:
        """Whether `decode` inverts `encode`. If not, a user's `constrain` acts only on the plan that is returned."""
        ...

    @property
    def limits(self) -> tuple[float, float] | None:
        """The lower and upper limit of the encoded data; None if they are unknown."""
        ...

    @property
    def metric(self) -> Tensor | None:
        """Squared length in encoded units of one physical unit of each action feature, [action].

        None if it differs between waypoints. A user's `constrain` then acts on the decoded plan; a controller with
        safety, whose projection needs the metric, is refused.
        """
        ...

    def encoded_shape(self, horizon: int) -> tuple[int, int]:
        """The encoded shape (length, features) of `horizon` actions; noise is drawn in this shape."""
        ...

    def fit(self, actions: DataArray) -> None:
        """Compute the statistics of all demonstrated actions [rows, action]; raises ValueError on unusable data."""
        ...

    def encode(self, actions: Tensor) -> Tensor:
        """[batch, horizon, action] -> [batch, *encoded_shape]."""
        ...

    def decode(self, encoded: Tensor) -> Tensor:
        """[batch, *encoded_shape] -> [batch, horizon, action], the inverse of `encode` if `is_invertible`."""
        ...

    def log_determinant(self, horizon: int) -> Tensor | None:
        """log |det(d encoded / d actions)| of a trajectory, a scalar; None if the codec is not invertible."""
        ...


@runtime_checkable
class LearnedCodec(Codec, Protocol):
    """A codec with weights, which are trained before the policy and then stay fixed."""

    def learn(self, windows: Windows, generator: torch.Generator) -> None:
        """Train it on action windows, after `fit`; `generator` on the CPU draws all that is random.

        Raises:
            ValueError: training diverges, or the encoding says nothing about the actions.
        """
        ...
