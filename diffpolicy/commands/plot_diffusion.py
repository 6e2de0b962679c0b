"""Draw the figures of docs/diffusion.md: python scripts/plot_diffusion.py

Writes schedules.png, paths.png (DDPM and DDIM on a density with two modes) and plan.png (denoising of a Push-T plan).
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diffpolicy.commands.command import command
from diffpolicy.diffusion.reverse import Denoise, reverse
from diffpolicy.diffusion.samplers.ancestral import ddim, ddpm
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.diffusion.schedules import cosine
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.evaluation.saved_env import saved_env
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.objective_choices import SCHEDULES
from diffpolicy.system.tables import made

MODES, STD = (-0.6, 0.5), 0.12  # the density with two modes
PATHS = 40


@dataclass
class PlotDiffusionConfig:
    """All settings of `plot_diffusion.py`; see configs/plot_diffusion.yaml."""

    checkpoint: str
    output: str


@command("plot_diffusion", PlotDiffusionConfig)
def main(config: PlotDiffusionConfig, _: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(config.checkpoint)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("schedules", schedules()), ("paths", paths()), ("plan", plan(policy))):
        figure.savefig(folder / f"{name}.png", dpi=110)
        print(folder / f"{name}.png")


def schedules() -> Figure:
    """Plot alpha, sigma and log-SNR over the levels of every schedule."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    alpha, sigma, log_snr = figure.subplots(1, 3)
    for name in SCHEDULES:
        levels = made(SCHEDULES, "schedule", name, 1000).levels
        share = np.linspace(0.0, 1.0, len(levels))
        alpha.plot(share, levels.alpha, label=name)
        sigma.plot(share, levels.sigma)
        log_snr.plot(share[:-1], 2.0 * levels.lambdas[:-1])
    sigma.set(yscale="log")
    for axes, title in ((alpha, "alpha"), (sigma, "sigma"), (log_snr, "log SNR")):
        axes.set(title=title, xlabel="level, from clean to noise")
        axes.grid(alpha=0.3)
    alpha.legend(fontsize=7)
    return figure


def paths() -> Figure:
    """Plot x over the rows of DDPM and DDIM, from the same noise, for several step counts."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for row, name in zip(figure.subplots(2, 3, sharey=True), ("ddpm", "ddim"), strict=True):
        for axes, steps in zip(row, (100, 20, 5), strict=True):
            _draw_paths(axes, name, steps)
    return figure


def _draw_paths(axes: Axes, name: str, steps: int) -> None:
    table = {"ddpm": ddpm, "ddim": ddim}[name](trailing(cosine(100), steps))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps + 1, PATHS, 1, 1, generator=generator, dtype=torch.float64)
    noise[0, :, 0, 0] = torch.special.ndtri((torch.arange(PATHS) + 0.5) / PATHS)
    visited: list[Tensor] = []

    def remembering(x: Tensor, row: Row) -> Tensor:
        visited.append(x[:, 0, 0])
        return _two_modes(x, row)

    end = reverse(remembering, table, noise, lambda clean, row, step: clean).clean[:, 0, 0]
    values = torch.stack([*visited, end]).numpy()
    axes.plot(np.linspace(0.0, 1.0, len(values)), values, lw=0.7, color="tab:blue" if name == "ddim" else "tab:orange")
    grid = np.linspace(-2.5, 2.5, 400)
    density = sum(np.exp(-((grid - mode) ** 2) / (2 * STD**2)) for mode in MODES)
    axes.fill_betweenx(grid, 1.0, 1.0 + 0.15 * density, color="0.6")
    axes.set(title=f"{name.upper()}, {steps} steps", ylim=(-2.5, 2.5), xticks=[0, 1], xticklabels=["noise", "clean"])


def _two_modes(x: Tensor, row: Row) -> Tensor:
    """The exact clean estimate for the density with two modes; x and result [..., 1]."""
    total = row.alpha**2 * STD**2 + row.sigma**2
    modes = torch.tensor(MODES, dtype=x.dtype)
    weight = torch.softmax(-((x - row.alpha * modes) ** 2) / (2 * total), dim=-1)
    estimates = modes + row.alpha * STD**2 / total * (x - row.alpha * modes)
    return (weight * estimates).sum(-1, keepdim=True)


def plan(policy: DiffusionPolicy) -> Figure:
    """Plot eight plans for one Push-T observation at several steps of DDIM-10, over the rendered scene."""
    env_config = saved_env(policy, "checkpoint")
    env = gymnasium.make(env_config.id, **env_config.kwargs, render_mode="rgb_array")
    observation, _ = env.reset(seed=50_003, options=env_config.reset_options)
    frame = env.render()
    env.close()
    history = torch.as_tensor(observation, dtype=torch.float32).expand(8, policy.config.window.n_obs_steps, -1)
    seen: list[Tensor] = []

    def remember(denoise: Denoise, _: Denoise | None) -> Denoise:
        def remembering(x: Tensor, row: Row) -> Tensor:
            seen.append(policy.codec.decode(x))
            return denoise(x, row)

        return remembering

    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    end = policy.predict_action_chunk({"keypoints": history}, generators, guide=remember).plan
    titles = ["noise", "after 5 evaluations of 10", "after 8", "the plans"]
    figure = Figure(figsize=(13, 3.5), layout="constrained")
    for axes, title, plans in zip(figure.subplots(1, 4), titles, (seen[0], seen[5], seen[8], end), strict=True):
        axes.imshow(frame, extent=(0, 512, 512, 0))
        for one in plans.numpy():
            axes.plot(one[:, 0], one[:, 1], marker=".", ms=3, lw=0.7)
        axes.set(title=title, xlim=(0, 512), ylim=(512, 0), xticks=[], yticks=[])
    return figure
