"""The U-Net: the published one, name by name and number by number."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffpolicy.networks.backbones.unet1d import UNet1d
from diffpolicy.networks.backbones.unet1d_sampling import at_moments
from diffpolicy.networks.protocols import Moment

LEVELS = 3


def published_shapes(
    widths: tuple[int, ...], embedding: int, observations: int, kernel: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Diffusion Policy's ConditionalUnet1D (global conditioning, FiLM scale)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, weight: tuple[int, ...], bias: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (bias,)

    def block(name: str, i: int, o: int) -> None:
        for k, channels in enumerate((i, o)):
            layer(f"{name}.blocks.{k}.block.0", (o, channels, kernel), o)
            layer(f"{name}.blocks.{k}.block.1", (o,), o)
        layer(f"{name}.cond_encoder.1", (2 * o, embedding + observations), 2 * o)
        if i != o:
            layer(f"{name}.residual_conv", (o, i, 1), o)

    layer("diffusion_step_encoder.1", (4 * embedding, embedding), 4 * embedding)
    layer("diffusion_step_encoder.3", (embedding, 4 * embedding), embedding)
    sizes = [2, *widths]
    for level in range(LEVELS):
        block(f"down_modules.{level}.0", sizes[level], sizes[level + 1])
        block(f"down_modules.{level}.1", sizes[level + 1], sizes[level + 1])
        if level < LEVELS - 1:
            layer(f"down_modules.{level}.2.conv", (widths[level], widths[level], 3), widths[level])
    for k in range(2):
        block(f"mid_modules.{k}", widths[-1], widths[-1])
    for level, (o, i) in enumerate(zip(widths[-2::-1], widths[:0:-1], strict=True)):
        block(f"up_modules.{level}.0", 2 * i, o)
        block(f"up_modules.{level}.1", o, o)
        layer(f"up_modules.{level}.2.conv", (o, o, 4), o)
    layer("final_conv.0.block.0", (widths[0], widths[0], kernel), widths[0])
    layer("final_conv.0.block.1", (widths[0],), widths[0])
    layer("final_conv.1", (2, widths[0], 1), 2)
    return shapes


def published_name(name: str) -> str:
    """Our parameter's name in the published network."""
    for ours, theirs in [
        ("time_encoder.", "diffusion_step_encoder."),
        ("middle.first.", "mid_modules.0."),
        ("middle.second.", "mid_modules.1."),
        ("head.0.0.", "final_conv.0.block.0."),
        ("head.0.1.", "final_conv.0.block.1."),
        ("head.1.", "final_conv.1."),
    ]:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
    part, _, rest = name.partition(".")
    if part in ("shrink", "grow"):
        level, _, rest = rest.partition(".")
        name = f"{'down' if part == 'shrink' else 'up'}_modules.{level}.2.conv.{rest}"
    if part in ("down", "up"):
        name = (
            f"{part}_modules.{rest}".replace(".first.", ".0.", 1)
            if ".first." in _head(rest)
            else f"{part}_modules.{rest}".replace(".second.", ".1.", 1)
        )
    name = name.replace(".first.", ".blocks.0.block.").replace(".second.", ".blocks.1.block.")
    return name.replace(".film.1.", ".cond_encoder.1.").replace(".residual.", ".residual_conv.")


def _head(rest: str) -> str:
    return ".".join(rest.split(".")[:2]) + "."


@pytest.mark.parametrize(
    ("widths", "embedding", "parameters"), [((256, 512, 1024), 256, 65_783_298), ((32, 64, 128), 128, 1_393_314)]
)
def test_the_published_networks_weights_map_onto_ours(widths: tuple[int, ...], embedding: int, parameters: int) -> None:
    with torch.device("meta"):
        network = UNet1d(2, 40, widths, embedding)
    ours = {published_name(name): tuple(value.shape) for name, value in network.state_dict().items()}
    assert ours == published_shapes(widths, embedding, observations=40, kernel=5)
    assert sum(value.numel() for value in network.parameters()) == parameters


