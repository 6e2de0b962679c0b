"""The commands as a user types them: train on own data, train and evaluate Push-T, benchmark, and every way to err."""

import csv
import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from one_case import over
from run_command import error_of, run

from diffpolicy import DiffusionPolicy
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.networks.observation import vector
from diffpolicy.policy.sampler_choices import MAP_TABLES

TINY = ["model.widths=[8,16]", "model.time_embedding_dim=8", "trainer.batch_size=16", "device=cpu"]


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.zarr"
    buffer = ReplayBuffer.create(path, {"action": ((2,), "float32"), "pose": ((3,), "float32")})
    generator = np.random.default_rng(0)
    for _ in range(4):
        buffer.append_episode(
            {"action": generator.random((30, 2), "float32"), "pose": generator.random((30, 3), "float32")}
        )
    return path


@pytest.fixture(scope="module")
def pusht_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the shipped demonstrations, evaluated on the way."""
    folder = tmp_path_factory.mktemp("run") / "pusht"
    steps = ["trainer.steps=2", "evaluation.episodes=1", "sampler.steps=1", f"hydra.run.dir={folder}"]
    result = run("train_policy.py", "task=pusht", *TINY, *steps)
    assert result.returncode == 0, result.stderr
    return folder


def test_own_data_trains_without_an_env_and_resumes(toy_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["task=custom", f"data.path={toy_data}", "data.observations={pose: ['pose[:2]']}", *TINY]
    arguments += ["trainer.steps=6", "trainer.checkpoint_every=3", f"hydra.run.dir={folder}"]
    result = run("train_policy.py", *arguments)
    assert result.returncode == 0, result.stderr
    policy = DiffusionPolicy.from_pretrained(folder / "checkpoints" / "last")
    assert policy.config.observations == {"pose": vector(2)}
    assert policy.metadata["step"] == 6

    again = run("train_policy.py", *arguments)
    assert again.returncode == 1
    assert "holds a run; add resume=true" in again.stderr
    (folder / "checkpoints" / "last").unlink()
    (folder / "checkpoints" / "last").symlink_to("step_3")
    assert run("train_policy.py", *arguments, "resume=true").returncode == 0
    assert (folder / "checkpoints" / "last").readlink() == Path("step_6")


def test_wandb_offline_records_the_metrics(toy_data: Path, tmp_path: Path) -> None:
    arguments = ["task=custom", f"data.path={toy_data}", "data.observations={pose: [pose]}", *TINY]
    arguments += ["trainer.steps=4", "trainer.log_every=2", f"hydra.run.dir={tmp_path}"]
    result = run("train_policy.py", *arguments, "logger=wandb", "logger.mode=offline")
    assert result.returncode == 0, result.stderr
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for name in (b"validation_loss", b"grad_norm", b"learning_rate"):
        assert name in content


def test_a_run_folder_holds_what_it_promises(pusht_run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "figures/curves.png", "checkpoints/last/model.safetensors"):
        assert (pusht_run / name).is_file(), name
    for name in ("checkpoints/last/config.json", "checkpoints/last/training_state.safetensors", "checkpoints/best"):
        assert (pusht_run / name).exists(), name
    assert not list(pusht_run.glob("*.log")), "no log file of the launcher"
    config = (pusht_run / "config.yaml").read_text()
    assert "task: pusht" in config
    assert "path: data/pusht_expert.zarr.zip" in config


def test_evaluation_writes_results_and_videos_that_play(pusht_run: Path, tmp_path: Path) -> None:
    checkpoint = pusht_run / "checkpoints" / "last"
    arguments = [f"checkpoint={checkpoint}", "task=pusht", "episodes=2", "videos=1", "sampler.steps=1"]
    result = run("evaluate_policy.py", *arguments, "inference_batch=16", f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    expected = {"version", "commit", "task", "checkpoint", "sampler", "steps", "device", "start_rule", "n_episodes"}
    expected |= {"mean_score", "score_ci95", "success_rate", "success_ci95", "latency_ms", "episodes"}
    assert expected <= set(results)
    assert (results["task"], results["start_rule"], results["n_episodes"]) == ("pusht", "legacy", 2)
    assert [episode["seed"] for episode in results["episodes"]] == [100_000, 100_001]
    assert set(results["episodes"][0]) >= {"seed", "score", "success", "length"}
    (video,) = (tmp_path / "videos").iterdir()
    assert video.name == "episode_000_seed_100000.mp4"
    assert imageio.imread(video).shape == (results["episodes"][0]["length"] + 1, 512, 512, 3)


def test_the_benchmark_writes_table_csv_json_and_plot(pusht_run: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={pusht_run / 'checkpoints' / 'last'}", "samplers={ddpm: [2], ddim: [2, 1]}"]
    arguments += ["episodes=1", "inference_batch=16", "latency_calls=1", f"hydra.run.dir={tmp_path}"]
    result = run("benchmark_samplers.py", *arguments)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "benchmark_samplers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], row["steps"]) for row in rows] == [("ddpm", "2"), ("ddim", "2"), ("ddim", "1")]
    assert all(0 <= float(row["score_low"]) <= float(row["score"]) <= float(row["score_high"]) <= 1 for row in rows)
    assert len(json.loads((tmp_path / "benchmark_samplers.json").read_text())["reports"]) == 3
    assert (tmp_path / "benchmark_samplers.png").read_bytes().startswith(b"\x89PNG")
    assert all(float(row["row_us"]) > 0 and float(row["latency_p50_ms"]) > 0 for row in rows)
    assert "| ddim | 1 | 1 |" in result.stdout
    assert [row["training_steps"] for row in rows] == 3 * ["2"]
    assert all(-1 <= float(row["success_difference_low"]) <= float(row["success_difference"]) for row in rows)


@pytest.mark.slow  # that every one samples, tests/policy says; here, that each has its settings
def test_every_sampler_works_from_the_command_line(repository: Path, shipped_checkpoint: Path, tmp_path: Path) -> None:
    """All denoisers' on the shipped checkpoint but flow_heun, which needs the straight path."""
    others = {"flow_heun", "auto", *MAP_TABLES}
    names = sorted({path.stem for path in (repository / "configs" / "sampler").glob("*.yaml")} - others)
    samplers = "{" + ", ".join(f"{name}: [2]" for name in names) + "}"
    arguments = [
        f"checkpoint={shipped_checkpoint}",
        f"samplers={samplers}",
        "episodes=1",
        "inference_batch=16",
        "latency_calls=1",
    ]
    result = run("benchmark_samplers.py", *arguments, f"hydra.run.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    reports = json.loads((tmp_path / "benchmark_samplers.json").read_text())["reports"]
    assert [one["sampler"]["name"] for one in reports] == names
    assert {one["sampler"]["name"]: one["evaluations"] for one in reports}["heun"] == 3


@pytest.mark.parametrize(
    "diffusion", ["flow", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v", "edm", "score"))]
)
def test_every_objective_trains_and_is_sampled(toy_data: Path, tmp_path: Path, diffusion: str) -> None:
    arguments = ["task=custom", f"data.path={toy_data}", "data.observations={pose: [pose]}", *TINY]
    arguments += [f"diffusion={diffusion}", "diffusion.condition_dropout=0.1", "trainer.steps=3"]
    arguments += [f"hydra.run.dir={tmp_path}"]
    result = run("train_policy.py", *arguments)
    assert result.returncode == 0, result.stderr
    policy = DiffusionPolicy.from_pretrained(tmp_path / "checkpoints" / "last")
    name = "flow_heun" if diffusion == "flow" else "heun"
    sampler, guide = policy.sampler({"name": name, "steps": 5}), policy.guide(GuidanceConfig(weight=0.5))
    observation = {"pose": torch.zeros(1, policy.config.window.n_obs_steps, 3)}
    plan = policy.predict_action_chunk(observation, [torch.Generator().manual_seed(0)], sampler, guide=guide).plan
    assert plan.isfinite().all()


ERRORS = {
    "misspelt key": (["trainer.step=5"], "step"),
    "unknown task": (["task=pushtt"], "pusht"),
    "wrong type": (["trainer.steps=ten"], "'ten'"),
    "missing data": (["data.path=nowhere.zarr"], "nowhere.zarr"),
    "no observations": (["task=custom", "data.path=data/pusht_expert.zarr.zip"], "observations is None"),
    "unknown array": (["data.observations.keypoints=[keypiont]"], "keypiont"),
    "horizon": (["window.horizon=15"], "horizon 15 must be divisible by 4"),
    "unknown schedule": (["diffusion.schedule=sine"], "expected one of cosine, flow, karras, linear"),
    "refused schedule": (["diffusion.schedule=linear", "diffusion.num_levels=100"], "terminal signal-to-noise ratio"),
    "nothing to resume": (["resume=true"], "give the run's folder with hydra.run.dir=DIR"),
    "unknown device": (["device=tpu"], "'tpu' is not available"),
}


@over("arguments, message", ERRORS)
def test_a_training_error_names_its_cause(tmp_path: Path, arguments, message: str) -> None:
    few = "trainer.steps=1"  # so that an error that is missing does not cost a whole training
    assert message in error_of("train_policy", tmp_path / "run", few, *arguments)
    assert not (tmp_path / "run" / "checkpoints").exists()


EVALUATION_ERRORS = {
    "no checkpoint named": ([], "checkpoint"),
    "missing checkpoint": (["checkpoint=nowhere"], "checkpoint 'nowhere' not found; looked at "),
    "another task": (["checkpoint={run}", "task=pusht_human"], "trained for task pusht, not pusht_human"),
    "no episodes": (["checkpoint={run}", "episodes=0"], "error: episodes 0 must be between 1 and 1000000"),
    "guidance without a null token": (["checkpoint={run}", "sampler.guidance.weight=1"], "condition_dropout above 0"),
    "flow sampler on another schedule": (["checkpoint={run}", "sampler=flow_heun"], "needs the straight path"),
    "too many steps": (["checkpoint={run}", "sampler.steps=1001"], "steps 1001 must be between 1 and 1000"),
    "unknown sampler": (
        ["checkpoint={run}", "sampler.name=ddimm"],
        "'ddimm' is unknown, expected one of auto, ",
    ),
}


@over("arguments, message", EVALUATION_ERRORS)
def test_an_evaluation_error_names_its_cause(pusht_run: Path, tmp_path: Path, arguments, message: str) -> None:
    filled = [argument.format(run=pusht_run / "checkpoints" / "last") for argument in arguments]
    assert message in error_of("evaluate_policy", tmp_path / "evaluation", *filled)
    assert not (tmp_path / "evaluation" / "results.json").exists()


@pytest.mark.parametrize(
    ("script", "case", "unwritten"),
    [
        ("train_policy.py", ERRORS["misspelt key"], "checkpoints"),
        ("evaluate_policy.py", EVALUATION_ERRORS["no checkpoint named"], "results.json"),
    ],
)
def test_an_error_is_one_clear_message(tmp_path: Path, script: str, case: tuple[list[str], str], unwritten) -> None:
    arguments, message = case
    result = run(script, *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / "run" / unwritten).exists()
