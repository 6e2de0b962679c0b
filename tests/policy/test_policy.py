"""The policy: units, noise, constraints, bad observations."""

import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.networks.backbones import unet1d
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.sampler_choices import TABLES
from diffpolicy.policy.settings import WindowConfig

NAN = float("nan")
ON_COSINE = sorted(set(TABLES) - {"flow_heun"})


def observation(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "position": torch.rand(batch, 2, 3, generator=generator),
        "goal": torch.rand(batch, 2, 2, generator=generator),
    }


def generators(batch: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


def test_a_chunk_is_the_executed_part_of_the_plan(small_policy: DiffusionPolicy) -> None:
    chunk = small_policy.predict_action_chunk(observation(), generators())
    assert chunk.plan.shape == (2, 16, 2)
    torch.testing.assert_close(chunk.actions, chunk.plan[:, 1:9], rtol=0, atol=0)


@over("name", ON_COSINE)
def test_plans_stay_within_the_limits_of_the_data(small_policy: DiffusionPolicy, name: str) -> None:
    table = small_policy.sampler({"name": name, "steps": 7})
    plan = small_policy.predict_action_chunk(observation(), generators(), table).plan
    low, high = small_policy.codec.decode(torch.tensor([[-1.0], [1.0]]))
    tolerance = 1e-5  # float32 round trip of values up to 10
    assert (plan >= low - tolerance).all()
    assert (plan <= high + tolerance).all()


def test_the_same_generators_give_the_same_plan_and_others_another(small_policy: DiffusionPolicy) -> None:
    first = small_policy.predict_action_chunk(observation(), generators()).plan
    again = small_policy.predict_action_chunk(observation(), generators()).plan
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    other = small_policy.predict_action_chunk(observation(), [torch.Generator().manual_seed(9) for _ in range(2)]).plan
    assert (other - first).abs().max() > 1e-2


@over("name", ON_COSINE)
def test_a_constraint_acts_in_physical_units_at_every_step_and_on_the_result(
    small_policy: DiffusionPolicy, name: str
) -> None:
    calls = []

    def constrain(plan: torch.Tensor, row) -> torch.Tensor:
        calls.append(row)
        return plan.clamp(4.0, 4.5)

    table = small_policy.sampler({"name": name, "steps": 5})
    chunk = small_policy.predict_action_chunk(observation(), generators(), table, constrain)
    assert calls == [*table.rows, table.rows[-1]]
    assert chunk.plan[:, 1:].min() >= 4.0
    assert chunk.plan[:, 1:].max() <= 4.5
    assert ((chunk.plan[:, 0] < 4.0) | (chunk.plan[:, 0] > 4.5)).any(), "the past must pass unchanged"


@pytest.mark.parametrize("batch", [1, 5, 64])
@over("name", ON_COSINE)
def test_a_chunk_is_that_of_the_plain_network(
    small_policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch, name: str, batch: int
) -> None:
    table = small_policy.sampler({"name": name, "steps": 7})
    found = small_policy.predict_action_chunk(observation(batch), generators(batch), table).plan
    with monkeypatch.context() as patched:
        patched.setattr(unet1d, "may_unroll", lambda _: False)
        expected = small_policy.predict_action_chunk(observation(batch), generators(batch), table).plan
    assert not torch.equal(found, expected), "both are the plain network's"
    assert expected.std() > 1.0
    # Actions of up to 10: float32 rounding of each row, which the next ones carry on and high noise levels enlarge.
    # heun extrapolates from two estimates, and their rounding with them (3e-4 at one of 2048 numbers).
    atol = 1e-3 if name == "heun" else 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


@over(
    "change, message",
    [
        ({"goal": None}, r"keys are \['position'\], expected \['goal', 'position'\]"),
        ({"extra": torch.zeros(2, 2, 1)}, "keys are"),
        ({"goal": torch.zeros(2, 2, 3)}, r"goal has shape \[2, 2, 3\], expected \[2, 2, 2\]"),
        ({"goal": torch.zeros(2, 1, 2)}, r"goal has shape \[2, 1, 2\], expected \[2, 2, 2\]"),
        ({"goal": torch.zeros(3, 2, 2)}, r"goal has shape \[3, 2, 2\], expected \[2, 2, 2\]"),
        ({"goal": torch.full((2, 2, 2), NAN)}, "goal has NaN"),
        ({"goal": torch.full((2, 2, 2), float("inf"))}, "goal has NaN or infinite"),
    ],
)
def test_a_bad_observation_is_refused(small_policy: DiffusionPolicy, change: dict, message: str) -> None:
    bad = {key: value for key, value in {**observation(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        small_policy.predict_action_chunk(bad, generators())


def test_a_nan_from_a_constraint_never_leaves_the_policy(small_policy: DiffusionPolicy) -> None:
    with pytest.raises(ValueError, match="plan has NaN"):
        small_policy.predict_action_chunk(observation(), generators(), constrain=lambda plan, row: plan * NAN)


@over("constrain", [None, lambda plan, row: torch.where(plan < 4, plan, 4.0)])
def test_broken_weights_never_give_a_plan_whatever_the_constraint_makes_of_it(constrain) -> None:
    config = PolicyConfig({"goal": 2}, 2, window=WindowConfig(n_obs_steps=1))
    policy = DiffusionPolicy(config)
    policy.fit({"goal": torch.eye(2)}, torch.eye(2))
    with torch.no_grad():
        next(policy.network.parameters()).fill_(NAN)
    with pytest.raises(ValueError, match="plan has NaN"):
        policy.predict_action_chunk({"goal": torch.zeros(1, 1, 2)}, generators(1), constrain=constrain)


def test_a_constraint_may_work_in_place(small_policy: DiffusionPolicy) -> None:
    plans = [
        small_policy.predict_action_chunk(observation(), generators(), constrain=constrain).plan
        for constrain in (lambda plan, row: plan.clamp(4.0, 4.5), lambda plan, row: plan.clamp_(4.0, 4.5))
    ]
    torch.testing.assert_close(*plans, rtol=0, atol=0)


def test_a_constraint_that_forgets_to_return_the_plan_is_refused(small_policy: DiffusionPolicy) -> None:
    def in_place(plan: torch.Tensor, row) -> None:
        plan.clamp_(max=0.0)

    with pytest.raises(ValueError, match="constraint: returned None, expected the plan"):
        small_policy.predict_action_chunk(observation(), generators(), constrain=in_place)


def test_a_constraint_of_another_shape_is_refused(small_policy: DiffusionPolicy) -> None:
    with pytest.raises(ValueError, match=r"constraint: returned shape \[2, 15, 2\], expected \[2, 16, 2\]"):
        small_policy.predict_action_chunk(observation(), generators(), constrain=lambda plan, row: plan[:, 1:])


def test_observations_may_be_arrays_of_float64(small_policy: DiffusionPolicy) -> None:
    as_arrays = {key: value.double().numpy() for key, value in observation().items()}
    plans = [small_policy.predict_action_chunk(o, generators()).plan for o in (observation(), as_arrays)]
    torch.testing.assert_close(*plans, rtol=0, atol=0)


@over("name", ["observation.state", "keys", "pop", "träger"])
def test_an_observation_may_have_any_name(name: str) -> None:
    policy = DiffusionPolicy(PolicyConfig({name: 2}, 2))
    policy.fit({name: torch.eye(2)}, torch.eye(2))
    assert policy.predict_action_chunk({name: torch.zeros(1, 2, 2)}, generators(1)).plan.isfinite().all()


def test_missing_statistics_raise() -> None:
    policy = DiffusionPolicy(PolicyConfig({"goal": 2}, 2, model=UNet1dConfig(widths=[16, 32], time_embedding_dim=16)))
    with pytest.raises(ValueError, match="no normalisation statistics for goal, action"):
        policy.predict_action_chunk({"goal": torch.zeros(1, 2, 2)}, generators(1))
    with pytest.raises(ValueError, match="no normalisation statistics"):
        policy.loss({"goal": torch.zeros(1, 2, 2)}, torch.zeros(1, 16, 2), torch.Generator())


@over(
    "window, message",
    [
        (WindowConfig(horizon=15), r"window: horizon 15 must be divisible by 4 \(2 down-samplings\)"),
        (WindowConfig(horizon=8), r"horizon 8 must be at least n_obs_steps - 1 \+ n_action_steps = 9"),
        (WindowConfig(n_obs_steps=0), "n_obs_steps 0 must be between 1 and 4096"),
    ],
)
def test_windows_that_do_not_fit_are_refused(window: WindowConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionPolicy(PolicyConfig({"goal": 2}, 2, window=window))


# clean: test_trainer.py
@pytest.mark.parametrize("parameterization", ["epsilon", pytest.param("v", marks=pytest.mark.slow)])
def test_a_trained_policy_returns_the_demonstrated_actions(parameterization: str) -> None:
    """One observation, one demonstrated plan: after some steps of training, sampling gives that plan."""
    torch.manual_seed(0)
    config = PolicyConfig({"goal": 1}, 1, model=UNet1dConfig(widths=[16, 32], time_embedding_dim=16))
    config.diffusion = DenoisingConfig(parameterization=parameterization)
    policy = DiffusionPolicy(config)
    plan = torch.linspace(-3, 5, 16)[None, :, None]
    goals = torch.tensor([[0.0], [1.0]])
    policy.fit({"goal": goals}, plan[0])
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    goal = torch.ones(64, 2, 1)
    for _ in range(300):
        optimizer.zero_grad()
        policy.loss({"goal": goal}, plan.expand(64, -1, -1), generator).backward()
        optimizer.step()
    sampled = policy.eval().predict_action_chunk({"goal": goal[:4]}, generators(4)).plan
    assert (sampled - plan).abs().max() < 0.6  # of a range of 8, after 300 steps


class Watching:
    """A `Projection` that remembers at which steps it was called; `change` makes the plan that it returns."""

    def __init__(self, change=lambda plan: plan) -> None:
        self.steps: list[int] = []
        self.change = change

    def project(self, plan: torch.Tensor, row, step: int) -> torch.Tensor:
        self.steps.append(step)
        return self.change(plan)


@over("name", [*ON_COSINE, "diffusers"])
def test_a_projection_is_told_each_step_and_last_the_plan_that_is_returned(
    small_policy: DiffusionPolicy, name: str
) -> None:
    if name == "diffusers":
        pytest.importorskip("diffusers")
    sampler, watching = small_policy.sampler(name, 4), Watching()
    small_policy.predict_action_chunk(observation(), generators(), sampler, watching)
    assert watching.steps == list(range(len(sampler) + 1))


@over("name", ["ddim", "unipc", "heun"])
def test_the_very_same_tensor_leaves_a_plan_as_it_is_bit_by_bit(small_policy: DiffusionPolicy, name: str) -> None:
    sampler = small_policy.sampler(name, 5)
    plain, kept, copied = (
        small_policy.predict_action_chunk(observation(), generators(), sampler, constrain).plan
        for constrain in (None, Watching(), Watching(torch.Tensor.clone))
    )
    torch.testing.assert_close(kept, plain, rtol=0, atol=0)
    torch.testing.assert_close(copied, plain, rtol=0, atol=1e-4)  # float32, to physical units and back at every step


@over(
    "change, message",
    [
        (lambda plan: None, "constraint: returned None, expected the plan"),
        (lambda plan: plan[:, 1:], r"constraint: returned shape \[2, 15, 2\], expected \[2, 16, 2\]"),
        (lambda plan: plan * NAN, "plan has NaN or infinite values"),
    ],
)
def test_a_projection_that_gives_no_plan_is_refused(small_policy: DiffusionPolicy, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_policy.predict_action_chunk(observation(), generators(), constrain=Watching(change))


@over("name", ["ddim", "diffusers"])
def test_a_projection_cannot_hide_that_an_estimate_was_not_finite(small_policy: DiffusionPolicy, name: str) -> None:
    if name == "diffusers":
        pytest.importorskip("diffusers")
    with torch.no_grad():
        next(small_policy.network.parameters()).fill_(NAN)
    hiding = Watching(lambda plan: torch.full_like(plan, 4.0))
    with pytest.raises(ValueError, match="plan has NaN or infinite values"):
        small_policy.predict_action_chunk(observation(), generators(), small_policy.sampler(name, 3), hiding)
