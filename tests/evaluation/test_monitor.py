"""The monitor measures what was executed: it agrees with the env's own account, and sees what nobody certified."""

from dataclasses import replace

import diffpolicy_envs  # noqa: F401
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from diffpolicy.evaluation.evaluate import report
from diffpolicy.evaluation.monitor import Monitor
from diffpolicy.evaluation.readings import Readings
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.safety.build import SafetyConfig, build_safety

DEMANDS = SafetyConfig(mode="last")
TICKS = 20


def straight_to_the_goal(demands: SafetyConfig, variant: str, envs: int = 4) -> tuple[Monitor, np.ndarray, np.ndarray]:
    """Drive through whatever is in the way; the monitor, and the env's contact sub-steps while moving and at rest."""
    safety = build_safety(demands)
    assert safety is not None
    monitor, readings = Monitor(safety), Readings()
    make = lambda: gymnasium.make("diffpolicy/ObstacleReach-v0", variant=variant, terminate_on_contact=False)  # noqa: E731
    env = SyncVectorEnv([make] * envs, autoreset_mode=AutoresetMode.DISABLED)
    everyone, contacts, at_rest = np.ones(envs, dtype=bool), np.zeros(envs), np.zeros(envs)
    observation, info = env.reset(seed=list(range(envs)))
    readings.update(info, everyone)
    for _ in range(TICKS):
        position = info["agent_position"]
        way = observation["goal"] - position  # too fast to be a success
        action = (position + 30.0 * way / np.linalg.norm(way, axis=1)[:, None]).astype(np.float32)
        observation, *_, info = env.step(action)
        monitor(np.arange(envs), readings, info, action, None)
        readings.update(info, everyone)
        contacts += info["contact_substeps"] - info["contact_substeps_at_rest"]
        at_rest += info["contact_substeps_at_rest"]
    env.close()
    return monitor, contacts, at_rest


@pytest.mark.parametrize("variant", ["symmetric", "narrow_gap", "random", "thin_wall"])
def test_violations_are_the_sub_steps_that_the_env_counts_as_contact(variant: str) -> None:
    monitor, contacts, at_rest = straight_to_the_goal(DEMANDS, variant)
    assert contacts.sum() > 0 or variant == "narrow_gap"
    assert [monitor.records[i].violations for i in range(4)] == contacts.tolist()
    assert [monitor.records[i].violations_at_rest for i in range(4)] == at_rest.tolist()
    assert all(record.unchecked == 0 and record.ticks == TICKS for record in monitor.records.values())


def test_a_speed_limit_is_checked_on_the_motion() -> None:
    monitor, _, _ = straight_to_the_goal(replace(DEMANDS, max_speed=100.0), "symmetric")
    record = monitor.records[0]
    speeds = np.linalg.norm(np.diff(record.path, axis=0), axis=1) / 0.1
    assert speeds.max() > 110.0
    assert record.over_limits >= 10 * (speeds > 110.0).sum() - 10
    without, _, _ = straight_to_the_goal(DEMANDS, "symmetric")
    assert without.records[0].over_limits == 0
    assert without.records[0].violations == record.violations


def test_a_motion_that_the_plant_does_not_explain_is_counted() -> None:
    monitor, _, _ = straight_to_the_goal(replace(DEMANDS, stiffness=60.0), "symmetric")
    assert monitor.records[0].unchecked > 10


def test_an_evaluation_with_safety_reports_its_rates(tiny_checkpoint) -> None:
    policy = DiffusionPolicy.from_pretrained(tiny_checkpoint)
    kwargs = {"obs_type": "keypoints", "max_episode_steps": 40}
    env = EnvConfig("diffpolicy_envs:diffpolicy/PushT-v0", kwargs, {"start_rule": "legacy"})
    demands = replace(DEMANDS, max_speed=400.0, keep_out=[[60, 450, 30.0]])
    found = report(policy, env, {"name": "ddim", "steps": 1}, [0, 1], 2, build_safety(demands))
    assert found["violation_rate"] == 0.0
    assert found["certified_rate"] == 1.0
    assert 0.0 <= found["fallback_rate"] <= 1.0
    unsafe = report(policy, env, {"name": "ddim", "steps": 1}, [0, 1], 2)
    assert "certified_rate" not in unsafe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workspace": [5.0, 1.0]}, "low 5.0 must not be above high 1.0"),
        ({"max_speed": -3.0}, "max_speed -3.0 must be finite and above 0"),
        (
            {"max_speed": 20.0, "velocity_error": 30.0},
            "max_speed 20.0 must be above 30.1, which the declared errors alone reach",
        ),
        ({"keep_out": [[1.0, 2.0]]}, "must be discs"),
        ({"keep_out": [[1.0, 2.0, -1.0]]}, "radius -1.0"),
        ({"clearance": float("nan")}, "clearance nan"),
        ({"mode": "sometimes"}, "mode 'sometimes' must be one of"),
    ],
)
def test_demands_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_safety(replace(DEMANDS, **change))


def test_mode_none_demands_nothing() -> None:
    assert build_safety(SafetyConfig()) is None


def test_readings_keep_the_latest_of_each_env() -> None:
    readings = Readings()
    assert readings.plant_state is None
    assert readings.obstacles is None
    info = {"agent_position": np.zeros((2, 2)), "agent_velocity": np.ones((2, 2))}
    readings.update(info, np.array([True, True]))
    readings.update({**info, "agent_position": np.full((2, 2), 5.0)}, np.array([False, True]))
    state = readings.plant_state
    assert state is not None
    torch.testing.assert_close(state.position, torch.tensor([[0.0, 0.0], [5.0, 5.0]], dtype=torch.float64))


def test_clocks_of_readings_run_back_only_where_an_episode_begins() -> None:
    readings, both = Readings(), np.array([True, True])
    readings.update({"time_s": np.array([1.0, 2.0])}, both)
    readings.update({"time_s": np.array([0.0, 2.1])}, both)
    assert readings.time_s is not None
    assert readings.time_s.tolist() == [1.0, 2.1]
    readings.begin({"time_s": np.array([0.0, 0.0])}, np.array([True, False]))
    assert readings.time_s.tolist() == [0.0, 2.1]
