"""Objectives and samplers for few steps on a Gaussian, whose denoiser, flow map and consistency function are known.

With clean ~ N(mean, std^2), the probability-flow ODE keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diffpolicy.diffusion.objectives.consistency import Consistency
from diffpolicy.diffusion.objectives.consistency_trajectory import ConsistencyTrajectory
from diffpolicy.diffusion.objectives.denoising import Denoising
from diffpolicy.diffusion.objectives.distribution_matching import DistributionMatching
from diffpolicy.diffusion.objectives.objective import ConditionedNetwork
from diffpolicy.diffusion.objectives.progressive import Progressive
from diffpolicy.diffusion.objectives.reflow import Reflow
from diffpolicy.diffusion.objectives.shortcut import Shortcut
from diffpolicy.diffusion.parameterization import CLEAN
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedules import flow, vp
from diffpolicy.policy.clip import identity
from diffpolicy.policy.objective_choices import OBJECTIVES, build_objective
from diffpolicy.policy.sampler_choices import build_sampler, sampler_settings

MEAN, STD = 0.3, 0.5


class Exact(nn.Module):
    """The exact clean estimate at a time or, with a stop, the one with which DDIM's step ends on the path.

    Args:
        to_end: whether it goes to the clean end of the path even without a stop, as a consistency function.
        error: relative error of what it adds to the mean, times sigma.
    """

    def __init__(self, base: Denoising, to_end: bool = False, error: float = 0.0) -> None:
        super().__init__()
        self.table, self.to_end = base.table, to_end
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, stop: Tensor | None = None) -> Tensor:
        now = self.level(time)
        centred = x - now.alpha * MEAN
        spread = self.spread(now)
        if stop is None:
            slope = STD / spread if self.to_end else now.alpha * STD**2 / spread**2
            return MEAN + (1.0 + self.error * now.sigma) * slope * centred
        end = self.level(stop)
        rest = end.sigma / now.sigma
        jump = (self.spread(end) / spread - rest) / (end.alpha - rest * now.alpha).clamp(min=1e-12)
        denoised = now.alpha * STD**2 / spread**2
        slope = torch.where(end.sigma < now.sigma, jump, denoised)
        return MEAN + (1.0 + self.error * now.sigma) * slope * centred

    def level(self, time: Tensor) -> Any:
        return self.table.at(torch.searchsorted(self.table.columns.time, time - 1e-6))

    def spread(self, level: Any) -> Tensor:
        return (level.alpha**2 * STD**2 + level.sigma**2).sqrt()


def base(levels: int = 1000) -> Denoising:
    return Denoising(vp(levels), CLEAN).double()


def drawn(objective: Any, count: int = 4096) -> Any:
    generator = torch.Generator().manual_seed(0)
    clean = MEAN + STD * torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)
    with DefaultType(torch.float64):
        return objective.draw(clean, generator)


class DefaultType:
    """A default type within a block; noise is drawn in it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self.before)


def loss(objective: Any, network: nn.Module, step: int = 0, batch: Any = None) -> float:
    batch = drawn(objective) if batch is None else batch
    return float(objective.loss(ConditionedNetwork(network, []), batch, step))


def taught(objective: Any, teacher: nn.Module) -> Any:
    objective.learn_from(teacher)
    return objective.double()


def test_the_consistency_function_is_what_distillation_aims_at_better_the_more_intervals() -> None:
    losses = []
    for intervals in (20, 40, 80):
        objective = taught(Consistency(base(), intervals, intervals, 1), Exact(base()))
        exact = loss(objective, Exact(objective.base, to_end=True))
        assert exact < min(loss(objective, Exact(objective.base, to_end=True, error=e)) for e in (-0.3, 0.3))
        losses.append(exact)
    assert losses[0] > 1.5 * losses[1] > 2.25 * losses[2], "DDIM's error of the teacher, of order 1"


def test_the_intervals_of_consistency_double_and_reach_from_the_lowest_level_to_the_last() -> None:
    objective = Consistency(base(1000), 10, 1280, 100)
    levels = torch.arange(1000)
    for step, count in ((0, 10), (99, 10), (100, 20), (599, 320), (100_000, 999)):
        upper, lower = objective.interval(levels, step)
        assert (upper > lower).all()
        assert (int(lower.min()), int(upper.max()), len(upper.unique())) == (0, 999, count)
        assert (upper >= levels).all()
        seen, seen_step = objective.interval(levels, torch.tensor(step)), objective.interval(levels, step)
        assert all(torch.equal(*pair) for pair in zip(seen, seen_step, strict=True))


