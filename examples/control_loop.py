"""A control loop for a robot: python examples/control_loop.py --checkpoint data/checkpoints/pusht_small

Needs only the core of diffpolicy. Replace `PointRobot` with your robot: `read_observation`, `send_action`, `stop`.

Time: tick k begins at start + k * period on the monotonic clock. An action that is ready only after its tick has ended
is based on an observation that is too old. It is not sent. Ticks that began in the meantime are skipped, and never
caught up in a burst.

The robot's side: nothing is sent while the policy computes, or after this process has died. The driver of a
position-controlled robot must then hold the last target by itself. A robot commanded in velocity or torque needs a
watchdog that brings it to rest. After MAX_LATE_IN_A_ROW late ticks, the loop stops the robot and exits.

Processors: by default, torch uses all of them, and its threads spin while they wait for each other. Next to other
processes, this can cost far more than a second processor gains. So the policy uses one; --threads allows more. Then
start it with `OMP_WAIT_POLICY=passive python examples/control_loop.py`, so that waiting threads sleep. This must be set
before torch is imported; the commands in scripts/ set something like it by themselves.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.networks import ObservationSpec

WARM_UP_PLANS = 5
MAX_LATE_IN_A_ROW = 3

Observation = Mapping[str, npt.NDArray[np.float32]]


class PointRobot:
    """Stand-in for a robot: a point that moves 30 % of the way to its target in every tick.

    Args:
        observations: {key: ObservationSpec}, what the policy sees.
        action_dim: the dimension of the target and of the point's position, which is at the end of every observation.
    """

    def __init__(self, observations: Mapping[str, ObservationSpec], action_dim: int) -> None:
        self._observations = observations
        self.position = np.zeros(action_dim, dtype=np.float32)

    def read_observation(self) -> Observation:
        """The current observation {key: [dim]}, in physical units."""
        observation = {key: np.zeros(spec.shape, dtype=np.float32) for key, spec in self._observations.items()}
        for values in observation.values():
            count = min(len(values), len(self.position))
            values[len(values) - count :] = self.position[:count]
        return observation

    def send_action(self, action: npt.NDArray[np.float32]) -> None:
        """Command the target [action_dim], in physical units. Must return at once."""
        self.position += 0.3 * (action - self.position)

    def stop(self) -> None:
        """Bring the robot to rest. Called at the end, whatever the reason."""


@dataclass
class Report:
    """Counts of what happened to the ticks."""

    on_time: int = 0
    late: int = 0  # computed too late and not sent
    skipped: int = 0  # began while a late one was computed
    slowest_s: float = 0.0  # from the start of reading to an action
    end: str = "time is up"

    def __str__(self) -> str:
        slowest_ms = 1e3 * self.slowest_s
        return (
            f"{self.end}: {self.on_time} ticks on time, {self.late} late, {self.skipped} skipped; "
            f"slowest {slowest_ms:.1f} ms"
        )


def warm_up(controller: PolicyController, observation: Observation) -> float:
    """Plan a few times while the robot rests, because first calls are slow. Returns the fastest plan's seconds."""
    fastest = float("inf")
    for _ in range(WARM_UP_PLANS):
        controller.reset(seeds=[0])
        begin = time.monotonic()
        act(controller, observation)
        fastest = min(fastest, time.monotonic() - begin)
    return fastest


def act(controller: PolicyController, observation: Observation) -> npt.NDArray[np.float32]:
    """The action [action_dim] of one robot. The controller's batch has one row."""
    return controller.select_action({key: values[None] for key, values in observation.items()})[0]


def run(
    controller: PolicyController,
    robot: PointRobot,
    seconds: float,
    rate_hz: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Tick until `seconds` are over, Ctrl-C is pressed, or too many ticks in a row are late. The robot ends at rest."""
    report, period, ticks = Report(), 1.0 / rate_hz, round(seconds * rate_hz)
    start, tick, late_in_a_row = clock(), 0, 0
    try:
        while tick < ticks:
            sleep(max(0.0, start + tick * period - clock()))
            begin = clock()
            action = act(controller, robot.read_observation())
            now = clock()
            report.slowest_s = max(report.slowest_s, now - begin)
            if now < start + (tick + 1) * period:
                robot.send_action(action)
                report.on_time += 1
                tick, late_in_a_row = tick + 1, 0
                continue
            following = int((now - start) / period) + 1
            report.late += 1
            report.skipped += min(following, ticks) - tick - 1
            tick, late_in_a_row = following, late_in_a_row + 1
            if late_in_a_row == MAX_LATE_IN_A_ROW:
                report.end = f"{MAX_LATE_IN_A_ROW} late ticks in a row"
                break
    except KeyboardInterrupt:
        report.end = "interrupted"
    finally:
        robot.stop()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a policy at a fixed rate on a simulated point robot.")
    parser.add_argument("--checkpoint", default="data/checkpoints/pusht_small", help="folder with config.json")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate-hz", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1, help="processors that the policy may use")
    arguments = parser.parse_args()
    if not (arguments.seconds > 0 and arguments.rate_hz > 0):
        parser.error(f"--seconds {arguments.seconds} and --rate-hz {arguments.rate_hz} must be above 0")
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads} must be at least 1")
    torch.set_num_threads(arguments.threads)
    try:
        policy = DiffusionPolicy.from_pretrained(arguments.checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    controller = PolicyController(policy)  # with the sampler that it was trained for
    robot = PointRobot(policy.config.observations, policy.config.action_dim)

    plan_s = warm_up(controller, robot.read_observation())
    print(f"a plan takes {1e3 * plan_s:.1f} ms, a tick {1e3 / arguments.rate_hz:.1f} ms", flush=True)
    if plan_s * arguments.rate_hz >= 1.0:
        sys.exit("error: planning takes longer than a tick; lower --rate-hz or the number of inference steps")
    controller.reset(seeds=[0])
    report = run(controller, robot, arguments.seconds, arguments.rate_hz)
    print(report)
    if report.late:
        print("late: lower --rate-hz or the number of inference steps, or free the processor", file=sys.stderr)
    if report.end.startswith(str(MAX_LATE_IN_A_ROW)):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted before the robot moved")
