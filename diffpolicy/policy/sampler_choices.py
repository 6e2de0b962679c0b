"""Tables of the samplers that settings can name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from diffpolicy.diffusion.diffusers_sampler import DiffusersConfig, DiffusersSampler
from diffpolicy.diffusion.samplers import ancestral, consistency, direct, heun, langevin, multistep
from diffpolicy.diffusion.samplers.ancestral import AncestralConfig, DdimConfig, DdpmConfig
from diffpolicy.diffusion.samplers.consistency import ConsistencySamplerConfig, FlowMapConfig
from diffpolicy.diffusion.samplers.direct import DirectConfig
from diffpolicy.diffusion.samplers.heun import HeunConfig
from diffpolicy.diffusion.samplers.langevin import LangevinConfig, PredictorCorrectorConfig
from diffpolicy.diffusion.samplers.multistep import Dpmpp3mConfig, UnipcConfig
from diffpolicy.diffusion.samplers.pyramid import PyramidConfig, pyramid, to_lowest
from diffpolicy.diffusion.samplers.settings import GuidanceConfig, SamplerConfig
from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.diffusion.schedule import Levels, Schedule
from diffpolicy.diffusion.spacing import SPACINGS
from diffpolicy.diffusion.step_grids import stored
from diffpolicy.system.schema import Range
from diffpolicy.system.tables import Choice, Entry, lookup, made, settings_of

Sampler = StepTable | DiffusersSampler
STORED = "stored"
AUTO = "auto"


@dataclass
class AutoConfig:
    """The sampler that the policy's objective prefers, with other steps, guidance or warm start where given."""

    name: str = AUTO
    steps: Annotated[int | None, Range(1, 10_000)] = None
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    warm_start: Annotated[int | None, Range(1, 10_000)] = None


@dataclass(frozen=True)
class Given:
    """What of a policy its samplers depend on besides the schedule.

    Attributes:
        length: waypoints of an encoded trajectory.
        grids: the steps that its checkpoint stores; see diffusion/step_grids.py.
        last: how many of the last steps to run, as a warm start does; None for all.
    """

    length: int = 16
    grids: Mapping[str, Any] | None = None
    last: int | None = None


def _levels(own: SamplerConfig, schedule: Schedule, given: Given) -> Levels:
    """The levels from which a sampler with these settings makes its steps."""
    spacings = {**SPACINGS, STORED: lambda schedule, steps: stored(schedule, steps, given.grids)}
    levels = lookup(spacings, "spacing", own.spacing)(schedule, own.steps)
    return levels if given.last is None else levels[-given.last :]


def _table(settings: type, make: Callable[[Levels, Schedule, Any], StepTable]) -> Entry[Sampler]:
    """The entry of a table sampler; `make` takes the levels to start steps from, the schedule and the settings."""

    def from_schedule(own: SamplerConfig, schedule: Schedule, given: Given) -> StepTable:
        return replace(make(_levels(own, schedule, given), schedule, own), correlation=schedule.correlation)

    return Entry(settings, from_schedule)


def _pyramid(own: PyramidConfig, schedule: Schedule, given: Given) -> StepTable:
    steps = ancestral.ddim(to_lowest(_levels(own, schedule, given), schedule))
    return replace(pyramid(steps, given.length, own.delay), correlation=schedule.correlation)


def _diffusers(own: DiffusersConfig, schedule: Schedule, given: Given) -> DiffusersSampler:
    if schedule.correlation:
        raise ValueError(
            f"sampler: diffusers draws white noise, and this policy was trained with noise of correlation "
            f"{schedule.correlation}; give sampler=ddim"
        )
    return DiffusersSampler(own.scheduler, own.scheduler_options or {}, schedule, own.steps)


