"""A scripted expert that solves Push-T: plan, make one push, plan again.

Apart from optional noise, it is a function of the state alone, so that similar states get similar answers. Pushes are
planned with the model of `pusht_model` and executed in the real env.
"""

import math
from dataclasses import dataclass, replace

import gymnasium
import numpy as np

from diffpolicy_envs.experts.pusht_model import new_world
from diffpolicy_envs.experts.pusht_motion import path_targets, push_targets
from diffpolicy_envs.experts.pusht_planner import NEAR_GOAL_PX, decide
from diffpolicy_envs.experts.pusht_refine import DWELL_STEPS, Stroke, refine_stroke, start_and_heading
from diffpolicy_envs.experts.pusht_search import agent_fits
from diffpolicy_envs.experts.pusht_table import APPROACH_PX, GYRATION_PX, misfit, pose_of_state, push_table, to_block
from diffpolicy_envs.pusht_world import (
    AGENT_RADIUS_PX,
    BAR_BOX,
    KEYPOINT_COUNT,
    LOCAL_OUTLINE,
    STEM_BOX,
    SUCCESS_COVERAGE,
    WALL_HIGH_PX,
    WALL_LOW_PX,
    WALL_RADIUS_PX,
    WORLD_SIZE_PX,
    block_keypoints,
    to_world,
)

ENV = "diffpolicy_envs:diffpolicy/PushT-v0"
VERSION = 3
SPECS = {
    "action": ((2,), "float32"),
    "state": ((5,), "float32"),
    "keypoint": ((KEYPOINT_COUNT, 2), "float32"),
    "n_contacts": ((1,), "float32"),
}
# Actions and start states are executed as stored. Multiples of 1/16 px (angles: 1/2048 rad) compress well.
GRID = 16.0
ANGLE_GRID = 2048.0
NEAR_GOAL_COVERAGE = 0.8
NEAR_WALL_PX = 30.0
_RANGES = (
    ("free_speed_px", 1.0, 50.0),
    ("push_speed_px", 1.0, 30.0),
    ("speed_near_goal", 0.1, 1.0),
    ("speed_spread", 0.0, 0.5),
    ("push_noise", 0.0, 2.0),
    ("recovery_share", 0.0, 1.0),
    ("near_goal_share", 0.0, 1.0),
    ("wall_share", 0.0, 1.0),
    ("plan_coverage", SUCCESS_COVERAGE, 0.99),
    ("follow_through_px", 0.0, 10.0),
    ("finish_coverage", SUCCESS_COVERAGE, 0.98),
    ("max_steps", 1, 10_000),
)
_STUCK_SHARE = 0.1  # a push that moves the block by a smaller share of its length met a wall


@dataclass(frozen=True)
class Settings:
    """The behaviour of the expert. Speeds are in px per env step of 0.1 s."""

    free_speed_px: float = 20.0
    push_speed_px: float = 10.0
    speed_near_goal: float = 0.5  # share of the push speed left at the goal; slowing starts at 60 px misfit
    speed_spread: float = 0.0  # sigma of the log of each episode's speed factor
    push_noise: float = 0.0  # 1: pushes miss by 4 degrees, 2 px, 8 % of their length, to show recovery
    recovery_share: float = 0.5  # share of episodes that start where an expert of push_noise 1 was interrupted
    near_goal_share: float = 0.4  # share of those that start close to success, if the noisy expert got there
    wall_share: float = 0.12  # share of all episodes that start with the block near a wall
    plan_coverage: float = 0.985  # coverage that the last push aims for
    follow_through_px: float = 1.5  # how much further it goes, so that a policy that falls short still succeeds
    finish_coverage: float = 0.965  # an episode continues until a push reaches this coverage
    max_steps: int = 290

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value, kind = getattr(self, name), "whole number" if isinstance(low, int) else "number"
            if not isinstance(value, int if isinstance(low, int) else int | float) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; expected a {kind}, {low} to {high}")
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; expected {low} to {high}")


