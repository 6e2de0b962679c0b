"""Normalisation, part of the policy's state: the statistics travel with the weights."""

import torch
from torch import Tensor, nn

KINDS = ("limits", "gaussian")


class Normalizer(nn.Module):
    """normalised = scale * x + offset, per feature; [..., dim] -> [..., dim].

    `limits` maps [minimum, maximum] of the data to [-1, 1]; `gaussian` maps mean and standard deviation to 0 and 1.
    A feature that is constant in the data maps to 0 and keeps its unit: neither direction divides by zero.
    """

    scale: Tensor  # [dim]
    offset: Tensor  # [dim]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((dim,), torch.nan))
        self.register_buffer("offset", torch.full((dim,), torch.nan))

    @torch.no_grad()
    def fit(self, data: Tensor, kind: str) -> None:
        """Take the statistics of `data` [rows, dim].

        Raises:
            ValueError: no rows, a wrong dim, a value that is not finite, an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"normalizer: kind {kind!r} must be one of {', '.join(KINDS)}")
        if data.ndim != 2 or len(data) == 0 or data.shape[1] != len(self.scale):
            raise ValueError(f"normalizer: data has shape {list(data.shape)}, expected [rows >= 1, {len(self.scale)}]")
        if not bool(data.isfinite().all()):
            raise ValueError("normalizer: data has NaN or infinite values")
        data = data.double()
        low, high = data.amin(0), data.amax(0)
        if kind == "limits":
            center, radius = (high + low) / 2, (high - low) / 2
        else:
            center, radius = data.mean(0), data.std(0, correction=0)
        # Less is not variation: a millionth of a unit, or float32's resolution of the values.
        resolution = 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
        scale = torch.where(high - low <= resolution, 1.0, 1.0 / radius)
        self.scale.copy_(scale)
        self.offset.copy_(-center * scale)

    @property
    def is_fitted(self) -> bool:
        """Whether there are usable statistics; copies to the host."""
        return bool((self.scale.isfinite() & self.offset.isfinite() & (self.scale > 0)).all())

    def forward(self, x: Tensor) -> Tensor:
        """Physical units -> normalised."""
        return torch.addcmul(self.offset, x, self.scale)

    def inverse(self, normalised: Tensor) -> Tensor:
        """Normalised -> physical units."""
        return (normalised - self.offset) / self.scale
