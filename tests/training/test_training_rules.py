"""The rules of training, each as it acts in a run: learning rate, clipping, averaging, what is saved and evaluated."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_case import over
from torch import Tensor

from diffpolicy import DiffusionPolicy
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.evaluation.rollout import Episode
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.system import checkpoint
from diffpolicy.training import evaluating
from diffpolicy.training import trainer as trainer_module
from diffpolicy.training.settings import DataConfig, EvaluationConfig, TrainConfig, TrainerConfig
from diffpolicy.training.trainer import Trainer


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of a random walk; the action is where to be next."""
    path = tmp_path_factory.mktemp("data") / "walk.zarr"
    buffer = ReplayBuffer.create(path, {"action": ((1,), "float32"), "state": ((1,), "float32")})
    generator = np.random.default_rng(0)
    for _ in range(4):
        position = generator.normal(size=(21, 1)).cumsum(0).astype("float32")
        buffer.append_episode({"action": position[1:], "state": position[:-1]})
    return path


def make_trainer(data_set: Path, folder: Path, env: EnvConfig | None = None, **changes) -> Trainer:
    short = {"steps": 8, "batch_size": 16, "warmup_steps": 2, "log_every": 1, "checkpoint_every": 4}
    config = TrainConfig(
        task="walk",
        data=DataConfig(str(data_set), observations={"state": ["state"]}),
        env=env,
        model=UNet1dConfig(widths=[8, 16], time_embedding_dim=8),
        sampler={"name": "ddim", "steps": 3},
        trainer=TrainerConfig(**{**short, **changes}),
        evaluation=EvaluationConfig(episodes=2),
        device="cpu",
    )
    return Trainer(config, folder)


def logged(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def averaged(weights: list[dict[str, Tensor]], power: float, max_decay: float) -> dict[str, Tensor]:
    """The average in float64 after these raw weights, one entry per optimiser step."""
    average = {name: value.double() for name, value in weights[0].items()}  # the first decay is 0
    for step, now in enumerate(weights):
        decay = min(max_decay, 1 - (1 + step) ** -power)
        average = {name: decay * average[name] + (1 - decay) * value.double() for name, value in now.items()}
    return average


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_half_cosine(data_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data_set, tmp_path, steps=20, warmup_steps=4, learning_rate=0.01)
    applied: list[float] = []
    trainer.optimization.optimizer.register_step_pre_hook(
        lambda optimizer, *_: applied.append(optimizer.param_groups[0]["lr"])
    )
    trainer.run()
    assert len(applied) == 20
    assert applied[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    quarter, half, three_quarters = applied[8], applied[12], applied[16]
    assert (quarter, half, three_quarters) == pytest.approx((0.00853553, 0.005, 0.00146447), rel=1e-5)  # 6 digits
    assert applied[19] == pytest.approx(0.01 * 0.00960736, rel=1e-5)  # one step before the 0
    assert logged(tmp_path, "learning_rate") == applied


@over("bound", [1e-3, 1e3])
def test_the_optimiser_gets_the_gradient_scaled_down_to_the_bound(data_set: Path, tmp_path: Path, bound: float) -> None:
    folder = tmp_path / str(bound)
    trainer = make_trainer(data_set, folder, max_grad_norm=bound, steps=4)
    policy, seen = trainer.policy, []
    raw: list[Tensor] = []
    first = next(policy.parameters())

    def remember(*_) -> None:
        seen.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]).double())

    first.register_post_accumulate_grad_hook(lambda parameter: raw.append(parameter.grad.double().clone()))
    trainer.optimization.optimizer.register_step_pre_hook(remember)
    trainer.run()
    norms = logged(folder, "grad_norm")  # before clipping
    assert all(1e-2 < norm < 1e2 for norm in norms), "one bound acts, the other does not"
    for norm, before, after in zip(norms, raw, seen, strict=True):
        scale = min(1.0, bound / norm)
        # float32 gradients; clip_grad_norm_ adds 1e-6 to the norm
        torch.testing.assert_close(float(after.norm()), scale * norm, rtol=1e-3, atol=0)
        torch.testing.assert_close(after[: first.numel()].view_as(first), scale * before, rtol=1e-3, atol=0)


@over("max_decay", [0.9999, 0.5])
def test_a_checkpoint_holds_the_average_as_model_and_the_raw_weights_for_resuming(
    data_set: Path, tmp_path: Path, max_decay: float
) -> None:
    run = tmp_path / str(max_decay)
    trainer = make_trainer(data_set, run, ema_power=0.75, ema_max_decay=max_decay)
    weights: list[dict[str, Tensor]] = []
    trainer.optimization.optimizer.register_step_post_hook(
        lambda *_: weights.append({name: value.detach().clone() for name, value in trainer.policy.named_parameters()})
    )
    trainer.run()
    for step in (4, 8):
        folder = run / "checkpoints" / f"step_{step}"
        model, state = (checkpoint.read_tensors(folder, name) for name in ("model", "training_state"))
        average = averaged(weights[:step], 0.75, max_decay)
        for name, raw in weights[step - 1].items():
            assert torch.equal(state[f"model.{name}"], raw), name
            # float32 rounding of eight updates
            torch.testing.assert_close(model[name], average[name].float(), rtol=1e-5, atol=1e-6)
        apart = max(float((model[name] - state[f"model.{name}"]).abs().max()) for name in average)
        assert apart > 1e-4, "far above the tolerance of the average"


def test_evaluation_during_training_gets_the_averaged_policy(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def evaluate(policy: DiffusionPolicy, env: EnvConfig, sampler: Any, seeds: range, *_: Any) -> list[Episode]:
        assert not policy.training
        assert (env.id, sampler["steps"]) == ("CartPole-v1", 3)
        seen.append({name: value.clone() for name, value in policy.state_dict().items()})
        return [Episode(seed, 0.5, False, 1) for seed in seeds]

    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    monkeypatch.setattr(trainer_module, "check_env", lambda env, policy: None)  # nothing of the env is used
    make_trainer(data_set, tmp_path, EnvConfig("CartPole-v1"), evaluate_every=4).run()
    for step, policy in zip((4, 8), seen, strict=True):
        folder = tmp_path / "checkpoints" / f"step_{step}"
        model, state = (checkpoint.read_tensors(folder, name) for name in ("model", "training_state"))
        assert model.keys() == policy.keys()
        assert all(torch.equal(value, policy[name]) for name, value in model.items())
        assert not all(torch.equal(state[f"model.{name}"], value) for name, value in policy.items())


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_network_compiles_as_one_graph_and_trains_alike(data_set: Path, tmp_path: Path, precision: str) -> None:
    plain, compiled = (make_trainer(data_set, tmp_path, precision=precision) for _ in range(2))
    compiled.policy.network.compile(fullgraph=True, backend="aot_eager")  # as compile=True, but needs no C++ compiler
    final = []
    for trainer in (plain, compiled):
        for trainer.step in range(4):
            loss = trainer.train_step()
        final.append(torch.stack(loss))
    # Four steps of AdamW carry the rounding on, of a network in bfloat16 that of three digits.
    tolerance = 1e-4 if precision == "float32" else 2e-2
    torch.testing.assert_close(final[1], final[0], rtol=tolerance, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_what_a_plain_one_does(data_set: Path, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for name, is_compiled in (("plain", False), ("compiled", True)):
        make_trainer(data_set, tmp_path / name, compile=is_compiled).run()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    # Not the weights: AdamW moves by its whole rate where a gradient is rounding alone.
    assert len(losses[0]) > 0
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
