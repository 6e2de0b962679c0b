"""From settings to what is demanded of a robot that is a disc in the plane."""

from diffpolicy.config import SafetyConfig
from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint, Rows
from diffpolicy.constraints.keep_out import KeepOut
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.obstacles import disc, together
from diffpolicy.constraints.plant import position_servo
from diffpolicy.safety.settings import Safety


def build_safety(config: SafetyConfig) -> Safety | None:
    """What the settings demand; None where their mode is none.

    Raises:
        ValueError: numbers that contradict each other or are out of range.
    """
    if config.mode == "none":
        return None
    inset = config.inset
    constraints: list[Constraint] = [KeepOut(config.robot_radius, config.clearance, inset=inset)]
    if config.workspace is not None:
        if len(config.workspace) != 2:
            raise ValueError(f"safety: workspace {list(config.workspace)} must be [low, high]")
        low, high = config.workspace
        constraints.append(Box(low, high, Rows("commands"), inset))
    limits = (config.max_speed, Rows("motion", 1)), (config.max_acceleration, Rows("commands", 2))
    constraints += [NormLimit(limit, rows, inset=0.02 * limit) for limit, rows in limits if limit is not None]
    if not all(len(zone) == 3 and all(isinstance(number, int | float) for number in zone) for zone in config.keep_out):
        raise ValueError(f"safety: keep_out {list(config.keep_out)} must be discs [x, y, radius]")
    zones = [disc(x, y, radius) for x, y, radius in config.keep_out]
    return Safety(
        constraints,
        position_servo(config.stiffness, config.damping, config.substep_s, config.substeps),
        Assumptions(
            position_error=config.position_error,
            velocity_error=config.velocity_error,
            rest_speed=config.rest_speed,
            delay_substeps=config.delay_substeps,
        ),
        mode=config.mode,
        candidates=config.candidates,
        slots=config.slots,
        period_s=config.substeps * config.substep_s,
        zones=together(zones) if zones else None,
    )
