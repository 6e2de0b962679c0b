"""Every sampler that diffusers has too: the same noise, the same network, our levels, equal samples.

Their levels are float32 and spaced otherwise, so ours are put in their place; what is compared is the steps, in
float64. Where the steps differ a docstring says why.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from one_case import over

from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedules import cosine, flow, karras, vp
from diffpolicy.policy.clip import clip, identity
from diffpolicy.policy.objective_choices import build_objective
from diffpolicy.policy.sampler_choices import build_sampler

COSINE, FLOW = cosine(100), flow(1000)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, of NumPy
COUNTS = over("steps", [1, 2, 5, 10, 50])
MULTISTEP = pytest.mark.parametrize(
    ("choice", "scheduler_class", "settings"),
    [
        ({"name": "dpmpp_2m"}, DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        ({"name": "dpmpp_2m_sde"}, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (
            {"name": "dpmpp_3m", "as_published": True},
            DPMSolverMultistepScheduler,
            {"algorithm_type": "dpmsolver++", "solver_order": 3},
        ),
        *(
            ({"name": "unipc", "order": order}, UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": order})
            for order in (1, 2, 3)
        ),
    ],
    ids=str,
)


def network(x: torch.Tensor, time: float) -> torch.Tensor:
    """Some smooth clean estimate, far from ideal and beyond [-1, 1], so that clipping acts."""
    return 1.3 * torch.sin(x + 0.1 * time)


def denoise(x: torch.Tensor, row: Row) -> torch.Tensor:
    return network(x, row.time)


def draws(table: StepTable) -> torch.Tensor:
    shape = (len(table) + 1, 8, 16, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_zero(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.append(values, 0.0))


def twice_between(sigmas: torch.Tensor) -> torch.Tensor:
    """Heun's layout: every level but the first and the last is seen from both sides."""
    return torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])


def equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)  # float64, x of size 1, up to 100 steps


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their solvers cast x to float32 in every step, and our denoiser tells the time in the default precision."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def their_draws(monkeypatch: pytest.MonkeyPatch) -> dict[str, Iterator[torch.Tensor]]:
    """DDPM draws its own noise: it gets ours instead."""
    supply: dict[str, Iterator[torch.Tensor]] = {}
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(supply["noise"]))
    return supply


