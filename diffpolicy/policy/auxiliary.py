"""What else the encoder is taught in training: linear heads predict other arrays of the data from its features.

Shape legend: B batch, T observation steps, F features of a step, D values of an array in a step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from diffpolicy.codecs.codec import DataArray
from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.protocols import Encoder


class Auxiliary(nn.Module):
    """Heads that only training needs: they are part of the training state and not of a checkpoint to act with.

    Args:
        features: F.
        arrays: name -> values of all demonstrations [rows, D], which fit the normalisation to [-1, 1].
        weights: name -> weight of its mean squared error in the loss.
    """

    def __init__(self, features: int, arrays: Mapping[str, DataArray], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.names: Sequence[str] = sorted(weights)
        self._weights = [weights[name] for name in self.names]
        sizes = [int(arrays[name].shape[1]) for name in self.names]
        normalizers = [Normalizer(size) for size in sizes]
        for name, normalizer in zip(self.names, normalizers, strict=True):
            normalizer.fit(arrays[name])
        self.normalizers: Any = nn.ModuleList(normalizers)
        self.heads: Any = nn.ModuleList(nn.Linear(features, size) for size in sizes)

    @classmethod
    def of(cls, encoder: Encoder, arrays: Mapping[str, DataArray], weights: Mapping[str, float]) -> "Auxiliary":
        """Heads on the features of `encoder`, to be assigned to `policy.auxiliary` before training.

        Raises:
            ValueError: it has no features of each step that could be taught, or an array does not fit.
        """
        if not hasattr(encoder, "frames"):
            raise ValueError(
                f"data: auxiliary needs an encoder with features of each frame (frames and joined), such as "
                f"encoder=resnet18_narrow; {type(encoder).__name__} has none"
            )
        return cls(encoder.output.of("tokens")[1], arrays, weights)

    def forward(self, features: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the heads' mean squared errors, a scalar.

        Args:
            features: of the encoder, [B, T, F].
            targets: name -> values at the same steps, [B, T, D], in physical units.
        """
        loss = features.new_zeros(())
        parts = zip(self.names, self._weights, self.heads, self.normalizers, strict=True)
        for name, weight, head, normalizer in parts:
            loss = loss + weight * (head(features) - normalizer.encode(targets[name])).square().mean()
        return loss


def encoded(
    encoder: Any, observation: Mapping[str, Tensor], heads: Auxiliary | None, targets: Mapping[str, Tensor] | None
) -> tuple[Condition, Tensor | None]:
    """The condition of an observation, and the loss of the heads, if there are any and they are given targets."""
    if heads is None or targets is None:
        return encoder(observation), None
    features = encoder.frames(observation)
    return encoder.joined(features), heads(features, targets)
