"""`policy.capture()`: the replayed loop is the plain one. Here torch traces it; test_compile_gpu.py captures it."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from one_case import over
from torch import Tensor
from torch.testing import assert_close
from traced import EVERY_SAMPLER, MODELS, compiled, in_place, make_policy, new_memory, plan, recorded, sampler_config
from world import both, safety, start

from diffpolicy import DiffusionPolicy
from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.limits import Box
from diffpolicy.constraints.planar.keep_out import KeepOut
from diffpolicy.constraints.planar.obstacles import disc
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.task import Task
from diffpolicy.constraints.trajectory import Start
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.networks.backbones import unet1d
from diffpolicy.safety.projection import SafetyProjection
from diffpolicy.training.ema import Ema

NAN = float("nan")


@pytest.mark.parametrize(
    ("sampler", "network"),
    [("unipc", "unrolled"), ("ddim", "itself"), ("dpmpp_2m_sde", "itself"), ("ddim", "transformer"), ("ddim", "dit")],
)
def test_replays_make_the_plans_of_the_plain_path(
    traced, monkeypatch: pytest.MonkeyPatch, sampler: str, network: str
) -> None:
    if network == "itself":  # as on a GPU
        monkeypatch.setattr(unet1d, "may_unroll", lambda _: False)
    plain = make_policy(sampler, network if network in MODELS else "unet1d")
    replaying = compiled(plain)
    for seed in range(2):
        plans = [plan(policy, seed, sampler=sampler, steps=3) for policy in (replaying, plain)]
        assert_close(*plans, rtol=0, atol=0)
    assert recorded(replaying) == 1


def task_of(projector: Projector, seed: int) -> Task:
    """For two robots that stand somewhere, each with an obstacle somewhere that moves."""
    places = 3.0 + torch.rand(2, 2, generator=torch.Generator().manual_seed(seed))
    near = both(disc(5.5, 5.0 + 0.1 * seed, 0.8, speed=0.5))
    return projector.task(Start(State(places, torch.zeros(2, 2)), places[:, None].expand(-1, 3, -1)), near)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_with_the_projection_at_every_step_too(traced, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    monkeypatch.setattr(unet1d, "may_unroll", lambda _: False)  # the network itself, as on a GPU
    plain = make_policy(sampler)
    replaying = compiled(plain)
    demanded = safety([Box(0.0, 10.0, Quantity("commands")), KeepOut(0.2)], mode="every_step", iterations=1)
    controller, _ = start(plain, demanded)
    assert controller._layer is not None
    projector = controller._layer._projector
    projector._may_look = False  # as off the CPU: there it spares no work, where that would wait for values
    steps = len(plain.sampler(sampler_config(sampler)))
    for seed in range(2):
        constrain = [SafetyProjection(demanded, projector, task_of(projector, seed), 1, steps) for _ in range(2)]
        plans = [
            plan(one, seed, sampler=sampler, steps=3, constrain=c)
            for one, c in zip((plain, replaying), constrain, strict=True)
        ]
        assert_close(plans[1], plans[0], rtol=0, atol=0)
        assert_close(constrain[1].shift, constrain[0].shift, rtol=0, atol=0)
        assert constrain[0].shift.min() > 0.0
    assert recorded(replaying) == 1


def test_a_controller_with_safety_acts_as_before(traced) -> None:
    plain = make_policy()
    replaying = compiled(plain)
    found = []
    for policy in (plain, replaying):
        controller, world = start(
            policy, safety([Box(0.0, 10.0, Quantity("commands")), KeepOut(0.2)], iterations=1), steps=2
        )
        assert controller._layer is not None
        controller._layer._projector._may_look = False  # as off the CPU
        world.run(controller, 17, lambda tick: both(disc(6.5 - 0.05 * tick, 6.5, 0.8, speed=0.5)))
        controller.reset([5, 6])
        world.run(controller, 1, lambda tick: both(disc(6.0, 6.5, 0.8)))
        found.append((np.stack(world.actions), [report.rung.tolist() for report in world.reports]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert recorded(replaying) == 1


def load_others(policy: DiffusionPolicy) -> None:
    policy.load_state_dict({key: 1.1 * value for key, value in policy.state_dict().items()})


def average(policy: DiffusionPolicy) -> None:
    other = copy.deepcopy(policy)
    load_others(other)
    ema = Ema(policy, power=0.75, max_decay=0.5)
    ema.policy = policy
    ema.update(other, 100)


def new_part(policy: DiffusionPolicy) -> None:
    policy.network.middle = copy.deepcopy(policy.network.middle)
    in_place(policy)


def new_statistics(policy: DiffusionPolicy) -> None:
    policy.fit({"position": torch.eye(3), "goal": torch.eye(2)}, torch.tensor([[1.0, 1.0], [3.0, 4.0]]))


@over("change", [load_others, average, in_place, new_memory, new_part, new_statistics])
def test_no_replay_is_of_earlier_weights(traced, change: Callable[[DiffusionPolicy], None]) -> None:
    plain = make_policy()
    replaying = compiled(plain)
    before = plan(replaying)
    for policy in (plain, replaying):
        change(policy)
    after = plan(replaying)
    assert (after - before).abs().max() > 1e-3
    assert_close(after, plan(plain), rtol=0, atol=0)


@over(
    "other",
    [
        {"constrain": lambda plan, row: plan.clamp(4.0, 4.5)},
        {"guide": lambda denoise, without: lambda x, row: 0.9 * denoise(x, row)},
    ],
)
def test_what_could_change_unseen_is_not_recorded(traced, other) -> None:
    plain = make_policy()
    replaying = compiled(plain)
    assert_close(plan(replaying, **other), plan(plain, **other), rtol=0, atol=0)
    assert not replaying._replays._recordings


def test_autocast_and_samplers_of_diffusers_run_call_by_call(traced) -> None:
    pytest.importorskip("diffusers")
    plain = make_policy()
    replaying = compiled(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(plan(replaying), plan(plain), rtol=0, atol=0)
    assert_close(plan(replaying, sampler="diffusers"), plan(plain, sampler="diffusers"), rtol=0, atol=0)
    assert not replaying._replays._recordings


def test_on_a_cpu_nothing_is_recorded() -> None:
    plain = make_policy()
    replaying = compiled(plain)
    assert_close(plan(replaying), plan(plain), rtol=0, atol=0)
    assert not replaying._replays._recordings


class Peeking(Box):
    """A constraint whose prox asks the host."""

    def prox(self, reference: Tensor, scene):
        return (lambda y: y) if bool((reference > 0).all()) else super().prox(reference, scene)


def test_what_cannot_be_recorded_runs_call_by_call_after_one_warning(traced) -> None:
    plain = make_policy()
    replaying = compiled(plain)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(2):
            found = []
            for policy in (plain, replaying):
                controller, world = start(policy, safety([Peeking(0.0, 10.0, Quantity("commands"))]), seed=seed)
                found.append(world.run(controller, 9, lambda tick: None).actions)
            np.testing.assert_array_equal(*found)
            assert list(replaying._replays._recordings.values()) == [None] * (seed + 1)
    messages = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
    assert len(messages) == 2, "one for each controller"
    assert all("cannot be captured and runs call by call" in message for message in messages)


def test_broken_weights_still_give_no_plan(traced) -> None:
    policy = compiled(make_policy())
    plan(policy)
    with torch.no_grad():
        next(policy.network.parameters()).fill_(NAN)
    with pytest.raises(ValueError, match="plan has NaN"):
        plan(policy)


def test_guides_of_the_settings_work_beside_it(traced) -> None:
    plain = make_policy()
    replaying = compiled(plain)
    guide = plain.guide(GuidanceConfig(threshold=0.9))
    assert_close(plan(replaying, guide=guide), plan(plain, guide=guide), rtol=0, atol=0)
