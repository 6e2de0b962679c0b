"""A control loop whose limits hold: python examples/safe_control_loop.py

Needs only the core of diffpolicy. Replace `PointRobot` with your robot, and the declarations with what is true for it.
docs/safety.md says what is promised, under which assumptions, and how to identify a plant. Time is simulated here;
examples/control_loop.py shows what a real clock needs: warm-up, deadlines, late ticks.

In the middle of the run, an obstacle that the policy cannot see appears in the way. The program prints ticks whose
action is not simply the plan. At the end it prints what was promised next to what the robot measured at every sub-step.
"""

import argparse
import sys

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy import DiffusionPolicy, PolicyController
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
DELAY_SUBSTEPS = 3  # from a tick to the effect of its action: computing a plan and reaching the motors
PLANT = position_servo(stiffness=100.0, damping=20.0, substep_s=0.01, substeps=10)
SAFETY = Safety(
    constraints=[
        Box(*WORKSPACE, Quantity("motion"), inset=2.0),
        # Commands that come this late change the speed by about 3 px/s for every px that they move in a tick. The
        # projection must leave room for that; 100 was found by trial.
        NormLimit(MAX_SPEED, Quantity("motion", order=1), inset=100.0),
        KeepOut(ROBOT_RADIUS, CLEARANCE, inset=3.0),
    ],
    plant=PLANT,
    assumptions=Assumptions(position_error=0.5, velocity_error=2.0, delay_substeps=DELAY_SUBSTEPS),
    candidates=4,
)
START, OBSTACLE, APPEARS_AT = (450.0, 60.0), (208.0, 165.0, 30.0), 12  # px; x, y, radius in px; tick
BLOCK = ((139, 233), (250, 265), (152, 338), (185, 279), (138, 193), (149, 297), (212, 250), (176, 240), (182, 316))


class PointRobot:
    """Stand-in for a robot: a disc driven by `PLANT`, beside a block at rest.

    Attributes:
        log: (x, y, speed, distance to the obstacle from edge to edge) of every sub-step, in px and px/s.
    """

    def __init__(self) -> None:
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
        """Command the target [2]. Here a tick passes, and the last command stays in force for DELAY_SUBSTEPS more."""
        is_there = self.read_obstacles() is not None
        for substep in range(PLANT.substeps):
            if substep == DELAY_SUBSTEPS:
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
                print(f"tick {tick}: {plan.rung[0]}, margin {plan.margin[0]:.1f}")
            if plan.alarm[0]:  # nothing certified is left
                return "alarm"
            robot.send_action(action[0])
        return "time is up"
    finally:
        robot.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a policy within declared limits on a simulated point robot.")
    parser.add_argument(
        "--checkpoint", default="data/checkpoints/pusht_small", help="a Push-T checkpoint: folder with config.json"
    )
    try:
        policy = DiffusionPolicy.from_pretrained(parser.parse_args().checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    torch.set_num_threads(1)
    controller, robot = PolicyController(policy, safety=SAFETY), PointRobot()
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
