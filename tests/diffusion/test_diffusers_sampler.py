"""The adapter of diffusers' schedulers: every class that it takes samples a known mixture, the others are refused."""

import diffusers
import mixture
import pytest
import torch
from one_case import over

from diffpolicy.diffusion.diffusers_sampler import DiffusersSampler
from diffpolicy.diffusion.schedules import cosine, vp
from diffpolicy.policy.clip import identity

VP, COSINE = vp(200), cosine(50)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, of NumPy
CLASSES = [one for one in dir(diffusers) if one.endswith("Scheduler") and not one.startswith("Flax")]


def samples(sampler: DiffusersSampler, count: int = 500) -> torch.Tensor:
    """[count, 1] of the mixture in one dimension; each row has a generator of its own, as in a policy."""
    shape = (len(sampler) + 1, 1, 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    noise = torch.stack([torch.randn(shape, generator=one, dtype=torch.float64) for one in generators], dim=1)
    return sampler.sample(mixture.IN_1D.denoise, noise, identity).clean[:, 0]


def accepted(**options: object) -> list[str]:
    """The classes that can make 50 steps with these options."""
    found = []
    for name in CLASSES:
        try:
            DiffusersSampler(name, options, VP, 50)
        except (ValueError, ImportError):
            continue
        found.append(name)
    return found


ACCEPTED, WITH_KARRAS = accepted(), accepted(use_karras_sigmas=True)
# Wasserstein-1 at 10 and at 50 steps. The true samples are 0.03 away. Methods that walk in sigma / alpha by its
# seventh root spend few of 10 steps where the modes part.
BOUNDS = {False: (0.2, 0.06), True: (0.55, 0.06)}
CONSISTENCY = {"LCMScheduler": (0.2, 0.2)}  # it re-noises the estimate, which suits distilled networks only


def test_the_usual_classes_are_accepted() -> None:
    assert {"DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", *WITH_KARRAS} <= set(ACCEPTED)
    assert {"UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "KDPM2DiscreteScheduler"} <= set(WITH_KARRAS)


@pytest.mark.parametrize(
    ("name", "is_karras"), [*((name, False) for name in ACCEPTED), *((name, True) for name in WITH_KARRAS)]
)
def test_a_scheduler_that_is_accepted_samples_the_mixture(name: str, is_karras: bool) -> None:
    options = {"use_karras_sigmas": True} if is_karras else {}
    for steps, bound in zip((10, 50), CONSISTENCY.get(name, BOUNDS[is_karras]), strict=True):
        found = samples(DiffusersSampler(name, options, VP, steps))
        assert mixture.IN_1D.wasserstein(found, mixture.DIRECTIONS[1]) < bound, f"{steps} steps"


@over("name", ACCEPTED)
def test_at_every_number_of_steps_it_samples_or_is_refused(name: str) -> None:
    for options in ({}, {"use_karras_sigmas": True}) if name in WITH_KARRAS else ({},):
        for steps in (1, 3, 12, 50):
            try:
                sampler = DiffusersSampler(name, options, COSINE, steps)
            except ValueError:
                if steps == 12:
                    raise
            else:
                assert samples(sampler, 4).isfinite().all(), f"{options}, {steps} steps"


STOCHASTIC = {
    "DDPMScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++"},
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_of_a_row_comes_from_its_own_generator(name: str) -> None:
    """A row alone is the row in a batch, the global generator stays as it was, and later draws matter."""
    sampler = DiffusersSampler(name, STOCHASTIC[name], VP, 10)
    noise = torch.randn(len(sampler) + 1, 5, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(noise: torch.Tensor) -> torch.Tensor:
        return sampler.sample(mixture.IN_2D.denoise, noise, identity).clean

    before = torch.get_rng_state()
    together = run(noise)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(run(noise[:, 2:3]), together[2:3], rtol=0, atol=1e-9)  # sums in another order
    other = torch.cat([noise[:1], noise[1:].flip(0)])
    assert (run(other) - together).abs().max() > 1e-3


@over(
    "name, options, reason",
    [
        ("DDIMScheduler", {"prediction_type": "sample"}, "prediction_type='sample'.*noise estimate.*leave it out"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True: the levels are those of"),
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample=True: the policy clips"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding=True: .*sampler.guidance.threshold"),
        ("DDIMScheduler", {"beta_schedule": "linear"}, "beta_schedule='linear': the levels are those of"),
        ("DDIMScheduler", {"use_karras_sigmas": True}, "has no option 'use_karras_sigmas'; it has beta_end"),
        ("CogVideoXDDIMScheduler", {"snr_shift_scale": 3.0}, "snr_shift_scale=3.0: the levels are those of"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True: .*use flow_euler"),
        ("UniPCMultistepScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=True: .*use flow_euler"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type: the network predicts no variance"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_max": 900.0}, "beyond the trained ones"),
        ("CogVideoXDPMScheduler", {}, "CogVideoXDPMScheduler cannot make 10 steps .*missing 2 required"),
        ("KarrasVeScheduler", {}, "KarrasVeScheduler takes no betas"),
    ],
)
def test_what_contradicts_the_adapter_is_refused_by_name(name: str, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DiffusersSampler(name, options, VP, 10)


def test_levels_that_repeat_are_refused_with_a_spacing_that_works() -> None:
    with pytest.raises(ValueError, match=r"gives NaN at 50 steps.*timestep_spacing: trailing"):
        DiffusersSampler("UniPCMultistepScheduler", {}, COSINE, 50)
    assert (
        samples(DiffusersSampler("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}, COSINE, 50))
        .isfinite()
        .all()
    )


def test_noise_that_no_seed_reaches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step = diffusers.DDIMScheduler.step

    def noisy(self, model_output, timestep, sample, **others):
        return step(self, model_output, timestep, sample + torch.randn_like(sample))

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", noisy)
    with pytest.raises(ValueError, match="draws noise of its own"):
        DiffusersSampler("DDIMScheduler", {}, VP, 10)
