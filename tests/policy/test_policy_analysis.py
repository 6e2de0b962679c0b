"""What can be asked of a policy besides a plan: its likelihood, its noise and back, a plan between two; guidance."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.diffusion.guidance import by_cost, inpaint
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.settings import GuidanceConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.analysis import PolicyAnalysis
from diffpolicy.policy.clip import identity
from diffpolicy.policy.objective_choices import SCHEDULES

HORIZON = 8
ACTIONS = torch.linspace(0.0, 10.0, 50)[:, None].expand(-1, 2)


def policy_with(**diffusion: Any) -> DiffusionPolicy:
    """Untrained; observations lie in [0, 1], actions in [0, 10]."""
    torch.manual_seed(0)
    config = PolicyConfig({"goal": 2}, 2, model=UNet1dConfig(widths=[8, 16], time_embedding_dim=16, groups=4))
    config.window.horizon, config.window.n_action_steps = HORIZON, 4
    config.diffusion = DenoisingConfig(**diffusion)
    policy = DiffusionPolicy(config)
    policy.fit({"goal": ACTIONS / 10.0}, ACTIONS)
    return policy.eval()


def observation(batch: int = 2) -> dict[str, torch.Tensor]:
    return {"goal": torch.rand(batch, 2, 2, generator=torch.Generator().manual_seed(5))}


def plan(batch: int = 2) -> torch.Tensor:
    return 4.0 + torch.rand(batch, HORIZON, 2, generator=torch.Generator().manual_seed(6))


def generators(batch: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


def test_the_log_likelihood_has_no_chance_and_does_not_depend_on_the_batch() -> None:
    analysis = PolicyAnalysis(policy_with())
    both = analysis.log_likelihood(observation(), plan(), steps=4)
    alone = analysis.log_likelihood({key: value[1:] for key, value in observation().items()}, plan()[1:], steps=4)
    assert both.normalized.shape == (2,)
    torch.testing.assert_close(alone.normalized[0], both.normalized[1], rtol=1e-4, atol=1e-4)  # float32


def test_physical_units_differ_by_the_normalisers_stretch() -> None:
    """Actions of range 10 px are halved and divided by 5 into [-1, 1]: log 5 nats for each of 16 numbers."""
    found = PolicyAnalysis(policy_with()).log_likelihood(observation(), plan(), steps=2)
    expected = torch.full((2,), -HORIZON * 2 * float(torch.log(torch.tensor(5.0))))
    torch.testing.assert_close(found.physical - found.normalized, expected, rtol=0, atol=1e-3)


def test_a_solver_without_a_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="method 'ddim' is unknown, expected rk4 or adaptive"):
        PolicyAnalysis(policy_with()).log_likelihood(observation(), plan(), method="ddim")


def test_hutchinsons_probes_come_near_the_exact_divergence() -> None:
    analysis = PolicyAnalysis(policy_with())
    exact = analysis.log_likelihood(observation(), plan(), steps=4).normalized
    found = analysis.log_likelihood(observation(), plan(), 4, probes=256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.normalized, exact, rtol=0, atol=0.5)


def test_the_elbo_is_below_the_log_likelihood_of_a_policy_on_its_own_plans() -> None:
    policy = policy_with()
    plans = policy.predict_action_chunk(observation(), generators()).plan
    exact = PolicyAnalysis(policy).log_likelihood(observation(), plans, steps=8).normalized
    bound = PolicyAnalysis(policy).elbo(observation(), plans, torch.Generator().manual_seed(0)).normalized
    assert (bound < exact).all()


@over("schedule", [*SCHEDULES])
def test_every_schedule_gives_a_density_a_noise_and_a_plan(schedule: str) -> None:
    analysis = PolicyAnalysis(policy_with(schedule=schedule, num_levels=1000))
    assert analysis.log_likelihood(observation(), plan(), steps=2).physical.isfinite().all()
    noise = analysis.encode(observation(), plan(), 4, "rk4")
    assert noise.isfinite().all()
    assert analysis.decode(observation(), noise, 4, "rk4").isfinite().all()


def shipped(checkpoint: Path) -> tuple[PolicyAnalysis, dict[str, torch.Tensor], torch.Tensor]:
    """The shipped policy, what it sees in four windows of its demonstrations, and noise."""
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    buffer = ReplayBuffer.open(checkpoint.parents[1] / "pusht_expert.zarr.zip")
    rows = np.array([[r, r + 1] for r in (20, 150, 310, 470)])
    keypoints, state = buffer.take("keypoint", rows.ravel()), buffer.take("state", rows.ravel())
    seen = np.concatenate([keypoints.reshape(len(state), -1), state[:, :2]], axis=1)
    seen = torch.as_tensor(seen, dtype=torch.float32).unflatten(0, rows.shape)
    noise = torch.randn(len(rows), policy.config.window.horizon, 2, generator=torch.Generator().manual_seed(0))
    return PolicyAnalysis(policy), {"keypoints": seen}, noise


def test_decoding_a_noise_gives_ddims_plan_and_leaves_no_noise_in_it(shipped_checkpoint: Path) -> None:
    """0.2 px rms from DDIM-100; ending at the lowest trained level, sigma 0.03, left 7 px."""
    analysis, seen, noise = shipped(shipped_checkpoint)
    policy = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    table = policy.sampler("ddim", steps=100)
    denoise = policy.denoiser_at(policy.condition(policy.checked(seen, len(noise))))
    with torch.no_grad():
        clean = reverse(denoise, table, noise.expand(101, -1, -1, -1), identity).clean
    assert (analysis.decode(seen, noise) - policy.codec.decode(clean)).square().mean().sqrt() < 0.5


def test_a_plan_of_the_policy_comes_back_from_its_noise(shipped_checkpoint: Path) -> None:
    analysis, seen, noise = shipped(shipped_checkpoint)
    plans = analysis.decode(seen, noise)
    back = analysis.decode(seen, analysis.encode(seen, plans))
    assert (back - plans).square().mean().sqrt() < 1.5  # px


def test_interpolation_goes_from_one_plan_to_the_other(shipped_checkpoint: Path) -> None:
    analysis, seen, noise = shipped(shipped_checkpoint)
    first, second = analysis.decode(seen, noise), analysis.decode(seen, noise.flip(0))
    for fraction, end in ((0.0, first), (1.0, second)):
        found = analysis.interpolate(seen, first, second, fraction, steps=20)
        assert (found - end).square().mean().sqrt() < 1.5  # px
    middle = analysis.interpolate(seen, first, second, 0.5, steps=20)
    assert float((middle - first).norm()) < float((second - first).norm())


def test_a_policy_in_float64_acts_trains_and_is_analysed() -> None:
    policy = policy_with().double()
    chunk = policy.predict_action_chunk(observation(), generators())
    assert chunk.actions.dtype == torch.float64
    single = policy_with().predict_action_chunk(observation(), generators())
    torch.testing.assert_close(chunk.actions.float(), single.actions, rtol=0, atol=1e-3)  # px; float32
    policy.loss(observation(), plan(), torch.Generator().manual_seed(0)).backward()
    analysis = PolicyAnalysis(policy)
    assert analysis.encode(observation(), plan(), 2).dtype == torch.float64
    assert (
        analysis.log_likelihood(observation(), plan(), 1, probes=1, generator=torch.Generator())
        .normalized.isfinite()
        .all()
    )
    controller = PolicyController(policy)
    controller.reset([0])
    assert np.isfinite(controller.select_action({"goal": [[0.5, 0.5]]})).all()


@over("dtype", [torch.bfloat16, torch.float16])
def test_a_policy_in_half_precision_is_refused_with_the_reason(dtype: torch.dtype) -> None:
    policy = policy_with()
    with pytest.raises(
        ValueError, match=rf"policy: in {dtype} its normalisation statistics would be too coarse .*autocast"
    ):
        policy.to(dtype)
    assert {one.dtype for one in policy.parameters()} == {torch.float32}


@over("bad", [torch.zeros(2, 5, 2), torch.full((2, HORIZON, 2), torch.nan)])
def test_a_plan_of_the_wrong_shape_or_with_nan_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"plan: shape .* expected \[2, 8, 2\].*all finite"):
        PolicyAnalysis(policy_with()).log_likelihood(observation(), bad)


def test_dropout_of_the_condition_trains_a_null_token_that_travels_with_the_checkpoint(tmp_path) -> None:
    policy = policy_with(condition_dropout=0.5)
    loss = policy.loss(observation(64), plan(64), torch.Generator().manual_seed(0))
    loss.backward()
    null = policy.null_condition["vector"]
    assert null.grad.abs().sum() > 0
    null.data.fill_(0.3)
    policy.save_pretrained(tmp_path / "checkpoint")
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "checkpoint")
    torch.testing.assert_close(loaded.null_condition["vector"], null, rtol=0, atol=0)


def test_without_dropout_there_is_no_null_token_and_classifier_free_guidance_is_refused() -> None:
    policy = policy_with()
    assert not any(name.startswith("null_condition") for name in policy.state_dict())
    with pytest.raises(ValueError, match="condition_dropout above 0"):
        policy.guide(GuidanceConfig(weight=1.0))


def test_guidance_of_minus_1_forgets_the_observation() -> None:
    policy = policy_with(condition_dropout=0.1)
    guide = policy.guide(GuidanceConfig(weight=-1.0))
    others = {key: 1.0 - value for key, value in observation().items()}
    first = policy.predict_action_chunk(observation(), generators(), guide=guide).plan
    second = policy.predict_action_chunk(others, generators(), guide=guide).plan
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    free = policy.predict_action_chunk(others, generators()).plan
    assert (free - second).abs().max() > 1e-3


def test_settings_that_ask_for_nothing_give_no_guide() -> None:
    assert policy_with().guide(GuidanceConfig()) is None


@over(
    "wrong",
    [{"rescale": 2.0, "weight": 1.0}, {"rescale": 0.5}, {"threshold": 0.1}, {"epsilon_scale": 0.0}, {"weight": -2.0}],
)
def test_numbers_out_of_range_are_refused_before_any_work(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        policy_with(condition_dropout=0.1).guide(dataclasses.replace(GuidanceConfig(), **wrong))


def test_a_users_cost_pulls_the_plan_and_the_constraint_comes_last(shipped_checkpoint: Path) -> None:
    """On a trained policy: the cost is low at the right edge, the constraint forbids the right half."""
    policy = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    pixels = {"keypoints": 200.0 + 100.0 * torch.rand(1, 2, 20, generator=torch.Generator().manual_seed(0))}

    def cost(clean: torch.Tensor) -> torch.Tensor:
        return (clean[..., 0] - 1.0).square().sum(1)

    def act(**arguments: Any) -> torch.Tensor:
        return policy.predict_action_chunk(pixels, generators(1), **arguments).actions[..., 0]

    guide = by_cost(cost, 0.5)
    assert act(guide=guide).mean() > act().mean()
    assert (act(guide=guide, constrain=lambda plan, row: plan.clamp(max=256.0)) <= 256.0).all()


def test_a_controller_passes_its_guide_on() -> None:
    policy = policy_with()
    known = torch.full((1, HORIZON, 2), 0.5)
    controller = PolicyController(policy, guide=inpaint(known, torch.ones(HORIZON, 2, dtype=torch.bool)))
    controller.reset([0])
    assert controller.select_action({"goal": [[0.5, 0.5]]}).tolist() == [[7.5, 7.5]]  # 0.5 of [-1, 1] is 7.5 of [0, 10]


@over(
    "scheduler", ["DDPMScheduler", "UniPCMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler"]
)
def test_a_scheduler_of_diffusers_samples_under_constraint(scheduler: str) -> None:
    policy = policy_with()
    sampler = policy.sampler({"name": "diffusers", "steps": 10, "scheduler": scheduler})
    rows = []

    def constrain(plan: torch.Tensor, row) -> torch.Tensor:
        rows.append(row)
        return plan.clamp(4.0, 4.5)

    found = policy.predict_action_chunk(observation(), generators(), sampler, constrain).actions
    assert ((found >= 4.0) & (found <= 4.5)).all()
    assert len(rows) == len(sampler) + 1


def test_our_ddim_and_that_of_diffusers_make_the_same_plan() -> None:
    policy = policy_with()
    options = {"timestep_spacing": "trailing"}
    theirs = {"name": "diffusers", "scheduler": "DDIMScheduler", "scheduler_options": options}
    plans = [
        policy.predict_action_chunk(observation(), generators(), policy.sampler(config)).plan
        for config in ({"name": "ddim"}, theirs)
    ]
    torch.testing.assert_close(plans[0], plans[1], rtol=0, atol=1e-3)  # px; their alpha_bar is float32


def test_a_row_has_the_noise_that_the_scheduler_says() -> None:
    """With Karras' sigmas the schedulers of the multistep family round the timesteps, but step by the sigmas."""
    options = {"use_karras_sigmas": True}
    config = {"name": "diffusers", "scheduler": "DPMSolverMultistepScheduler", "scheduler_options": options}
    found = [row.sigma / row.alpha for row in policy_with().sampler(config).rows]
    schedule = policy_with().objective.schedule
    ends = schedule.levels.sigma[[-1, 0]] / schedule.levels.alpha[[-1, 0]]
    high, low = ends ** (1.0 / 7.0)  # Karras et al. 2022, eq. 5
    expected = np.linspace(high, low, 10) ** 7.0
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # their alpha_bar is float32: 1 - alpha_bar has few digits


@over(
    "settings, diffusion, reason",
    [
        ({"scheduler": "MagicScheduler"}, {}, "'MagicScheduler' is unknown, expected one of .*DDIMScheduler"),
        ({"scheduler": "KarrasVeScheduler"}, {}, "takes no betas"),
        ({"steps": 0}, {}, "steps 0"),
        ({}, {"schedule": "flow", "parameterization": "flow"}, "variance-preserving"),
    ],
)
def test_what_diffusers_cannot_do_is_refused(settings: dict, diffusion: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        policy_with(**diffusion).sampler({**{"name": "diffusers", **settings}})
