"""Normalisers are chosen for all keys or for each; constant actions come out as recorded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from one_case import over

from diffpolicy.codecs.normalizer import NormalizerConfig, QuantilesConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.build import resolved
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig

SMALL = UNet1dConfig(widths=[8, 16], time_embedding_dim=8)
SIZES = {"pose": 2, "camera": 1}


@over(
    "choice, expected",
    [
        ("gaussian", ["gaussian", "gaussian", "gaussian"]),
        ({"name": "quantiles", "high": 0.9}, ["quantiles", "quantiles", "quantiles"]),
        ({"pose": "none", "action": {"name": "quantiles"}}, ["none", "limits", "quantiles"]),
        ({}, ["limits", "limits", "limits"]),
    ],
)
def test_a_normaliser_is_chosen_for_all_keys_or_for_each(choice: Any, expected: list[str]) -> None:
    found = resolved(PolicyConfig(SIZES, 2, normalizer=choice)).normalizer
    assert [found[key].name for key in ("pose", "camera", "action")] == expected


@over(
    "choice, message",
    [
        ("minmax", "normalizer.pose: 'minmax' is unknown, expected one of gaussian, limits, none, quantiles"),
        ({"poses": "limits"}, "there is no poses, expected some of pose, camera, action"),
        ({"pose": {"name": "limits", "low": 0.1}}, "normalizer.pose limits: has no setting low"),
        ({"pose": {"name": "limits", "range_eps": "small"}}, "range_eps is 'small', expected float"),
    ],
)
def test_what_no_normaliser_has_is_refused(choice: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(PolicyConfig(SIZES, 2, normalizer=choice))


def test_each_key_is_normalised_as_chosen_and_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    choice = {"pose": NormalizerConfig("none"), "action": QuantilesConfig(low=0.1, high=0.9)}
    policy = DiffusionPolicy(PolicyConfig(SIZES, 2, normalizer=choice, model=SMALL))
    rows = torch.linspace(0.0, 1.0, 101)[:, None]
    policy.fit({"pose": 7.0 * rows.expand(-1, 2), "camera": 7.0 * rows}, rows.expand(-1, 2))
    policy.save_pretrained(tmp_path / "saved")
    again = DiffusionPolicy.from_pretrained(tmp_path / "saved")
    for each in (policy, again):
        camera, pose = (module.scale for module in each.normalizers)  # in alphabetical order
        torch.testing.assert_close(pose, torch.ones(2))
        torch.testing.assert_close(camera, torch.tensor([2.0 / 7.0]))
        torch.testing.assert_close(each.codec.encode(torch.full((1, 1, 2), 0.9)), torch.ones(1, 1, 2))
    assert again.config == policy.config


@pytest.mark.parametrize("normalizer", ["limits", "gaussian", "quantiles"])
def test_a_gripper_that_never_moved_is_never_moved(normalizer: str) -> None:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig({"pose": 2}, 3, normalizer=normalizer, model=SMALL)).eval()
    rows = torch.linspace(0.0, 1.0, 100)[:, None]
    actions = torch.cat([rows, torch.full_like(rows, 0.04), 0.3 + 1e-5 * torch.rand(100, 1)], dim=1)
    policy.fit({"pose": rows.expand(-1, 2)}, actions)
    observation = {"pose": torch.zeros(1, 2, 2)}
    found = policy.predict_action_chunk(observation, [torch.Generator().manual_seed(0)], policy.sampler("ddim", 2))
    assert torch.equal(found.plan[..., 1], torch.full_like(found.plan[..., 1], 0.04))
    assert float((found.plan[..., 2] - 0.3).abs().max()) < 1.1e-5
    assert float(found.plan[..., 0].std()) > 1e-3
    lowered = policy.predict_action_chunk(
        observation,
        [torch.Generator().manual_seed(0)],
        policy.sampler("ddim", 2),
        constrain=lambda plan, row: plan.clamp(max=0.03),
    )
    assert float(lowered.actions.max()) <= 0.03, "a constraint still has the last word"
