"""The further samples of all robots in doubt are drawn in one call, and chosen from as if one by one."""

import numpy as np
import pytest
import torch
from one_case import over
from world import BEGIN, RADIUS, World, both, safety

from diffpolicy import DiffusionPolicy, PolicyController
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc
from diffpolicy.constraints.plant import State
from diffpolicy.safety.layer import SafetyLayer
from diffpolicy.safety.samples import Samples
from diffpolicy.safety.surroundings import Surroundings

IN_THE_WAY = both(disc(5.0, 5.0, 0.1))


class Recorded:
    """Counts the rows of every call of a policy."""

    def __init__(self, policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        predict = policy.predict_action_chunk

        def predict_action_chunk(observation, generators, *arguments):
            self.rows.append(len(generators))
            return predict(observation, generators, *arguments)

        monkeypatch.setattr(policy, "predict_action_chunk", predict_action_chunk)


class OneByOne(PolicyController):
    """Draws every sample of every robot in a call of its own."""

    def _draw(self, robots: torch.Tensor, samples: torch.Tensor) -> Samples:
        pairs = zip(robots.split(1), samples.split(1), strict=True)
        draw = super()._draw
        return Samples.joined([draw(*pair) for pair in pairs])


def run(controller: PolicyController, ticks: int, seed: int = 0) -> World:
    controller.reset([seed, seed + 1])
    return World(BEGIN.copy(), 0.0 * BEGIN).run(controller, ticks, lambda tick: IN_THE_WAY)


def never_certified(candidates: int):
    """No plan leaves the discs that the robots stand in."""
    return safety([KeepOut(20.0)], mode="none", candidates=candidates)


@over("candidates", [1, 2, 4])
def test_all_further_samples_of_all_robots_are_one_call(small_policy, monkeypatch, candidates: int) -> None:
    recorded = Recorded(small_policy, monkeypatch)
    run(PolicyController(small_policy, "ddim", 1, safety=never_certified(candidates)), 8)
    assert recorded.rows == [2] + [2 * (candidates - 1)] * (candidates > 1)


@over("inference_batch, calls", [(2, 4), (4, 3), (5, 3), (8, 2)])
def test_calls_have_the_inference_batch_however_many_samples_there_are(
    small_policy, monkeypatch, inference_batch: int, calls: int
) -> None:
    monkeypatch.setattr("diffpolicy.control.controller.warn_of_dependent_rows", lambda *_: None)  # calls the policy
    recorded = Recorded(small_policy, monkeypatch)
    demanded = never_certified(candidates=4)
    run(PolicyController(small_policy, "ddim", 1, safety=demanded, inference_batch=inference_batch), 8)
    assert recorded.rows == [inference_batch] * calls


@pytest.mark.parametrize("mode", ["none", "clip"])  # the projection at a step depends, by rounding, on the other rows
@over("seed", range(3))
def test_one_call_gives_bit_by_bit_what_calls_one_by_one_give(small_policy, mode: str, seed: int) -> None:
    demanded = safety([KeepOut(RADIUS)], mode=mode, candidates=4)
    found = [
        run(kind(small_policy, "ddim", 3, safety=demanded, inference_batch=64), 17, 10 * seed)
        for kind in (PolicyController, OneByOne)
    ]
    np.testing.assert_array_equal(np.stack(found[0].actions), np.stack(found[1].actions))
    assert [report.rung.tolist() for report in found[0].reports] == [r.rung.tolist() for r in found[1].reports]


def test_some_of_those_runs_take_a_further_sample(small_policy) -> None:
    demanded = safety([KeepOut(RADIUS)], mode="none", candidates=4)
    runs = [
        run(PolicyController(small_policy, "ddim", 3, safety=demanded, inference_batch=64), 17, s) for s in (0, 10, 20)
    ]
    assert "candidate" in {rung for world in runs for report in world.reports for rung in report.rung}


def layer_at(candidates: int) -> SafetyLayer:
    """For two robots that stand in the plane, the second right of a disc that bars the way to the left."""
    layer = SafetyLayer(safety([KeepOut(RADIUS)], mode="none", candidates=candidates), 2, 6, 4, torch.full((2,), 0.04))
    position = torch.tensor([[2.0, 2.0], [6.0, 2.0]], dtype=torch.float64)
    layer.observe(Surroundings(State(position, torch.zeros_like(position)), both(disc(4.0, 2.0, 0.5))))
    return layer


def moves(*by: float, shift: float = 0.0) -> Samples:
    """Plans that move along x by so much."""
    x = torch.tensor([2.0, 6.0])[:, None] + torch.linspace(0.0, 1.0, 7)[1:] * torch.tensor(by)[:, None]
    return Samples(
        torch.stack([x, torch.full_like(x, 2.0)], -1), torch.full((2,), shift), torch.ones(2, dtype=torch.bool)
    )


def only(samples: Samples, robot: int) -> Samples:
    return samples.robots(torch.tensor([robot]))


def test_only_robots_in_doubt_need_others_and_only_with_candidates() -> None:
    robots, first = torch.tensor([0, 1]), moves(-1.0, -4.0)
    assert layer_at(3).consider(robots, first).doubtful.tolist() == [1]
    assert layer_at(1).consider(robots, first).doubtful.tolist() == []


def test_a_robot_that_is_no_longer_in_doubt_takes_no_later_sample() -> None:
    """The second sample, moved a little, settles it; the third would be worth more."""
    layer, robots = layer_at(3), torch.tensor([0, 1])
    considered = layer.consider(robots, moves(-1.0, -4.0))
    others = Samples.joined([only(moves(0.0, 1.0, shift=0.01), 1), only(moves(0.0, 0.5), 1)])
    chunks = layer.settle(considered, others)
    np.testing.assert_array_equal(chunks[0], moves(-1.0, 0.0).plans[0, :4])
    np.testing.assert_array_equal(chunks[1], moves(0.0, 1.0).plans[1, :4])
    assert layer.sent(chunks[:, 0]).rung.tolist() == ["plan", "candidate"]


def test_while_it_is_in_doubt_the_better_one_is_taken_and_the_first_of_equals() -> None:
    layer, robots = layer_at(4), torch.tensor([0, 1])
    considered = layer.consider(robots, moves(-1.0, -4.0))
    worse, good, later = moves(0.0, -5.0), moves(0.0, 0.7, shift=0.5), moves(0.0, 0.2, shift=0.5)
    chunks = layer.settle(considered, Samples.joined([only(one, 1) for one in (worse, good, later)]))
    np.testing.assert_array_equal(chunks[1], good.plans[1, :4])


def test_a_sample_with_nan_is_not_taken() -> None:
    layer, robots = layer_at(2), torch.tensor([0, 1])
    considered = layer.consider(robots, moves(-1.0, -4.0))
    chunks = layer.settle(considered, only(moves(0.0, float("nan")), 1))
    assert np.isfinite(chunks).all()
    assert layer.sent(chunks[:, 0]).rung[1] != "candidate"


def test_another_number_of_samples_than_asked_for_is_refused() -> None:
    layer, robots = layer_at(3), torch.tensor([0, 1])
    considered = layer.consider(robots, moves(-1.0, -4.0))
    with pytest.raises(ValueError, match="safety: 1 further samples, expected 2"):
        layer.settle(considered, only(moves(0.0, 1.0), 1))


def test_without_a_projection_the_layer_gives_none() -> None:
    assert layer_at(2).projection(torch.tensor([0, 1]), 1, 10) is None
