"""Push-T's physics: a kinematic agent under PD control pushes a T-shaped block inside four walls (pymunk)."""

import math

import pymunk

from diffpolicy_envs import pusht_world as world

_AGENT, _BLOCK, _WALL = 1, 2, 3  # collision types
# Where bodies enter the space decides the order in which deep overlaps are solved. These are the published positions.
_ENTRY_POSITION_AGENT = (256.0, 400.0)
_ENTRY_POSITION_BLOCK = (256.0, 300.0)


class PushTPhysics:
    """The world of one episode. Build a new one per episode: contacts are warm-started, so a used space has a memory.

    Attributes:
        agent, block: the pymunk bodies; positions in px, velocities in px/s, angles in rad.
        contact_points: the number of contact points of the block with agent and walls, summed over the sub-steps of the
            latest `advance`.
    """

    def __init__(self) -> None:
        self.space = pymunk.Space()
        self.space.damping = 0.0  # the block stops as soon as nothing pushes it
        # The solver works in this order. All of the human data replays only in the published order.
        _add_walls(self.space)
        self.agent = _add_agent(self.space)
        self.block = _add_block(self.space)
        self.contact_points = 0
        self.space.on_collision(_AGENT, _BLOCK, post_solve=self._count_agent_contact)
        self.space.on_collision(_BLOCK, _WALL, post_solve=self._count_wall_contact)

    def place(self, agent_x: float, agent_y: float, block_x: float, block_y: float, angle: float) -> None:
        """Set the exact poses (px, rad). The angle comes first: turning moves the origin, not the centre of gravity."""
        self.agent.position = agent_x, agent_y
        self.block.angle = angle
        self.block.position = block_x, block_y
        self.space.reindex_shapes_for_body(self.agent)
        self.space.reindex_shapes_for_body(self.block)

    def place_legacy(self, agent_x: float, agent_y: float, block_x: float, block_y: float, angle: float) -> None:
        """Set poses as published evaluations do: position before angle, which shifts the origin, then one sub-step."""
        self.agent.position = agent_x, agent_y
        self.block.position = block_x, block_y
        self.block.angle = angle
        self.space.step(world.SUBSTEP_S)

    def advance(self, target_x: float, target_y: float) -> None:
        """Run one action, 0.1 s: ten sub-steps of PD control towards the target (px), then of physics."""
        agent, step, dt = self.agent, self.space.step, world.SUBSTEP_S
        gain, drag = world.POSITION_GAIN, world.VELOCITY_GAIN
        x, y = agent.position
        velocity_x, velocity_y = agent.velocity
        self.contact_points = 0
        for _ in range(world.SUBSTEPS_PER_ACTION):
            velocity_x += (gain * (target_x - x) - drag * velocity_x) * dt
            velocity_y += (gain * (target_y - y) - drag * velocity_y) * dt
            agent.velocity = velocity_x, velocity_y
            step(dt)
            # A kinematic body moves by its velocity alone. This equals agent.position and is faster to get.
            x += velocity_x * dt
            y += velocity_y * dt

    def state(self) -> tuple[float, float, float, float, float]:
        """Agent x, y and block x, y in px, block angle in [0, 2 pi) rad."""
        (agent_x, agent_y), (block_x, block_y) = self.agent.position, self.block.position
        return agent_x, agent_y, block_x, block_y, self.block.angle % (2.0 * math.pi)

    def contacts_per_substep(self) -> int:
        """Contact points per sub-step of the latest action, rounded up: the data set's `n_contacts`."""
        return math.ceil(self.contact_points / world.SUBSTEPS_PER_ACTION)

    def _count_agent_contact(self, _arbiter, _space, _data) -> None:
        self.contact_points += 1  # a circle touches a convex shape at one point

    def _count_wall_contact(self, arbiter, _space, _data) -> None:
        self.contact_points += len(arbiter.contact_point_set.points)


def _add_agent(space: pymunk.Space) -> pymunk.Body:
    body = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
    body.position = _ENTRY_POSITION_AGENT
    shape = pymunk.Circle(body, world.AGENT_RADIUS_PX)
    shape.collision_type = _AGENT
    space.add(body, shape)
    return body


def _add_block(space: pymunk.Space) -> pymunk.Body:
    # Shape friction stays 0: the published code sets a body attribute that the engine never reads.
    body = pymunk.Body(world.BLOCK_MASS, world.BLOCK_MOMENT)
    body.center_of_gravity = world.BLOCK_CENTER_OF_GRAVITY
    body.position = _ENTRY_POSITION_BLOCK
    shapes = [pymunk.Poly(body, vertices) for vertices in (world.BAR_VERTICES, world.STEM_VERTICES)]
    for shape in shapes:
        shape.collision_type = _BLOCK
    space.add(body, *shapes)
    return body


def _add_walls(space: pymunk.Space) -> None:
    low, high = world.WALL_LOW_PX, world.WALL_HIGH_PX
    left, top = ((low, high), (low, low)), ((low, low), (high, low))
    right, bottom = ((high, low), (high, high)), ((low, high), (high, high))
    for start, end in (left, top, right, bottom):
        wall = pymunk.Segment(space.static_body, start, end, world.WALL_RADIUS_PX)
        wall.collision_type = _WALL
        space.add(wall)
