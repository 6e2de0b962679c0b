"""A scripted expert that solves Push-T: plan, make one push, plan again.

It sees the state only and is a function of it, so that like states are answered alike. Pushes are planned with the model
of `pusht_model` and made in the true env.
"""

import math
from dataclasses import dataclass

import gymnasium
import numpy as np

from diffpolicy_envs.coverage import coverage
from diffpolicy_envs.experts.pusht_model import advance, new_world
from diffpolicy_envs.experts.pusht_motion import path_targets, push_targets
from diffpolicy_envs.experts.pusht_planner import NEAR_GOAL_PX, decide
from diffpolicy_envs.experts.pusht_refine import DWELL_STEPS, Stroke, refine_stroke, start_and_heading
from diffpolicy_envs.experts.pusht_search import agent_fits
from diffpolicy_envs.experts.pusht_table import APPROACH_PX, misfit, pose_of_state, push_table
from diffpolicy_envs.pusht_world import WORLD_SIZE_PX, block_keypoints

VERSION = 1
# What is executed is what is stored: multiples of 1/256 px are exact in float32 and compress well.
GRID = 256.0


@dataclass(frozen=True)
class ExpertSettings:
    """How the expert behaves. Speeds are px per env step of 0.1 s."""

    free_speed_px: float = 14.0
    push_speed_px: float = 7.0
    speed_near_goal: float = 0.5  # share of the push speed that is left at the goal; falls from 60 px misfit on
    speed_spread: float = 0.1  # sigma of the log of an episode's own speed factor
    push_noise: float = 0.0  # 1: pushes miss by 4 degrees, 2 px, 8 % of their length, which shows how to recover
    recovery_share: float = 0.5  # share of episodes that start where an expert of push_noise 1 was interrupted
    plan_coverage: float = 0.985  # what the last push aims at
    finish_coverage: float = 0.965  # an episode goes on until it has this much
    max_steps: int = 290


@dataclass(frozen=True)
class Episode:
    """One recorded attempt: arrays of equal length, a state before its action, and the coverage it ends with."""

    arrays: dict[str, np.ndarray]
    final_coverage: float


def record_episode(env: gymnasium.Env, start: np.ndarray, settings: ExpertSettings, seed: int) -> Episode:
    """The expert's attempt from the state `start` [5], up to its largest coverage."""
    run = _Run(env, start, settings, np.random.default_rng([seed, 1]))
    run.solve()
    covered = np.array(run.coverages)
    length = max(int(covered.argmax()), 1)
    states = np.array(run.states[:length])
    arrays = {
        "action": np.array(run.actions[:length]),
        "state": states,
        "keypoint": np.array([block_keypoints(*state[2:]) for state in states]),
        "n_contacts": np.array(run.contacts[:length])[:, None],
    }
    return Episode({key: _on_grid(value).astype(np.float32) for key, value in arrays.items()}, covered[length])


def start_state(env: gymnasium.Env, settings: ExpertSettings, seed: int) -> np.ndarray:
    """The state [5] in which episode `seed` starts: a legacy one, or one met on the way by a noisy expert."""
    observation, _ = env.reset(seed=seed, options={"start_rule": "legacy"})
    start = _settled(env, observation)
    generator = np.random.default_rng([seed, 0])
    if generator.random() < settings.recovery_share:
        noisy = ExpertSettings(**{**settings.__dict__, "push_noise": 1.0})
        run = _Run(env, start, noisy, generator)
        run.solve()
        unsolved = [state for state, covered in zip(run.states, run.coverages, strict=True) if covered < 0.94]
        if unsolved:
            start = _settled(env, unsolved[generator.integers(len(unsolved))])
    return start


def _on_grid(values: np.ndarray) -> np.ndarray:
    return np.round(values * GRID) / GRID


