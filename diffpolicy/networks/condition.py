"""The condition of a backbone, which an encoder makes from observations.

Shape legend: B batch, D features, N tokens, E features of a token.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn


class NotGivenError(ValueError):
    """A field of the condition is asked for that the encoder does not give; its text is the name of the field."""


@dataclass(frozen=True)
class ConditionShape:
    """The shapes of an encoder's output: for each field of `Condition` its shape without the batch, or None."""

    vector: tuple[int] | None = None
    tokens: tuple[int, int] | None = None

    def given(self) -> dict[str, tuple[int, ...]]:
        """The fields that are not None: name -> shape."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}

    def of(self, field: str) -> tuple[int, ...]:
        """The shape of a field.

        Raises:
            NotGivenError: the encoder does not return this field.
        """
        shape = self.given().get(field)
        if shape is None:
            raise NotGivenError(field)
        return shape

    def null(self, names: tuple[str, ...]) -> nn.ParameterDict:
        """Learned values that stand for a missing observation: one parameter for each named field, initialised to zero.

        Raises:
            NotGivenError: the encoder does not return a field.
        """
        return nn.ParameterDict({name: nn.Parameter(torch.zeros(self.of(name))) for name in names})


@dataclass(frozen=True)
class Condition:
    """The condition of a batch; a backbone takes the fields that its `reads` names.

    Attributes:
        vector: [B, D].
        tokens: [B, N, E].
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None

    @classmethod
    def null(cls, parameters: nn.ParameterDict, batch: int) -> "Condition":
        """The condition that stands for a missing observation, from the parameters of `ConditionShape.null`."""
        return cls(**{name: value.expand(batch, *value.shape) for name, value in parameters.items()})

    def fields(self, names: tuple[str, ...]) -> list[Tensor]:
        """The fields with these names, in order.

        Raises:
            NotGivenError: a field is None.
        """
        found = [getattr(self, name) for name in names]
        if missing := [name for name, value in zip(names, found, strict=True) if value is None]:
            raise NotGivenError(missing[0])
        return found

    def only(self, names: tuple[str, ...]) -> "Condition":
        """A copy without the other fields; raises NotGivenError as `fields`."""
        return Condition(**dict(zip(names, self.fields(names), strict=True)))

    def mixed(self, mask: Tensor, other: "Condition") -> "Condition":
        """A copy in which the rows where `mask` [B] is true come from `other`."""

        def mix(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (own.dim() - 1)), others, own)

        return Condition(**{name: mix(own, getattr(other, name)) for name, own in self._given().items()})

    def repeated(self, copies: int) -> "Condition":
        """The whole batch repeated `copies` times: [copies * B, ...]."""
        return Condition(**{name: own.repeat(copies, *[1] * (own.dim() - 1)) for name, own in self._given().items()})

    def _given(self) -> dict[str, Tensor]:
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}
