"""Our policies as checkpoints of LeRobot: the files that LeRobot wrote come back, and LeRobot loads what is written."""

import json
from pathlib import Path

import peers
import pytest
import torch
from one_case import over
from safetensors.torch import load_file

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.interop import import_policy, to_lerobot
from diffpolicy.networks import ObservationSpec, UNet1dConfig
from diffpolicy.networks.observation import vector
from diffpolicy.policy.settings import WindowConfig

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
SCHEDULERS = {"ddpm": "DDPM", "ddim": "DDIM"}


FLOW = {"name": "denoising", "schedule": "flow", "parameterization": "flow"}
BACK = [name for name in peers.names("lerobot_") if name != "lerobot_shared_batch"]  # statistics of batches are folded


@over("name", BACK)
def test_what_lerobot_wrote_comes_back(name: str, tmp_path: Path) -> None:
    folder, back = peers.unpacked(name, tmp_path), tmp_path / f"{name}_back"
    policy = import_policy(folder)
    sampler = policy.metadata["imported"]["sampler"]
    to_lerobot(policy, back, scheduler=SCHEDULERS[sampler["name"]], steps=sampler["steps"])
    theirs, ours = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    weights = {key: value for key, value in theirs.items() if "normalize_" not in key}
    assert ours.keys() == weights.keys()
    assert all(ours[key].equal(value) for key, value in weights.items() if "pos_grid" not in key)
    assert all(torch.allclose(ours[key], value, atol=1e-6) for key, value in weights.items() if "pos_grid" in key)
    written, read = (json.loads((one / "config.json").read_text()) for one in (folder, back))
    free = {
        "normalization_mapping",
        "num_inference_steps",
    }  # another mode of the same scale, all steps written as a number
    assert {key: value for key, value in read.items() if key not in free} == {
        key: written[key] for key in read.keys() - free
    }
    found, again = peers.golden(folder), import_policy(back)
    assert again.metadata["imported"]["sampler"] == sampler
    theirs = peers.of_kind(found, sampler["name"].upper())
    observation = {key: found[key] for key in again.config.observations}
    assert peers.worst_of(again, observation, sampler, theirs) < peers.TOLERANCE


def small(**given: object) -> DiffusionPolicy:
    """A fitted policy whose last action feature and first position are constant."""
    model = UNet1dConfig(widths=[8, 16], time_embedding_dim=8, kernel_size=3, head_groups=8, groups=4)
    settings = {"model": model, "window": WindowConfig(8, 2, 4), "diffusion": {"name": "denoising", "num_levels": 20}}
    policy = DiffusionPolicy(PolicyConfig({"agent": 2, "blocks": 3}, 2, **{**settings, **given}))
    data = {"agent": torch.rand(50, 2) * 7, "blocks": torch.randn(50, 3)}
    actions = torch.rand(50, 2) * 9
    data["agent"][:, 0], actions[:, 1] = 3.0, 5.0
    policy.fit(data, actions)
    return policy.eval()


def test_a_policy_of_ours_acts_alike_after_the_way_there_and_back(tmp_path: Path) -> None:
    policy = small()
    to_lerobot(policy, tmp_path / "out", names={"agent": ENVIRONMENT, "blocks": STATE})
    again = import_policy(tmp_path / "out")
    seen = {"agent": torch.tensor([[[3.0, 1.0], [3.0, 2.0]]]), "blocks": torch.randn(1, 2, 3)}
    renamed = {ENVIRONMENT: seen["agent"], STATE: seen["blocks"]}
    plans = [
        one.predict_action_chunk(observed, [torch.Generator().manual_seed(0)]).plan
        for one, observed in ((policy, seen), (again, renamed))
    ]
    torch.testing.assert_close(*plans, rtol=0.0, atol=1e-4)  # the statistics are rounded once more


def seeing(**encoder: object) -> DiffusionPolicy:
    """A fitted policy with two cameras."""
    model = UNet1dConfig(widths=[8, 16], time_embedding_dim=8, kernel_size=3, head_groups=8, groups=4)
    camera = ObservationSpec("image", (40, 48, 3))
    specs = {"above": camera, "pose": vector(2), "wrist": camera}
    own = {"name": "resnet18", "crop": 1.0, "keypoints": 4, "features": 8} | encoder
    settings = {"model": model, "window": WindowConfig(8, 2, 4), "diffusion": {"name": "denoising", "num_levels": 20}}
    policy = DiffusionPolicy(PolicyConfig(specs, 2, encoder=own, **settings))
    policy.fit({"pose": torch.rand(50, 2) * 7}, torch.rand(50, 2) * 9)
    return policy.eval()