def _settled(env: gymnasium.Env, state: np.ndarray) -> np.ndarray:
    """The state on the grid that the env stays in by itself: blocks that overlap a wall are pushed out of it first."""
    for _ in range(200):
        rounded = _on_grid(np.asarray(state, dtype=np.float64))
        state, _ = env.reset(options={"state": rounded})
        if np.abs(state - rounded).max() < 1e-4:
            return rounded
    return rounded


class _Run:
    """An attempt under way: the env, what was seen so far, and the agent's velocity, which the state does not hold."""

    def __init__(self, env, start, settings, generator):
        self.env, self.settings, self.generator = env.unwrapped, settings, generator
        observation, info = self.env.reset(options={"state": start})
        self.states, self.actions = [np.asarray(observation, dtype=np.float64)], []
        self.coverages, self.contacts = [info["coverage"]], [info["n_contacts"]]
        self.world = new_world(*self.state[:2], pose_of_state(self.state))
        self.pace = math.exp(settings.speed_spread * generator.standard_normal())

    @property
    def state(self) -> np.ndarray:
        return self.states[-1]

    def solve(self) -> None:
        """Push until the goal is covered or time is up."""
        table, settings = push_table(), self.settings
        while self.coverages[-1] < settings.finish_coverage and len(self.actions) < settings.max_steps:
            pose = pose_of_state(self.state)
            nearness = max(1.0 - misfit(*pose) / NEAR_GOAL_PX, 0.0)
            speed = self.pace * settings.push_speed_px * (1.0 - (1.0 - settings.speed_near_goal) * nearness)
            free_speed = self.pace * settings.free_speed_px * (1.0 - 0.2 * nearness)
            decision = decide(table, self.state[:2], pose, free_speed, speed, settings.plan_coverage)
            if decision is None:
                return
            self.follow(path_targets(decision.way, free_speed, DWELL_STEPS))
            self.push(decision.stroke, decision.is_last, speed)

    def push(self, stroke: Stroke, is_last: bool, speed_px: float) -> None:
        """Make one push, from where the agent and the block are now."""
        table, pose = push_table(), pose_of_state(self.state)
        point, normal = table.points[stroke.contact], table.normals[stroke.contact]
        if is_last:
            stroke = refine_stroke(
                stroke, point, normal, self.world, pose, speed_px, self.settings.plan_coverage
            )
        offset, angle, length = self.disturbed(stroke)
        x, y, heading = start_and_heading(point, normal, offset, angle, pose)
        targets = push_targets(x, y, heading, length + APPROACH_PX, speed_px, DWELL_STEPS)
        if agent_fits(*targets[-1]):
            self.follow(targets)
        else:
            x, y, heading = start_and_heading(point, normal, stroke.offset_px, stroke.angle_rad, pose)
            self.follow(push_targets(x, y, heading, stroke.length_px + APPROACH_PX, speed_px, DWELL_STEPS))

    def disturbed(self, stroke: Stroke) -> tuple[float, float, float]:
        """The stroke's offset, angle and length with this run's noise."""
        noise = self.settings.push_noise * self.generator.standard_normal(3)
        length = stroke.length_px + noise[2] * min(0.08 * stroke.length_px + 0.6, 8.0)
        return stroke.offset_px + 2.0 * noise[0], stroke.angle_rad + math.radians(4.0) * noise[1], max(length, 0.3)

    def follow(self, targets: np.ndarray) -> None:
        """Send targets [n, 2] to the env, recording what comes of it."""
        for target in targets:
            action = _on_grid(np.clip(target, 0.0, WORLD_SIZE_PX))
            observation, _, _, _, info = self.env.step(action)
            state = np.asarray(observation, dtype=np.float64)
            advance(self.world, action[0], action[1])  # keeps the agent's velocity
            self.world[0:2], self.world[4:7] = state[:2], pose_of_state(state)
            self.states.append(state)
            self.actions.append(action)
            self.coverages.append(coverage(*state[2:]))
            self.contacts.append(info["n_contacts"])
