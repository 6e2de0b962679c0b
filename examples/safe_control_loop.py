"""A control loop whose limits hold: python examples/safe_control_loop.py

Needs only the core of diffpolicy. Replace `PointRobot` with your robot, and the declarations with what is true for it.
docs/safety.md says what is promised, under which assumptions, and how to identify a plant. The robot's time is
simulated here; examples/control_loop.py shows what a real clock needs: warm-up, deadlines, late ticks.

First, it measures how long a plan takes on this machine, all candidates included, and declares that. In the middle of
the run, an obstacle that the policy cannot see appears in the way. The program prints ticks whose action is not simply
the plan. At the end it prints what was promised next to what the robot measured at every sub-step.
"""

import argparse
import math
import sys
import time

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.control import measure_latency
from diffpolicy.safety import (
    Assumptions,
    Box,
    KeepOut,
    NormLimit,
    Obstacles,
    Quantity,
    Safety,
    State,
    Surroundings,
    disc,
    position_servo,
)

TICKS = 40
MAX_SPEED, WORKSPACE = 250.0, (15.0, 497.0)  # px/s, px
ROBOT_RADIUS, CLEARANCE = 15.0, 2.0  # px
PLANT = position_servo(stiffness=100.0, damping=20.0, substep_s=0.01, substeps=10)
MARGIN = 1.5  # on the measured latency
MOST_S = 0.06  # of latency; with more, nothing is left of the speed
START, OBSTACLE, APPEARS_AT = (450.0, 60.0), (208.0, 165.0, 30.0), 12  # px; x, y, radius in px; tick
BLOCK = ((139, 233), (250, 265), (152, 338), (185, 279), (138, 193), (149, 297), (212, 250), (176, 240), (182, 316))


def safety_for(latency_s: float) -> Safety:
    """The limits, and what is assumed where an action may take so long from its tick to the motors."""
    delay_substeps = math.ceil(latency_s / PLANT.substep_s - 1e-9)
    return Safety(
        constraints=[
            Box(*WORKSPACE, Quantity("motion"), inset=2.0),
            # For every sub-step that commands may come late, they change the speed by about 1 px/s for every px that
            # they move in a tick. The projection must leave room for that; 33 was found by trial.
            NormLimit(MAX_SPEED, Quantity("motion", order=1), inset=10.0 + 33.0 * delay_substeps),
            KeepOut(ROBOT_RADIUS, CLEARANCE, inset=3.0),
        ],
        plant=PLANT,
        assumptions=Assumptions(
            position_error=0.5, velocity_error=2.0, delay_substeps=delay_substeps, latency_s=latency_s
        ),
        candidates=4,
    )


class PointRobot:
    """Stand-in for a robot: a disc driven by `PLANT`, beside a block at rest.

    Args:
        delay_substeps: from a tick to the effect of its action: computing a plan and reaching the motors.

    Attributes:
        log: (x, y, speed, distance to the obstacle from edge to edge) of every sub-step, in px and px/s.
    """

    def __init__(self, delay_substeps: int = 3) -> None:
        self._delay_substeps = delay_substeps
        self.position, self.velocity = np.array([START]), np.zeros((1, 2))
        self.log: list[tuple[float, float, float, float]] = []
        self._command, self._tick = self.position, 0

    def read_observation(self) -> dict[str, npt.NDArray[np.float32]]:
        """The observation {key: [1, dim]} that the policy sees."""
        return {"keypoints": np.concatenate([np.ravel(BLOCK), self.position[0]])[None].astype(np.float32)}

    def read_state(self) -> State:
        """The measured position and velocity [1, 2]; NaN if they were not received."""
        return State(torch.from_numpy(self.position), torch.from_numpy(self.velocity))

    def read_obstacles(self) -> Obstacles | None:
        """All obstacles at this tick. The robot does not avoid obstacles that are not reported."""
        return disc(*OBSTACLE) if self._tick >= APPEARS_AT else None

    def send_action(self, action: npt.NDArray[np.float32]) -> None:
        """Command the target [2]. Here a tick passes, and the last command stays in force for some sub-steps."""
        is_there = self.read_obstacles() is not None
        for substep in range(PLANT.substeps):
            if substep == self._delay_substeps:
                self._command = action[None].astype(np.float64)
            now = np.stack([self.position, self.velocity])
            now = np.tensordot(PLANT.transition, now, 1) + np.multiply.outer(PLANT.drive, self._command)
            self.position, self.velocity = now
            gap = np.hypot(*(self.position[0] - OBSTACLE[:2])) - OBSTACLE[2] - ROBOT_RADIUS
            self.log.append((*self.position[0], np.hypot(*self.velocity[0]), gap if is_there else np.inf))
        self._tick += 1

    def stop(self) -> None:
        """Bring the robot to rest. Called at the end, whatever the reason. A servo holds its last target."""


