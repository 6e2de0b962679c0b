"""Draw the paths of several policies around one obstacle: python scripts/plot_baselines.py 'checkpoints={ddpm: RUN}'

Writes baselines.png. The obstacle stands exactly between start and goal, and demonstrations pass it on either side.
Each policy starts as often as there are `samples`, every time with other noise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from diffpolicy.commands.command import command
from diffpolicy.control.controller import PolicyController
from diffpolicy.evaluation.rollout import make_vector_env, rollout
from diffpolicy.evaluation.saved_env import saved_env
from diffpolicy.evaluation.settings import Seed
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.system.schema import Range

START, GOAL, CENTER, RADIUS_PX = (126.0, 256.0), (386.0, 256.0), (256.0, 256.0), 45.0
AGENT_RADIUS_PX = 15.0
LAYOUT = {"agent": START, "goal": GOAL, "vertices": [[CENTER] * 4], "radius": [RADIUS_PX]}


@dataclass
class PlotBaselinesConfig:
    """All settings of `plot_baselines.py`; see configs/plot_baselines.yaml."""

    checkpoints: Any  # {title: RUN/checkpoints/last}
    output: str
    seed: Seed
    samples: Annotated[int, Range(1, 1024)]


@dataclass(frozen=True)
class Paths:
    """The positions [ticks, 2] of every episode, and whether it reached the goal."""

    positions: list[np.ndarray]
    reached: list[bool]


@command("plot_baselines", PlotBaselinesConfig)
def main(config: PlotBaselinesConfig, _: Path) -> None:
    if not isinstance(config.checkpoints, dict) or not config.checkpoints:
        raise ValueError(
            f"checkpoints: {config.checkpoints!r}, expected a name for each checkpoint, for example "
            "'checkpoints={regression: RUN/checkpoints/last}'"
        )
    figure = Figure(figsize=(3.2 * len(config.checkpoints), 3.0), layout="constrained")
    axes = figure.subplots(1, len(config.checkpoints), squeeze=False)[0]
    for ax, (title, checkpoint) in zip(axes, config.checkpoints.items(), strict=True):
        draw(ax, str(title), paths(DiffusionPolicy.from_pretrained(checkpoint), config.seed, config.samples))
    file = Path(config.output) / "baselines.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
    print(file)


def paths(policy: DiffusionPolicy, seed: int, samples: int) -> Paths:
    """Run one episode for each noise seed from `seed` on, all in the same layout."""
    env = make_vector_env(saved_env(policy, "checkpoints"), samples)
    visited: list[list[np.ndarray]] = [[] for _ in range(samples)]

    def remember(env: Any, episodes: np.ndarray, score: Any, observation: Any) -> None:
        for place, episode in enumerate(episodes):
            if episode >= 0:
                visited[episode].append(observation["agent"][place].copy())

    episodes = rollout(PolicyController(policy), env, range(seed, seed + samples), {"layout": LAYOUT}, on_step=remember)
    env.close()
    return Paths([np.stack(one) for one in visited], [episode.success for episode in episodes])


def draw(axes: Axes, title: str, found: Paths) -> None:
    """Draw the paths, in red where they end in the obstacle, and what the agent's centre must not enter."""
    axes.add_patch(Circle(CENTER, RADIUS_PX, color="0.55"))
    axes.add_patch(Circle(CENTER, RADIUS_PX + AGENT_RADIUS_PX, fill=False, linestyle=":", color="0.55"))
    for path, reached in zip(found.positions, found.reached, strict=True):
        axes.plot(path[:, 0], path[:, 1], lw=0.9, alpha=0.7, color="tab:blue" if reached else "tab:red")
    axes.plot(*START, "o", color="black", ms=4)
    axes.plot(*GOAL, "*", color="tab:green", ms=9)
    axes.set(xlim=(106, 406), ylim=(376, 136), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"{title}: {sum(found.reached)} of {len(found.reached)} arrive", fontsize=10)
