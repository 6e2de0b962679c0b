"""What a controller with safety tells about each tick."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PlanReport:
    """How the actions of one tick were decided.

    Attributes:
        certified: [B], whether a certificate holds for the action and for a way to stop after it.
        margin: [B], a lower bound on the margin of what will be sent, in units of the tightest constraint. NaN if the
            certificate is from an earlier tick, or if plans are not certified. On hold, the margin of stopping at once.
        rung: [B], the rung of the ladder: plan (the first sample, or the rest of one), candidate (another sample),
            slower (the same way in smaller steps), retreat (back out of a dead end), prefix (certified rows, then a way
            to stop), stored (the way to stop of an earlier certificate), hold.
        alarm: [B], whether the robot is told to stop because nothing certified is left (hold), or because it was told
            something that cannot be used. Call an operator.
        reason: [B], why there is an alarm, or why actions are late; empty otherwise.
        stuck_ticks: [B], for how many ticks in a row the robot has been kept where it is by something other than what
            its policy wants. From n_action_steps on, no plan makes progress.
        is_late: whether planning took longer than `latency_s` allows; all robots then get their last command again.
        planning_ms: the time from the call to the action, for all robots together.
        cost_ms: the part of it spent on projection and certificate.
    """

    certified: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float64]
    rung: npt.NDArray[np.str_]
    alarm: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.str_]
    stuck_ticks: npt.NDArray[np.int64]
    is_late: bool
    planning_ms: float
    cost_ms: float
