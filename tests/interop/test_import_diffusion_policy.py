"""Checkpoints of the published code act as ours do; the fixtures were made by that code itself."""

from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from one_case import over
from torch import Tensor

from diffpolicy.interop import TorchFile, import_policy
from diffpolicy.interop.diffusion_policy import READERS
from diffpolicy.interop.plain_config import plain_config
from diffpolicy.interop.reading import Settings
from diffpolicy.interop.schedulers import sampler
from diffpolicy.policy.diffusion import DiffusionPolicy

NAMES = peers.names("diffusion_policy_")


def policy_settings(path: Path) -> dict[str, Any]:
    with TorchFile(path) as file:
        return plain_config(file.content["cfg"], "cfg")["policy"]


def seen_by(policy: DiffusionPolicy, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: found[key] for key in policy.config.observations}


@over("name", NAMES)
def test_the_plan_is_that_of_the_published_code_at_every_step_of_ddpm_and_ddim(name: str, tmp_path: Path) -> None:
    folder = peers.unpacked(name, tmp_path)
    policy, found = import_policy(folder / "latest.ckpt"), peers.golden(folder)
    scheduler = Settings(policy_settings(folder / "latest.ckpt")["noise_scheduler"], "noise_scheduler")
    for kind in ("DDPM", "DDIM"):
        theirs = peers.of_kind(found, kind)
        settings = sampler(scheduler, kind, len(theirs["noise"]) - 1)
        assert peers.worst_of(policy, seen_by(policy, found), settings, theirs) < peers.TOLERANCE


@over("name", NAMES)
def test_the_sampler_of_the_file_is_kept_and_the_saved_policy_acts_alike(name: str, tmp_path: Path) -> None:
    folder = peers.unpacked(name, tmp_path)
    policy, found = import_policy(folder / "latest.ckpt"), peers.golden(folder)
    policy.save_pretrained(tmp_path / name / "ours")
    again = DiffusionPolicy.from_pretrained(tmp_path / name / "ours")
    settings = again.metadata["imported"]["sampler"]
    theirs = peers.of_kind(found, settings["name"].upper())
    assert peers.worst_of(again, seen_by(again, found), settings, theirs) < peers.TOLERANCE


def test_averaged_weights_are_taken_by_default_and_those_of_the_last_step_on_demand(tmp_path: Path) -> None:
    path = peers.unpacked("diffusion_policy_unet_ddpm", tmp_path) / "latest.ckpt"
    averaged, last = import_policy(path), import_policy(path, weights="model")
    name = "network.head.1.weight"
    assert not averaged.state_dict()[name].equal(last.state_dict()[name])
    with TorchFile(path) as file:
        for policy, key in ((averaged, "ema_model"), (last, "model")):
            view = file.content["state_dicts"][key]["model.final_conv.1.weight"]
            assert policy.state_dict()[name].equal(file.tensor(view))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = peers.unpacked("diffusion_policy_unet_ddim", tmp_path) / "latest.ckpt"
    with pytest.raises(ValueError, match="has no weights model, only ema_model"):
        import_policy(path, weights="model")


CHANGES = {
    "obs_as_global_cond is False, which is not imported": {"obs_as_global_cond": False},
    "pred_action_steps_only is True, which is not imported": {"pred_action_steps_only": True},
    "oa_step_convention is False, which is not imported": {"oa_step_convention": False},
    "noise_scheduler is missing": {"noise_scheduler": None},
}


@over("message, change", list(CHANGES.items()))
def test_what_ours_cannot_represent_is_refused_with_the_reason(message: str, change: dict, tmp_path: Path) -> None:
    content = policy_settings(peers.unpacked("diffusion_policy_unet_ddpm", tmp_path) / "latest.ckpt") | change
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        READERS["DiffusionUnetLowdimPolicy"](Settings(content, "policy"), {}, "file")


CHANGES_OF_IMAGES = {
    "eval_fixed_crop is False, which is not imported: without it theirs crops at random": {"eval_fixed_crop": False},
    r"a crop of \[37, 37\] of \[40, 40\] pixels is not imported: ours keeps the same part": {"crop_shape": [37, 37]},
    r"a crop of \[36, 20\] of \[40, 40\] pixels is not imported": {"crop_shape": [36, 20]},
    r"shape_meta: image has shape \[1, 40, 40\], expected": {
        "shape_meta": {"obs": {"image": {"shape": [1, 40, 40], "type": "rgb"}}}
    },
    "image is of type depth, shape": {"shape_meta": {"obs": {"image": {"shape": [3, 40, 40], "type": "depth"}}}},
    "shape_meta has no image": {"shape_meta": {"obs": {"agent": {"shape": [3]}}}},
    "obs_as_global_cond is False": {"obs_as_global_cond": False},
}


@over("message, change", list(CHANGES_OF_IMAGES.items()))
def test_what_ours_cannot_represent_of_images_is_refused_with_the_reason(
    message: str, change: dict, tmp_path: Path
) -> None:
    content = policy_settings(peers.unpacked("diffusion_policy_hybrid_crop", tmp_path) / "latest.ckpt") | change
    with pytest.raises(ValueError, match=message):
        READERS["DiffusionUnetHybridImagePolicy"](Settings(content, "policy"), {}, "file")


def test_cameras_may_get_other_names_whatever_order_these_have(tmp_path: Path) -> None:
    path = peers.unpacked("diffusion_policy_hybrid_batch", tmp_path) / "latest.ckpt"
    names = {"wrist": "a", "above": "z", "pose": "m"}
    policy, found = import_policy(path, rename=names), peers.golden(path.parent)
    settings, theirs = policy.metadata["imported"]["sampler"], peers.of_kind(found, "DDIM")
    seen = {names[key]: found[key] for key in names}
    assert sorted(policy.config.observations) == ["a", "m", "z"]
    assert peers.worst_of(policy, seen, settings, theirs) < peers.TOLERANCE


def test_an_imported_policy_trains_on(tmp_path: Path) -> None:
    path = peers.unpacked("diffusion_policy_hybrid_batch", tmp_path) / "latest.ckpt"
    policy = import_policy(path).train()
    seen = {key: value.expand(4, *value.shape[1:]) for key, value in seen_by(policy, peers.golden(path.parent)).items()}
    policy.loss(seen, torch.rand(4, 8, 2), torch.Generator().manual_seed(0)).backward()
    assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in policy.encoder.parameters())


def test_the_pickle_of_the_published_code_is_read_without_its_packages(tmp_path: Path) -> None:
    path = peers.unpacked("diffusion_policy_unet_ddpm", tmp_path) / "latest.ckpt"
    with TorchFile(path) as file:
        assert set(file.content) == {"cfg", "state_dicts", "pickles"}
        assert repr(file.content["cfg"]) == "Stub(omegaconf.dictconfig.DictConfig)"
        assert plain_config(file.content["cfg"], "cfg")["task"]["name"] == "pusht_lowdim"
        assert set(file.content["pickles"]) == {"global_step", "epoch", "_output_dir"}


def test_settings_that_contain_themselves_or_repeat_their_parts_end() -> None:
    within: list[Any] = []
    within.append(within)
    bomb: Any = 1
    for _ in range(60):
        bomb = [bomb, bomb]
    for value in (within, bomb):
        with pytest.raises(ValueError, match="settings or 64 levels of them"):
            plain_config(value, "cfg")
