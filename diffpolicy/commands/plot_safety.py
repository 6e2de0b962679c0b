"""Draw the figures of docs/safety.md: python scripts/plot_safety.py checkpoint=RUN/checkpoints/last

Writes safety_plans.png (plans with and without projection) and projected_denoising.gif (clean estimates step by step).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import imageio.v2 as imageio
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from diffpolicy.benchmarks.safety_scenes import SCENES, register_scene
from diffpolicy.commands.command import command
from diffpolicy.constraints.projector import Projector
from diffpolicy.constraints.trajectory import PAST_COMMANDS, Start
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.evaluation.readings import Readings
from diffpolicy.evaluation.rollout import make_vector_env, observation_by_key
from diffpolicy.evaluation.settings import Seed
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.safety.build import build_safety
from diffpolicy.safety.projection import SafetyProjection
from diffpolicy.safety.surroundings import Surroundings
from diffpolicy.system.schema import Range

SHOWN = ("symmetric", "blocked", "narrow_gap", "random")
TICKS_AHEAD = 2  # ticks before the moment that is shown, so that the robot is moving


@dataclass
class PlotSafetyConfig:
    """All settings of `plot_safety.py`; see configs/plot_safety.yaml."""

    checkpoint: str
    output: str
    seed: Seed
    samples: Annotated[int, Range(1, 1024)]


@dataclass(frozen=True)
class Moment:
    """The state of one robot at one tick."""

    frame: np.ndarray
    history: dict[str, Tensor]
    surroundings: Surroundings


class Watched:
    """A `Projection` that stores the plans that it returns."""

    def __init__(self, projection: SafetyProjection) -> None:
        self._projection = projection
        self.plans: list[Tensor] = []

    def project(self, plan: Tensor, row: Row, step: int) -> Tensor:
        self.plans.append(self._projection.project(plan, row, step))
        return self.plans[-1]


@command("plot_safety", PlotSafetyConfig)
def main(config: PlotSafetyConfig, _: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(config.checkpoint)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    plans(policy, config).savefig(folder / "safety_plans.png", dpi=90)
    frames: list[Any] = denoising(policy, config)
    imageio.mimsave(folder / "projected_denoising.gif", frames, duration=600, loop=0)
    print(f"{folder / 'safety_plans.png'}\n{folder / 'projected_denoising.gif'}")


def plans(policy: DiffusionPolicy, config: PlotSafetyConfig) -> Figure:
    """Plot samples from one state in each scene, without and with projection."""
    figure = Figure(figsize=(3.4 * len(SHOWN), 6.8), layout="constrained")
    axes = figure.subplots(2, len(SHOWN))
    for column, scene in enumerate(SHOWN):
        moment = drive(policy, scene, config.seed + column)
        for row, mode in enumerate(("clip", "last_half")):
            *_, last = estimates(policy, scene, moment, mode, config.samples)
            draw(axes[row, column], moment, last)
            title = "as sampled" if row == 0 else "projected"
            axes[row, column].set_title(f"{scene}, {title}", fontsize=10)
    return figure


def denoising(policy: DiffusionPolicy, config: PlotSafetyConfig) -> list[np.ndarray]:
    """One frame for every reverse step of the projected samples, in the scene `blocked`."""
    moment = drive(policy, "blocked", config.seed + 1)
    frames: list[np.ndarray] = []
    for step, plan in enumerate(estimates(policy, "blocked", moment, "every_step", config.samples)):
        figure = Figure(figsize=(4.2, 4.4), layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.subplots()
        draw(axes, moment, plan)
        axes.set_title(f"projected clean estimate {step + 1}", fontsize=10)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def drive(policy: DiffusionPolicy, scene: str, seed: int) -> Moment:
    """Drive for a few ticks without safety; returns the state reached."""
    env_config = register_scene(scene, "none", None)
    env = make_vector_env(env_config, 1, render_mode="rgb_array")
    readings, everyone = Readings(), np.ones(1, dtype=bool)
    observation, info = env.reset(seed=seed)
    readings.update(info, everyone)
    steps = policy.config.window.n_obs_steps
    past = [observation_by_key(observation, policy)] * steps
    generator = torch.Generator().manual_seed(seed)
    sampler = policy.sampler()
    for tick in range(TICKS_AHEAD):
        if tick % policy.config.window.n_action_steps == 0:
            chunk = policy.predict_action_chunk(stacked(past), [generator], sampler).actions[0].numpy()
        observation, *_, info = env.step(chunk[tick % len(chunk)][None])
        readings.update(info, everyone)
        past = [*past[1:], observation_by_key(observation, policy)]
    frames: Any = env.render()
    env.close()
    return Moment(np.asarray(frames[0]), stacked(past), readings.surroundings)


def stacked(past: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack the past observations into {key: [1, n_obs_steps, dim]}."""
    return {key: torch.stack([torch.as_tensor(one[key]) for one in past], dim=1) for key in past[0]}


def estimates(policy: DiffusionPolicy, scene: str, moment: Moment, mode: str, samples: int) -> list[Tensor]:
    """The projected clean estimate [samples, H, 2] of every reverse step, followed by the returned plan."""
    safety = build_safety(replace(SCENES[scene].demands, mode=mode))
    state, obstacles = moment.surroundings.plant_state, moment.surroundings.obstacles
    assert safety is not None
    assert state is not None
    assert obstacles is not None
    window, everyone = policy.config.window, torch.zeros(samples, dtype=torch.long)
    present = window.n_obs_steps - 1
    metric = policy.codec.metric
    assert metric is not None
    horizon = window.horizon - present
    projector = Projector(safety.constraints, safety.plant, safety.tick_s, horizon, metric, safety.all_slots)
    start = Start(state, state.position[:, None].expand(-1, PAST_COMMANDS, -1)).robots(everyone)
    sampler = policy.sampler()
    task = projector.task(start, obstacles.robots(everyone))
    watched = Watched(SafetyProjection(safety, projector, task, present, len(sampler)))
    history = {key: value.expand(samples, -1, -1) for key, value in moment.history.items()}
    generators = [torch.Generator().manual_seed(seed) for seed in range(samples)]
    policy.predict_action_chunk(history, generators, sampler, watched)
    return [plan[:, present:] for plan in watched.plans]


def draw(axes: Axes, moment: Moment, plan: Tensor) -> None:
    """Draw the plans over the frame, with the obstacles that the observation does not show in red."""
    axes.imshow(moment.frame, extent=(0, 512, 512, 0))
    obstacles = moment.surroundings.obstacles
    assert obstacles is not None
    shown = int(moment.history["obstacle_mask"][0, -1].sum())
    for slot in range(shown, int(obstacles.is_used[0].sum())):
        x, y = obstacles.vertices[0, slot, 0].tolist()
        axes.add_patch(Circle((x, y), float(obstacles.radius[0, slot]), color="tab:red", alpha=0.6))
    for one in plan:
        axes.plot(one[:, 0], one[:, 1], "-", color="tab:orange", alpha=0.6, linewidth=1.0)
    axes.set(xlim=(0, 512), ylim=(512, 0), xticks=[], yticks=[])