NAMES_OF_CAMERAS = {"pose": STATE, "above": "observation.images.b", "wrist": "observation.images.a"}


@over("shared", [False, True])
def test_a_policy_of_ours_with_cameras_acts_alike_after_the_way_there_and_back(shared: bool, tmp_path: Path) -> None:
    policy = seeing(shared=shared)
    to_lerobot(policy, tmp_path / f"{shared}", names=NAMES_OF_CAMERAS)
    again = import_policy(tmp_path / f"{shared}")
    assert len(again.encoder.eyes) == (1 if shared else 2)
    image = torch.randint(256, (2, 1, 2, 40, 48, 3), dtype=torch.uint8)
    seen = {"above": image[0], "pose": torch.rand(1, 2, 2), "wrist": image[1]}
    renamed = {NAMES_OF_CAMERAS[key]: value for key, value in seen.items()}
    plans = [
        one.predict_action_chunk(observed, [torch.Generator().manual_seed(0)]).plan
        for one, observed in ((policy, seen), (again, renamed))
    ]
    torch.testing.assert_close(*plans, rtol=0.0, atol=1e-4)  # colours and statistics are rounded once more


@over(
    "message, encoder, names",
    [
        ("of image encoders, LeRobot has ResNets with group normalisation", {"features": 64}, NAMES_OF_CAMERAS),
        ("of image encoders, LeRobot has", {"name": "resnet18_narrow"}, NAMES_OF_CAMERAS),
        ("a crop of .29, 35. of .40, 48. pixels", {"crop": 0.73}, NAMES_OF_CAMERAS),
        ("LeRobot needs observation.state and", {}, {**NAMES_OF_CAMERAS, "above": "above"}),
    ],
)
def test_what_lerobot_cannot_represent_of_images_is_refused(
    message: str, encoder: dict, names: dict, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        to_lerobot(seeing(**encoder), tmp_path / "out", names=names)


@over(
    "message, given",
    [
        ("LeRobot needs observation.state and observation.environment_state", {"names": None}),
        ("the last block has 4 groups, LeRobot's has 8", {"head_groups": None}),
        ("horizon 10 must be divisible by 4 in LeRobot", {"horizon": 10}),
        ("diffusion learned_variance is not exported", {"diffusion": "learned_variance"}),
        (
            "expected noise_correlation 0, found 0.9",
            {"diffusion": {"name": "denoising", "noise_correlation": 0.9}},
        ),
        ("the schedule flow and the parameterization flow are not exported", {"diffusion": FLOW}),
    ],
)
def test_what_lerobot_cannot_represent_is_refused_and_nothing_is_written(
    message: str, given: dict, tmp_path: Path
) -> None:
    model = UNet1dConfig(
        widths=[8, 16], time_embedding_dim=8, kernel_size=3, head_groups=given.get("head_groups", 8), groups=4
    )
    changed: dict = {"model": model, "window": WindowConfig(given.get("horizon", 8), 2, 4)}
    if "diffusion" in given:
        changed["diffusion"] = given["diffusion"]
    names = given.get("names", {"agent": ENVIRONMENT, "blocks": STATE})
    with pytest.raises(ValueError, match=message):
        to_lerobot(small(**changed), tmp_path / "out", names=names)
    assert list(tmp_path.iterdir()) == []


def test_lerobot_loads_what_is_written(tmp_path: Path) -> None:
    """Where LeRobot is installed: pip install --no-deps lerobot==0.4.4, and what it imports."""
    pytest.importorskip("lerobot")
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy as Theirs

    policy = small()
    to_lerobot(policy, tmp_path / "out", names={"agent": ENVIRONMENT, "blocks": STATE})
    theirs = Theirs.from_pretrained(tmp_path / "out")
    assert theirs.config.n_groups == 4
    to_lerobot(seeing(crop=0.9), tmp_path / "seeing", names=NAMES_OF_CAMERAS)
    assert list(Theirs.from_pretrained(tmp_path / "seeing").config.image_features) == [
        "observation.images.b",
        "observation.images.a",
    ]
