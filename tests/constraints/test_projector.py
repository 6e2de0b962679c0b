"""The projector against solvers of the same problem, with the same half-spaces."""

from dataclasses import replace

import clarabel
import numpy as np
import pytest
import torch
from certified_cases import plant_of
from dense_sampling import Servo
from one_case import over
from qpsolvers import solve_qp
from scipy import sparse

from diffpolicy.constraints.constraint import Constraint, Quantity, Scene
from diffpolicy.constraints.limits import Box, NormLimit, Polytope
from diffpolicy.constraints.planar.keep_out import KeepOut, half_spaces
from diffpolicy.constraints.planar.obstacles import Obstacles, disc, no_obstacles, polygon, together
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import Start

SERVO = Servo(100.0, 20.0, 0.02, 5)
PLANT, PERIOD_S, HORIZON, BATCH = plant_of(SERVO), 0.1, 8, 8
SCALE = 10.0  # of the workspace
CLOSE = 1e-4 * SCALE  # what 1,500 iterations leave
METRICS = [[1.0, 1.0], [1e-4, 9e-4]]
COMMANDS, MOTION = Quantity("commands"), Quantity("motion")
OBSTACLES = together([disc(3.0, 3.2, 0.6), polygon([(4.5, 4.0), (6.0, 4.2), (5.8, 5.2)]), disc(9.0, 1.0, 0.3, 0.1)])


def problem(seed: int = 0) -> tuple[torch.Tensor, Start, Obstacles]:
    """Plans along the diagonal, through the obstacles and beyond the boxes, from rest."""
    rng = np.random.default_rng(seed)
    begin = rng.uniform(0.8, 1.6, (BATCH, 2))
    path = begin[:, None] + np.cumsum(rng.normal(0.6, 0.15, (BATCH, HORIZON, 2)), axis=1)
    here = torch.tensor(begin)
    start = Start(State(here, torch.zeros_like(here)), here[:, None].repeat(1, 3, 1))
    return torch.tensor(path), start, OBSTACLES.robots(torch.zeros(BATCH, dtype=torch.long))


def projected(
    constraints, metric, plan, start, obstacles, iterations: int = 1500, penalty: float = 10.0
) -> torch.Tensor:
    metric = torch.tensor(metric, dtype=plan.dtype)
    projector = Projector(constraints, PLANT, PERIOD_S, HORIZON, metric, slots=obstacles.slots, penalty=penalty)
    return projector.project(plan, projector.task(start, obstacles), iterations)


def knots(start: Start) -> tuple[np.ndarray, np.ndarray]:
    """Positions at the ticks as matrix [N, N] of the commands, plus offset [B, N, 2], by the loop."""
    here, still = start.state.position.numpy(), start.state.velocity.numpy()
    units = np.eye(HORIZON)[..., None].repeat(2, -1)
    zero = np.zeros((HORIZON, 2))
    answer, _ = SERVO.motion(SERVO.held(units, HORIZON), zero, zero)
    free, _ = SERVO.motion(np.zeros((len(here), HORIZON * SERVO.substeps, 2)), here, still)
    every = slice(SERVO.substeps, None, SERVO.substeps)
    return answer[:, every, 0].T, free[:, every]


class Problem:
    """1/2 |u - plan|^2_W under G u <= h, for one robot; u as [N, 2] in a row."""

    def __init__(self, plan: np.ndarray, metric) -> None:
        self.plan = plan
        self.weights = np.tile(np.array(metric) / np.mean(metric), HORIZON)
        self.g: list[np.ndarray] = []
        self.h: list[float] = []

    def add(self, matrix: np.ndarray, offset: np.ndarray, normal: np.ndarray, bound: float) -> None:
        """normal . (matrix u + offset) <= bound, matrix [N], offset [2]."""
        if np.abs(matrix).max() > 0:
            self.g.append(np.outer(matrix, normal).ravel())
            self.h.append(bound - normal @ offset)

    def solve(self) -> np.ndarray | None:
        p, g, h = sparse.diags(self.weights).tocsc(), sparse.csc_matrix(np.array(self.g)), np.array(self.h)
        found = solve_qp(
            p, -self.weights * self.plan.ravel(), g, h, solver="clarabel", tol_gap_abs=1e-10, tol_feas=1e-10
        )
        return None if found is None else found.reshape(HORIZON, 2)


