"""Random brightness, contrast and saturation of images.

Shape legend: B batch, T time steps, H and W height and width, C channels.
"""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def jittered(images: Tensor, strengths: tuple[float, float, float], draws: Tensor) -> Tensor:
    """Images [B, T, H, W, 3] of uint8 in another light, the same for all time steps of a row.

    Brightness multiplies the image by a factor from [1 - strength, 1 + strength]. Contrast and saturation likewise
    stretch its distance from its mean grey value and from each pixel's own grey value. The result is rounded once.

    Args:
        strengths: of brightness, contrast and saturation, each 0 to 1.
        draws: uniform in [0, 1), [B, 3].
    """
    brightness, contrast, saturation = (
        (1.0 + strength * (2.0 * draw - 1.0)).view(-1, 1, 1, 1, 1)
        for strength, draw in zip(strengths, draws.unbind(dim=1), strict=True)
    )
    values = images.float() * brightness
    if strengths[1] > 0:
        mean = _grey(values).mean(dim=(2, 3), keepdim=True)
        values = torch.lerp(mean, values, contrast)
    if strengths[2] > 0:
        values = torch.lerp(_grey(values), values, saturation)
    return values.round_().clamp_(0.0, 255.0).to(torch.uint8)


def _grey(values: Tensor) -> Tensor:
    """[B, T, H, W, 3] -> [B, T, H, W, 1]."""
    red, green, blue = (values[..., channel : channel + 1] for channel in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
