"""Draws layouts: five kinds of obstacle courses, each of them solvable.

There is always an open path with at least 12 px to spare on both sides of the agent. Moving obstacles leave it open
wherever they are on their patrol. Layouts are drawn until one meets the rules below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffpolicy_envs.reach_layout import Layout, layout_from
from diffpolicy_envs.reach_world import AGENT_RADIUS_PX, MAX_OBSTACLES, VARIANTS, WORLD_SIZE_PX

GRID = 8.0  # coordinates are multiples of 1/8 px, which float32 holds exactly
SPARE_PX = 12.0
GAP_PX = 2.0 * (AGENT_RADIUS_PX + SPARE_PX)  # between obstacles, for the agent to pass
BORDER_GAP_PX = GAP_PX - AGENT_RADIUS_PX + 3.0  # from obstacle to border, which the agent's centre may reach
START_GAP_PX = AGENT_RADIUS_PX + 25.0  # between an obstacle and the centre of start or goal
MARGIN_PX = 40.0  # between start or goal and the border
DISTANCE_PX = (250.0, 420.0)  # from start to goal
HEADING_RAD = 0.6  # the goal lies to the right, up to this much higher or lower
SPEED_PX_S = (15.0, 30.0)


@dataclass(frozen=True)
class Way:
    """The line from start to goal, and a frame in which `along` and `across` are in px."""

    start: np.ndarray  # [2]
    goal: np.ndarray  # [2]

    @property
    def length(self) -> float:
        return math.dist(self.start, self.goal)

    def point(self, along: float, across: float) -> np.ndarray:
        return self.points([(along, across)])[0]

    def points(self, places: Sequence[tuple[float, float]]) -> np.ndarray:
        """Convert (along, across) [n, 2] to world points [n, 2]."""
        forward = (self.goal - self.start) / self.length
        return self.start + np.array(places) @ np.array([forward, (-forward[1], forward[0])])


@dataclass(frozen=True)
class Obstacle:
    """One obstacle of a layout, with fields as in `Layout`."""

    vertices: np.ndarray  # [4, 2]
    radius: float = 0.0
    travel: tuple[float, float] = (0.0, 0.0)
    speed: float = 0.0
    phase: float = 0.0

    @property
    def center(self) -> np.ndarray:
        return 0.5 * (self.vertices.min(0) + self.vertices.max(0))

    @property
    def reach(self) -> float:
        """The radius of a circle around the centre that contains the obstacle."""
        return float(np.linalg.norm(self.vertices - self.center, axis=1).max()) + self.radius

    def centers(self) -> np.ndarray:
        """Centres [9, 2] all along the patrol; that of `vertices` is at `phase`."""
        now = self.phase if self.phase <= 1.0 else 2.0 - self.phase
        shares = np.linspace(0.0, 1.0, 9)[:, None] - now
        return self.center + shares * np.array(self.travel)


def draw_layout(generator: np.random.Generator, variant: str) -> Layout:
    """Draw a layout of one of `VARIANTS`, or of any of them ("mixed")."""
    kind = VARIANTS[generator.integers(len(VARIANTS))] if variant == "mixed" else variant
    while True:
        way = _draw_way(generator)
        obstacles = _DRAWS[kind](generator, way)
        if obstacles and all(_is_allowed(obstacle, way) for obstacle in obstacles):
            return _layout(way, obstacles)


def _draw_way(generator: np.random.Generator) -> Way:
    while True:
        heading = generator.uniform(-HEADING_RAD, HEADING_RAD)
        start = generator.uniform(MARGIN_PX, WORLD_SIZE_PX - MARGIN_PX, 2)
        goal = start + generator.uniform(*DISTANCE_PX) * np.array([math.cos(heading), math.sin(heading)])
        if ((goal >= MARGIN_PX) & (goal <= WORLD_SIZE_PX - MARGIN_PX)).all():
            return Way(_on_grid(start), _on_grid(goal))


def _symmetric(generator: np.random.Generator, way: Way) -> list[Obstacle]:
    """One obstacle halfway, symmetric about the line from start to goal."""
    middle, width = 0.5 * way.length, generator.uniform(28.0, 55.0)
    shape = generator.integers(3)
    if shape == 0:
        return [_disc(way.point(middle, 0.0), width)]
    depth = generator.uniform(15.0, 45.0)
    if shape == 1:
        return [_box(way, middle, 0.0, depth, width)]
    diamond = [(middle - depth, 0.0), (middle, width), (middle + depth, 0.0), (middle, -width)]
    return [Obstacle(way.points(diamond))]


def _narrow_gap(generator: np.random.Generator, way: Way) -> list[Obstacle]:
    """Two obstacles side by side, with 54 to 70 px between them."""
    along = way.length * generator.uniform(0.42, 0.58)
    across = generator.uniform(-40.0, 40.0)
    half_gap = 0.5 * generator.uniform(GAP_PX, 2.0 * AGENT_RADIUS_PX + 40.0)
    if generator.random() < 0.5:
        sizes = generator.uniform(35.0, 60.0, 2)
        return [
            _disc(way.point(along, across + side * (half_gap + size)), size)
            for side, size in zip((-1.0, 1.0), sizes, strict=True)
        ]
    depth, sizes = generator.uniform(10.0, 25.0), generator.uniform(40.0, 75.0, 2)
    return [
        _box(way, along, across + side * (half_gap + size), depth, size)
        for side, size in zip((-1.0, 1.0), sizes, strict=True)
    ]


def _random(generator: np.random.Generator, way: Way) -> list[Obstacle]:
    """One obstacle near the line from start to goal, and up to five more anywhere, apart from each other."""
    wanted = int(generator.integers(1, MAX_OBSTACLES + 1))
    place = way.point(way.length * generator.uniform(0.35, 0.65), generator.uniform(-35.0, 35.0))
    return _apart([_shape(generator, place)], wanted, way, lambda: _shape(generator, _anywhere(generator)))


def _moving(generator: np.random.Generator, way: Way) -> list[Obstacle]:
    """One to three discs and polygons on patrol. The first one crosses the line from start to goal."""
    wanted = int(generator.integers(1, 4))
    place = way.point(way.length * generator.uniform(0.4, 0.6), generator.uniform(-30.0, 30.0))
    first = _patrol(generator, way, _shape(generator, place))
    return _apart([first], wanted, way, lambda: _patrol(generator, way, _shape(generator, _anywhere(generator))))


def _thin_wall(generator: np.random.Generator, way: Way) -> list[Obstacle]:
    """A wall 6 px thick across the line from start to goal."""
    along, across = way.length * generator.uniform(0.42, 0.58), generator.uniform(-50.0, 50.0)
    half, tilt = generator.uniform(55.0, 95.0), generator.uniform(-0.4, 0.4)
    step_along, step_across = half * math.sin(tilt), half * math.cos(tilt)
    ends = [(along - step_along, across - step_across), (along + step_along, across + step_across)]
    return [Obstacle(way.points([ends[0], ends[1], ends[1], ends[1]]), radius=3.0)]


_DRAWS: dict[str, Callable[[np.random.Generator, Way], list[Obstacle]]] = {
    "symmetric": _symmetric,
    "narrow_gap": _narrow_gap,
    "random": _random,
    "moving": _moving,
    "thin_wall": _thin_wall,
}


def _apart(obstacles: list[Obstacle], wanted: int, way: Way, draw: Callable[[], Obstacle]) -> list[Obstacle]:
    """Draw up to `wanted` obstacles with room for the agent between them; none if the first one breaks the rules."""
    if not _is_allowed(obstacles[0], way):
        return []
    for _ in range(40):
        if len(obstacles) == wanted:
            break
        candidate = draw()
        if _is_allowed(candidate, way) and all(_room(candidate, other) >= GAP_PX for other in obstacles):
            obstacles.append(candidate)
    return obstacles


def _is_allowed(obstacle: Obstacle, way: Way) -> bool:
    """Whether the obstacle stays clear of start, goal and border wherever it is on its patrol."""
    centers, reach = obstacle.centers(), obstacle.reach
    border = min(centers.min(), WORLD_SIZE_PX - centers.max()) - reach
    ends = min(np.linalg.norm(centers - end, axis=1).min() for end in (way.start, way.goal)) - reach
    return border >= BORDER_GAP_PX and ends >= START_GAP_PX


def _room(one: Obstacle, other: Obstacle) -> float:
    """The least distance (px) between the circles of two obstacles wherever they are on their patrols."""
    between = np.linalg.norm(one.centers()[:, None] - other.centers()[None], axis=2)
    return float(between.min()) - one.reach - other.reach


def _disc(center: np.ndarray, radius: float) -> Obstacle:
    return Obstacle(np.tile(center, (4, 1)), radius)


def _box(way: Way, along: float, across: float, depth: float, width: float) -> Obstacle:
    corners = [(-depth, -width), (depth, -width), (depth, width), (-depth, width)]
    return Obstacle(way.points([(along + x, across + y) for x, y in corners]))


def _shape(generator: np.random.Generator, center: np.ndarray) -> Obstacle:
    """A disc, a triangle or a quadrilateral."""
    corners, size = int(generator.integers(2, 5)), generator.uniform(22.0, 48.0)
    if corners == 2:
        return _disc(center, size)
    angles = generator.uniform(0.0, 2.0 * math.pi) + 2.0 * math.pi * np.arange(corners) / corners
    angles += generator.uniform(-0.3, 0.3, corners)
    vertices = center + size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Obstacle(np.concatenate([vertices, np.repeat(vertices[-1:], 4 - corners, axis=0)]))


def _patrol(generator: np.random.Generator, way: Way, obstacle: Obstacle) -> Obstacle:
    """Put the obstacle on a patrol, mostly across the line from start to goal."""
    length, turn = generator.uniform(60.0, 130.0), generator.uniform(-0.6, 0.6)
    travel = way.point(length * math.sin(turn), length * math.cos(turn)) - way.start
    speed, phase = generator.uniform(*SPEED_PX_S), generator.uniform(0.0, 2.0)
    return Obstacle(obstacle.vertices, obstacle.radius, (travel[0], travel[1]), speed, phase)


def _anywhere(generator: np.random.Generator) -> np.ndarray:
    return generator.uniform(BORDER_GAP_PX, WORLD_SIZE_PX - BORDER_GAP_PX, 2)


def _layout(way: Way, obstacles: list[Obstacle]) -> Layout:
    """Build the layout. The obstacle nearest to the line from start to goal comes first."""
    ordered = sorted(obstacles, key=lambda obstacle: _off_way(obstacle, way))
    return layout_from(
        {
            "agent": way.start,
            "goal": way.goal,
            "vertices": _on_grid(np.array([obstacle.vertices for obstacle in ordered])),
            "radius": _on_grid(np.array([obstacle.radius for obstacle in ordered])),
            "travel": _on_grid(np.array([obstacle.travel for obstacle in ordered])),
            "speed": _on_grid(np.array([obstacle.speed for obstacle in ordered])),
            "phase": _on_grid(np.array([obstacle.phase for obstacle in ordered]), 1024.0) % 2.0,
        }
    )


def _off_way(obstacle: Obstacle, way: Way) -> float:
    forward = (way.goal - way.start) / way.length
    along = float(np.clip((obstacle.center - way.start) @ forward, 0.0, way.length))
    return math.dist(obstacle.center, way.start + along * forward) - obstacle.reach


def _on_grid(values: np.ndarray, grid: float = GRID) -> np.ndarray:
    return np.round(values * grid) / grid
