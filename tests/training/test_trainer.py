"""Training: it learns, it resumes as if nothing had happened, and it stops rather than spoil anything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from one_case import over
from walk import record, settings, tensors

from diffpolicy import DiffusionPolicy
from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system import checkpoint
from diffpolicy.system.device import choose_device
from diffpolicy.system.plain import MAX_BYTES
from diffpolicy.training.batches import WindowBatches
from diffpolicy.training.ema import Ema
from diffpolicy.training.run_log import Metrics
from diffpolicy.training.run_settings import differences, flattened
from diffpolicy.training.settings import DataConfig, EvaluationConfig, LoggerConfig
from diffpolicy.training.trainer import Trainer
from diffpolicy.training.validation import Validation


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


@pytest.fixture(scope="module")
def whole(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from end to end."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(settings(data_set), folder).run()
    return folder


def test_training_lowers_the_loss_and_leaves_the_files_of_a_run(data_set: Path, tmp_path: Path) -> None:
    Trainer(settings(data_set, trainer={"steps": 60, "learning_rate": 3e-3}), tmp_path).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert validation[-1] < validation[0]
    assert (tmp_path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    checkpoints = tmp_path / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == sorted(
        ["best", "last", *(f"step_{n}" for n in (8, 16, 24, 32, 40, 48, 56, 60))]
    )
    assert (checkpoints / "last").resolve().name == "step_60"
    policy = DiffusionPolicy.from_pretrained(checkpoints / "last")
    assert (policy.metadata["task"], policy.metadata["step"]) == ("walk", 60)


@pytest.mark.parametrize("stop", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_bit_same_weights(data_set: Path, whole: Path, tmp_path: Path, stop: int) -> None:

    class KilledError(Exception):
        pass

    class Interrupted(Trainer):
        def _save(self, is_best: bool = False) -> None:
            super()._save(is_best)
            if self.step == stop:
                raise KilledError

    with pytest.raises(KilledError):
        Interrupted(settings(data_set), tmp_path / "cut").run()
    Trainer(settings(data_set, resume=True), tmp_path / "cut").run()
    expected, resumed = (tensors(folder / "checkpoints" / "last") for folder in (whole, tmp_path / "cut"))
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name
    assert (whole / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()


def test_resuming_with_other_settings_is_refused_by_name(data_set: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.learning_rate 0\.002 in the checkpoint, 0\.5 given"):
        Trainer(settings(data_set, resume=True, trainer={"learning_rate": 0.5}), whole)


def test_a_folder_that_holds_a_run_is_not_overwritten(data_set: Path, whole: Path, tmp_path: Path) -> None:
    before = tensors(whole / "checkpoints" / "last")
    with pytest.raises(ValueError, match=f"{whole} holds a run; add resume=true"):
        Trainer(settings(data_set), whole)
    after = tensors(whole / "checkpoints" / "last")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path}; give the run's folder"):
        Trainer(settings(data_set, resume=True), tmp_path)


def test_a_damaged_training_state_is_refused_on_resume(data_set: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, symlinks=True, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "last" / "training_state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        Trainer(settings(data_set, resume=True), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(data_set: Path, tmp_path: Path) -> None:
    class Diverging(Trainer):
        def train_step(self):
            loss, norm = super().train_step()
            return (loss * float("nan") if self.step >= 10 else loss), norm

    with pytest.raises(FloatingPointError, match=r"step 12: loss nan, .*step_8, the last one written, is intact$"):
        Diverging(settings(data_set), tmp_path).run()
    assert DiffusionPolicy.from_pretrained(tmp_path / "checkpoints" / "last").metadata["step"] == 8


def test_evaluation_during_training_picks_the_best(data_set: Path, tmp_path: Path, monkeypatch) -> None:
    """With a scripted sequence of scores, `best` names the checkpoint of the highest."""
    from diffpolicy.evaluation.rollout import Episode
    from diffpolicy.training import evaluating as module

    scores = iter([0.2, 0.7, 0.4])
    seen = []

    def evaluate(policy, env, sampler, seeds, inference_batch, safety, on_tick, patience):
        seen.append(list(seeds))
        score = next(scores)
        return [Episode(seed, score, False, 1) for seed in seeds]

    monkeypatch.setattr(module, "evaluate", evaluate)
    config = settings(
        data_set,
        env=EnvConfig("MountainCarContinuous-v0"),
        evaluation=EvaluationConfig(episodes=2),
        trainer={"evaluate_every": 8},
    )
    Trainer(config, tmp_path).run()
    assert seen == [[50_000, 50_001]] * 3
    assert (tmp_path / "checkpoints" / "best").resolve().name == "step_16"
    assert (tmp_path / "checkpoints" / "last").resolve().name == "step_24"


def test_without_an_env_only_the_newest_best_and_the_regular_saves_are_kept(
    data_set: Path, tmp_path: Path, monkeypatch
) -> None:
    errors = iter([5.0, 4.0, 3.0, 9.0, 2.0, 9.0])  # at steps 4, 8, ..., 24

    monkeypatch.setattr(Validation, "__call__", lambda *_: {"validation_action_error": next(errors)})
    often = {"validate_every": 4, "checkpoint_every": 8}
    Trainer(settings(data_set, trainer={**often, "steps": 16}), tmp_path).run()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"best", "last", "step_8", "step_12", "step_16", ".only_best"}
    with pytest.warns(UserWarning, match="raised from 16 to 24"):  # another process knows which was only the best
        Trainer(settings(data_set, trainer={**often, "steps": 24}, resume=True), tmp_path).run()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"best", "last", "step_8", "step_16", "step_20", "step_24", ".only_best"}
    assert (tmp_path / "checkpoints" / "best").resolve().name == "step_20"


def test_a_best_step_that_a_killed_run_left_behind_is_removed_on_resume(data_set: Path, tmp_path: Path) -> None:
    Trainer(settings(data_set, trainer={"steps": 16}), tmp_path).run()
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step_8", folder / "step_6")
    (folder / ".only_best").write_text("6\n16\nx\n")  # step 16 is what `last` names
    trainer = Trainer(settings(data_set, trainer={"steps": 16}, resume=True), tmp_path)
    trainer.run()
    assert not (folder / "step_6").exists()
    assert trainer.step == 16


def test_the_first_training_run_is_the_same_every_time(data_set: Path, whole: Path, tmp_path: Path) -> None:
    Trainer(settings(data_set), tmp_path / "again").run()
    first, second = (tensors(folder / "checkpoints" / "last") for folder in (whole, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    Trainer(settings(data_set, seed=1), tmp_path / "other").run()
    other = tensors(tmp_path / "other" / "checkpoints" / "last")
    assert not torch.equal(first["network.head.1.weight"], other["network.head.1.weight"])


def test_bfloat16_autocast_trains(data_set: Path, tmp_path: Path) -> None:
    Trainer(settings(data_set, trainer={"precision": "bfloat16", "steps": 8}), tmp_path).run()
    weights = checkpoint.read_tensors(tmp_path / "checkpoints" / "last", "model")
    numbers = [value for value in weights.values() if value.dtype != torch.bool]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in numbers)


@over(
    "changes, message",
    [
        ({"trainer": {"steps": 0}}, "trainer: steps 0 must be between 1 and 1000000000"),
        ({"trainer": {"batch_size": -1}}, "batch_size -1"),
        ({"trainer": {"learning_rate": float("nan")}}, "learning_rate is nan, expected a finite number"),
        ({"trainer": {"max_grad_norm": -1.0}}, "max_grad_norm -1.0 must be above 0"),
        ({"trainer": {"ema_max_decay": 1.5}}, "ema_max_decay 1.5 must be at least 0 and below 1"),
        ({"evaluation": EvaluationConfig(episodes=0)}, "episodes 0"),
        ({"env": EnvConfig("nowhere/Env-v0")}, "nowhere/Env-v0 .* cannot be made"),
        ({"trainer": {"precision": "int8"}}, "precision 'int8' must be one of float32, bfloat16"),
        ({"trainer": {"betas": [0.9]}}, "trainer: betas has 1 entries, expected 2 to 2"),
        ({"device": "tpu"}, "device: 'tpu' is not available, expected auto or one of .*cpu"),
        (
            {"model": UNet1dConfig(widths=[32768, 65536])},
            "model: has 2[0-9]{11} parameters, expected at most 2147483648",
        ),
        ({"seed": 10**12}, "^seed 1000000000000 must be between 0 and 4000000000$"),
        ({"data": DataConfig("x", observations={"action": ["state"]})}, "'action', which names the actions"),
        ({"window": WindowConfig(horizon=15)}, r"horizon 15 must be divisible by 2"),
        ({"sampler": {"name": "ddim", "steps": 1000}}, "steps 1000 must be between 1 and 100"),
        ({"logger": LoggerConfig(name="tensorboard")}, "logger: name 'tensorboard' must be one of none, wandb"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(
    data_set: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(settings(data_set, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Trainer(settings(tmp_path / "nowhere.zarr"), tmp_path / "run")


def test_every_window_is_seen_once_an_epoch_and_batches_depend_on_the_step_alone() -> None:
    rows = torch.arange(40.0)[:, None]
    data = Demonstrations(rows, {"state": rows}, np.array([20, 40]))
    window = WindowConfig(horizon=8, n_obs_steps=2, n_action_steps=4)

    def batches(seed: int = 0) -> WindowBatches:
        return WindowBatches(data, np.array([0, 1]), window, 4, seed, torch.device("cpu"))

    first = batches()
    epoch = [first.batch(step) for step in range(first.steps_per_epoch)]
    starts = [tuple(plan.tolist()) for batch in epoch for plan in batch.actions[..., 0]]
    assert len(set(starts)) == len(starts) == first.n_windows // 4 * 4
    for batch in epoch:
        torch.testing.assert_close(batch.observations["state"], batch.actions[:, :2], rtol=0, atol=0)
    late = batches().batch(first.steps_per_epoch + 3)
    assert torch.equal(late.actions, first.batch(first.steps_per_epoch + 3).actions)
    assert not torch.equal(batches(1).batch(0).actions, epoch[0].actions)


def test_differences_between_settings_name_what_is_absent_and_no_parents() -> None:
    before, now = flattened({"env": None, "seed": 1}), flattened({"env": {"id": "x"}, "seed": 1, "more": 2})
    assert differences(before, now, "there") == ["env.id absent there, 'x' given", "more absent there, 2 given"]
    assert differences(now, before, "there") == ["env.id 'x' there, absent given", "more 2 there, absent given"]


def test_metrics_that_are_too_large_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"metrics\.jsonl has more than 67108864 bytes; move it away"):
        Metrics(tmp_path, LoggerConfig(), {}, step=4)


def test_the_average_follows_its_definition(small_policy: DiffusionPolicy) -> None:
    ema = Ema(small_policy, power=0.75, max_decay=0.9)
    before = small_policy.network.head[1].weight.detach().clone()
    with torch.no_grad():
        small_policy.network.head[1].weight += 1
    ema.update(small_policy, step=3)
    decay = 1 - 4**-0.75
    torch.testing.assert_close(ema.policy.network.head[1].weight, before + 1 - decay)
    assert ema.decay(10**6) == 0.9


def test_auto_takes_a_device_that_is_there() -> None:
    assert choose_device("auto").type in ("cuda", "mps", "cpu")


def test_a_nan_between_two_reports_is_never_saved(data_set: Path, tmp_path: Path) -> None:
    class Diverging(Trainer):
        def train_step(self):
            loss, norm = super().train_step()
            return loss, (norm * float("inf") if self.step == 9 else norm)

    with pytest.raises(FloatingPointError, match=r"step 16: loss .*, gradient norm inf"):
        Diverging(settings(data_set, trainer={"log_every": 24}), tmp_path).run()
    assert DiffusionPolicy.from_pretrained(tmp_path / "checkpoints" / "last").metadata["step"] == 8


def test_other_data_under_the_same_path_is_refused_on_resume(tmp_path: Path, data_set: Path) -> None:
    path = tmp_path / "data.zarr"
    buffer = ReplayBuffer.open(data_set)
    buffer.copy(path)
    Trainer(settings(path, trainer={"steps": 8}), tmp_path / "run").run()
    ReplayBuffer.open(path, mode="a").drop_episodes([3])
    with pytest.raises(ValueError, match=r"data_sha256 .* in the checkpoint"):
        Trainer(settings(path, trainer={"steps": 8}, resume=True), tmp_path / "run")
