"""A robot, its limits, and what goes wrong."""

from dataclasses import dataclass, field

from diffpolicy.benchmarks.adversary.demands import Limits
from diffpolicy.benchmarks.adversary.servo import Servo
from diffpolicy.constraints.assumptions import Assumptions


@dataclass(frozen=True)
class Scenario:
    """One row of the benchmark. Lengths are in px.

    Attributes:
        obstacles: the largest number of obstacles around a robot.
        slots: the largest number that the controller is made for; None: all of them.
        obstacle_speed: the largest speed bound of any of them; half of them stand still in any case.
        size: of the largest obstacles.
        reach: the longest step that plans ask for, per tick.
        dropped: the share of ticks whose state is not received.
        nan: the share of ticks in which one of the obstacles is reported as NaN, infinite or absurdly far away.
        garbage: the share of ticks in which the policy sees NaN, or the time is nonsense.
        slow: the share of planning ticks that take longer than `latency_s`.
        jumps: the share of ticks in which an obstacle appears or is suddenly elsewhere.
        late: the share of calls that come later than `latency_s`.
        resets: the share of ticks in which an episode ends.
        mode, candidates, n_action_steps: of the controller.
    """

    servo: Servo
    limits: Limits
    assumptions: Assumptions = field(default_factory=Assumptions)
    obstacles: int = 3
    slots: int | None = None
    obstacle_speed: float = 0.0
    size: float = 60.0
    reach: float = 80.0
    dropped: float = 0.0
    nan: float = 0.0
    garbage: float = 0.0
    slow: float = 0.0
    jumps: float = 0.0
    late: float = 0.0
    resets: float = 0.02
    mode: str = "none"
    candidates: int = 4
    n_action_steps: int = 8
