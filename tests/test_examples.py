"""The examples run as programs, and the control loop handles time correctly on a fake clock."""

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from walk import PATIENCE_S

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.encoders.resnet import ResnetConfig
from diffpolicy.networks.observation import ObservationSpec, vector

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "examples" / "control_loop.py"
SAFE_PROGRAM = REPOSITORY / "examples" / "safe_control_loop.py"
LINE = re.compile(r"(?P<end>.+): (?P<on_time>\d+) ticks on time, (?P<late>\d+) late, (?P<skipped>\d+) skipped; .*")


def load(program: Path):
    spec = importlib.util.spec_from_file_location(program.stem, program)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


control_loop = load(PROGRAM)
safe_control_loop = load(SAFE_PROGRAM)


class Clock:
    """A monotonic clock that advances only when told to; it starts at 100 s, because a real one does not start at 0."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ScriptedController:
    """A policy whose i-th action is i and takes `seconds[i]`, and 0.01 s once the list is used up."""

    def __init__(self, clock: Clock, seconds: list[float], interrupt_at: int | None = None) -> None:
        self.clock, self.seconds, self.interrupt_at = clock, seconds, interrupt_at
        self.calls = 0

    def select_action(self, observation):
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        self.clock.now += self.seconds[self.calls] if self.calls < len(self.seconds) else 0.01
        self.calls += 1
        return np.full((1, 2), self.calls - 1, dtype=np.float32)


class RecordingRobot(control_loop.PointRobot):
    def __init__(self, clock: Clock) -> None:
        super().__init__({"state": vector(2)}, 2)
        self.clock, self.read_at, self.sent, self.stops = clock, [], [], 0

    def read_observation(self):
        self.read_at.append(round(self.clock.now - 100.0, 6))
        return super().read_observation()

    def send_action(self, action):
        self.sent.append(int(action[0]))

    def stop(self):
        self.stops += 1


def run(seconds_per_action: list[float], interrupt_at: int | None = None):
    """Run the control loop for one second at 10 Hz."""
    clock = Clock()
    robot = RecordingRobot(clock)
    controller = ScriptedController(clock, seconds_per_action, interrupt_at)
    report = control_loop.run(controller, robot, 1.0, 10.0, clock, clock.sleep)
    return report, robot


def test_ticks_begin_on_the_grid_and_every_action_is_sent():
    report, robot = run([0.01, 0.09, 0.01])
    assert robot.read_at == [round(0.1 * tick, 6) for tick in range(10)]
    assert robot.sent == list(range(10))
    assert (report.on_time, report.late, report.skipped, robot.stops) == (10, 0, 0, 1)


def test_a_late_action_is_not_sent_and_the_loop_returns_to_the_grid_without_a_burst():
    report, robot = run([0.01, 0.01, 0.25])
    assert robot.sent == [0, 1, 3, 4, 5, 6, 7]
    assert robot.read_at == [0.0, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert (report.on_time, report.late, report.skipped) == (7, 1, 2)


def test_three_late_ticks_in_a_row_stop_the_robot():
    report, robot = run([0.01, 0.11, 0.11, 0.11])
    assert (robot.sent, robot.stops) == ([0], 1)
    assert report.end == "3 late ticks in a row"


def test_late_ticks_apart_from_each_other_do_not():
    report, robot = run([0.11, 0.01, 0.11, 0.01, 0.11])
    assert (report.late, report.end, robot.stops) == (3, "time is up", 1)


def test_a_last_tick_that_is_late_skips_none_beyond_the_end():
    report, _ = run([0.01] * 9 + [5.0])
    assert (report.on_time, report.late, report.skipped) == (9, 1, 0)


def test_ctrl_c_stops_the_robot():
    report, robot = run([], interrupt_at=4)
    assert (report.end, report.on_time, robot.stops) == ("interrupted", 4, 1)


def test_an_error_stops_the_robot_too():
    clock = Clock()
    robot = RecordingRobot(clock)
    robot.read_observation = lambda: {}["state"]
    with pytest.raises(KeyError):
        control_loop.run(ScriptedController(clock, []), robot, 1.0, 10.0, clock, clock.sleep)
    assert robot.stops == 1


def test_the_program_runs_until_its_time_is_up(tiny_checkpoint):
    """A single tick, which lasts longer than any machine may take: it ends as soon as its action is sent."""
    arguments = ["--checkpoint", str(tiny_checkpoint), "--seconds", "1000", "--rate-hz", "0.001"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    report = LINE.fullmatch(done.stdout.splitlines()[-1])
    assert report, done.stdout + done.stderr
    assert done.returncode == 0
    assert report["end"] == "time is up"
    assert [int(report[name]) for name in ("on_time", "late", "skipped")] == [1, 0, 0]


# The program, with a robot that tells of its first action; a tick lasts longer than any machine may take.
TELLING = f"""
import sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
import control_loop
class Telling(control_loop.PointRobot):
    def send_action(self, action):
        super().send_action(action)
        print("sent", flush=True)
control_loop.PointRobot = Telling
control_loop.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a child process are of another kind there")
def test_the_program_ends_cleanly_on_ctrl_c(tiny_checkpoint):
    settings = ["--checkpoint", str(tiny_checkpoint), "--seconds", "10000", "--rate-hz", "0.001"]
    command = [sys.executable, "-c", TELLING, *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("a plan takes")
        assert process.stdout.readline() == "sent\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    report = LINE.fullmatch(out.strip())
    assert report, out + err
    assert report["end"] == "interrupted"
    assert "Traceback" not in err
    assert process.returncode == 0


def test_a_missing_checkpoint_is_an_error_of_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--checkpoint", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: checkpoint: no config.json in")
    assert len(done.stderr.splitlines()) == 1


