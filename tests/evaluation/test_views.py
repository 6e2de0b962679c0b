"""Videos of a policy with cameras show what its networks see beside the scene, enlarged by whole factors."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.evaluation.evaluate import record_videos
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.evaluation.views import BACKGROUND, MARGIN, beside, views
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.encoders.resnet import ResnetConfig
from diffpolicy.networks.observation import ObservationSpec, vector

MODEL = UNet1dConfig(widths=[8, 16], time_embedding_dim=8)
Sizes = tuple[tuple[int, int], ...]


def policy_for(observations: dict[str, ObservationSpec], encoder: str | ResnetConfig) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(observations, 2, model=MODEL, encoder=encoder))
    pixels = torch.linspace(0.0, 512.0, 100)[:, None]
    dims = {key: spec.shape[0] for key, spec in observations.items() if spec.kind == "vector"}
    policy.fit({key: pixels.expand(-1, dim) for key, dim in dims.items()}, pixels.expand(-1, 2))
    return policy.eval()


def image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (*size, 3), dtype=np.uint8)


@over(
    "scene, seen, factor",
    [
        ((512, 512), ((84, 84),), 6),
        ((512, 512), ((84, 84), (60, 80)), 3),
        ((512, 512), ((512, 512),), 1),
        ((96, 96), ((84, 84),), 1),
        ((97, 131), ((31, 17), (5, 9), (6, 8)), 1),
        ((101, 51), ((7, 9),), 5),
        ((48, 64), ((84, 120),), 1),  # larger than the scene
        ((1, 1), ((3, 3),), 1),
    ],
)
def test_views_stand_beside_the_scene_in_whole_pixels(scene: tuple[int, int], seen: Sizes, factor: int) -> None:
    shown, eyes = image(scene), [image(size, seed + 1) for seed, size in enumerate(seen)]
    picture = beside(shown, eyes)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    np.testing.assert_array_equal(picture[: scene[0], : scene[1]], shown)
    rest, top = picture.copy(), 0
    rest[: scene[0], : scene[1]] = BACKGROUND
    for eye in eyes:
        there = (
            slice(top, top + factor * eye.shape[0]),
            slice(scene[1] + MARGIN, scene[1] + MARGIN + factor * eye.shape[1]),
        )
        np.testing.assert_array_equal(picture[there], np.kron(eye, np.ones((factor, factor, 1), dtype=np.uint8)))
        rest[there] = BACKGROUND
        top += factor * eye.shape[0] + MARGIN
    assert (rest == BACKGROUND).all()


def test_a_scene_without_views_is_unchanged() -> None:
    scene = image((33, 35))
    assert beside(scene, []) is scene


def test_the_view_is_the_crop_that_the_networks_see_in_the_order_of_the_keys() -> None:
    sees = {
        "wrist": ObservationSpec("image", (12, 16, 3), channels="first", values="unit"),
        "state": vector(2),
        "above": ObservationSpec("image", (8, 8, 3)),
    }
    policy = policy_for(sees, ResnetConfig(pool="average", crop=0.5))
    above, wrist = image((8, 8)), image((12, 16), 1)
    unit = np.moveaxis(wrist / np.float32(255.0), -1, 0)
    given = {"wrist": np.stack([unit, unit + 9.0]), "state": np.zeros((2, 2)), "above": np.stack([above] * 2)}
    first, second = views(policy, given)
    np.testing.assert_array_equal(first, np.stack([above[2:6, 2:6]] * 2))
    np.testing.assert_array_equal(second[0], wrist[3:9, 4:12])
    assert not second[1].any(), "what cannot be used is black"


def test_a_policy_without_cameras_has_no_views() -> None:
    assert views(policy_for({"state": vector(2)}, "low_dim"), {"state": np.zeros((1, 2))}) == []


@pytest.mark.parametrize(("render_size", "shape"), [(96, (96, 96 + MARGIN + 84)), (101, (102, 194)), (256, (256, 516))])
def test_videos_of_push_t_show_what_the_policy_sees(tmp_path: Path, render_size: int, shape: tuple[int, int]) -> None:
    sees = {"agent_pos": vector(2), "pixels": ObservationSpec("image", (96, 96, 3))}
    kwargs = {"obs_type": "pixels_agent_pos", "max_episode_steps": 2, "render_size": render_size}
    env = EnvConfig("diffpolicy_envs:diffpolicy/PushT-v0", kwargs, {"start_rule": "legacy"})
    policy = policy_for(sees, ResnetConfig(pool="average"))
    record_videos(policy, env, {"name": "ddim", "steps": 1}, [7], 1, tmp_path)
    (video,) = tmp_path.iterdir()
    assert imageio.imread(video).shape == (3, *shape, 3)