@over("is_clipped", [False, True])
@pytest.mark.parametrize(("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
@over("steps", [100, 50, 10])
def test_ddpm(their_draws: dict, variance: str, theirs: str, steps: int, is_clipped: bool) -> None:
    """With fixed_large and fewer steps than levels theirs adds noise even to the last, clean sample, ours never."""
    table = build_sampler(COSINE, {"name": "ddpm", "steps": steps, "variance": variance})
    noise = draws(table)
    noise[-1] = 0.0
    their_draws["noise"] = iter(noise[1:])
    scheduler = DDPMScheduler(
        100, prediction_type="sample", variance_type=theirs, clip_sample=is_clipped, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = torch.from_numpy(COSINE.levels.alpha**2)
    x = noise[0] * COSINE.levels.sigma[-1]
    for time in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, time), time, x).prev_sample
    equal(reverse(denoise, table, noise, clip(-1, 1) if is_clipped else identity).clean, x)


@over("is_clipped", [False, True])
@over("clipped_epsilon", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@over("steps", [100, 20, 5])
def test_ddim(eta: float, steps: int, clipped_epsilon: bool, is_clipped: bool) -> None:
    """By default theirs keeps the noise estimate of before the clip, as the published policies do."""
    table = build_sampler(COSINE, {"name": "ddim", "steps": steps, "eta": eta, "clipped_epsilon": clipped_epsilon})
    noise = draws(table)
    scheduler = DDIMScheduler(100, prediction_type="sample", clip_sample=is_clipped, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = torch.from_numpy(COSINE.levels.alpha**2)
    x = noise[0] * COSINE.levels.sigma[-1]
    for i, time in enumerate(scheduler.timesteps.tolist()):
        x = scheduler.step(
            network(x, time), time, x, eta, use_clipped_model_output=clipped_epsilon, variance_noise=noise[i + 1]
        ).prev_sample
    equal(reverse(denoise, table, noise, clip(-1, 1) if is_clipped else identity).clean, x)


def multistep_samples(
    scheduler, table: StepTable, sigmas: torch.Tensor, noise: torch.Tensor, restart: int
) -> torch.Tensor:
    """`restart`: the step before which theirs forgets the steps before it, and begins anew with order 1."""
    scheduler.set_timesteps(len(table))
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.from_numpy(table.now.time)
    x = noise[0] * table.now.sigma[0]
    for i, time in enumerate(scheduler.timesteps.tolist()):
        if i == restart:
            scheduler.lower_order_nums = 0
        fresh = {"variance_noise": noise[i + 1]} if isinstance(scheduler, DPMSolverMultistepScheduler) else {}
        x = scheduler.step(network(x, time), time, x, **fresh).prev_sample
    return x


@MULTISTEP
@COUNTS
def test_multistep_solvers(choice: dict, scheduler_class, settings: dict, steps: int) -> None:
    table = build_sampler(COSINE, {**choice, "steps": steps})
    scheduler = scheduler_class(
        100, prediction_type="sample", final_sigmas_type="zero", **{"solver_order": 2, **settings}
    )
    noise = draws(table)
    theirs = multistep_samples(scheduler, table, with_zero(table.now.sigma / table.now.alpha), noise, restart=0)
    equal(reverse(denoise, table, noise, identity).clean, theirs)


@MULTISTEP
@COUNTS
def test_multistep_solvers_on_flow_where_the_first_level_has_signal(
    choice: dict, scheduler_class, settings: dict, steps: int
) -> None:
    table = build_sampler(FLOW, {**choice, "steps": steps, "spacing": "leading"})
    scheduler = scheduler_class(1000, prediction_type="sample", use_flow_sigmas=True, **{"solver_order": 2, **settings})
    noise = draws(table)
    theirs = multistep_samples(scheduler, table, with_zero(table.now.sigma), noise, restart=0)
    equal(reverse(denoise, table, noise, identity).clean, theirs)


@MULTISTEP
@COUNTS
def test_multistep_solvers_on_flow_from_pure_noise(choice: dict, scheduler_class, settings: dict, steps: int) -> None:
    """Theirs starts a little short of pure noise (by 1e-6; here 1e-9) and extrapolates through the long first step.

    Ours takes the limit, in which that step is infinitely long in log(alpha / sigma) and the next begins anew. Told to
    begin anew, theirs agrees.
    """
    table = build_sampler(FLOW, {**choice, "steps": steps})
    scheduler = scheduler_class(1000, prediction_type="sample", use_flow_sigmas=True, **{"solver_order": 2, **settings})
    noise, sigmas = draws(table), with_zero(table.now.sigma)
    sigmas[0] -= 1e-9
    ours = reverse(denoise, table, noise, identity).clean
    torch.testing.assert_close(
        ours, multistep_samples(scheduler, table, sigmas, noise, restart=1), rtol=0, atol=1e-7
    )  # the 1e-9


@COUNTS
@pytest.mark.parametrize("schedule", [vp(1000), karras(1000, 0.002, 80.0, 0.5)], ids=["vp", "karras"])
def test_heun(schedule, steps: int) -> None:
    """Theirs walks in x / alpha, and has no churn."""
    table = build_sampler(schedule, {"name": "heun", "steps": steps, "spacing": "trailing", "max_weight": None})
    scheduler = HeunDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = twice_between(with_zero(table.now.sigma / table.now.alpha)[[*range(0, 2 * steps - 1, 2), -1]])
    noise = draws(table)
    x = noise[0] * scheduler.sigmas[0]
    for row, time in zip(table.rows, scheduler.timesteps, strict=True):
        x = scheduler.step(network(row.alpha * x, row.time), time, x).prev_sample
    equal(reverse(denoise, table, noise, identity).clean, x)


@COUNTS
@pytest.mark.parametrize(
    ("name", "scheduler_class"),
    [("flow_euler", FlowMatchEulerDiscreteScheduler), ("flow_heun", FlowMatchHeunDiscreteScheduler)],
)
def test_flow(name: str, scheduler_class, steps: int) -> None:
    """On our times, from 1 in steps of 1/n; theirs would reach from 1 to 1/1000."""
    table = build_sampler(FLOW, {"name": name, "steps": steps})
    scheduler = scheduler_class(1000)
    scheduler.set_timesteps(steps)
    sigmas = with_zero(1.0 - np.arange(steps) / steps)
    scheduler.sigmas = sigmas if name == "flow_euler" else twice_between(sigmas)
    noise = draws(table)
    x = noise[0]
    for row, time in zip(table.rows, scheduler.timesteps, strict=True):
        velocity = (x - network(x, row.time)) / row.sigma
        x = scheduler.step(velocity, time, x).prev_sample
    equal(reverse(denoise, table, noise, identity).clean, x)


@COUNTS
def test_edm_euler_with_its_preconditioning(steps: int) -> None:
    """From the network's output on: levels, input scale, time (ours is theirs times 1000), skip and out."""
    objective = build_objective(DenoisingConfig(schedule="karras", num_levels=1000, parameterization="edm"))
    table = build_sampler(objective.schedule, {"name": "euler", "steps": steps})
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = with_zero(table.now.sigma)
    scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    noise = draws(table)
    x = noise[0] * 80.0
    for time in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, time) + math.sin(1000 * float(time)))
        x = scheduler.step(output, time, x).prev_sample
    ours = objective.denoiser(lambda x, time: torch.tanh(x + math.sin(time)))
    equal(reverse(ours, table, noise, identity).clean, x)
