"""The safety benchmark: every scene, method and fault runs, and what is promised holds even for an untrained policy."""

import csv
import json
from pathlib import Path

import diffpolicy_envs  # noqa: F401
import gymnasium
import numpy as np
import pytest
import torch
from one_case import over
from run_command import error_of, run

from diffpolicy.benchmarks import safety_methods, safety_scenes, safety_summary
from diffpolicy.evaluation.monitor import EpisodeRecord
from diffpolicy.evaluation.rollout import Episode
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.encoders.resnet import ResnetConfig
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.safety.build import build_safety

COMMON = ["episodes=1", "inference_batch=1", "max_ticks=24", "latency_episodes=0", "sampler.steps=2", "device=cpu"]


@pytest.fixture(scope="module")
def reach_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy with the observations and actions of ObstacleReach."""
    space = gymnasium.make("diffpolicy/ObstacleReach-v0").observation_space
    assert isinstance(space, gymnasium.spaces.Dict)
    dims = {key: int(np.prod(box.shape)) for key, box in space.items()}
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(dims, 2, model=UNet1dConfig(widths=[8, 16, 32])))
    pixels = torch.linspace(0.0, 512.0, 100)[:, None]
    policy.fit({key: pixels.expand(-1, dim) for key, dim in dims.items()}, pixels.expand(-1, 2))
    folder = tmp_path_factory.mktemp("reach") / "checkpoint"
    policy.save_pretrained(folder)
    return folder


def rows_of(folder: Path) -> list[dict]:
    rows = json.loads((folder / "safety.json").read_text())["rows"]
    with (folder / "safety.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]
    assert (folder / "safety.png").stat().st_size > 1000
    return rows


def test_every_method_gives_a_row(reach_checkpoint: Path, tmp_path: Path) -> None:
    result = run(
        "benchmark_safety.py",
        f"checkpoint={reach_checkpoint}",
        "scenes=[symmetric]",
        *COMMON,
        f"hydra.run.dir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    rows = {row["method"]: row for row in rows_of(tmp_path)}
    assert list(rows) == list(safety_methods.COMPARED)
    for name, row in rows.items():
        assert row["episodes"] == 1
        assert row["substeps"] > 0
        if name == "brake" or name.startswith("ours"):
            assert row["violations"] == 0, row
            assert row["certified_rate"] == 1.0  # a robot at rest can always stay
        else:
            assert row["certified_rate"] == 0.0


@pytest.mark.parametrize("scenes", ["moving", pytest.param("random,appears", marks=pytest.mark.slow)])
def test_what_is_promised_holds_with_every_fault(reach_checkpoint: Path, tmp_path: Path, scenes: str) -> None:
    faults = ",".join(safety_scenes.FAULTS)
    settings = ["methods=[ours_1]", f"faults=[{faults}]", f"scenes=[{scenes}]", *COMMON]
    result = run("benchmark_safety.py", f"checkpoint={reach_checkpoint}", *settings, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = rows_of(tmp_path)
    assert len(rows) == len(scenes.split(",")) * len(safety_scenes.FAULTS)
    for row in rows:
        assert row["violations"] == 0, row
        assert row["unchecked_ticks"] == 0 or row["fault"] == "late", row  # two ticks in one


def test_pusht_keeps_out_of_a_zone_that_its_observation_does_not_show(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = ["scenes=[pusht,pusht_appears]", "methods=[ours_1]", *COMMON]
    result = run("benchmark_safety.py", f"checkpoint={tiny_checkpoint}", *settings, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert [row["violations"] for row in rows_of(tmp_path)] == [0, 0]


def test_push_t_that_is_seen_keeps_out_of_a_zone_that_no_image_shows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sees = {"agent_pos": vector(2), "pixels": ObservationSpec("image", (96, 96, 3))}
    encoder, model = ResnetConfig(pool="average", crop=0.5), UNet1dConfig(widths=[8, 16, 32])
    policy = DiffusionPolicy(PolicyConfig(sees, 2, model=model, encoder=encoder))
    pixels = torch.linspace(0.0, 512.0, 100)[:, None].expand(-1, 2)
    policy.fit({"agent_pos": pixels}, pixels)
    policy.save_pretrained(tmp_path / "seeing")
    settings = ["scenes=[pusht_image]", "methods=[ours_1]", *COMMON, f"hydra.run.dir={tmp_path / 'run'}"]
    result = run("benchmark_safety.py", f"checkpoint={tmp_path / 'seeing'}", *settings)
    assert result.returncode == 0, result.stderr
    (row,) = rows_of(tmp_path / "run")
    assert (row["violations"], row["over_limits"], row["certified_rate"]) == (0, 0, 1.0)


def test_what_a_planning_tick_costs_is_told_for_every_mode_and_batch(reach_checkpoint: Path, tmp_path: Path) -> None:
    settings = [
        "modes=[last,every_step]",
        "candidates=[1,2]",
        "batches=[1,3]",
        "episodes=1",
        "max_ticks=8",
        "sampler.steps=2",
    ]
    result = run("benchmark_planning.py", f"checkpoint={reach_checkpoint}", *settings, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "benchmark_planning.json").read_text())["rows"]
    found = [(row["batch"], row["mode"], row["candidates"]) for row in rows]
    ours = [(mode, k) for mode in ("last", "every_step") for k in (1, 2)]
    assert found == [(batch, *one) for batch in (1, 3) for one in (("none", 1), *ours)]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] and row["ratio"] > 0 and row["cpu_ratio"] > 0 for row in rows)
    assert (tmp_path / "benchmark_planning.md").read_text() in result.stdout


def test_an_unseen_obstacle_takes_the_place_of_none() -> None:
    """Also where the env uses all of its slots."""
    env = gymnasium.make(safety_scenes.register_scene("appears", "none", None).id, variant="random")
    counts = set()
    for seed in range(12):
        before = env.reset(seed=seed)[1]["obstacles"]
        for _ in range(safety_scenes.SCENES["appears"].from_tick):
            after = env.step(np.array([256.0, 256.0], dtype=np.float32))[-1]["obstacles"]
        assert after["mask"].sum() == before["mask"].sum() + 1
        np.testing.assert_array_equal(after["vertices"][:-1], before["vertices"][:-1])
        counts.add(int(before["mask"].sum()))
    assert max(counts) == safety_scenes.SLOTS


def test_an_episode_is_safe_only_if_it_keeps_to_all_limits_too() -> None:
    watch = safety_summary.Watch(build_safety(safety_scenes.SCENES["random"].demands))
    path = [[0.0, 0.0], [1.0, 0.0]]
    broken = {}, {"over_limits": 2}, {"violations": 3}
    watch.monitor.records = {i: EpisodeRecord(ticks=1, substeps=10, path=path, **one) for i, one in enumerate(broken)}
    found = safety_summary.summary([Episode(seed, 1.0, True, 1) for seed in range(3)], watch)
    assert found["safe_success"] == pytest.approx(1 / 3)
    assert found["clear_success"] == pytest.approx(2 / 3)
    assert found["success"] == 1.0
    assert (found["over_limits"], found["violations"]) == (2, 3)


@over("choice", ["scenes=[nowhere]", "methods=[hope]", "faults=[gremlins]"])
def test_what_does_not_exist_is_named_before_any_work(tiny_checkpoint: Path, tmp_path: Path, choice: str) -> None:
    said = error_of("benchmark_safety", tmp_path, f"checkpoint={tiny_checkpoint}", choice)
    assert "is unknown, expected one of" in said


def test_the_disc_that_closes_a_way_touches_the_obstacle_and_lies_beside_the_way() -> None:
    env = gymnasium.make("diffpolicy/ObstacleReach-v0", variant="symmetric")
    sides = set()
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        x, y, radius = safety_scenes.beside_the_obstacle(info, observation)
        along = observation["goal"] - info["agent_position"]
        center = info["obstacles"]["vertices"][0].mean(0)
        assert abs(np.dot(along, np.array([x, y]) - center)) < 1e-3 * np.linalg.norm(along) * radius
        sides.add(np.sign(along[0] * (y - center[1]) - along[1] * (x - center[0])).item())
    assert sides == {-1.0, 1.0}