def solved(constraints: list[Constraint], metric, plan, start: Start, obstacles: Obstacles) -> list[np.ndarray | None]:
    """By Clarabel, None where the half-spaces leave nothing.

    What a position of the motion has to meet, a command has to meet, too: the robot may be left to go to it.
    """
    matrix, offset = knots(start)
    here = start.state.position.numpy()
    answers = []
    for robot in range(BATCH):
        qp = Problem(plan[robot].numpy(), metric)
        commanded = (np.eye(HORIZON), np.zeros((HORIZON, 2)), start.commands[robot, -1].numpy(), PERIOD_S)
        moved = (matrix, offset[robot], here[robot], PERIOD_S)
        for constraint in constraints:
            paths = [commanded] if constraint.quantity.acts_on == "commands" else [commanded, moved]
            for m, o, present, step_s in paths:
                _add(qp, constraint, m, o, present, step_s, plan[robot], obstacles.robots(torch.tensor([robot])))
        answers.append(qp.solve())
    return answers


def _add(qp: Problem, constraint, m, o, present, step_s: float, plan: torch.Tensor, obstacles: Obstacles) -> None:
    if isinstance(constraint, KeepOut):
        y = m @ plan.numpy() + o
        before = np.concatenate([present[None], y[:-1]])
        times = step_s * torch.arange(1, HORIZON + 1, dtype=torch.float64)
        reference = torch.tensor(np.stack([before, y], axis=1))[None]
        normal, bound = half_spaces(reference, Scene(obstacles, times), constraint.distance)
        for slot in range(obstacles.slots):
            for row in range(HORIZON):
                n, c = normal[0, slot, row].numpy(), float(bound[0, slot, row])
                qp.add(m[row], o[row], -n, -c)
                if row:
                    qp.add(m[row - 1], o[row - 1], -n, -c)
        return
    if isinstance(constraint, Box):
        axes = np.eye(2)
        high, low = constraint.high.expand(2).numpy(), constraint.low.expand(2).numpy()
        faces = [*zip(axes, high, strict=True), *zip(-axes, -low, strict=True)]
    else:
        faces = [*zip(constraint.normals.numpy(), constraint.offsets.numpy(), strict=True)]
    for row in range(HORIZON):
        for normal, bound in faces:
            qp.add(m[row], o[row], normal, float(bound))


SKEWED, OFFSETS = [(1.0, 1.0), (-1.0, 2.0), (0.3, -1.0)], [7.0, 3.0, 0.2]
SETS: dict[str, list[Constraint]] = {
    "box": [Box([0.0, 0.0], [5.0, 4.0], COMMANDS)],
    "half-spaces": [Polytope([face], [c], COMMANDS) for face, c in zip(SKEWED, OFFSETS, strict=True)],
    "polytope": [Polytope([(1.0, 1.0), (-1.0, 1.0)], [6.0, 0.3], COMMANDS)],
    "skewed polytope": [Polytope(SKEWED, OFFSETS, COMMANDS)],
    "box on the motion": [Box(0.0, 4.0, MOTION)],
    "keep-out on commands": [KeepOut(0.2, acts_on="commands")],
    "keep-out": [KeepOut(0.2)],
    "all": [Box(0.0, 6.0, COMMANDS), Polytope([(1.0, 0.5)], [6.0], COMMANDS), KeepOut(0.1), Box(-1.0, 5.5, MOTION)],
}


@pytest.mark.filterwarnings("ignore:Clarabel.rs terminated with status PrimalInfeasible")
@over("metric", METRICS)
@pytest.mark.parametrize("name", list(SETS))
def test_many_iterations_are_clarabels_solution(name: str, metric) -> None:
    plan, start, obstacles = problem()
    found = projected(SETS[name], metric, plan, start, obstacles)
    expected = solved(SETS[name], metric, plan, start, obstacles)
    solvable = [robot for robot, answer in enumerate(expected) if answer is not None]
    assert len(solvable) >= 3
    for robot in solvable:
        np.testing.assert_allclose(found[robot].numpy(), expected[robot], rtol=0, atol=CLOSE)
    assert float((found - plan)[solvable].abs().max()) > 100 * CLOSE  # the constraints do something