@dataclass(frozen=True)
class Episode:
    """One recorded attempt: arrays of equal length with the keys of `SPECS`. Each state precedes its action."""

    arrays: dict[str, np.ndarray]
    attributes: dict[str, float]  # coverage: the largest one


def demonstrate(seed: int, settings: Settings) -> Episode | None:
    """The episode of a seed, which depends on nothing else. None if the expert fails."""
    env = _env()
    return _if_solved(record_episode(env, start_state(env, settings, seed), settings, seed))


def correct(state: np.ndarray, settings: Settings, seed: int) -> Episode | None:
    """The expert's attempt from `state` [5], where a policy got to, with all at rest. None if the expert fails."""
    return _if_solved(record_episode(_env(), _storable(state), settings, seed))


def record_episode(env: gymnasium.Env, start: np.ndarray, settings: Settings, seed: int) -> Episode:
    """The expert's attempt from the state `start` [5]."""
    run = _Run(env, start, settings, np.random.default_rng([seed, 1]))
    run.solve()
    states = np.array(run.states[: len(run.actions)])
    arrays = {
        "action": np.array(run.actions),
        "state": _storable(states),
        "keypoint": _on_grid(np.array([block_keypoints(*state[2:]) for state in states])),
        "n_contacts": np.array(run.contacts)[:, None],
    }
    return Episode({key: value.astype(np.float32) for key, value in arrays.items()}, {"coverage": max(run.coverages)})


def start_state(env: gymnasium.Env, settings: Settings, seed: int) -> np.ndarray:
    """The start state [5] of episode `seed`: a legacy one, one that a noisy expert reached, or one near a wall."""
    generator = np.random.default_rng([seed, 0])
    if generator.random() < settings.wall_share:
        return _by_a_wall(generator)
    _, info = env.reset(seed=seed, options={"start_rule": "legacy"})
    start = _storable(info["state"])
    if generator.random() < settings.recovery_share:
        noisy = replace(settings, push_noise=1.0)
        run = _Run(env, start, noisy, generator)
        run.solve()
        coverages = np.array(run.coverages)
        unsolved = coverages < SUCCESS_COVERAGE
        close = unsolved & (coverages >= NEAR_GOAL_COVERAGE)
        wanted = close if generator.random() < settings.near_goal_share and close.any() else unsolved
        if unsolved.any():
            start = _storable(run.states[generator.choice(np.flatnonzero(wanted))])
    return start


def _env() -> gymnasium.Env:
    return gymnasium.make(ENV, obs_type="state", max_episode_steps=10**6).unwrapped


def _if_solved(episode: Episode) -> Episode | None:
    return episode if episode.attributes["coverage"] > SUCCESS_COVERAGE else None


def _by_a_wall(generator: np.random.Generator) -> np.ndarray:
    """A state [5] with the block close to a wall, clear of it and of the agent."""
    low, high = WALL_LOW_PX + WALL_RADIUS_PX, WALL_HIGH_PX - WALL_RADIUS_PX
    while True:
        x, y = generator.uniform(low + AGENT_RADIUS_PX, high - AGENT_RADIUS_PX, 2)
        state = _storable(np.array([x, y, *generator.uniform(low, high, 2), generator.uniform(0.0, 2.0 * math.pi)]))
        outline = to_world(LOCAL_OUTLINE, *state[2:])
        gap = min(outline.min() - low, high - outline.max())
        agent = np.array(to_block(x, y, pose_of_state(state)))
        clear = min(np.hypot(*(agent - np.clip(agent, box[:2], box[2:]))) for box in (BAR_BOX, STEM_BOX))
        if 1.0 < gap < NEAR_WALL_PX and clear > AGENT_RADIUS_PX + 1.0:
            return state


def _on_grid(values: np.ndarray, grid: float = GRID) -> np.ndarray:
    return np.round(values * grid) / grid


def _storable(states: np.ndarray) -> np.ndarray:
    """States [..., 5] rounded to the grid, with angles in [0, 2 pi)."""
    return np.concatenate([_on_grid(states[..., :4]), _on_grid(states[..., 4:] % (2 * math.pi), ANGLE_GRID)], axis=-1)


