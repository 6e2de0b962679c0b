"""Push-T's scripted expert, the generator of its demonstrations, and the data set that is shipped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from diffpolicy_envs.experts import pusht
from diffpolicy_envs.experts.pusht_model import advance, new_world
from diffpolicy_envs.experts.pusht_table import pose_of_state, push_table
from diffpolicy_envs.pusht_world import SUCCESS_COVERAGE, block_keypoints
from one_case import over
from walk import PATIENCE_S, wait_for

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.demos.generate import generate
from diffpolicy.system.distributed import Ranks

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "pusht_expert.zarr.zip"
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def env():
    return gymnasium.make("diffpolicy_envs:diffpolicy/PushT-v0", obs_type="state").unwrapped


@pytest.fixture(scope="module")
def shipped():
    buffer = ReplayBuffer.open(SHIPPED)
    yield buffer
    buffer.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Four demonstrations, made in one go by one process."""
    return generate("pusht", 4, 3, tmp_path_factory.mktemp("reference") / "one.zarr.zip")


def test_model_follows_pymunk_through_contacts(env):
    """60 actions about the block, in the middle of the world, where no wall plays a part."""
    generator = np.random.default_rng(0)
    errors, moves = [], []
    for _ in range(20):
        state = [*generator.uniform(150, 360, 2), *generator.uniform(230, 290, 2), generator.uniform(0, 6)]
        _, info = env.reset(options={"state": state})
        pose = pose_of_state(info["state"])
        world = new_world(state[0], state[1], pose)
        target = generator.uniform(200, 312, 2)
        for step in range(60):
            if step % 15 == 0:
                aim = generator.uniform(200, 312, 2)
            target += np.clip(aim - target, -6.0, 6.0)
            _, _, _, _, info = env.step(target)
            advance(world, target[0], target[1])
        after = pose_of_state(info["state"])
        moves.append(np.abs(after[:2] - pose[:2]).sum())
        errors.append(np.abs(world[4:6] - after[:2]).max())
    assert np.median(moves) > 5.0
    # Equal but for rounding as long as block and agent meet in one point; two points may be solved in another order.
    assert np.median(errors) < 1e-5


def test_every_contact_can_be_reached_from_every_other():
    table = push_table()
    assert len(table.points) > 40
    assert np.isfinite(table.between).all()


@over("seed", [4_000_000, 4_000_001, 4_000_002, 4_000_003])
def test_expert_solves_unseen_starts(env, seed):
    settings = pusht.Settings(recovery_share=0.0)
    episode = pusht.record_episode(env, pusht.start_state(env, settings, seed), settings, seed)
    assert episode.attributes["coverage"] > SUCCESS_COVERAGE
    assert len(episode.arrays["action"]) < 300


def test_state_precedes_its_action(env):
    settings = pusht.Settings(recovery_share=0.0)
    start = pusht.start_state(env, settings, 4_000_004)
    arrays = pusht.record_episode(env, start, settings, 4_000_004).arrays
    np.testing.assert_array_equal(arrays["state"][0], start.astype(np.float32))
    env.reset(options={"state": start})
    observation, *_ = env.step(arrays["action"][0])
    # The stored state is rounded to 1/16 px, angles to 1/2048 rad.
    np.testing.assert_allclose(arrays["state"][1], observation, atol=0.5 / 16 + 1e-4)


def test_result_does_not_depend_on_the_number_of_workers(reference, tmp_path):
    two = generate("pusht", 4, 3, tmp_path / "two.zarr.zip", workers=2)
    assert two.read_bytes() == reference.read_bytes()


