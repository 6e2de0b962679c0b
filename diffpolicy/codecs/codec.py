"""Between actions and what is denoised."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor


class Samples(Protocol):
    """A tensor [rows, dim], or what stays on disk and is read block by block."""

    @property
    def shape(self) -> Sequence[int]: ...

    def split(self, size: int, /) -> Iterable[Tensor]: ...


class Codec(Protocol):
    """Actions [batch, horizon, action] in physical units <-> what is denoised [batch, *encoded_shape]. An `nn.Module`.

    What it has learned from the data are buffers or parameters: they travel with the weights.
    """

    @property
    def is_fitted(self) -> bool:
        """Whether it has usable statistics or weights; copies to the host."""
        ...

    @property
    def limits(self) -> tuple[float, float] | None:
        """Between which the data lie once encoded, if that is known."""
        ...

    @property
    def metric(self) -> Tensor | None:
        """[action], the squared length in encoded units of a unit of each action; None where that is not the same for
        all waypoints: then a projection acts on the decoded plan."""
        ...

    def encoded_shape(self, horizon: int) -> tuple[int, int]:
        """Of a trajectory of `horizon` actions, [length, features]; noise is drawn in this shape."""
        ...

    def fit(self, actions: Samples) -> None:
        """Take the statistics of all demonstrated actions [rows, action]; ValueError on data that cannot serve."""
        ...

    def encode(self, actions: Tensor) -> Tensor:
        """[batch, horizon, action] -> [batch, *encoded_shape]."""
        ...

    def decode(self, encoded: Tensor) -> Tensor:
        """The inverse."""
        ...

    def log_determinant(self, horizon: int) -> Tensor | None:
        """log |d encoded / d actions| of a trajectory, a scalar; None where the codec is not invertible."""
        ...