def run(controller: PolicyController, robot: PointRobot) -> str:
    """Tick until the time is up or an alarm is raised. Returns how it ended; the robot ends at rest."""
    try:
        for tick in range(TICKS):
            surroundings = Surroundings(robot.read_state(), robot.read_obstacles(), tick * PLANT.period_s)
            action = controller.select_action(robot.read_observation(), surroundings)
            plan = controller.last_plan
            assert plan is not None
            if plan.rung[0] != "plan":
                print(f"tick {tick}: {plan.rung[0]}, margin {plan.margin[0]:.1f} {plan.reason[0]}".rstrip())
            if plan.alarm[0]:  # nothing certified is left
                return "alarm"
            robot.send_action(action[0])
        return "time is up"
    finally:
        robot.stop()


def measured_latency_s(policy: DiffusionPolicy) -> float:
    """The latency to declare: what plans take on this machine, with a margin."""
    robot, controller = PointRobot(), PolicyController(policy, safety=safety_for(MOST_S))
    most_s = measure_latency(
        controller, robot.read_observation(), Surroundings(robot.read_state(), disc(*OBSTACLE)), plans=20
    )
    print(f"a plan takes up to {1e3 * most_s:.0f} ms, declared as {1e3 * MARGIN * most_s:.0f} ms")
    return MARGIN * most_s


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a policy within declared limits on a simulated point robot.")
    parser.add_argument(
        "--checkpoint", default="data/checkpoints/pusht_small", help="a Push-T checkpoint: folder with config.json"
    )
    parser.add_argument(
        "--latency-ms", type=float, help="declare this instead of measuring it; plans then count as made in no time"
    )
    arguments = parser.parse_args()
    try:
        policy = DiffusionPolicy.from_pretrained(arguments.checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    torch.set_num_threads(1)
    is_measured = arguments.latency_ms is None
    latency_s = measured_latency_s(policy) if is_measured else arguments.latency_ms / 1e3
    if not 0.0 < latency_s <= MOST_S:
        sys.exit(
            f"error: latency {1e3 * latency_s:.0f} ms, expected at most {1e3 * MOST_S:.0f}: use a faster or "
            "less busy machine, or try the loop in simulated time with --latency-ms=30"
        )
    safety = safety_for(latency_s)
    clock = time.perf_counter if is_measured else lambda: 0.0
    controller = PolicyController(policy, safety=safety, clock=clock)
    robot = PointRobot(safety.assumptions.delay_substeps)
    controller.reset(seeds=[0])
    end = run(controller, robot)
    print(f"{end} after {len(robot.log)} sub-steps")
    if robot.log:
        x, y, speed, gap = np.array(robot.log).T
        print(f"workspace {WORKSPACE[0]} to {WORKSPACE[1]}: was at {min(*x, *y):.1f} to {max(*x, *y):.1f} px")
        print(f"speed at most {MAX_SPEED}: was at most {speed.max():.1f} px/s")
        print(f"obstacle at least {CLEARANCE} away: was at least {gap.min():.1f} px away")
    if end == "alarm":
        sys.exit(1)


if __name__ == "__main__":
    main()