TABLES: Mapping[str, Entry[Sampler]] = {  # built from its settings and the schedule
    "ddpm": _table(DdpmConfig, lambda now, schedule, own: ancestral.started(ancestral.ddpm(now, own.variance), own)),
    "ddim": _table(
        DdimConfig,
        lambda now, schedule, own: ancestral.started(ancestral.ddim(now, own.eta, own.clipped_epsilon), own),
    ),
    "euler": _table(SamplerConfig, lambda now, schedule, own: ancestral.ddim(now)),
    "flow_euler": _table(SamplerConfig, lambda now, schedule, own: ancestral.ddim(now)),
    "dpmpp_2m": _table(SamplerConfig, lambda now, schedule, own: multistep.dpmpp_2m(now)),
    "dpmpp_2m_sde": _table(SamplerConfig, lambda now, schedule, own: multistep.dpmpp_2m_sde(now)),
    "dpmpp_3m": _table(Dpmpp3mConfig, lambda now, schedule, own: multistep.dpmpp_3m(now, own.as_published)),
    "unipc": _table(UnipcConfig, lambda now, schedule, own: multistep.unipc(now, own.order)),
    "heun": _table(HeunConfig, lambda now, schedule, own: heun.heun(now, schedule, own)),
    "flow_heun": _table(SamplerConfig, lambda now, schedule, own: heun.flow_heun(now)),
    "reverse_sde": _table(SamplerConfig, lambda now, schedule, own: langevin.reverse_sde(now)),
    "predictor_corrector": _table(
        PredictorCorrectorConfig,
        lambda now, schedule, own: langevin.predictor_corrector(now, own.langevin_steps, own.langevin_rate),
    ),
    "langevin": _table(
        LangevinConfig, lambda now, schedule, own: langevin.langevin(now, own.langevin_steps, own.langevin_rate)
    ),
}

MAP_TABLES: Mapping[str, Entry[Sampler]] = {  # of networks that are no denoisers, see `MapSamplerConfig`
    "consistency": _table(ConsistencySamplerConfig, lambda now, schedule, own: consistency.consistency(now)),
    "direct": _table(DirectConfig, lambda now, schedule, own: direct.direct(now, own.start)),
    "flow_map": _table(FlowMapConfig, lambda now, schedule, own: ancestral.ddim(now)),
}

SAMPLERS: Mapping[str, Entry[Sampler]] = {
    **TABLES,
    **MAP_TABLES,
    "pyramid": Entry(PyramidConfig, _pyramid),
    "diffusers": Entry(DiffusersConfig, _diffusers),
}


SAMPLERS_AND_AUTO: Mapping[str, Entry[Any]] = {**SAMPLERS, AUTO: Entry(AutoConfig, lambda own, schedule, given: None)}


def build_sampler(schedule: Schedule, choice: Choice, steps: int | None = None, given: Given | None = None) -> Sampler:
    """Build a sampler for a schedule: its table, or the adapter of a diffusers scheduler.

    `given` says what else it may depend on; by default, a plan of 16 waypoints and no stored steps.

    Raises:
        ImportError: the sampler needs diffusers, which is not installed.
        ValueError: an unknown sampler or setting, or one that does not fit the schedule.
    """
    return made(SAMPLERS, "sampler", sampler_settings(choice, steps), schedule, given or Given())


def warm_sampler(schedule: Schedule, settings: Any, given: Given | None = None) -> StepTable | None:
    """The table of the last `settings.warm_start` steps, with a start of its own; None if there is no warm start.

    It is built from their levels, not cut from the whole table, so that a sampler that looks back begins as it should.

    Raises:
        ValueError: there are not fewer of them than steps.
    """
    last = getattr(settings, "warm_start", None)
    if last is None:
        return None
    if last >= settings.steps:
        most = settings.steps - 1
        mend = f"give sampler.warm_start={most} or fewer" if most else "leave it out, or give more steps"
        raise ValueError(f"sampler: warm_start {last} is beyond the schedule of {settings.steps} steps; {mend}")
    if isinstance(settings, AncestralConfig):
        settings = replace(settings, start=None)  # of pure noise, which a warm start does not begin from
    of_last = replace(given or Given(), last=last)
    return SAMPLERS[settings.name].make(settings, schedule, of_last)  # pyright: ignore[reportReturnType]


def sampler_settings(choice: Choice, steps: int | None = None, preferred: Choice = "ddim") -> Any:
    """The settings of a sampler, with `steps` in place of their own unless it is None.

    The choice "auto" takes the settings of `preferred`, with its own steps, guidance and warm start if it has any.
    """
    settings = settings_of(SAMPLERS_AND_AUTO, "sampler", choice)
    if isinstance(settings, AutoConfig):
        steps = settings.steps if steps is None else steps
        own = {"guidance": settings.guidance, "warm_start": settings.warm_start}
        settings = replace(settings_of(SAMPLERS, "sampler", preferred), **own)
    return settings if steps is None else replace(settings, steps=steps)