class Published:
    """The forward pass of Diffusion Policy's ConditionalUnet1D on a dict of weights under their published names."""

    def __init__(self, weights: dict[str, Tensor], groups: int = 8, film_scale: bool = True) -> None:
        self.weights, self.groups, self.film_scale = weights, groups, film_scale

    def layer(self, function, name: str, *inputs, **options) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return function(*inputs, weight=weight, bias=bias, **options)

    def forward(self, x: Tensor, time: Tensor, observation: Tensor) -> Tensor:
        condition = torch.cat([self.embedded(time), observation], dim=1)
        x = x.permute(0, 2, 1)
        skips = []
        for level in range(LEVELS):
            x = self.two_blocks(f"down_modules.{level}", x, condition)
            skips.append(x)
            if level < LEVELS - 1:
                x = self.layer(F.conv1d, f"down_modules.{level}.2.conv", x, stride=2, padding=1)
        x = self.two_blocks("mid_modules", x, condition)
        for level in range(LEVELS - 1):
            x = torch.cat((x, skips[LEVELS - 1 - level]), dim=1)
            x = self.two_blocks(f"up_modules.{level}", x, condition)
            x = self.layer(F.conv_transpose1d, f"up_modules.{level}.2.conv", x, stride=2, padding=1)
        x = self.layer(F.conv1d, "final_conv.1", self.conv_block("final_conv.0", x, groups=8))  # whatever n_groups is
        return x.permute(0, 2, 1)

    def embedded(self, time: Tensor) -> Tensor:
        name = "diffusion_step_encoder"
        half = self.weights[f"{name}.1.weight"].shape[1] // 2
        powers = torch.arange(half, dtype=torch.float64) / (half - 1)
        angles = time.outer((10_000.0**-powers).float().double())  # the published frequencies are float32
        hidden = F.mish(self.layer(F.linear, f"{name}.1", torch.cat((angles.sin(), angles.cos()), dim=1)))
        return self.layer(F.linear, f"{name}.3", hidden)

    def two_blocks(self, name: str, x: Tensor, condition: Tensor) -> Tensor:
        return self.residual_block(f"{name}.1", self.residual_block(f"{name}.0", x, condition), condition)

    def residual_block(self, name: str, x: Tensor, condition: Tensor) -> Tensor:
        out = self.conv_block(f"{name}.blocks.0", x)
        film = self.layer(F.linear, f"{name}.cond_encoder.1", F.mish(condition)).reshape(len(x), -1, out.shape[1], 1)
        scale, bias = film[:, 0] if self.film_scale else 1.0, film[:, -1]
        out = self.conv_block(f"{name}.blocks.1", scale * out + bias)
        is_projected = f"{name}.residual_conv.weight" in self.weights
        return out + (self.layer(F.conv1d, f"{name}.residual_conv", x) if is_projected else x)

    def conv_block(self, name: str, x: Tensor, groups: int | None = None) -> Tensor:
        padding = self.weights[f"{name}.block.0.weight"].shape[2] // 2
        out = self.layer(F.conv1d, f"{name}.block.0", x, padding=padding)
        return F.mish(self.layer(F.group_norm, f"{name}.block.1", out, num_groups=groups or self.groups))


@pytest.mark.parametrize("batch", [3, 64])  # from 64 on, the library's own kernels
@pytest.mark.parametrize(
    ("widths", "kernel", "groups", "film_scale"),
    [((16, 32, 64), 5, 8, True), ((24, 8, 40), 3, 8, True), ((16, 32, 64), 5, 4, True), ((16, 32, 64), 5, 16, False)],
)
def test_the_output_is_the_published_networks(
    batch: int, widths: tuple[int, ...], kernel: int, groups: int, film_scale: bool
) -> None:
    """Also with its n_groups, which its last block ignores, and without its cond_predict_scale."""
    torch.manual_seed(0)
    network = UNet1d(2, 6, widths, 16, kernel, groups, head_groups=8, film_scale=film_scale).double()
    with torch.no_grad():
        for parameter in network.parameters():  # no scale of 1 or bias of 0 that would hide a missing one
            parameter += 0.1 * torch.randn_like(parameter)
    x, condition = torch.randn(batch, 16, 2).double(), torch.randn(batch, 6).double()
    time = torch.linspace(0, 99, batch, dtype=torch.float64)
    weights = {published_name(name): value for name, value in network.state_dict().items()}
    published = Published(weights, groups, film_scale)
    found, expected = network(x, time, condition), published.forward(x, time, condition)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)  # float64 rounding through 25 layers
    with torch.inference_mode():
        unrolled = at_moments(network, condition[:1], [Moment(0.0)], 16)(x[:1], Moment(0.0))
    torch.testing.assert_close(unrolled, expected[:1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("length", [10, 14, 2])
def test_a_length_that_cannot_be_halved_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"unet1d: horizon {length} must be divisible by 4 \(2 down-samplings\)"):
        UNet1d(2, 6, (16, 32, 64), 16)(torch.zeros(1, length, 2), torch.zeros(1), torch.zeros(1, 6))


def test_output_has_the_shape_of_the_input_and_depends_on_all_of_it() -> None:
    torch.manual_seed(0)
    network = UNet1d(2, 6, (16, 32, 64), 16)
    x, time, condition = torch.randn(3, 16, 2), torch.tensor([3.0, 50.0, 99.0]), torch.randn(3, 6)
    output = network(x, time, condition)
    assert output.shape == x.shape
    for changed in (
        network(x + 0.1, time, condition),
        network(x, time + 1, condition),
        network(x, time, condition + 0.1),
    ):
        assert (changed - output).abs().amax(dim=(1, 2)).min() > 1e-4


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    network = UNet1d(2, 6, (16, 32), 16)
    x, time, condition = torch.randn(4, 8, 2), torch.rand(4) * 100, torch.randn(4, 6)
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1], condition[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, time, condition), alone, rtol=1e-5, atol=1e-5)  # float32, another batch size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (32,)}, "at least two levels"),
        ({"widths": (32, 60)}, "width 60 must be a positive multiple of groups 8"),
        ({"kernel_size": 4}, "kernel_size 4 must be odd"),
        ({"time_embedding_dim": 7}, "time_embedding_dim 7 must be even"),
        ({"head_groups": 7}, "head_groups 7 must divide the first width 256"),
    ],
)
def test_impossible_shapes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet1d(2, 6, **arguments)
