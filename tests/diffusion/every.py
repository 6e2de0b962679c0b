"""Every schedule, and every sampler on every schedule, so that a new entry in the tables inherits the tests."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from one_case import over

from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import VARIANCE_PRESERVING, Schedule
from diffpolicy.diffusion.schedules import zero_terminal_snr
from diffpolicy.diffusion.spacing import SPACINGS
from diffpolicy.policy.objective_choices import SCHEDULES
from diffpolicy.policy.sampler_choices import TABLES, build_sampler
from diffpolicy.system.tables import made, settings_of

PLAIN = {name: made(SCHEDULES, "schedule", name, 1000) for name in SCHEDULES}
RESCALED = {f"{n}_zero_snr": zero_terminal_snr(s) for n, s in PLAIN.items() if s.family is VARIANCE_PRESERVING}
EVERY_SCHEDULE = PLAIN | RESCALED

CHOICES = [
    *TABLES,
    {"name": "ddpm", "variance": "beta"},
    {"name": "unipc", "order": 3},
    {"name": "ddim", "eta": 0.5},
    {"name": "ddim", "eta": 1.0},
    {"name": "ddim", "clipped_epsilon": False},
    {"name": "heun", "churn": 40.0},
    {"name": "heun", "churn": 40.0, "churn_min": 0.1, "churn_max": 2.0, "churn_noise": 1.003},
    {"name": "langevin", "langevin_steps": 3},
    {"name": "predictor_corrector", "langevin_steps": 2, "langevin_rate": 0.3},
]
EVERY_SAMPLER = [settings_of(TABLES, "sampler", choice) for choice in CHOICES]
NEEDS_SIGNAL = ("heun", "reverse_sde", "predictor_corrector", "langevin")  # their first level must hold signal


@dataclass(frozen=True)
class SamplerCase:
    """A sampler on a schedule, by name."""

    config: Any
    on: str

    @property
    def schedule(self) -> Schedule:
        return EVERY_SCHEDULE[self.on]

    @property
    def is_defined(self) -> bool:
        spacing, has_signal = self.config.spacing, self.schedule.levels.alpha[-1] > 0.0
        if self.config.name == "flow_heun" and self.on != "flow":
            return False
        if spacing in ("log_snr", "karras", "noise_then_karras"):
            return has_signal
        return has_signal or spacing == "leading" or self.config.name not in NEEDS_SIGNAL

    def build(self) -> StepTable:
        return build_sampler(self.schedule, self.config)

    def __str__(self) -> str:
        default = vars(settings_of(TABLES, "sampler", {"name": self.config.name, "steps": self.config.steps}))
        changed = [f"{key}={value}" for key, value in vars(self.config).items() if value != default[key]]
        return "-".join([self.config.name, self.on, str(self.config.steps), *changed])


def _cases() -> list[SamplerCase]:
    """Every sampler on every schedule at several step counts; at 7 steps also with every spacing."""
    schedules = [*PLAIN, "cosine_zero_snr"]
    cases = [
        SamplerCase(replace(config, steps=steps), on)
        for config in EVERY_SAMPLER
        for on in schedules
        for steps in (1, 2, 20)
    ]
    return cases + [
        SamplerCase(replace(config, steps=7, spacing=spacing), on)
        for config in EVERY_SAMPLER
        for on in ("vp", "flow")
        for spacing in SPACINGS
    ]


def _named(config: Any) -> str:
    default = vars(settings_of(TABLES, "sampler", config.name))
    return "-".join([config.name, *(f"{key}={value}" for key, value in vars(config).items() if value != default[key])])


CASES = {
    _named(config): [c for c in _cases() if replace(c.config, steps=config.steps, spacing=config.spacing) == config]
    for config in EVERY_SAMPLER
}
REFUSED = [case for case in _cases() if not case.is_defined and case.config.steps > 1]  # 1 step is the clean estimate


def per_sampler(test: Callable[[SamplerCase], None]) -> Callable[[str], None]:
    """Make one test case per sampler, which runs on every schedule that the sampler is defined for."""

    @pytest.mark.parametrize("sampler", CASES)
    @functools.wraps(test)
    def run(sampler: str) -> None:
        over("case", [case for case in CASES[sampler] if case.is_defined])(test)()

    run.__signature__ = inspect.Signature([inspect.Parameter("sampler", inspect.Parameter.POSITIONAL_OR_KEYWORD)])
    return run