def test_consistency_training_needs_no_teacher_and_differs_from_distillation_by_chance_alone() -> None:
    """Of one level the estimates' mean over all paths through x is the same, up to the length of the interval."""
    objective = Consistency(base(), 80, 80, 1)
    network = Exact(objective.base, to_end=True)
    upper, lower = (objective.base.table.at(torch.tensor([level])) for level in (500, 487))
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[[0.9]]], dtype=torch.float64)
    slope = upper.alpha * STD**2 / (upper.alpha**2 * STD**2 + upper.sigma**2)
    rest = STD * upper.sigma / (upper.alpha**2 * STD**2 + upper.sigma**2).sqrt()
    noise = torch.randn(200_000, 1, 1, generator=generator, dtype=torch.float64)
    clean = MEAN + slope * (x - upper.alpha * MEAN) + rest * noise  # the posterior given x
    x_lower = lower.noisy(clean, (x - upper.alpha * clean) / upper.sigma)
    found = network(x_lower, lower.time.flatten()).mean()
    assert_close(found, network(x, upper.time.flatten()).squeeze(), rtol=0, atol=2e-3)  # h^2, and 1e-3 by chance


@pytest.mark.parametrize("make", [lambda b: ConsistencyTrajectory(b, 999), lambda b: Shortcut(b, 0.5)])
def test_the_flow_map_minimises_the_objectives_that_see_where_a_step_ends(make: Callable[[Denoising], Any]) -> None:
    objective = make(base())
    batch = drawn(objective, 400_000)
    if isinstance(objective, ConsistencyTrajectory):
        taught(objective, Exact(objective.base))
    slopes = []
    for error in (-0.3, 0.0, 0.3):
        network = Exact(objective.base, error=error)
        value = objective.loss(ConditionedNetwork(network, []), batch, 0)
        slopes.append(float(torch.autograd.grad(value, network.error)[0]))
    assert slopes[0] < 0.0 < slopes[2]
    assert abs(slopes[1]) < 0.1 * min(-slopes[0], slopes[2])  # what chance leaves of it


def test_a_large_step_of_the_flow_map_ends_where_its_two_halves_do() -> None:
    objective = Shortcut(base(), 0.5)
    table, network = objective.base.table, ConditionedNetwork(Exact(objective.base), [])
    now, middle, end = (table.at(torch.tensor([level])) for level in (900, 500, 100))
    x = torch.tensor([[[1.7]]], dtype=torch.float64)
    found = objective._output_of_halves(network, x, now, middle, end)
    assert_close(found, now.output(network, x, end), rtol=0, atol=1e-6)  # columns are float32


