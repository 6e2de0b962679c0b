"""Optimise the steps of DDIM for a checkpoint: python scripts/optimize_steps.py checkpoint=FOLDER steps=5 output=NEW

    python scripts/evaluate_policy.py checkpoint=NEW sampler=ddim sampler.steps=5 sampler.spacing=stored

The installed command is `diffpolicy-optimize-steps`. It searches the trained levels whose plans are closest to those of
many steps from the same noise, on held-out observations of the data, and writes a copy of the checkpoint that stores
them.
Grids of other step counts are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from diffpolicy.commands.command import command
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.step_grids import optimized, with_grid
from diffpolicy.evaluation.settings import Seed
from diffpolicy.policy.kinds import load_policy
from diffpolicy.policy.plan_projection import PlanProjection
from diffpolicy.policy.sampling import sampled
from diffpolicy.system.device import choose_device
from diffpolicy.system.schema import OneOf, Range, read_settings
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.settings import DataConfig, TrainConfig
from diffpolicy.training.splits import split_windows


@dataclass
class OptimizeStepsConfig:
    """All settings of `optimize_steps.py`; see configs/optimize_steps.yaml."""

    checkpoint: str
    output: str
    steps: Annotated[int, Range(1, 100)] = 5
    reference_steps: Annotated[int, Range(1, 1000)] = 100
    windows: Annotated[int, Range(1, 4096)] = 128
    path: str | None = None  # the demonstrations; None: those that the checkpoint was trained on
    dtype: Annotated[str, OneOf("float32", "float16")] = "float32"  # of the weights that are written
    seed: Seed = 0
    device: str = "auto"


@command("optimize_steps", OptimizeStepsConfig)
def main(config: OptimizeStepsConfig, _: Path) -> None:
    if Path(config.output).exists():
        raise FileExistsError(f"output: {config.output} exists already; choose another folder")
    policy: Any = load_policy(config.checkpoint, choose_device(config.device))
    settings = policy.sampling("ddim", config.steps).settings  # refuses policies that do not denoise
    error = Distance(policy, held_out(policy, config), config)
    grid = optimized(len(policy.objective.schedule), config.steps, error)
    trailing = policy.objective.schedule.levels.time
    even = [round(len(trailing) * (1.0 - step / config.steps)) - 1 for step in range(config.steps)]
    policy.metadata["step_grids"] = with_grid(policy.metadata.get("step_grids"), policy.objective.schedule, grid)
    policy.save_pretrained(config.output, config.dtype)
    print(f"{config.output}: {settings.name} with {config.steps} steps at the levels {grid}")
    print(f"rms distance to {config.reference_steps} steps, encoded: {error(grid):.4g}; trailing {error(even):.4g}")


class Distance:
    """The root mean square distance, in encoded units, of DDIM's plans to those of many steps from the same noise."""

    def __init__(self, policy: Any, observations: Mapping[str, torch.Tensor], config: OptimizeStepsConfig) -> None:
        self._levels = policy.objective.schedule.levels
        count = len(next(iter(observations.values())))
        generator = torch.Generator().manual_seed(config.seed)
        shape = (count, *policy.codec.encoded_shape(policy.config.window.horizon))
        self._noise = torch.randn(shape, generator=generator).to(policy.device)
        self._project = PlanProjection(policy.codec, 0, None)
        self._correlation = policy.objective.schedule.correlation
        fine = policy.sampler("ddim", min(config.reference_steps, len(self._levels)))
        with torch.inference_mode():
            condition = policy.condition(policy.checked(observations, count))
            self._denoise = policy.denoiser_at(condition, fine.rows)
            self._reference = self._plans(fine)

    def __call__(self, indices: Sequence[int]) -> float:
        with torch.inference_mode():
            table = replace(ddim(self._levels[list(indices)]), correlation=self._correlation)
            return float((self._plans(table) - self._reference).square().mean().sqrt())

    def _plans(self, table: Any) -> torch.Tensor:
        noise = self._noise.expand(len(table) + 1, *self._noise.shape)  # deterministic: only the first is used
        return sampled(self._denoise, table, noise, self._project).clean


def held_out(policy: Any, config: OptimizeStepsConfig) -> dict[str, torch.Tensor]:
    """Observations that the checkpoint was not trained on; of other data, windows of their validation split."""
    training = policy.metadata.get("training")
    if not training or "data" not in training:
        raise ValueError(f"checkpoint: {config.checkpoint} does not say what it was trained on, expected a run of ours")
    data = read_settings(DataConfig, training["data"], f"{config.checkpoint}: data")
    data = replace(data, path=config.path or data.path, validation_fraction=max(data.validation_fraction, 0.02))
    run = TrainConfig(str(policy.metadata.get("task")), data, window=policy.config.window, seed=training["seed"])
    _, batch = split_windows(run, load_data(data), policy.device)
    if batch is None:
        raise ValueError("data: no episode is held out")
    chosen = torch.linspace(0, len(batch.actions) - 1, min(config.windows, len(batch.actions))).long()
    return {key: value[chosen.to(value.device)] for key, value in batch.observations.items()}
