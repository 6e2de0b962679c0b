"""Published ImageNet weights of convolutions: from a safetensors file, or from torchvision where it is installed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffpolicy.system import tensor_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in [0, 1]
TORCHVISION = "torchvision"


class ImageNetColours(nn.Module):
    """Standardise colours as the published weights expect: [N, 3, h, w] in [-1, 1], channels last -> the same."""

    scale: Tensor  # [3]
    shift: Tensor  # [3]

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[3]
        rows = x.permute(0, 2, 3, 1).flatten(2)  # [N, h, w * 3]: three colours alone would be a slow inner loop
        rows = torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width))
        return rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


def check_source(source: str | None, where: str) -> None:
    """Raise ValueError unless `source` is None, "torchvision" or the name of a safetensors file."""
    if source is not None and source != TORCHVISION and not source.endswith(".safetensors"):
        raise ValueError(
            f"{where}: weights {source!r} must be null, torchvision or a .safetensors file; other files may run code "
            "when they are read. Write one with safetensors.torch.save_file(model.state_dict(), 'resnet18.safetensors')"
        )


def convolutions(source: str, expected: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The published tensors with the names and shapes of `expected`; those of other names are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torchvision is not installed.
        ValueError: the file is damaged, or tensors are missing, of another shape or not finite.
    """
    found = _of_torchvision() if source == TORCHVISION else _of_file(Path(source), where)
    if missing := sorted(set(expected) - set(found)):
        raise ValueError(
            f"{where}: weights {source} lack {', '.join(missing[:4])}; expected the names of torchvision's resnet18"
        )
    for name, own in expected.items():
        if found[name].shape != own.shape or not bool(found[name].isfinite().all()):
            shapes = f"{list(found[name].shape)}, expected {list(own.shape)}, all finite"
            raise ValueError(f"{where}: weights {source}: {name} is {shapes}")
    return {name: found[name] for name in expected}


def _of_file(path: Path, where: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{where}: weights {path}: there is no such file")
    try:
        return tensor_file.read(path, str(path))
    except ValueError as error:
        raise ValueError(f"{where}: weights {path} are damaged: {error}") from error


def _of_torchvision() -> dict[str, Tensor]:
    try:
        from torchvision.models import ResNet18_Weights, resnet18  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "encoder: weights torchvision needs the package torchvision (pip install torchvision), or give a "
            ".safetensors file"
        ) from error
    return dict(resnet18(weights=ResNet18_Weights.IMAGENET1K_V1).state_dict())
