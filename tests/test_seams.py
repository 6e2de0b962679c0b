"""Every interface with its second implementation, which trains, saves, loads and acts with the same code.

These are not a U-Net, a low-dimensional encoder, a normaliser, denoising, or even diffusion.
"""

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import walk
from one_case import over
from seams import CosineCodec, RegressionPolicy, TokenEncoder, TokenReader, WithTarget

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.constraints import Box, Quantity
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.evaluation.evaluate import latency_ms, report
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.networks.condition import Condition, ConditionShape, NotGivenError
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy import build, kinds, objective_choices
from diffpolicy.policy.analysis import PolicyAnalysis
from diffpolicy.policy.kinds import load_policy
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.safety import Safety, State, Surroundings
from diffpolicy.system import checkpoint
from diffpolicy.system.tables import Entry, NameOnly
from diffpolicy.training import run_settings, teaching
from diffpolicy.training.settings import EvaluationConfig
from diffpolicy.training.trainer import Trainer

WINDOW = WindowConfig(horizon=8, n_obs_steps=2, n_action_steps=4)
SEES = {"camera": ObservationSpec("image", (8, 8, 3)), "state": vector(2)}
TOKENS = {"encoder": "tokens", "model": "reader"}


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the second implementations, one line in a table each."""
    new = {
        "ENCODERS": {"tokens": Entry(NameOnly, lambda own, specs, steps: TokenEncoder(specs, steps))},
        "BACKBONES": {"reader": Entry(NameOnly, TokenReader.from_settings)},
        "CODECS": {
            "cosines": Entry(NameOnly, lambda own, policy: CosineCodec(policy.action_dim, policy.window.horizon))
        },
        "OBJECTIVES": {"with_target": Entry(NameOnly, WithTarget)},
    }
    for table, more in new.items():
        home = objective_choices if table == "OBJECTIVES" else build
        whole = MappingProxyType({**getattr(home, table), **more})
        for module in (home, *(one for one in (run_settings, teaching) if hasattr(one, table))):
            monkeypatch.setattr(module, table, whole)
    monkeypatch.setattr(kinds, "POLICIES", {**kinds.POLICIES, "regression": RegressionPolicy})


def seen(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "camera": torch.randint(256, (batch, 2, 8, 8, 3), generator=generator, dtype=torch.uint8),
        "state": torch.rand(batch, 2, 2, generator=generator),
    }


def seeing_policy(**choices: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(SEES, 2, window=WINDOW, **{**TOKENS, **choices}))
    share = torch.linspace(0.0, 1.0, 20)[:, None].expand(-1, 2)
    policy.fit({"state": share}, 10.0 * share)
    return policy.eval()


def generators(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


def test_a_policy_that_sees_by_tokens_acts_in_a_controller_as_it_plans() -> None:
    policy, frames = seeing_policy(), seen(3)
    plan = policy.predict_action_chunk(frames, generators(3)).actions.numpy()
    controller = PolicyController(policy)
    controller.reset(seeds=[0, 1, 2])
    same = {key: value[:, :1].expand_as(value).clone() for key, value in frames.items()}  # repeat the first one
    expected = policy.predict_action_chunk(same, generators(3)).actions.numpy()
    np.testing.assert_array_equal(controller.select_action({k: v[:, 0] for k, v in frames.items()}), expected[:, 0])
    assert np.abs(plan - expected).max() > 1e-4, "the second frame counts"


@over(
    "bad, message",
    [
        (torch.full((1, 2, 8, 8, 3), 0.5), r"camera has floats from 0.5 to 0.5 \(values: unit takes"),
        (
            torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8),
            r"camera has shape .*expected \[1, 2, 8, 8, 3\].*channels: first",
        ),
    ],
)
def test_an_image_of_another_type_or_shape_is_refused(bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeing_policy().predict_action_chunk({**seen(1), "camera": bad}, generators(1))


def test_with_safety_only_the_robot_whose_camera_fails_stops() -> None:
    box = Safety([Box(-20.0, 20.0, Quantity("commands"))], period_s=0.1)
    controller = PolicyController(seeing_policy(), safety=box)
    controller.reset(seeds=[0, 1])
    frames = {key: value[:, 0].numpy() for key, value in seen(2).items()}
    failing = {**frames, "camera": frames["camera"].astype(np.float32)}
    failing["camera"][1, 0, 0, 0] = np.nan
    still = Surroundings(State(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)))
    alarms = []
    for tick in range(6):
        controller.select_action(failing if tick in (2, 3) else frames, still)
        assert controller.last_plan is not None
        alarms.append(controller.last_plan.alarm.tolist())
        if tick == 2:
            assert "camera has NaN" in controller.last_plan.reason[1]
    assert alarms == [[False, tick in (2, 3)] for tick in range(6)]


def test_a_backbone_that_reads_what_the_encoder_does_not_give_is_refused_by_name() -> None:
    for model in ("unet1d", "dit"):
        with pytest.raises(ValueError, match=rf"{model} reads vector .*, but the encoder tokens gives .*tokens"):
            seeing_policy(model=model)


@over("model, read", [("unet1d", "vector"), ("dit", "vector"), ("transformer", "tokens"), ("reader", "tokens")])
def test_a_policy_keeps_only_the_fields_of_the_condition_that_its_backbone_reads(model: str, read: str) -> None:
    dropping = {"name": "denoising", "condition_dropout": 0.5}
    policy = DiffusionPolicy(PolicyConfig({"state": 2}, 2, window=WINDOW, model=model, diffusion=dropping))
    assert {name for name in policy.state_dict() if "null" in name} == {f"null_condition.{read}"}
    share = torch.linspace(0.0, 1.0, 20)[:, None].expand(-1, 2)
    policy.fit({"state": share}, share)
    condition = policy.condition({"state": torch.rand(3, 2, 2)}).repeated(2)
    assert {name for name in ("vector", "tokens") if getattr(condition, name) is not None} == {read}


def test_the_encoder_for_vectors_refuses_an_image_by_name() -> None:
    with pytest.raises(ValueError, match="encoder low_dim: observation 'camera' is an image"):
        seeing_policy(encoder="low_dim", model="unet1d")


def test_dropout_of_tokens_learns_null_tokens_which_guide() -> None:
    policy = seeing_policy(diffusion={"name": "denoising", "condition_dropout": 0.5})
    policy.loss(seen(16), torch.rand(16, 8, 2), torch.Generator().manual_seed(0)).backward()
    assert policy.null_condition["tokens"].grad.abs().sum() > 0
    forget = policy.guide(GuidanceConfig(weight=-1.0))
    plans = [policy.predict_action_chunk(seen(1, seed), generators(1), guide=forget).plan for seed in (0, 1)]
    torch.testing.assert_close(plans[0], plans[1], rtol=0, atol=0)


def test_a_condition_repeats_and_mixes_all_of_its_fields_by_row() -> None:
    one = Condition(torch.tensor([[1.0], [2.0]]), torch.tensor([[[3.0]], [[4.0]]]))
    null = Condition.null(ConditionShape((1,), (1, 1)).null(("vector", "tokens")), 2)
    mixed = one.mixed(torch.tensor([True, False]), null)
    assert mixed.vector.tolist() == [[0.0], [2.0]]
    assert mixed.tokens.tolist() == [[[0.0]], [[4.0]]]
    assert one.repeated(2).tokens.flatten().tolist() == [3.0, 4.0, 3.0, 4.0]
    with pytest.raises(NotGivenError, match="tokens"):
        Condition(one.vector).fields(("vector", "tokens"))


def test_noise_and_clean_estimates_live_in_the_codecs_space_and_plans_in_physical_units() -> None:
    policy = seeing_policy(codec="cosines")
    plan = 5.0 + torch.rand(2, 8, 2)
    torch.testing.assert_close(policy.codec.decode(policy.codec.encode(plan)), plan, rtol=0, atol=1e-5)  # float32
    analysis = PolicyAnalysis(policy)
    noise = analysis.encode(seen(2), plan, steps=30, method="rk4")
    assert noise.shape == plan.shape
    made = analysis.decode(seen(2), noise, steps=30)
    again = analysis.decode(seen(2), noise, steps=60)
    torch.testing.assert_close(made, again, rtol=0, atol=0.5)  # of an untrained network, in units of the actions
    density = analysis.log_likelihood(seen(2), plan, steps=2)
    stretch = 8 * 2 * float(np.log(1 / 5.0))  # the basis is orthonormal: only the normaliser stretches
    torch.testing.assert_close(density.physical - density.normalized, torch.full((2,), stretch), rtol=0, atol=1e-4)


def test_a_constraint_acts_on_the_decoded_plan_of_a_codec_without_a_metric_and_leaves_the_past() -> None:
    policy = seeing_policy(codec="cosines")
    given: list[torch.Tensor] = []

    def low(plan: torch.Tensor, row: Any) -> torch.Tensor:
        given.append(plan.clone())
        return plan.clamp(4.0, 4.5)

    plan = policy.predict_action_chunk(seen(2), generators(2), constrain=low).plan
    assert ((plan[:, 1:] >= 4.0) & (plan[:, 1:] <= 4.5)).all()
    torch.testing.assert_close(plan[:, 0], given[-1][:, 0], rtol=0, atol=0)  # before the present
    with pytest.raises(ValueError, match="encoded by CosineCodec, which has no metric"):
        PolicyController(policy, safety=Safety([Box(0.0, 9.0, Quantity("commands"))], period_s=0.1))


def test_an_objective_with_a_target_trains_resumes_bit_exactly_and_acts_without_it(tmp_path: Path) -> None:
    data = walk.record(tmp_path / "walk.zarr")
    changes = {"diffusion": "with_target", "trainer": {"steps": 16}}
    whole = Trainer(walk.settings(data, **changes), tmp_path / "whole")
    whole.run()
    assert int(whole.policy.objective.steps_done) == 16
    assert float(whole.policy.objective.bias.detach().abs()) > 0

    class StopError(Exception):
        pass

    cut = Trainer(walk.settings(data, **changes), tmp_path / "cut")
    step = cut.train_step
    cut.train_step = lambda: step() if cut.step < 12 else (_ for _ in ()).throw(StopError)  # after checkpoint 8
    with pytest.raises(StopError):
        cut.run()
    resumed = Trainer(walk.settings(data, resume=True, **changes), tmp_path / "cut")
    assert resumed.step == 8
    resumed.run()
    ends = [walk.tensors(tmp_path / run / "checkpoints" / "step_16") for run in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(name.startswith("model.objective.target.") for name in ends[0]), "it is part of the training state"
    acting = checkpoint.read_tensors(tmp_path / "whole" / "checkpoints" / "step_16", "model")
    assert not any("objective" in name for name in acting)
    rates = {len(group["params"]): group["lr"] for group in whole.optimization.optimizer.param_groups}
    assert rates[1] == pytest.approx(0.1 * max(rates.values()))


def test_a_regression_policy_trains_saves_loads_and_acts_by_the_same_code(tmp_path: Path) -> None:
    data = walk.record(tmp_path / "walk.zarr")
    config = walk.settings(
        data, policy="regression", trainer={"steps": 400, "learning_rate": 3e-3, "validate_every": 400}
    )
    Trainer(config, tmp_path / "run").run()
    policy = load_policy(tmp_path / "run" / "checkpoints" / "last")
    assert type(policy) is RegressionPolicy
    controller = PolicyController(policy, policy.sampler())
    controller.reset(seeds=[0])
    position, goal = -0.5, 0.5
    for _ in range(60):
        (position,) = controller.select_action({"state": [[position, goal]]})[0]
    assert position == pytest.approx(goal, abs=0.15), "it walks to the goal, as the demonstrations do"
    box = Safety([Box(-1.0, 0.2, Quantity("commands"))], period_s=0.1)
    safe = PolicyController(policy, policy.sampler(), safety=box)
    safe.reset(seeds=[0])
    state = State(np.full((1, 1), -0.5), np.zeros((1, 1)))
    for _ in range(20):
        (action,) = safe.select_action({"state": [[position, goal]]}, Surroundings(state))[0]
        assert action <= 0.2


def test_a_regression_policy_is_evaluated_while_and_after_it_trains(tmp_path: Path) -> None:
    env = EnvConfig("MountainCarContinuous-v0", {"max_episode_steps": 40})
    config = walk.settings(
        walk.record(tmp_path / "walk.zarr"),
        policy="regression",
        sampler={"name": "one_evaluation"},
        env=env,
        evaluation=EvaluationConfig(episodes=2),
        trainer={"steps": 8, "evaluate_every": 8},
    )
    Trainer(config, tmp_path / "run").run()
    assert (tmp_path / "run" / "checkpoints" / "best").exists()
    assert Trainer(dataclasses.replace(config, resume=True), tmp_path / "run").step == 8
    policy = load_policy(tmp_path / "run" / "checkpoints" / "best")
    found = report(policy, env, {"name": "one_evaluation"}, range(2), inference_batch=2)
    assert (found["n_episodes"], found["evaluations"]) == (2, 1)
    assert found["sampler"] == {"name": "one_evaluation", "steps": 1}
    (latency,) = latency_ms([(policy, "one_evaluation")], repeats=3)
    assert latency["p50"] > 0.0


def test_a_checkpoint_of_another_kind_of_policy_is_refused_by_name(tmp_path: Path) -> None:
    policy = RegressionPolicy(PolicyConfig({"state": 2}, 1, name="regression"))
    share = torch.linspace(0.0, 1.0, 20)[:, None]
    policy.fit({"state": share.expand(-1, 2)}, share)
    policy.save_pretrained(tmp_path / "regression")
    with pytest.raises(ValueError, match="policy: 'regression' is unknown, expected one of diffusion"):
        DiffusionPolicy.from_pretrained(tmp_path / "regression")
