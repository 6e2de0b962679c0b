"""The encoder of cameras beside vectors: a network for the images, crops, and the order of the features.

Shape legend: B batch, T time steps, H and W height and width, C channels, F features of a step.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.layers.crops import centre_crop, crop_size, random_crop
from diffpolicy.networks.layers.photometric import jittered
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.system.parts import WHOLE, Part, shared_draws
from diffpolicy.system.schema import OneOf, Range

Share = Annotated[float, Range(0.0, 1.0)]
Eye = Callable[[int, tuple[int, int]], Any]
"""(channels, [height, width] of the crop) -> an `nn.Module` from pixels [N, C, h, w] in [-1, 1] to [N, `features`]."""


@dataclass
class ImageEncoderConfig:
    """What all encoders of images share.

    Attributes:
        crop: the part of each side that is seen: a random crop in training, the centre otherwise. 1 turns it off.
        shared: whether all cameras share one network; they must have the same size then.
        features: of each camera and time step.
        precision: float32, or bfloat16 inside the network for images.
        brightness, contrast, saturation: strength of random changes in training, 0 for none; see `jittered`.
    """

    name: str
    crop: Annotated[float, Range(above=0.0, most=1.0)] = 0.875  # 84 of 96 pixels
    shared: bool = False
    features: Annotated[int, Range(1, 2**16)] = 64
    precision: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0


class ImageEncoder(nn.Module):
    """Encode images by networks, and concatenate them with the vectors of the same step; an `Encoder`.

    {key: [B, T, H, W, C] of uint8, or [B, T, features]} -> vector [B, T * F] and tokens [B, T, F], views of the same
    numbers. Within a step the keys are in alphabetical order.

    Args:
        eye: builds the network for one camera, or for all that share it.

    Raises:
        ValueError: there is no image, or the sizes of cameras that share a network differ.
    """

    one: Tensor

    def __init__(
        self, own: ImageEncoderConfig, observations: Mapping[str, ObservationSpec], n_obs_steps: int, eye: Eye
    ) -> None:
        super().__init__()
        self.keys, self._own = sorted(observations), own
        self.cameras = [key for key in self.keys if observations[key].kind == "image"]
        shapes = {key: list(observations[key].shape) for key in self.cameras}
        if not shapes:
            raise ValueError(f"encoder {own.name}: no image among {', '.join(self.keys)}; choose encoder=low_dim")
        if own.shared and len(set(map(tuple, shapes.values()))) > 1:
            raise ValueError(f"encoder {own.name}: shared needs cameras of one size, not {shapes}; set shared=false")
        self.crops = {key: crop_size((shape[0], shape[1]), own.crop) for key, shape in shapes.items()}
        built = self.cameras[:1] if own.shared else self.cameras
        self.eyes = nn.ModuleList(eye(shapes[key][2], self.crops[key]) for key in built)
        vectors = sum(spec.features for spec in observations.values() if spec.kind == "vector")
        features = own.features * len(self.cameras) + vectors
        self.output = ConditionShape(vector=(n_obs_steps * features,), tokens=(n_obs_steps, features))
        self.register_buffer("one", torch.ones(()), persistent=False)  # knows the device and precision

    def forward(self, observation: Mapping[str, Tensor]) -> Condition:
        return self.joined(self.frames(observation))

    def frames(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The features of every time step, for any T: {key: [B, T, ...]} -> [B, T, F]."""
        images = list(self.views(observation).values())
        if self._own.shared:
            seen = self._seen(self.eyes[0], torch.cat(images)).chunk(len(images))
        else:
            seen = [self._seen(eye, image) for eye, image in zip(self.eyes, images, strict=True)]
        features = {**observation, **dict(zip(self.cameras, seen, strict=True))}
        return torch.cat([features[key] for key in self.keys], dim=-1)

    def views(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The centres of the images, which is what the networks see when the policy acts: {key: [B, T, h, w, C]}."""
        return {key: centre_crop(observation[key], self.crops[key]) for key in self.cameras}

    def joined(self, features: Tensor) -> Condition:
        """The condition of features [B, n_obs_steps, F]."""
        return Condition(vector=features.flatten(1), tokens=features)

    def augmented(
        self, observation: Mapping[str, Tensor], generator: torch.Generator, part: Part = WHOLE
    ) -> dict[str, Tensor]:
        """The observation with images cropped at random and in another light, for training; see `Encoder`."""
        changed: dict[str, Tensor] = {}
        strengths = (self._own.brightness, self._own.contrast, self._own.saturation)
        for key in self.cameras:
            total, rows = shared_draws(part, len(observation[key]))
            draws = torch.rand(total, 5, generator=generator, device=generator.device)[rows]
            image = random_crop(observation[key], self.crops[key], draws[:, :2])
            changed[key] = jittered(image, strengths, draws[:, 2:]) if any(strengths) else image
        return {**observation, **changed}

    def _seen(self, eye: nn.Module, images: Tensor) -> Tensor:
        """[B, T, h, w, C] of uint8 -> [B, T, features of a camera], all frames in one call."""
        with self._autocast():
            found: Tensor = eye(pixels(images.flatten(0, 1), self.one))
        return found.to(self.one.dtype).unflatten(0, images.shape[:2])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._own.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.one.device.type, dtype=torch.bfloat16)


def pixels(images: Tensor, like: Tensor) -> Tensor:
    """uint8 [N, h, w, C] -> [N, C, h, w] from -1 to 1, channels last in memory, in the precision of `like`."""
    return images.to(like.dtype).mul_(2.0 / 255.0).sub_(1.0).permute(0, 3, 1, 2)
