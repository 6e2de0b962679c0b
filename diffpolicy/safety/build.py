"""Builds `Safety` from settings, for a robot that is a disc in the plane."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint, Quantity
from diffpolicy.constraints.limits import Box, NormLimit
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc, together
from diffpolicy.constraints.plant import LinearPlant, State, position_servo
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start
from diffpolicy.safety.settings import Safety
from diffpolicy.system.schema import Range

Candidates = Annotated[int, Range(1, 1024)]
INSET = 0.02  # share of a limit on speed or acceleration by which the projection stays below it


@dataclass
class SafetyConfig:
    """Safety settings of a robot that is a disc in the plane; lengths in the units of its actions, times in seconds."""

    mode: str = "none"  # which reverse steps are projected: none, clip, last, last_half, every_step
    candidates: Candidates = 1  # the largest number of samples per chunk
    robot_radius: float = 15.0
    clearance: float = 0.0  # required distance between robot and obstacles
    workspace: list[float] | None = None  # [low, high] for commands
    max_speed: float | None = None  # of the motion
    max_acceleration: float | None = None  # of the commands
    keep_out: list[Any] = field(default_factory=list)  # static discs [x, y, radius]
    inset: float = 3.0  # extra distance that the projection aims for, beyond clearance and declared errors
    slots: Annotated[int, Range(0, 1024)] = 6  # the largest number of obstacles that the env may report
    position_error: float = 0.0  # bounds on the error of the measured state (A1)
    velocity_error: float = 0.0
    rest_speed: float = 1.0  # slower counts as standing: contact with moving obstacles is then excused (A3)
    delay_substeps: Annotated[int, Range(0, 1000)] = 0  # bound on how late an action takes effect (A5)
    stiffness: float = 100.0  # the plant; defaults are the agent of both envs
    damping: float = 20.0
    substep_s: float = 0.01
    substeps: Annotated[int, Range(1, 1000)] = 10


def build_safety(config: SafetyConfig) -> Safety | None:
    """Build what the settings ask for; None if the mode is none.

    Raises:
        ValueError: the settings contradict each other or are out of range.
    """
    if config.mode == "none":
        return None
    plant = position_servo(config.stiffness, config.damping, config.substep_s, config.substeps)
    assumptions = Assumptions(
        position_error=config.position_error,
        velocity_error=config.velocity_error,
        rest_speed=config.rest_speed,
        delay_substeps=config.delay_substeps,
    )
    if not all(_is_disc(zone) for zone in config.keep_out):
        raise ValueError(f"safety: keep_out {list(config.keep_out)} must be discs [x, y, radius]")
    zones = [disc(x, y, radius) for x, y, radius in config.keep_out]
    return Safety(
        _constraints(config, plant, assumptions),
        plant,
        assumptions,
        mode=config.mode,
        candidates=config.candidates,
        slots=config.slots,
        zones=together(zones) if zones else None,
    )


def _is_disc(zone: Any) -> bool:
    numbers = list(zone) if isinstance(zone, Sequence) else []
    return len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers)


def _constraints(config: SafetyConfig, plant: LinearPlant, assumptions: Assumptions) -> list[Constraint]:
    """The constraints, with insets that leave room for what a certificate subtracts for the declared errors.

    The room under the speed limit covers the errors of a motion at that speed. The room around obstacles covers the
    errors at half of it, since robots are slow near them, or the errors at rest if there is no speed limit.
    """
    limit = config.max_speed
    speed = 0.0 if limit is None else _steady_speed(limit, plant, assumptions)
    room, _ = _steady_errors(0.5 * speed, plant, assumptions)
    constraints: list[Constraint] = [KeepOut(config.robot_radius, config.clearance, inset=config.inset + room)]
    if config.workspace is not None:
        if len(config.workspace) != 2:
            raise ValueError(f"safety: workspace {list(config.workspace)} must be [low, high]")
        low, high = config.workspace
        constraints.append(Box(low, high, Quantity("commands"), config.inset))
    if limit is not None:
        constraints.append(NormLimit(limit, Quantity("motion", 1), inset=limit - (1.0 - INSET) * speed))
    if config.max_acceleration is not None:
        constraints.append(
            NormLimit(config.max_acceleration, Quantity("commands", 2), inset=INSET * config.max_acceleration)
        )
    return constraints


def _steady_speed(limit: float, plant: LinearPlant, assumptions: Assumptions) -> float:
    """The highest speed of a steady motion that stays within the limit with its errors included.

    Raises:
        ValueError: the limit is not finite and above 0, or the errors alone reach it.
    """
    if not 0.0 < limit < math.inf:
        raise ValueError(f"safety: max_speed {limit} must be finite and above 0")
    _, at_rest = _steady_errors(0.0, plant, assumptions)
    _, at_limit = _steady_errors(limit, plant, assumptions)
    if not at_rest < limit:
        raise ValueError(
            f"safety: max_speed {limit} must be above {at_rest:.1f}, which the declared errors alone reach"
        )
    return (limit - at_rest) / (1.0 + (at_limit - at_rest) / limit)  # they grow in proportion to the speed


def _steady_errors(speed: float, plant: LinearPlant, assumptions: Assumptions) -> tuple[float, float]:
    """How far position and velocity can be off while the robot keeps moving at `speed`."""
    ticks = plant.settle_ticks + PAST_COMMANDS  # the errors hardly grow after that
    path = (speed * plant.period_s * torch.arange(1 - PAST_COMMANDS, ticks + 1, dtype=torch.float64))[None, :, None]
    sent, commands = path.split([PAST_COMMANDS, ticks], dim=1)
    start = Start(State(sent[:, -1], torch.full_like(sent[:, -1], speed)), sent)
    position, velocity = (float(tube.max()) for tube in assumptions.tubes(plant, commands, start))
    return position, velocity
