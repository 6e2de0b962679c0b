"""Checkpoints of format 1 load, act and train on; tests/data/run_of_format_1 was written by the code of that time."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import walk
from one_case import over

from diffpolicy import DiffusionPolicy
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.migration import migrated
from diffpolicy.system import checkpoint
from diffpolicy.training.trainer import Trainer

OLD = Path(__file__).parents[1] / "data" / "run_of_format_1"
FLAT = {
    "schedule": "cosine",
    "num_levels": 100,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "zero_terminal_snr": False,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.4,
    "parameterization": "clean",
    "weighting": "simple",
    "level_distribution": "uniform",
    "condition_dropout": 0.0,
}


def test_an_old_checkpoint_acts_with_the_settings_that_it_was_trained_with() -> None:
    policy = DiffusionPolicy.from_pretrained(OLD / "checkpoints" / "step_16")
    objective = policy.config.diffusion
    assert (objective.schedule.name, objective.schedule.beta_end, objective.num_levels) == ("linear", 0.2, 60)
    assert objective.parameterization.name == "v"
    assert policy.null_condition["vector"].shape == (4,)
    seen = {"state": torch.tensor([[[0.0, 0.5], [0.1, 0.5]]])}
    assert policy.predict_action_chunk(seen, [torch.Generator().manual_seed(0)]).plan.isfinite().all()


def test_it_is_saved_again_in_the_present_format(tmp_path: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(OLD / "checkpoints" / "step_16")
    policy.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["format_version"] == 5
    again = DiffusionPolicy.from_pretrained(tmp_path / "new")
    assert again.config == policy.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())


@over("name", ["pusht_small", "pusht_image"])
def test_checkpoints_of_before_format_5_have_white_noise(name: str, repository: Path) -> None:
    folder = repository / "data" / "checkpoints" / name
    assert json.loads((folder / "config.json").read_text())["format_version"] < 5
    policy = DiffusionPolicy.from_pretrained(folder)
    assert policy.config.diffusion.noise_correlation == 0.0
    assert policy.objective.schedule.correlation == 0.0


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two sets of weights, in the Euclidean norm."""
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


def test_an_old_run_goes_on_to_where_the_code_of_its_time_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the run's data path is relative
    walk.record(Path("walk.zarr"))
    shutil.copytree(OLD, "run")
    checkpoint.point(Path("run/checkpoints/last"), Path("run/checkpoints/step_16"))
    config = walk.settings(
        Path("walk.zarr"),
        model=UNet1dConfig(widths=[8, 8], time_embedding_dim=8),
        diffusion=DenoisingConfig(
            schedule={"name": "linear", "beta_end": 0.2}, num_levels=60, parameterization="v", condition_dropout=0.3
        ),
        sampler={"name": "heun", "steps": 3},
        resume=True,
    )
    trainer = Trainer(config, Path("run"))
    assert trainer.step == 16
    trainer.run()
    found = DiffusionPolicy.from_pretrained("run/checkpoints/last").state_dict()
    expected = DiffusionPolicy.from_pretrained(OLD / "checkpoints" / "step_24").state_dict()
    start = DiffusionPolicy.from_pretrained(OLD / "checkpoints" / "step_16").state_dict()
    moved = distance(expected, start)
    assert moved > 1e-2, "the run learned something in its last steps"
    # 8 steps of Adam, which would lead elsewhere if its moments were mixed up. Single weights may differ by
    # a whole step: the gradient of a bias before a normalisation is only rounding, which depends on the processor.
    assert distance(found, expected) < 0.01 * moved


def test_other_settings_than_an_old_run_had_are_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    walk.record(Path("walk.zarr"))
    shutil.copytree(OLD, "run")
    checkpoint.point(Path("run/checkpoints/last"), Path("run/checkpoints/step_16"))
    with pytest.raises(ValueError, match=r"diffusion.schedule.name 'linear' in the checkpoint, 'cosine' given"):
        Trainer(walk.settings(Path("walk.zarr"), resume=True), Path("run"))


@over(
    "changed, kind, expected",
    [
        ({"schedule": "karras"}, "schedule", {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.4}),
        ({"parameterization": "edm"}, "parameterization", {"sigma_data": 0.4}),
        ({"weighting": "edm"}, "weighting", {"sigma_data": 0.4}),
        ({"weighting": "min_snr"}, "weighting", {}),
        ({"level_distribution": "log_normal"}, "level_distribution", {}),
    ],
)
def test_every_choice_takes_its_own_settings_out_of_the_flat_ones(changed: dict, kind: str, expected: dict) -> None:
    content = {"format_version": 1, "policy": {"diffusion": {**FLAT, **changed}}}
    found = migrated(content)["policy"]["diffusion"]
    assert found[kind] == {"name": changed[kind], **expected}
    assert found["num_levels"] == 100


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    shutil.copytree(OLD / "checkpoints" / "step_24", tmp_path / "future")
    text = (tmp_path / "future" / "config.json").read_text()
    (tmp_path / "future" / "config.json").write_text(text.replace('"format_version": 1', '"format_version": 6'))
    with pytest.raises(ValueError, match="format_version 6, this version reads 1 or 2 or 3 or 4 or 5"):
        DiffusionPolicy.from_pretrained(tmp_path / "future")