def test_the_safe_loop_keeps_what_it_declares_where_an_obstacle_appears(shipped_checkpoint: Path) -> None:
    command = [sys.executable, str(SAFE_PROGRAM), "--checkpoint", str(shipped_checkpoint), "--latency-ms", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    *ticks, end, workspace, speed, obstacle = done.stdout.splitlines()
    assert end == "time is up after 400 sub-steps"
    low, high = map(float, re.findall(r"was at ([\d.]+) to ([\d.]+) px", workspace)[0])
    assert 15.0 <= low < high <= 497.0
    assert 100.0 < float(re.findall(r"was at most ([\d.]+) px/s", speed)[0]) <= 250.0
    assert float(re.findall(r"was at least ([-\d.]+) px away", obstacle)[0]) >= 2.0
    at = [int(re.fullmatch(r"tick (\d+): (candidate|prefix|retreat|stored), margin .*", line)[1]) for line in ticks]
    assert safe_control_loop.APPEARS_AT in at  # the rest of the plan led into it


def calm_controller(policy: DiffusionPolicy) -> PolicyController:
    """Its time stands still while it plans."""
    return PolicyController(policy, safety=safe_control_loop.safety_for(0.03), clock=lambda: 0.0)


@pytest.mark.parametrize("seconds", [0.02, 0.5])
def test_the_safe_loop_declares_what_it_measures(shipped_checkpoint, monkeypatch, capsys, seconds: float) -> None:
    """Half as much again; if that is too much, it does not start. Everything here takes less than declared."""
    monkeypatch.setattr(sys, "argv", ["safe_control_loop", "--checkpoint", str(shipped_checkpoint)])
    monkeypatch.setattr(safe_control_loop, "measure_latency", lambda *_, **__: seconds)
    monkeypatch.setattr(safe_control_loop, "TICKS", 2)
    monkeypatch.setattr(safe_control_loop.time, "perf_counter", lambda: 0.0)
    if seconds > 0.1:
        with pytest.raises(SystemExit, match="error: latency 750 ms, expected at most 60"):
            safe_control_loop.main()
    else:
        safe_control_loop.main()
        out = capsys.readouterr().out
        assert out.startswith("a plan takes up to 20 ms, declared as 30 ms\n")
        assert "time is up after 20 sub-steps" in out


def test_without_safety_the_same_loop_runs_into_the_obstacle(shipped_checkpoint: Path) -> None:
    controller = PolicyController(DiffusionPolicy.from_pretrained(shipped_checkpoint))
    controller.reset(seeds=[0])
    robot = safe_control_loop.PointRobot()
    for _ in range(safe_control_loop.TICKS):
        robot.send_action(controller.select_action(robot.read_observation())[0])
    assert min(gap for *_, gap in robot.log) < -20.0


def test_an_alarm_stops_the_safe_loop(shipped_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(safe_control_loop, "OBSTACLE", (*safe_control_loop.START, 30.0))
    monkeypatch.setattr(safe_control_loop, "APPEARS_AT", 1)
    policy, stops = DiffusionPolicy.from_pretrained(shipped_checkpoint), []
    controller, robot = calm_controller(policy), safe_control_loop.PointRobot()
    controller.reset(seeds=[0])
    robot.stop = lambda: stops.append(len(robot.log))
    assert safe_control_loop.run(controller, robot) == "alarm"
    assert stops == [len(robot.log)]
    assert len(robot.log) < 400
    assert ": hold, margin" in capsys.readouterr().out.splitlines()[-1]


def test_the_monitor_tells_shifted_observations_from_familiar_ones() -> None:
    data = [
        str(REPOSITORY / "data" / "checkpoints" / "pusht_small"),
        str(REPOSITORY / "data" / "pusht_expert.zarr.zip"),
    ]
    command = [sys.executable, str(REPOSITORY / "examples" / "likelihood_monitor.py"), *data]
    result = subprocess.run(
        [*command, "--windows", "12", "--shifts", "80"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr
    (auroc,) = re.findall(r"shifted by 80 px: median .* nats, AUROC ([\d.]+)", result.stdout)
    assert float(auroc) > 0.9


def test_the_camera_monitor_scores_every_disturbance(tmp_path: Path) -> None:
    """Of an untrained policy, whose figures say nothing but are probabilities within their intervals."""
    torch.manual_seed(0)
    sees = {"agent_pos": vector(2), "pixels": ObservationSpec("image", (96, 96, 3))}
    encoder, model = ResnetConfig(pool="average", crop=0.5), UNet1dConfig(widths=[8, 16], time_embedding_dim=8)
    policy = DiffusionPolicy(PolicyConfig(sees, 2, model=model, encoder=encoder))
    pixels = torch.linspace(0.0, 512.0, 100)[:, None].expand(-1, 2)
    policy.fit({"agent_pos": pixels}, pixels)
    policy.metadata = {"env": {"id": "diffpolicy_envs:diffpolicy/PushT-v0", "kwargs": {"obs_type": "pixels_agent_pos"}}}
    policy.save_pretrained(tmp_path / "seeing")
    command = [sys.executable, str(REPOSITORY / "examples" / "camera_monitor.py"), str(tmp_path / "seeing")]
    result = subprocess.run(
        [*command, "--episodes", "3", "--ticks", "2"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr
    lines = re.findall(r"^(.+): AUROC ([\d.]+) \[([\d.]+), ([\d.]+)\] of", result.stdout, flags=re.MULTILINE)
    assert [name for name, *_ in lines] == ["light x 0.6", "grey square", "black frame"]
    for _, *figures in lines:
        area, low, high = map(float, figures)
        assert 0.0 <= low <= area <= high <= 1.0
