"""Distillation: a student starts from a trained denoiser, follows it, and a run goes on bit by bit after a break."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.training.settings import DataConfig, TrainConfig, TrainerConfig
from diffpolicy.training.trainer import Trainer

STUDENTS = ["consistency", "consistency_trajectory", "shortcut", "progressive", "reflow", "distribution_matching"]
DEMONSTRATIONS = Path(__file__).parents[2] / "data" / "pusht_expert.zarr.zip"
OBSERVATIONS = {"keypoints": ["keypoint", "state[:2]"]}


def settings(diffusion: Any, teacher: Path | str | None, **changes: Any) -> TrainConfig:
    """A few steps on a few demonstrations, with the window and network of the shipped checkpoint."""
    trainer = TrainerConfig(steps=4, batch_size=8, warmup_steps=1, checkpoint_every=2, validate_every=4, log_every=2)
    data = DataConfig(
        str(Path(__file__).parents[2] / "data/pusht_expert.zarr.zip"), observations=OBSERVATIONS, episodes=4
    )
    window = WindowConfig(horizon=12, n_obs_steps=2, n_action_steps=8)
    teacher = None if teacher is None else str(teacher)
    base = TrainConfig(
        "pusht", data, window=window, diffusion=diffusion, teacher=teacher, trainer=trainer, device="cpu"
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_starts_as_its_teacher_and_learns_with_the_shared_parts_fixed(
    name: str, shipped_checkpoint: Path, tmp_path: Path
) -> None:
    teacher = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    trainer = Trainer(settings(name, shipped_checkpoint), tmp_path / "run")
    student = trainer.policy
    assert student.config.diffusion.denoising == teacher.config.diffusion
    for key, value in teacher.acting_state().items():
        assert torch.equal(student.state_dict()[key], value), key
    trainer.run()
    assert not torch.equal(student.network.state_dict()["head.1.weight"], teacher.network.state_dict()["head.1.weight"])
    assert torch.equal(student.codec.state_dict()["scale"], teacher.codec.state_dict()["scale"])
    saved = DiffusionPolicy.from_pretrained(tmp_path / "run" / "checkpoints" / "last")
    assert saved.metadata["teacher"]["checkpoint"] == str(shipped_checkpoint)
    assert not any(key.startswith("objective.") for key in saved.acting_state())


@pytest.mark.parametrize("name", STUDENTS)
def test_a_distillation_goes_on_bit_by_bit_after_a_break(name: str, shipped_checkpoint: Path, tmp_path: Path) -> None:
    choice = {"name": name, "round_every": 2} if name == "progressive" else name
    config = settings(choice, shipped_checkpoint)
    Trainer(config, tmp_path / "whole").run()
    broken = Trainer(config, tmp_path / "broken")
    broken.claim()
    for _ in range(2):
        broken._recent.add(*broken.train_step())
        broken.step += 1
    broken._save()
    broken.folder.release()
    Trainer(dataclasses.replace(config, resume=True), tmp_path / "broken").run()
    whole, resumed = (
        DiffusionPolicy.from_pretrained(tmp_path / run / "checkpoints" / "last").acting_state()
        for run in ("whole", "broken")
    )
    for key, value in whole.items():
        assert_close(resumed[key], value, rtol=0, atol=0)


def test_a_network_that_sees_stops_is_the_teacher_until_it_is_trained(shipped_checkpoint: Path, tmp_path: Path) -> None:
    student = Trainer(settings("shortcut", shipped_checkpoint), tmp_path / "run").policy
    teacher = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    x, time, vector = torch.randn(3, 12, 2), torch.tensor([99.0, 50.0, 3.0]), torch.randn(3, 40)
    with torch.no_grad():
        found = student.network(x, time, vector, 0.5 * time)
        assert_close(found, teacher.network(x, time, vector), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion": "progressive", "teacher": None}, "progressive distils a trained denoiser; give teacher="),
        ({"diffusion": "denoising"}, "diffusion denoising learns from data alone, expected one of consistency, "),
        ({"task": "reach"}, "was trained for task pusht, this run is for reach"),
        ({"init_from": "x"}, "leave init_from out"),
        ({"model": {"name": "unet1d", "widths": [16, 32]}}, r"the settings of .* differ: model\.widths"),
        (
            {"diffusion": {"name": "consistency", "denoising": {"schedule": "karras"}}},
            r"the denoiser differs: .*schedule.*; leave diffusion\.denoising out",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_work(
    changes: dict, message: str, shipped_checkpoint: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(settings("consistency", shipped_checkpoint), **changes)
    with pytest.raises(ValueError, match=message):
        Trainer(config, tmp_path / "run")


def test_a_student_is_no_teacher(shipped_checkpoint: Path, tmp_path: Path) -> None:
    Trainer(settings("consistency", shipped_checkpoint), tmp_path / "run").run()
    with pytest.raises(ValueError, match="was trained with diffusion consistency, expected a denoiser"):
        Trainer(settings("reflow", tmp_path / "run" / "checkpoints" / "last"), tmp_path / "other")


def test_a_resumed_run_needs_the_same_teacher(shipped_checkpoint: Path, tmp_path: Path) -> None:
    Trainer(settings("consistency", shipped_checkpoint), tmp_path / "run").run()
    other = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    with torch.no_grad():
        next(other.network.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"resume: the settings differ: teacher_sha256"):
        Trainer(settings("consistency", tmp_path / "other", resume=True), tmp_path / "run")