class _Run:
    """An attempt in progress: the env, what was seen so far, and the agent's velocity, which is not in the state."""

    def __init__(
        self, env: gymnasium.Env, start: np.ndarray, settings: Settings, generator: np.random.Generator
    ) -> None:
        self.env, self.settings, self.generator = env.unwrapped, settings, generator
        _, info = self.env.reset(options={"state": start})
        self.states, self.actions = [info["state"]], []
        self.coverages, self.contacts = [info["coverage"]], []  # of each state; of each action
        self.velocity = info["agent_velocity"]
        self.barred: set[int] = set()  # contacts where pushes moved nothing, as with a wall behind the block
        self.pace = math.exp(settings.speed_spread * generator.standard_normal())

    @property
    def state(self) -> np.ndarray:
        return self.states[-1]

    def solve(self) -> None:
        """Push until the goal is covered or time is up."""
        table, settings = push_table(), self.settings
        while max(self.coverages) < settings.finish_coverage and len(self.actions) < settings.max_steps:
            pose = pose_of_state(self.state)
            nearness = max(1.0 - misfit(*pose) / NEAR_GOAL_PX, 0.0)
            speed = self.pace * settings.push_speed_px * (1.0 - (1.0 - settings.speed_near_goal) * nearness)
            free_speed = self.pace * settings.free_speed_px * (1.0 - 0.2 * nearness)
            decision = decide(table, self.state[:2], pose, free_speed, speed, settings.plan_coverage, self.barred)
            if decision is None:
                return
            self.follow(path_targets(decision.way, free_speed, DWELL_STEPS))
            self.push(decision.stroke, decision.is_last, speed)
            self.bar_if_stuck(decision.stroke, pose)

    def push(self, stroke: Stroke, is_last: bool, speed_px: float) -> None:
        """Make one push from where the agent and the block are now."""
        table, pose = push_table(), pose_of_state(self.state)
        point, normal = table.points[stroke.contact], table.normals[stroke.contact]
        if is_last:
            ready = new_world(self.state[0], self.state[1], pose)
            ready[2:4] = self.velocity
            stroke = refine_stroke(stroke, point, normal, ready, pose, speed_px, self.settings.plan_coverage)
        further = APPROACH_PX + (self.settings.follow_through_px if is_last else 0.0)
        for offset, angle, length in (self.disturbed(stroke), (stroke.offset_px, stroke.angle_rad, stroke.length_px)):
            x, y, heading = start_and_heading(point, normal, offset, angle, pose)
            targets = push_targets(x, y, heading, length + further, speed_px, DWELL_STEPS)
            if agent_fits(*targets[-1]):
                break
        self.follow(targets)

    def bar_if_stuck(self, stroke: Stroke, pose_before: np.ndarray) -> None:
        """After a push that moved nothing, bar its contact until the block has moved."""
        change = np.abs(pose_of_state(self.state) - pose_before)
        if change[0] + change[1] + GYRATION_PX * change[2] > _STUCK_SHARE * stroke.length_px:
            self.barred.clear()
        else:
            self.barred.add(stroke.contact)

    def disturbed(self, stroke: Stroke) -> tuple[float, float, float]:
        """The offset, angle and length of the stroke with the noise of this run."""
        noise = self.settings.push_noise * self.generator.standard_normal(3)
        length = stroke.length_px + noise[2] * min(0.08 * stroke.length_px + 0.6, 8.0)
        return stroke.offset_px + 2.0 * noise[0], stroke.angle_rad + math.radians(4.0) * noise[1], max(length, 0.3)

    def follow(self, targets: np.ndarray) -> None:
        """Send targets [n, 2] to the env and record the results."""
        for target in targets:
            action = _on_grid(np.clip(target, 0.0, WORLD_SIZE_PX))
            _, _, _, _, info = self.env.step(action)
            self.states.append(info["state"])
            self.actions.append(action)
            self.coverages.append(info["coverage"])
            self.contacts.append(info["n_contacts"])
            self.velocity = info["agent_velocity"]
