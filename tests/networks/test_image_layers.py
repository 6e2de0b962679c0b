"""Crops, light and pooling of images against their definitions."""

import pytest
import torch
from one_case import over
from torch.testing import assert_close

from diffpolicy.networks.encoders.imagenet import MEAN, STD, ImageNetColours
from diffpolicy.networks.layers.crops import centre_crop, crop_size, random_crop
from diffpolicy.networks.layers.photometric import LUMA, jittered
from diffpolicy.networks.layers.pooling import AveragePool, SpatialSoftmax


def images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@over(
    "size, fraction, expected",
    [((96, 96), 0.875, (84, 84)), ((96, 128), 0.5, (48, 64)), ((7, 9), 1.0, (7, 9)), ((3, 3), 1e-6, (1, 1))],
)
def test_a_crop_keeps_a_part_of_each_side(size, fraction: float, expected) -> None:
    assert crop_size(size, fraction) == expected


@pytest.mark.parametrize("is_contiguous", [True, False])
def test_a_random_crop_is_a_slice_at_one_place_for_all_steps_of_a_row(is_contiguous: bool) -> None:
    seen = images(4, 3, 9, 11, 3) if is_contiguous else images(4, 3, 11, 9, 3).transpose(2, 3)
    draws = torch.tensor([[0.0, 0.0], [1.0 - 2**-24, 1.0 - 2**-24], [0.5, 0.0], [0.26, 0.76]])
    found = random_crop(seen, (6, 8), draws)
    for row, (top, left) in enumerate([(0, 0), (3, 3), (2, 0), (1, 3)]):
        assert torch.equal(found[row], seen[row, :, top : top + 6, left : left + 8])


def test_a_random_crop_reaches_every_place_about_equally_often() -> None:
    places = torch.arange(5 * 6, dtype=torch.uint8).view(1, 1, 5, 6, 1).expand(6000, 1, -1, -1, -1)
    draws = torch.rand(6000, 2, generator=torch.Generator().manual_seed(0))
    counts = random_crop(places, (4, 4), draws).flatten(1)[:, 0].bincount(minlength=30)
    expected = torch.zeros(30)
    expected[[0, 1, 2, 6, 7, 8]] = 1000.0
    assert_close(counts.float(), expected, rtol=0, atol=150.0)  # five standard deviations


def test_the_whole_image_and_its_centre_can_be_cropped() -> None:
    seen = images(2, 1, 9, 12, 3)
    assert torch.equal(random_crop(seen, (9, 12), torch.rand(2, 2)), seen)
    assert torch.equal(centre_crop(seen, (9, 12)), seen)
    assert torch.equal(centre_crop(seen, (6, 8)), seen[:, :, 1:7, 2:10])


def test_light_changes_as_defined_and_alike_for_all_steps_of_a_row() -> None:
    seen = images(3, 2, 5, 6, 3)
    draws = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jittered(seen, (0.0, 0.0, 0.0), draws), seen)
    found = jittered(seen, (0.4, 0.3, 0.2), draws)
    for row in range(3):
        factor = 1.0 + torch.tensor([0.4, 0.3, 0.2]) * (2.0 * draws[row] - 1.0)
        for step in range(2):
            bright = seen[row, step].double() * factor[0].double()
            grey = bright @ torch.tensor(LUMA).double()
            contrast = grey.mean() + factor[1] * (bright - grey.mean())
            grey = (contrast @ torch.tensor(LUMA).double())[..., None]
            expected = (grey + factor[2] * (contrast - grey)).round().clamp(0, 255)
            assert_close(found[row, step].double(), expected, rtol=0, atol=1.0)  # halves may round either way


def test_spatial_softmax_gives_the_mean_place_of_each_map() -> None:
    torch.manual_seed(0)
    layer, x = SpatialSoftmax(8, 5).double(), torch.randn(3, 8, 4, 6).double()
    found = layer(x)
    assert found.shape == (3, layer.features) == (3, 10)
    maps = torch.einsum("kc,nchw->nkhw", layer.maps.weight[:, :, 0, 0], x) + layer.maps.bias[:, None, None]
    for image in range(3):
        for keypoint in range(5):
            chance = maps[image, keypoint].exp() / maps[image, keypoint].exp().sum()
            across = sum(chance[:, i].sum() * (-1 + 2 * i / 5) for i in range(6))
            down = sum(chance[i].sum() * (-1 + 2 * i / 3) for i in range(4))
            assert_close(found[image, 2 * keypoint], across, rtol=0, atol=1e-12)
            assert_close(found[image, 2 * keypoint + 1], down, rtol=0, atol=1e-12)
    assert_close(AveragePool(8)(x), x.flatten(2).mean(-1), rtol=0, atol=1e-12)


def test_a_bright_spot_is_where_spatial_softmax_says() -> None:
    layer = SpatialSoftmax(1, 1)
    torch.nn.init.constant_(layer.maps.weight, 100.0)
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 0, 4] = 1.0  # above and right
    assert_close(layer(x), torch.tensor([[1.0, -1.0]]), rtol=0, atol=1e-6)


def test_colours_are_standardised_as_the_published_weights_expect() -> None:
    unit = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    assert_close(ImageNetColours()(2.0 * unit - 1.0), (unit - mean) / std, rtol=0, atol=1e-5)
