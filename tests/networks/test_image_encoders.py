"""The encoders of images: ResNet-18 against its definition, published weights, cameras, precision and refusals."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from one_case import over
from torch import Tensor
from torch.testing import assert_close

from diffpolicy.networks.encoders.images import ImageEncoder
from diffpolicy.networks.encoders.resnet import Resnet, ResnetConfig
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy.build import ENCODERS
from diffpolicy.system.tables import made

CAMERA = ObservationSpec("image", (64, 48, 3))
SEES = {"above": CAMERA, "state": vector(2), "wrist": CAMERA}
OF_IMAGES = sorted(set(ENCODERS) - {"low_dim"})


def encoder(name: str = "resnet18_narrow", specs: Any = None, **settings: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return made(ENCODERS, "encoder", {"name": name, **settings}, specs or SEES, 2)


def seen(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (2, batch, 2, *CAMERA.shape), dtype=torch.uint8, generator=generator)
    return {"above": image[0], "state": torch.randn(batch, 2, 2, generator=generator), "wrist": image[1]}


def reference(x: Tensor, weights: dict[str, Tensor], groups_of: int) -> Tensor:
    """The maps of ResNet-18 as in torchvision's code, with group normalisation, from its named weights."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, max(1, x.shape[1] // groups_of), weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], stride=2, padding=3), "norm1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            hidden = F.conv2d(x, weights[f"{at}.conv1.weight"], stride=stride, padding=1)
            hidden = F.relu(norm(hidden, f"{at}.norm1"))
            hidden = norm(F.conv2d(hidden, weights[f"{at}.conv2.weight"], padding=1), f"{at}.norm2")
            if stride == 2:
                x = norm(F.conv2d(x, weights[f"{at}.downsample.0.weight"], stride=2), f"{at}.downsample.1")
            x = F.relu(hidden + x)
    return x


@pytest.mark.parametrize(("width", "pool"), [(16, "keypoints"), (64, "average")])
def test_resnet18_is_the_published_network(width: int, pool: str) -> None:
    torch.manual_seed(0)
    network = Resnet(3, (70, 84), width, ResnetConfig(pool=pool)).double()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # norms begin with ones and zeros
    x = torch.rand(2, 3, 70, 84, dtype=torch.float64)
    weights = dict(network.named_parameters())
    maps = reference(x, weights, groups_of=16)
    assert maps.shape == (2, 8 * width, 3, 3)
    pooled = network.pool(maps)
    expected = F.relu(F.linear(pooled, weights["head.weight"], weights["head.bias"]))
    assert_close(network(x), expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(one.square().sum(), network.conv1.weight)[0] for one in (network(x), expected)]
    assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-8)


