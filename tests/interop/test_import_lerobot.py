"""Policies of LeRobot act as ours do; the fixtures were made by LeRobot itself."""

import json
from pathlib import Path

import peers
import pytest
from one_case import over

from diffpolicy.interop import import_policy
from diffpolicy.interop.importing import read_policy
from diffpolicy.interop.reading import read_json
from diffpolicy.interop.schedulers import sampler
from diffpolicy.policy.diffusion import DiffusionPolicy

NAMES = peers.names("lerobot_")


@over("name", NAMES)
def test_the_plan_is_that_of_lerobot_at_every_step_of_ddpm_and_ddim(name: str, tmp_path: Path) -> None:
    folder = peers.unpacked(name, tmp_path)
    policy, found, config = import_policy(folder), peers.golden(folder), read_json(folder / "config.json")
    observation = {key: found[key] for key in policy.config.observations}
    for kind in ("DDPM", "DDIM"):
        theirs = peers.of_kind(found, kind)
        settings = sampler(config, kind, len(theirs["noise"]) - 1)
        assert peers.worst_of(policy, observation, settings, theirs) < peers.TOLERANCE


@over("name", NAMES)
def test_the_sampler_of_the_file_is_kept_and_the_saved_policy_acts_alike(name: str, tmp_path: Path) -> None:
    folder = peers.unpacked(name, tmp_path)
    policy, found = import_policy(folder), peers.golden(folder)
    policy.save_pretrained(tmp_path / name / "ours")
    again = DiffusionPolicy.from_pretrained(tmp_path / name / "ours")
    settings = again.metadata["imported"]["sampler"]
    theirs = peers.of_kind(found, settings["name"].upper())
    assert settings["steps"] == len(theirs["noise"]) - 1
    assert peers.worst_of(again, {key: found[key] for key in again.config.observations}, settings, theirs) < 1e-4


RENAMES = [
    {"observation.state": "agent"},
    {"observation.state": "zz", "observation.environment_state": "blocks"},
    {"observation.state": "observation.environment_state", "observation.environment_state": "observation.state"},
    {"observation.images.above": "z", "observation.state": "y", "observation.images.wrist": "x"},
]


@over("rename", RENAMES)
def test_observations_may_get_other_names_whatever_order_these_have(rename: dict, tmp_path: Path) -> None:
    for name in NAMES:
        folder = peers.unpacked(name, tmp_path)
        plain = import_policy(folder)
        if not set(rename) <= set(plain.config.observations):
            continue
        policy, found = import_policy(folder, rename=rename), peers.golden(folder)
        ours = {key: rename.get(key, key) for key in plain.config.observations}
        assert policy.config.observations == {ours[key]: spec for key, spec in plain.config.observations.items()}
        theirs = peers.of_kind(found, "DDIM")
        settings = sampler(read_json(folder / "config.json"), "DDIM", len(theirs["noise"]) - 1)
        observation = {ours[key]: found[key] for key in ours}
        assert peers.worst_of(policy, observation, settings, theirs) < peers.TOLERANCE


@over(
    "rename, message",
    [
        ({"state": "x"}, "no observation state; the policy has observation.environment_state, observation.state"),
        ({"observation.state": "observation.environment_state"}, "two observations would have the same name"),
        ({"observation.state": ""}, "needs a name of at least one letter"),
    ],
)
def test_names_that_do_not_fit_are_refused(rename: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        import_policy(peers.unpacked("lerobot_min_max", tmp_path), rename=rename)


CHANGES = {
    "only diffusion policies are": {"type": "act"},
    "rgb is not imported; observation.state, observation.environment_state and images are": {
        "input_features": {"rgb": {"type": "STATE", "shape": [3]}}
    },
    "beta_schedule 'sigmoid' is not imported": {"beta_schedule": "sigmoid"},
    "clip_sample_range is 2.0, which is not imported": {"clip_sample_range": 2.0},
    "the scheduler PNDM is not imported": {"noise_scheduler_type": "PNDM"},
    "terminal signal-to-noise ratio": {"beta_schedule": "linear"},
    "kernel_size is 'five', expected int": {"kernel_size": "five"},
    "down_dims is missing": {"down_dims": None},
    "has shape": {"down_dims": [8, 24]},
}


@over("message, change", list(CHANGES.items()))
def test_what_ours_cannot_represent_is_refused_with_the_reason(message: str, change: dict, tmp_path: Path) -> None:
    folder = peers.unpacked("lerobot_min_max", tmp_path)
    content = json.loads((folder / "config.json").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None or key not in change}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        import_policy(folder)


CHANGES_OF_IMAGES = {
    "resize_shape is .20, 20., which is not imported": {"resize_shape": [20, 20]},
    r"a crop of \[33, 33\] of \[40, 40\] pixels is not imported": {"crop_shape": [33, 33]},
    "statistics: the normalisation QUANTILES of observation.image is not imported": {"VISUAL": "QUANTILES"},
}


@over("message, change", list(CHANGES_OF_IMAGES.items()))
def test_what_ours_cannot_represent_of_images_is_refused_with_the_reason(
    message: str, change: dict, tmp_path: Path
) -> None:
    folder = peers.unpacked("lerobot_image", tmp_path)
    path = folder / ("policy_preprocessor.json" if "VISUAL" in change else "config.json")
    content = json.loads(path.read_text())
    if "VISUAL" in change:
        content["steps"][-1]["config"]["norm_map"] |= change
    path.write_text(json.dumps(content if "VISUAL" in change else content | change))
    with pytest.raises(ValueError, match=message):
        import_policy(folder)


def test_statistics_outside_the_folder_and_other_steps_are_refused(tmp_path: Path) -> None:
    folder = peers.unpacked("lerobot_min_max", tmp_path)
    path = folder / "policy_preprocessor.json"
    text = path.read_text()
    path.write_text(text.replace('"state_file": "', '"state_file": "../'))
    with pytest.raises(ValueError, match="lies outside the folder, refused"):
        read_policy(folder)
    path.write_text(text.replace("to_batch_processor", "tokenizer_processor"))
    with pytest.raises(ValueError, match="'tokenizer_processor' changes the data"):
        read_policy(folder)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        import_policy(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is no checkpoint: expected config.json .* it holds notes.txt"):
        import_policy(tmp_path)
