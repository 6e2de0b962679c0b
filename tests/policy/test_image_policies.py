"""A policy that sees images trains and acts as one that sees vectors, with every encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.control.row_check import has_independent_rows
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy.auxiliary import Auxiliary
from diffpolicy.policy.build import ENCODERS
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.checkpoint import read_config, read_tensors

SEES = {"camera": ObservationSpec("image", (48, 48, 3)), "state": vector(2)}
OF_IMAGES = sorted(set(ENCODERS) - {"low_dim"})
WINDOW = WindowConfig(horizon=8, n_obs_steps=2, n_action_steps=4)


def make_policy(encoder: Any = "resnet18_narrow", **settings: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    model = UNet1dConfig(widths=[16, 32], time_embedding_dim=16)
    policy = DiffusionPolicy(PolicyConfig(SEES, 2, window=WINDOW, model=model, encoder=encoder, **settings))
    share = torch.linspace(0.0, 1.0, 20)[:, None].expand(-1, 2)
    policy.fit({"state": share}, 10.0 * share)
    return policy


def seen(batch: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (batch, 2, 48, 48, 3), generator=generator, dtype=torch.uint8)
    return {"camera": image, "state": torch.rand(batch, 2, 2, generator=generator)}


def generators(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(batch)]


def loss(policy: DiffusionPolicy, rows: slice = slice(None), part: tuple[int, int] = (0, 1), **more: Any) -> Tensor:
    observations = {key: value[rows] for key, value in seen(8).items()}
    actions = 10.0 * torch.rand(8, 8, 2, generator=torch.Generator().manual_seed(1))[rows]
    return policy.loss(observations, actions, torch.Generator().manual_seed(2), part, **more)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_loss_reaches_every_weight_of_the_encoder(name: str) -> None:
    policy = make_policy({"name": name, "crop": 1.0})
    loss(policy).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in policy.encoder.parameters())


def test_a_policy_learns_what_only_its_camera_shows() -> None:
    policy = make_policy()
    side = torch.arange(8) % 2  # the action is where the light is
    camera = torch.zeros(8, 2, 48, 48, 3, dtype=torch.uint8)
    camera[side == 0, :, :, :24], camera[side == 1, :, :, 24:] = 255, 255
    observation = {"camera": camera, "state": torch.zeros(8, 2, 2)}
    actions = (1.0 + 8.0 * side).view(-1, 1, 1).expand(-1, 8, 2).float()
    optimizer = torch.optim.AdamW(policy.parameter_groups(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        policy.loss(observation, actions, generator).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    plans = policy.eval().predict_action_chunk({k: v[:2] for k, v in observation.items()}, generators(2)).plan
    assert plans[0].mean() < 4.0 < 6.0 < plans[1].mean()


def test_images_are_augmented_in_training_mode_only() -> None:
    policy = make_policy()
    training = [loss(policy.train()), loss(policy.train())]
    acting = [loss(policy.eval()), loss(policy.eval())]
    assert torch.equal(training[0], training[1]), "a function of the generator"
    assert torch.equal(acting[0], acting[1])
    assert not torch.equal(training[0], acting[0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_losses_of_two_halves_are_the_loss_of_the_whole(dropout: float) -> None:
    light = {"name": "resnet18_narrow", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
    policy = make_policy(light, diffusion={"name": "denoising", "condition_dropout": dropout})
    halves = [loss(policy, slice(4 * index, 4 * index + 4), (index, 2)) for index in (0, 1)]
    assert_close((halves[0] + halves[1]) / 2, loss(policy), rtol=1e-5, atol=0)  # sums in another order, in float32


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_controller_acts_bit_by_bit_as_the_policy_plans(name: str) -> None:
    policy = make_policy({"name": name, "crop": 1.0}).eval()
    frames, controller = seen(3), PolicyController(policy)
    same = {key: value[:, :1].expand_as(value).clone() for key, value in frames.items()}  # repeat the first one
    expected = policy.predict_action_chunk(same, generators(3)).actions.numpy()
    controller.reset(seeds=[0, 1, 2])
    acted = [controller.select_action({key: value[:, 0].numpy() for key, value in frames.items()}) for _ in range(4)]
    np.testing.assert_array_equal(np.stack(acted, axis=1), expected)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_plan_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    assert has_independent_rows(make_policy({"name": name, "crop": 1.0}).eval(), 16)


def test_heads_teach_the_encoder_in_training_and_are_not_in_what_acts(tmp_path: Path) -> None:
    policy = make_policy()
    arrays = {"keypoint": torch.rand(20, 3) * 100.0, "angle": torch.rand(20, 1)}
    policy.auxiliary = Auxiliary.of(policy.encoder, arrays, {"keypoint": 0.1, "angle": 2.0})
    targets = {"keypoint": torch.rand(8, 2, 3) * 100.0, "angle": torch.rand(8, 2, 1)}
    policy.eval()  # no crops: the features can be computed again
    features = policy.encoder.frames({**seen(8), "state": policy.normalizers[0].encode(seen(8)["state"])})
    expected = loss(policy)
    for name, weight in (("angle", 2.0), ("keypoint", 0.1)):
        index = list(policy.auxiliary.names).index(name)
        low, high = arrays[name].amin(0), arrays[name].amax(0)
        wanted = 2.0 * (targets[name] - low) / (high - low) - 1.0
        expected = expected + weight * (policy.auxiliary.heads[index](features) - wanted).square().mean()
    found = loss(policy, auxiliary=targets)
    assert_close(found, expected, rtol=1e-5, atol=0)  # sums in another order, in float32
    found.backward()
    grouped = [id(one) for group in policy.parameter_groups() for one in group["params"]]
    assert sorted(grouped) == sorted(map(id, policy.parameters())), "each in one group"
    policy.save_pretrained(tmp_path / "saved")
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "saved")
    assert loaded.auxiliary is None
    assert not any(name.startswith("auxiliary") for name in loaded.state_dict())
    chunks = [one.predict_action_chunk(seen(1), generators(1)).plan for one in (policy, loaded)]
    assert torch.equal(chunks[0], chunks[1])


def test_an_encoder_without_features_of_frames_cannot_be_taught() -> None:
    policy = DiffusionPolicy(PolicyConfig({"state": 2}, 2))
    with pytest.raises(ValueError, match=r"auxiliary needs an encoder with features of each frame.*LowDimEncoder"):
        Auxiliary.of(policy.encoder, {"angle": torch.rand(5, 1)}, {"angle": 1.0})


def test_a_checkpoint_does_not_need_the_published_weights_again(tmp_path: Path) -> None:
    torch.manual_seed(5)
    path = tmp_path / "resnet18.safetensors"
    published = make_policy("resnet18").encoder.eyes[0].state_dict()
    safetensors.torch.save_file({name: value.contiguous() for name, value in published.items()}, path)
    policy = make_policy({"name": "resnet18", "weights": str(path)})
    policy.encoder.eyes[0].load_weights()
    policy.save_pretrained(tmp_path / "saved")
    path.unlink()
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "saved")
    assert loaded.config.encoder.weights == str(path)
    plans = [one.eval().predict_action_chunk(seen(1), generators(1)).plan for one in (policy, loaded)]
    assert torch.equal(plans[0], plans[1])


def test_weights_stored_as_float16_take_half_the_space_and_are_float32_again(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save_pretrained(tmp_path / "float32")
    policy.save_pretrained(tmp_path / "float16", dtype="float16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float16", "float32")]
    assert sizes[0] < 0.51 * sizes[1]
    assert read_config(tmp_path / "float16")["weights"] == "float16"
    assert "weights" not in read_config(tmp_path / "float32")
    loaded, exact = (DiffusionPolicy.from_pretrained(tmp_path / name) for name in ("float16", "float32"))
    parameters = dict(policy.named_parameters())
    for name, value in loaded.state_dict().items():
        expected = exact.state_dict()[name]
        rounded = expected.half().float() if name in parameters else expected
        assert value.dtype == expected.dtype
        assert torch.equal(value, rounded), name
    loaded.save_pretrained(tmp_path / "again")  # in float32, without a trace of float16
    assert read_config(tmp_path / "again").get("weights") is None
    assert "weights" not in loaded.metadata


def test_weights_that_float16_cannot_hold_and_other_types_are_refused(tmp_path: Path) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="save_pretrained: dtype 'int8' must be one of float32, float16"):
        policy.save_pretrained(tmp_path / "bad", dtype="int8")
    policy.encoder.eyes[0].head.bias.data[0] = 1e5
    with pytest.raises(ValueError, match=r"head.bias holds 1e\+05, and float16 ends at 65504"):
        policy.save_pretrained(tmp_path / "bad", dtype="float16")
    assert not (tmp_path / "bad").exists()
    policy.save_pretrained(tmp_path / "good")
    assert read_tensors(tmp_path / "good", "model")["encoder.eyes.0.head.bias"][0] == 1e5


@pytest.mark.parametrize("name", ["regression", "two_step_regression", "mixture_density", "variational"])
def test_a_baseline_learns_from_images_and_acts(name: str) -> None:
    policy = make_policy(diffusion=name)
    loss(policy).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in policy.encoder.parameters())
    plans = policy.eval().predict_action_chunk(seen(2), generators(2)).plan
    assert (plans[0] - plans[1]).abs().max() > 1e-4, "the observations differ"