def test_published_weights_start_the_convolutions_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = encoder("resnet18").eyes[0]
    published = {name: value for name, value in expected.state_dict().items() if "norm" not in name}
    published |= {"fc.weight": torch.zeros(1000, 512), "bn1.running_mean": torch.zeros(64)}
    path = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file({name: 2.0 * value.contiguous() for name, value in published.items()}, path)
    network = encoder("resnet18", weights=str(path)).eyes[0]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_weights()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 20, "torchvision's resnet18 has 20 convolutions"
    for name in changed:
        assert_close(network.state_dict()[name], 2.0 * expected.state_dict()[name], rtol=0, atol=0)
    assert not any(name.startswith(("pool", "head")) for name in changed)


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights 'resnet18.pth' must be .* a .safetensors file.*save_file"):
        encoder("resnet18", weights="resnet18.pth")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        encoder("resnet18", weights=str(tmp_path / "none.safetensors")).eyes[0].load_weights()
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"lack layer1.0.conv1.weight.*expected the names of torchvision's resnet18"):
        encoder("resnet18", weights=str(path)).eyes[0].load_weights()
    own = {name: value.contiguous() for name, value in encoder("resnet18").eyes[0].state_dict().items()}
    safetensors.torch.save_file({**own, "conv1.weight": torch.zeros(8, 3, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"conv1.weight is \[8, 3, 7, 7\], expected \[64, 3, 7, 7\]"):
        encoder("resnet18", weights=str(path)).eyes[0].load_weights()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="are damaged"):
        encoder("resnet18", weights=str(path)).eyes[0].load_weights()


@pytest.mark.parametrize("shared", [False, True])
def test_each_camera_has_its_network_or_all_share_one(shared: bool) -> None:
    several = encoder(shared=shared)
    assert len(several.eyes) == (1 if shared else 2)
    observation = seen()
    same = {**observation, "wrist": observation["above"]}
    features = several.frames(same)
    assert torch.equal(features[..., 64:66], same["state"]), "vectors pass, keys in alphabetical order"
    assert torch.equal(features[..., :64], features[..., 66:]) == shared


def test_the_centre_is_seen_unless_a_crop_was_drawn() -> None:
    network, observation = encoder(), seen()
    height, width = network.crops["above"]
    assert (height, width) == (56, 42)
    by_hand = {**observation, "above": observation["above"][:, :, 4:60, 3:45]}
    by_hand["wrist"] = observation["wrist"][:, :, 4:60, 3:45]
    assert torch.equal(network(observation).vector, network(by_hand).vector)
    drawn = network.augmented(observation, torch.Generator().manual_seed(0))
    assert drawn["above"].shape == (2, 2, 56, 42, 3)
    assert drawn["above"].dtype == torch.uint8
    assert drawn["state"] is observation["state"]
    assert not torch.equal(network(drawn).vector, network(observation).vector)


def test_light_changes_where_settings_say() -> None:
    observation = {**seen(), "above": torch.full((2, 2, *CAMERA.shape), 100, dtype=torch.uint8)}
    plain, bright = (encoder(brightness=b).augmented(observation, torch.Generator()) for b in (0.0, 0.5))
    assert plain["above"].unique().tolist() == [100]
    assert len(bright["above"].unique()) == 2, "each row has its own light"


@pytest.mark.parametrize("name", OF_IMAGES)
def test_bfloat16_inside_the_encoder_is_close_to_float32_and_gives_float32(name: str) -> None:
    specs, observation = {"camera": ObservationSpec("image", (96, 96, 3))}, torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 2, 96, 96, 3), dtype=torch.uint8, generator=observation)
    exact, coarse = (encoder(name, specs, precision=one)({"camera": image}).vector for one in ("float32", "bfloat16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    assert_close(coarse, exact, rtol=0, atol=0.05 * float(exact.detach().abs().max()))  # 8 bits, some 20 layers


@over(
    "settings, message",
    [
        ({"crop": 1.2}, r"encoder resnet18_narrow: crop 1.2 must be above 0 and at most 1"),
        ({"pool": "maximum"}, "pool 'maximum' must be one of keypoints, average"),
        ({"precision": "float16"}, "precision 'float16' must be one of float32, bfloat16"),
        ({"brightness": 2.0}, "brightness 2.0 must be between 0 and 1"),
        ({"crop": 0.5}, "a crop of 32 x 24 pixels leaves a single place.*encoder.pool=average"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**settings)


def test_cameras_and_patches_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"encoder vit: no image among state; choose encoder=low_dim"):
        encoder("vit", {"state": vector(2)})
    other = {**SEES, "wrist": ObservationSpec("image", (96, 96, 3))}
    assert encoder(specs=other).output.of("vector") == (2 * (64 + 2 + 64),)
    with pytest.raises(ValueError, match=r"shared needs cameras of one size.*'wrist': \[96, 96, 3\]"):
        encoder(specs=other, shared=True)
    with pytest.raises(ValueError, match="patch 8 must divide the 56 x 42 pixels of the crop"):
        encoder("vit", crop=0.875)
    with pytest.raises(ValueError, match="heads 5 must divide width 192"):
        encoder("vit", {"camera": ObservationSpec("image", (96, 96, 3))}, heads=5)
