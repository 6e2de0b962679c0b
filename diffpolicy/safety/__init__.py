"""Safety as a user declares it: constraints, assumptions, and what is measured at every tick."""

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.constraint import Constraint, Quantity, Scene
from diffpolicy.constraints.limits import Box, NormLimit, Polytope
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, box, disc, polygon, together
from diffpolicy.constraints.plant import LinearPlant, State, identify, position_servo
from diffpolicy.constraints.region import Region
from diffpolicy.safety.build import SafetyConfig, build_safety
from diffpolicy.safety.report import PlanReport
from diffpolicy.safety.settings import Safety
from diffpolicy.safety.surroundings import Surroundings

__all__ = [
    "Assumptions",
    "BarrierDecrease",
    "Box",
    "Constraint",
    "KeepOut",
    "LinearPlant",
    "NormLimit",
    "Obstacles",
    "PlanReport",
    "Polytope",
    "Quantity",
    "Region",
    "Safety",
    "SafetyConfig",
    "Scene",
    "State",
    "Surroundings",
    "box",
    "build_safety",
    "disc",
    "identify",
    "polygon",
    "position_servo",
    "together",
]