@pytest.mark.filterwarnings("ignore:.*rows past the last episode end")
def test_killed_generation_goes_on_to_the_same_file(reference, tmp_path):
    output = tmp_path / "killed.zarr.zip"
    code = (
        "import sys; from pathlib import Path\n"
        f"from diffpolicy.demos.generate import generate; generate('pusht', 4, 3, Path({str(output)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    recording = Path(f"{output}.recording")
    wait_for((recording / "data" / "action" / "c").exists, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert recording.exists()
    assert not output.exists()
    generate("pusht", 4, 3, output)
    assert not recording.exists()
    assert output.read_bytes() == reference.read_bytes()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("moment", [pytest.param("data", marks=pytest.mark.slow), "data/action/c"])
def test_an_interrupt_ends_the_workers_without_a_word_of_theirs(tmp_path, moment):
    output = tmp_path / "interrupted.zarr.zip"
    code = (
        "import sys; from pathlib import Path\n"
        f"from diffpolicy.demos.generate import generate\n"
        f"try:\n    generate('pusht', 10**4, 3, Path({str(output)!r}), workers=2)\n"
        f"except KeyboardInterrupt:\n    sys.exit(130)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for((Path(f"{output}.recording") / moment).exists, lambda: process.poll() is None)
    time.sleep(0.2)  # somewhere in the middle; nothing hangs on where
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    try:
        _, errors = process.communicate(timeout=PATIENCE_S)  # to the end of stderr, which every process holds open
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_processes_of_torchrun_make_the_same_file_and_go_on_where_they_were_stopped(reference, tmp_path):
    output = tmp_path / "shared.zarr.zip"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(SCRIPTS / "generate_demos.py"), "episodes=4", "seed=3", f"output={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    wait_for(lambda: bool([*tmp_path.glob("*.recording_*/data/action/c")]), lambda: process.poll() is None)
    process.terminate()
    process.wait()
    assert not output.exists()
    for said in ("made, with", "already exists, with the same"):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
        assert f"{output}: {said} 4 episodes, " in done.stdout, done.stderr
        assert output.read_bytes() == reference.read_bytes()
    assert [*tmp_path.iterdir()] == [output]


def test_more_processes_than_episodes_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="torchrun: 5 processes for 4 episodes; expected at most as many"):
        generate("pusht", 4, 3, tmp_path / "out.zarr.zip", ranks=Ranks(rank=4, count=5, local_rank=4))
    assert not list(tmp_path.iterdir())


def test_an_expert_that_always_fails_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("diffpolicy.demos.generate.FAILURES_IN_A_ROW", 3)
    settings = {"max_steps": 1, "recovery_share": 0.0}
    with pytest.raises(ValueError, match=r"expert failed 3 times in a row with .*'max_steps': 1"):
        generate("pusht", 1, 0, tmp_path / "out.zarr.zip", settings=settings)


def test_finished_output_is_left_as_it_is(reference):
    before = reference.stat().st_mtime_ns
    generate("pusht", 4, 3, reference)
    assert reference.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="exists with 4 episodes, expected 5"):
        generate("pusht", 5, 3, reference)
    with pytest.raises(
        ValueError, match=r"made with push_noise 0\.0 \(expected 0\.5\), seed 3 \(expected 6\); remove it"
    ):
        generate("pusht", 4, 6, reference, settings={"push_noise": 0.5})


@over(
    "arguments, message",
    [
        ({"task": "chess"}, "task is 'chess'; expected one with an expert: .*'pusht'"),
        ({"episodes": 0}, "episodes is 0; expected a whole number, at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"output": Path("demos.zarr")}, r"ends in \.zip"),
        ({"settings": {"speed": 3}}, "expert has settings .*speed.*; expected some of .*push_speed_px"),
        ({"settings": {"push_speed_px": -1.0}}, "push_speed_px is -1.0"),
        ({"settings": {"push_speed_px": "abc"}}, r"push_speed_px is 'abc'; expected a number, 1\.0 to 30\.0"),
        ({"settings": {"max_steps": 2.5}}, r"max_steps is 2\.5; expected a whole number, 1 to 10000"),
    ],
)
def test_bad_requests_are_named(tmp_path, arguments, message):
    request = {"task": "pusht", "episodes": 1, "seed": 0, "output": tmp_path / "out.zarr.zip", **arguments}
    with pytest.raises(ValueError, match=message):
        generate(**request)
    assert not list(tmp_path.iterdir())


def test_shipped_file_is_small_and_large_enough(shipped):
    assert SHIPPED.stat().st_size < 3_000_000
    assert shipped.n_episodes >= 200
    assert {key: shape for key, (shape, _) in shipped.specs.items()} == {
        "action": (2,), "state": (5,), "keypoint": (9, 2), "n_contacts": (1,)
    }  # fmt: skip


def test_shipped_keypoints_are_those_of_the_state(shipped):
    states = shipped.rows("state", 0, 500).astype(np.float64)
    expected = np.array([block_keypoints(*state[2:]) for state in states])
    # Both are rounded: 1/16 px, and 1/2048 rad at 123 px from the origin.
    np.testing.assert_allclose(shipped.rows("keypoint", 0, 500), expected, atol=1 / 16 + 123 / 4096)


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_every_shipped_episode_replays_to_success(shipped, env, every):
    actions, states, ends = shipped["action"], shipped["state"], shipped.episode_ends
    for first, last in [*zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)][::every]:
        env.reset(options={"state": states[first].astype(np.float64)})
        solved = any(env.step(action)[4]["is_success"] for action in actions[first:last])
        assert solved, f"episode that starts at row {first}"


def test_shipped_seeds_are_not_those_of_evaluations(shipped):
    seeds = [attributes["seed"] for attributes in shipped.episode_attributes]
    assert min(seeds) >= 1_000_000
    assert len(set(seeds)) == len(seeds)
