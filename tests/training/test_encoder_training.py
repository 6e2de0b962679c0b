"""Encoders that crop, change the light and are taught: all of it is a function of seed and step, so a run resumes."""

from pathlib import Path

import pytest
import torch
import walk
from dots import record, settings

from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.kinds import load_policy
from diffpolicy.system import checkpoint
from diffpolicy.training.settings import DataConfig
from diffpolicy.training.trainer import Trainer


@pytest.mark.parametrize("masked", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, masked: bool) -> None:
    data, more = record(tmp_path / "dots.zarr"), {"auxiliary": {"dot": 0.1, "state[:1]": 0.5}}
    trainer = {"mask_padding": masked}
    whole = Trainer(settings(data, **more, trainer=trainer), tmp_path / "whole")
    whole.run()

    class StopError(Exception):
        pass

    cut = Trainer(settings(data, **more, trainer=trainer), tmp_path / "cut")
    step = cut.train_step
    cut.train_step = lambda: step() if cut.step < 6 else (_ for _ in ()).throw(StopError)  # after checkpoint 4
    with pytest.raises(StopError):
        cut.run()
    resumed = Trainer(settings(data, **more, trainer=trainer, resume=True), tmp_path / "cut")
    assert resumed.step == 4
    resumed.run()
    ends = [walk.tensors(tmp_path / run / "checkpoints" / "step_8") for run in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(name.startswith("model.auxiliary.heads.") for name in ends[0]), "part of the training state"
    acting = checkpoint.read_tensors(tmp_path / "whole" / "checkpoints" / "step_8", "model")
    assert not any("auxiliary" in name for name in acting)
    assert load_policy(tmp_path / "whole" / "checkpoints" / "last").config == whole.policy.config


def test_taught_heads_learn_and_change_what_the_encoder_learns(tmp_path: Path) -> None:
    data, trainer = record(tmp_path / "dots.zarr"), {"steps": 30, "learning_rate": 3e-3, "batch_size": 16}
    with_heads = Trainer(settings(data, {"dot": 1.0}, trainer=trainer), tmp_path / "with")
    without = Trainer(settings(data, trainer=trainer), tmp_path / "without")
    first = {name: value.clone() for name, value in without.policy.state_dict().items()}
    assert all(torch.equal(value, with_heads.policy.state_dict()[name]) for name, value in first.items())
    policy = with_heads.policy
    assert isinstance(policy, DiffusionPolicy)
    assert policy.auxiliary is not None

    def error() -> float:
        batch = with_heads.batches.first(32)
        with torch.inference_mode():
            seen = policy.normalizers.encode(batch.observations, policy.network)
            return float(policy.auxiliary(policy.encoder.frames(seen), batch.auxiliary))

    before = error()
    with_heads.run()
    without.run()
    assert error() < 0.5 * before
    changed = [one.policy.encoder.eyes[0].conv1.weight for one in (with_heads, without)]
    assert not torch.equal(*changed)


def test_settings_of_taught_arrays_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    data = record(tmp_path / "dots.zarr")
    for auxiliary, message in (
        ({"angle": 0.1}, "no array 'angle'"),
        ({"dot": -1.0}, r"data: auxiliary\['dot'\] -1.0 must be above 0"),
        (["dot"], "data: auxiliary is .*expected a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(settings(data, auxiliary), tmp_path / "run")
    config = walk.settings(data, data=DataConfig(str(data), observations={"s": ["state"]}, auxiliary={"dot": 1.0}))
    with pytest.raises(ValueError, match="auxiliary needs an encoder with features of each frame"):
        Trainer(config, tmp_path / "run")


def test_some_windows_of_a_batch_keep_what_the_encoder_is_taught(tmp_path: Path) -> None:
    trainer = Trainer(settings(record(tmp_path / "dots.zarr"), {"dot": 0.1}), tmp_path / "run")
    batch = trainer.batches.first(8)
    some = batch.rows(slice(2, 5))
    assert torch.equal(some.auxiliary["dot"], batch.auxiliary["dot"][2:5])
    assert torch.equal(some.observations["camera"], batch.observations["camera"][2:5])