def test_a_student_that_does_two_steps_of_its_teacher_in_one_has_no_loss() -> None:
    objective = taught(Progressive(base(), 4, 1, 10), Exact(base()))
    table, rows = build_sampler(objective.schedule, "ddim", 8), {}
    for first in range(0, 8, 2):
        rows[float(table.rows[first].time)] = table.rows[first], table.rows[first + 1]

    class Student(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            out = torch.empty_like(x)
            for at, (one, two) in rows.items():
                chosen = (time - at).abs() < 1e-3
                start = x[chosen]
                inner = Exact(objective.base)
                middle = one.a * start + one.b * inner(start, time[chosen])
                end = two.a * middle + two.b * inner(middle, time[chosen] * 0.0 + two.time)
                rest = one.a * two.a
                alpha = one.alpha
                after = two.b + two.a * two.alpha if two.a else 1.0
                out[chosen] = (end - rest * start) / (after - rest * alpha)
            return out

    assert loss(objective, Student()) < 1e-10
    assert loss(objective, Exact(objective.base)) > 1e-4


def test_a_student_becomes_the_teacher_at_the_end_of_each_round_but_the_last() -> None:
    network = nn.Linear(1, 1)
    objective = Progressive(base(), 4, 1, 10)
    objective.learn_from(network)
    steps = []
    for step in range(40):
        with torch.no_grad():
            network.weight.fill_(step)
        objective.stepped(network, step)
        steps.append(objective.counts[int(objective.round)])
    assert steps == 9 * [4] + 10 * [2] + 21 * [1]
    assert float(objective.teacher.weight) == 19.0
    assert {"round", "teacher.weight", "teacher.bias"} <= set(objective.state_dict()), "so that a run can be resumed"


def test_reflow_trains_on_what_the_teacher_makes_of_the_noise() -> None:
    objective = taught(Reflow(base(), 20), Exact(base()))
    noise = torch.randn(64, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = ConditionedNetwork(nn.Identity(), [])
    found = objective.coupled(network, noise)
    table = build_sampler(objective.schedule, "ddim", 20)
    exact = Exact(objective.base)
    denoise = objective.base.denoiser(lambda x, time, stop=None: exact(x, x.new_full((len(x),), time)))
    expected = reverse(denoise, table, noise.expand(21, -1, -1, -1), identity).clean
    assert_close(found, expected, rtol=0, atol=0)
    assert abs(float(found.std()) - STD * float(noise.std())) < 0.1, "which spreads like the data"


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_reflow_trains_as_many_windows_at_pure_noise_as_it_is_told(share: float) -> None:
    objective = Reflow(base(), 20, share)
    clean = torch.zeros(20_000, 1, 1, dtype=torch.float64)
    levels = objective.draw(clean, torch.Generator().manual_seed(3)).level
    last = len(objective.schedule) - 1
    expected = share + (1 - share) / len(objective.schedule)
    assert abs(float((levels == last).double().mean()) - expected) < 0.02  # 5 standard errors
    halves = [objective.draw(clean[:10_000], torch.Generator().manual_seed(3), (i, 2)).level for i in (0, 1)]
    assert_close(torch.cat(halves), levels, rtol=0, atol=0)


def test_distribution_matching_stays_at_the_mode_and_moves_towards_it_from_elsewhere() -> None:
    objective = taught(DistributionMatching(base(), 0.02, 0.95), Exact(base()))
    batch = drawn(objective)
    for offset in (-0.2, 0.0, 0.2):
        plan = torch.tensor(MEAN + offset, dtype=torch.float64, requires_grad=True)
        network = ConditionedNetwork(lambda x, time: 0.0 * x + plan, [])  # noqa: B023
        (slope,) = torch.autograd.grad(objective.loss(network, batch, 0), plan)
        if offset:
            assert float(slope) * offset > 0.005, "descent goes back"
        else:
            assert abs(float(slope)) < 0.01


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_flow_map_samples_exactly_with_any_number_of_steps(steps: int) -> None:
    objective = base()
    clean_time = float(objective.schedule.levels.time[0])
    table = build_sampler(objective.schedule, "flow_map", steps).with_stops(clean_time)
    exact, noise = Exact(objective), torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None, None]

    def denoise(x: Tensor, row: Row) -> Tensor:
        stop = x.new_full((len(x),), row.stop)
        return exact(x, x.new_full((len(x),), row.time), stop)

    found = reverse(denoise, table, noise.expand(steps + 1, -1, -1, -1), identity).clean
    last = objective.schedule.levels
    x = last.sigma[-1] * noise
    expected = MEAN + STD * (x - last.alpha[-1] * MEAN) / (last.alpha[-1] ** 2 * STD**2 + last.sigma[-1] ** 2) ** 0.5
    assert_close(found, expected, rtol=0, atol=0.03)  # the lowest level, sigma 0.01, times noises up to 2


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_steps_keep_the_distribution(steps: int) -> None:
    objective = base()
    table, exact = build_sampler(objective.schedule, "consistency", steps), Exact(objective, to_end=True)
    noise = torch.randn(steps + 1, 100_000, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = reverse(lambda x, row: exact(x, x.new_full((len(x),), row.time)), table, noise, identity).clean
    assert abs(float(found.mean()) - MEAN) < 0.01  # 5 standard errors are 0.008
    assert abs(float(found.std()) - STD) < 0.01


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if hasattr(OBJECTIVES[name].settings(name), "denoising")])
def test_objectives_for_few_steps_take_the_denoisers_settings_and_name_their_samplers(name: str) -> None:
    objective = build_objective({"name": name, "denoising": {"schedule": "cosine", "num_levels": 64}})
    assert len(objective.schedule) == 64
    if name != "reflow":
        with pytest.raises(ValueError, match=f"diffusion {name} was not trained for ddpm; give sampler="):
            objective.check_sampler(sampler_settings("ddpm"))


def test_a_denoiser_refuses_the_samplers_of_maps() -> None:
    with pytest.raises(ValueError, match=r"consistency is for policies that are trained for it, .* give sampler=ddim"):
        base().check_sampler(sampler_settings("consistency"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "progressive", "first_steps": 6, "last_steps": 1},
            "first_steps 6 must be last_steps 1 times",
        ),
        (
            {"name": "progressive", "first_steps": 64, "denoising": {"num_levels": 100}},
            "first_steps 64 needs 128 levels, the schedule has 100",
        ),
        ({"name": "consistency", "first_intervals": 20, "last_intervals": 10}, "last_intervals 10 must be at least"),
        ({"name": "distribution_matching", "lowest": 0.5, "highest": 0.4}, "lowest 0.5 must be below highest 0.4"),
        ({"name": "reflow", "teacher_steps": 50, "denoising": {"num_levels": 20}}, "steps 50 must be between 1 and"),
        (
            {"name": "consistency", "denoising": {"name": "shortcut"}},
            "'shortcut' is unknown, expected one of",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(settings)


def test_steps_end_on_a_flow_schedule_too() -> None:
    """From the last level, where alpha is 0, DDIM's step is defined and its clean estimate is recovered."""
    table = Denoising(flow(100), CLEAN).double().table
    now, end = (table.at(torch.tensor([level])) for level in (99, 40))
    x, clean = torch.randn(1, 4, 2, dtype=torch.float64), torch.randn(1, 4, 2, dtype=torch.float64)
    assert_close(now.clean_of_step(x, now.step(x, clean, end), end), clean, rtol=0, atol=1e-12)