@over("metric", METRICS)
@over("order, limit", [(1, 6.0), (2, 40.0), (3, 600.0)])
def test_limits_of_norms_are_clarabels_solution_over_cones(order: int, limit: float, metric) -> None:
    plan, start, _ = problem()
    found = projected([NormLimit(limit, Quantity("commands", order))], metric, plan, start, no_obstacles(BATCH))
    path = np.concatenate([np.zeros((3, HORIZON)), np.eye(HORIZON)])
    matrix = np.diff(path, n=order, axis=0)[3 - order :]
    weights = np.tile(np.array(metric) / np.mean(metric), HORIZON)
    quiet = clarabel.DefaultSettings()
    quiet.verbose = False
    for robot in range(BATCH):
        past = np.concatenate([start.commands[robot].numpy(), np.zeros((HORIZON, 2))])
        offset = np.diff(past, n=order, axis=0)[3 - order :]
        # (limit, row) lies in the cone: b - A u with b = (limit, offset) and A = (0, -matrix), row by row.
        a = np.concatenate([np.vstack([np.zeros(2 * HORIZON), -np.kron(one, np.eye(2))]) for one in matrix])
        b = np.concatenate([[limit * PERIOD_S**order, *one] for one in offset])
        cones = [clarabel.SecondOrderConeT(3)] * HORIZON
        p, q = sparse.diags(weights).tocsc(), -weights * plan[robot].numpy().ravel()
        best = np.array(clarabel.DefaultSolver(p, q, sparse.csc_matrix(a), b, cones, quiet).solve().x).reshape(-1, 2)
        assert np.abs(best - plan[robot].numpy()).max() > 5 * CLOSE
        np.testing.assert_allclose(found[robot].numpy(), best, rtol=0, atol=CLOSE)


def test_a_plan_that_meets_everything_passes_polish_unchanged_and_another_does_not() -> None:
    plan, start, obstacles = problem()
    projector = Projector([KeepOut(0.2), Box(0.0, 30.0, COMMANDS)], PLANT, PERIOD_S, HORIZON, torch.ones(2).double(), 3)
    away = start.commands[:, -1:] + 0.01 * torch.ones(BATCH, HORIZON, 2, dtype=torch.float64).cumsum(1)
    mixed = torch.where(torch.arange(BATCH)[:, None, None] < 2, away, plan)
    task = projector.task(start, obstacles)
    is_short = projector.shortfall(mixed, task) > 1e-3
    assert is_short.tolist()[:2] == [False, False]
    assert bool(is_short[2:].any())
    polished = projector.polish(mixed, task, iterations=50, rounds=20, tolerance=1e-3)
    torch.testing.assert_close(polished[~is_short], mixed[~is_short], rtol=0.0, atol=0.0)
    left = projector.shortfall(polished, projector.task(start, obstacles))
    assert float((left <= 1e-3).double().mean()) >= 0.7  # what is left is the certificate's business


def test_a_plan_that_meets_everything_stays_as_it_is_whatever_was_projected_before() -> None:
    """Bit by bit, also with the multipliers and half-spaces of calls that it did not meet, among robots that do not."""
    plan, start, obstacles = problem()
    here = start.state.position[:, None].expand_as(plan)
    constraints = [KeepOut(0.1), Box(0.0, 9.0, COMMANDS), NormLimit(8.0, Quantity("motion", 1))]
    projector = Projector(constraints, PLANT, PERIOD_S, HORIZON, torch.ones(2, dtype=plan.dtype), obstacles.slots)
    task = projector.task(start, obstacles)
    assert projector.project(here, task, iterations=4) is here
    is_other = torch.arange(BATCH) % 2 == 0
    mixed = torch.where(is_other[:, None, None], plan, here)
    for one in (mixed, plan, mixed):
        moved = (projector.project(one, task, iterations=4) != one).flatten(1).any(1)
        assert torch.equal(moved, is_other | (one is plan))
    assert projector.project(here, task, iterations=4) is here


