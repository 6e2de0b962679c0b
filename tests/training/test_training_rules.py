"""The rules of training, each as it acts in a run: learning rate, clipping, averaging, what is saved and evaluated."""

import contextlib
import dataclasses
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
from diffpolicy.networks.layers import conv
from diffpolicy.system import checkpoint, replay
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
    monkeypatch.setattr(trainer_module, "check_env", lambda *_: None)  # nothing of the env is used
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


def test_weights_in_the_memory_order_of_a_gpu_train_and_resume_alike(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("whole", "parts")
    make_trainer(data_set, tmp_path / "plain").run()
    monkeypatch.setattr(conv, "_taps_first_on_gpu", lambda weight: weight.mT.contiguous().mT)
    make_trainer(data_set, tmp_path / "whole").run()
    short = make_trainer(data_set, tmp_path / "parts")
    train_step = short.train_step

    def failing_step() -> tuple[Tensor, Tensor]:
        if short.step == 5:
            raise KeyboardInterrupt
        return train_step()

    short.train_step = failing_step
    with pytest.raises(KeyboardInterrupt):
        short.run()
    resumed = Trainer(dataclasses.replace(short.config, resume=True), tmp_path / "parts")
    moments = [state["exp_avg"] for state in resumed.optimization.optimizer.state.values()]
    assert not all(one.is_contiguous() for one in moments)
    resumed.run()
    whole, parts = (checkpoint.read_tensors(tmp_path / name / "checkpoints" / "last", "model") for name in names)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    losses = [logged(tmp_path / name, "loss") for name in ("plain", "whole")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)  # sums in another order


def test_masked_padding_does_not_count(data_set: Path, tmp_path: Path) -> None:
    plain, masked = (make_trainer(data_set, tmp_path, mask_padding=mask) for mask in (False, True))
    batch = masked.batches.batch(0)
    assert batch.counts is not None
    assert 0 < float(batch.counts.mean()) < 1
    moved = batch.actions + 100.0 * (1.0 - batch.counts)[..., None]
    losses = []
    for counts in (batch.counts, None):
        for actions in (batch.actions, moved):
            # The network sees the padding too, so it must not differ; only the target of the error may.
            noise = masked.policy.objective.draw(masked.policy.codec.encode(batch.actions), generator(), (0, 1))
            target = dataclasses.replace(noise, clean=masked.policy.codec.encode(actions))
            network = Zero()
            losses.append(
                float(masked.policy.objective.loss(network, target, 0, *([] if counts is None else [counts])))
            )
    assert losses[0] == pytest.approx(losses[1])
    assert losses[2] != pytest.approx(losses[3])
    assert plain.batches.batch(0).counts is None
    first = [float(trainer.train_step()[0]) for trainer in (plain, masked)]
    assert first[1] < first[0], "the masked errors count as 0"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Zero:
    """A network whose output is 0 whatever it sees."""

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.zeros_like(x)


class CallAgain:
    """A `Recorder` that calls the function again instead of replaying it, with gradients where they lay."""

    def __init__(self, device: torch.device) -> None:
        self.replays = 0

    def record(self, function, inputs, generators=()):
        states = [one.get_state() for one in generators]
        outputs = list(function(inputs))  # a real recorder warms up, which draws random numbers
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)

        def replay() -> None:
            self.replays += 1
            for output, made in zip(outputs, function(inputs), strict=True):
                output.copy_(made)

        return replay, outputs

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def test_replayed_steps_train_like_separate_calls(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders: list[CallAgain] = []

    def make(device: torch.device) -> CallAgain:
        recorders.append(CallAgain(device))
        return recorders[-1]

    monkeypatch.setattr(replay, "RECORDERS", {"cpu": make})
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    weights = []
    for is_captured in (False, True):
        trainer = make_trainer(data_set, tmp_path, compile=is_captured)
        for trainer.step in range(4):
            trainer.train_step()
        weights.append(list(trainer.policy.parameters()))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert [one.replays for one in recorders] == [4], "one recording serves all steps"


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
