"""A simulated world for controllers with safety: robots that follow commands exactly like the declared plant."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from dense_sampling import Demands, Servo, Solids, violation

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint, Quantity
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, disc, polygon
from diffpolicy.constraints.plant import State, position_servo
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings

SERVO = Servo(100.0, 20.0, 0.02, 5)
PLANT = position_servo(100.0, 20.0, 0.02, 5)
PERIOD_S, RADIUS = 0.1, 0.2
SAMPLERS = ["ddpm", "ddim", "dpmpp_2m", "heun", "unipc"]
DEMANDS = Demands(
    workspace=(0.0, 10.0), command_step=12.0, command_acceleration=150.0, distance=RADIUS, rest_speed=0.05
)
CONSTRAINTS: list[Constraint] = [
    Box(0.0, 10.0, Quantity("commands")),
    NormLimit(12.0, Quantity("commands", 1), inset=0.2),
    NormLimit(150.0, Quantity("commands", 2), inset=2.0),
    KeepOut(RADIUS, inset=0.05),
]
DISC, WALL = disc(6.5, 6.5, 0.8), polygon([(2.0, 6.0), (4.0, 7.5)])
BEGIN = np.array([[3.0, 3.0], [8.0, 2.0]])


def safety(constraints: list[Constraint] | None = None, **other) -> Safety:
    chosen = CONSTRAINTS if constraints is None else constraints
    settings = {"plant": PLANT, "assumptions": Assumptions(rest_speed=0.05), "period_s": PERIOD_S, **other}
    return Safety(chosen, **settings)


def both(obstacles: Obstacles) -> Obstacles:
    return obstacles.robots(torch.zeros(2, dtype=torch.long))


def solids(obstacles: Obstacles) -> Solids:
    return Solids(*(getattr(obstacles, part.name).numpy() for part in fields(obstacles)))


def observation(batch: int = 2) -> dict[str, np.ndarray]:
    return {"position": np.tile([0.2, 0.4, 0.6], (batch, 1)), "goal": np.full((batch, 2), 0.5)}


@dataclass
class World:
    """Robots that follow commands like the plant, with a record of every tick."""

    position: np.ndarray
    velocity: np.ndarray
    states: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    reports: list[PlanReport] = field(default_factory=list)

    def run(self, controller: PolicyController, ticks: int, obstacles: Callable[[int], Obstacles | None],
            measured: Callable[[int, State], State] = lambda tick, state: state, **other) -> "World":  # fmt: skip
        for _ in range(ticks):
            tick = len(self.actions)
            state = measured(tick, State(torch.tensor(self.position), torch.tensor(self.velocity)))
            action = controller.select_action(
                observation(len(self.position)), Surroundings(state, obstacles(tick), **other)
            )
            self.keep(controller, action)
        return self

    def keep(self, controller: PolicyController, action: np.ndarray) -> None:
        """Let a tick pass in which the robots follow these actions of the controller."""
        assert controller.last_plan is not None
        self.states.append((self.position, self.velocity))
        self.actions.append(action.astype(np.float64))
        self.reports.append(controller.last_plan)
        path, velocity = SERVO.motion(SERVO.held(self.actions[-1][:, None], 1), self.position, self.velocity)
        self.position, self.velocity = path[:, -1], velocity[:, -1]

    @property
    def certified(self) -> np.ndarray:
        return np.stack([report.certified for report in self.reports])

    @property
    def rungs(self) -> list[str]:
        """The rungs of the first robot, one per tick."""
        return [str(report.rung[0]) for report in self.reports]

    def overstepped(self, demands: Demands, obstacles: Obstacles, ticks_held: int = 30) -> np.ndarray:
        """The violation [ticks, B] of each action if it is the last one ever sent and is held."""
        worst = []
        for tick, ((position, velocity), action) in enumerate(zip(self.states, self.actions, strict=True)):
            past = [self.states[0][0]] * 3 + self.actions[:tick]
            history, command = np.stack(past[-3:], 1), action[:, None]
            inputs = SERVO.held(command, ticks_held)
            there = solids(obstacles)
            worst.append(violation(demands, PERIOD_S, SERVO, there, history, command, inputs, position, velocity))
        return np.stack(worst)


def start(policy: DiffusionPolicy, demanded: Safety, begin: np.ndarray = BEGIN, sampler: str = "ddim", steps: int = 3,
          seed: int = 0) -> tuple[PolicyController, World]:  # fmt: skip
    controller = PolicyController(policy, sampler, steps, safety=demanded)
    controller.reset([seed + robot for robot in range(len(begin))])
    return controller, World(begin.copy(), 0.0 * begin)