def test_polish_leads_round_what_it_meets_at_every_tick() -> None:
    plan, start, obstacles = problem()
    projector = Projector([KeepOut(0.2, inset=0.02)], PLANT, PERIOD_S, HORIZON, torch.ones(2).double(), 3)
    polished = projector.polish(plan, projector.task(start, obstacles), iterations=30, rounds=30, tolerance=0.01)
    path, _ = SERVO.motion(SERVO.held(polished.numpy(), HORIZON), start.state.position.numpy(), 0 * plan[:, 0].numpy())
    ends = torch.tensor(np.stack([path[:, :-1], path[:, 1:]], axis=2))
    times = SERVO.substep_s * torch.arange(1, path.shape[1], dtype=torch.float64)
    assert float(KeepOut(0.1).margin(ends, Scene(obstacles, times)).amin()) >= 0.0


def test_robots_do_not_affect_one_another() -> None:
    plan, start, obstacles = problem()
    constraints = SETS["all"]
    together_found = projected(constraints, [1.0, 2.0], plan, start, obstacles, iterations=50)
    spoilt = plan.clone()
    spoilt[1] = float("nan")
    beside_nan = projected(constraints, [1.0, 2.0], spoilt, start, obstacles, iterations=50)
    for robot in (0, 2, 4):
        one = torch.tensor([robot])
        alone = projected(constraints, [1.0, 2.0], plan[one], start.robots(one), obstacles.robots(one), iterations=50)
        # A product rounds by the size of its batch: 50 iterations on coordinates of 10.
        torch.testing.assert_close(alone[0], together_found[robot], rtol=0.0, atol=1e-10)
        torch.testing.assert_close(beside_nan[robot], together_found[robot], rtol=0.0, atol=1e-10)


def test_float32_is_float64_up_to_rounding() -> None:
    plan, start, obstacles = problem()
    double = projected(SETS["all"], [1.0, 2.0], plan, start, obstacles, iterations=30)
    single = projected(SETS["all"], [1.0, 2.0], plan.float(), start, obstacles, iterations=30)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0.0, atol=1e-3)  # 30 iterations of 1e-6 of 10 each


@over("obstacles", [no_obstacles(2), disc(0.0, 0.0, 1.0).padded(3).robots(torch.tensor([0, 0]))])
@over("constraints", [[], [KeepOut(0.1)], [KeepOut(0.1), Box(0.0, 1.0, COMMANDS)]])
def test_it_works_without_constraints_and_without_slots(constraints, obstacles: Obstacles) -> None:
    here = torch.full((2, 2), 5.0, dtype=torch.float64)
    start = Start(State(here, 0 * here), here[:, None].repeat(1, 3, 1))
    metric = torch.ones(2, dtype=torch.float64)
    projector = Projector(constraints, PLANT, PERIOD_S, HORIZON, metric, slots=obstacles.slots)
    plan = here[:, None].repeat(1, HORIZON, 1)
    task = projector.task(start, obstacles)
    assert projector.project(plan, task, 4).shape == plan.shape
    found = projector.polish(plan, task, iterations=200, rounds=3, tolerance=1e-6)
    expected = plan.clamp(0.0, 1.0) if len(constraints) == 2 else plan
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)  # 200 iterations


def test_obstacles_that_cannot_be_do_not_spoil_the_plan() -> None:
    """The certificate refuses them; the projection has to stay finite for the sampler's sake."""
    plan, start, obstacles = problem()
    spoilt = replace(obstacles, vertices=obstacles.vertices * float("nan"))
    assert bool(projected([KeepOut(0.1)], [1.0, 1.0], plan, start, spoilt, iterations=4).isfinite().all())


def test_bad_input_is_refused() -> None:
    plan, start, obstacles = problem()
    for metric in ([1.0, 0.0], [1.0, float("nan")], [1.0, -1.0]):
        with pytest.raises(ValueError, match="metric"):
            projected([], metric, plan, start, obstacles)
    with pytest.raises(ValueError, match="needs a plant"):
        Projector([KeepOut(0.1)], None, PERIOD_S, HORIZON, torch.ones(2).double(), 3)
    with pytest.raises(ValueError, match="3 given, expected at most 2"):
        Projector([], None, PERIOD_S, HORIZON, torch.ones(2).double(), 2).task(start, obstacles)
