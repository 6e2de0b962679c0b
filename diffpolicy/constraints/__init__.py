"""Constraints on robot motion: limits, obstacles, plants, the projection, and the certificate that decides."""

from diffpolicy.constraints.assumptions import Assumptions
from diffpolicy.constraints.certificate import Certificate, Certifier
from diffpolicy.constraints.constraint import Constraint, Prox, Quantity, Scene
from diffpolicy.constraints.limits import Box, NormLimit, Polytope
from diffpolicy.constraints.planar.keep_out import BarrierDecrease, KeepOut
from diffpolicy.constraints.planar.obstacles import Obstacles, box, disc, no_obstacles, polygon, together
from diffpolicy.constraints.plant import LinearPlant, State, identify, position_servo
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.region import Region
from diffpolicy.constraints.trajectory import Start, Trajectory

__all__ = [
    "Assumptions",
    "BarrierDecrease",
    "Box",
    "Certificate",
    "Certifier",
    "Constraint",
    "KeepOut",
    "LinearPlant",
    "NormLimit",
    "Obstacles",
    "Polytope",
    "Projector",
    "Prox",
    "Quantity",
    "Region",
    "Scene",
    "Start",
    "State",
    "Trajectory",
    "box",
    "disc",
    "identify",
    "no_obstacles",
    "polygon",
    "position_servo",
    "together",
]
