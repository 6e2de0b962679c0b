"""Push-T: push a T-shaped block onto its goal with a round agent (gymnasium)."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from diffpolicy_envs import pusht_world as world
from diffpolicy_envs.actions import checked_target
from diffpolicy_envs.coverage import coverage
from diffpolicy_envs.pusht_physics import PushTPhysics
from diffpolicy_envs.pusht_start import start_episode
from diffpolicy_envs.window import Viewer

OBSERVATION_TYPES = ("state", "keypoints", "pixels", "pixels_agent_pos")
PIXELS_SIZE_PX = 96
# The agent can squeeze the block through a wall, so block coordinates may leave the world by up to its length.
_BLOCK_MARGIN_PX = 256.0


class PushTEnv(gymnasium.Env):
    """Push-T as published by Diffusion Policy, at 10 Hz. Id `diffpolicy/PushT-v0`, 300 steps.

    Action: [2] float32 in [0, 512] px, the target position of the agent. Values outside are clipped to the box.

    | obs_type         | observation                                                                      |
    |------------------|----------------------------------------------------------------------------------|
    | state            | [5] float32: agent x, y, block x, y (px), block angle in [0, 2 pi) (rad)          |
    | keypoints        | [20] float32: nine block keypoints x, y, then agent x, y (px)                     |
    | pixels           | [96, 96, 3] uint8 RGB                                                            |
    | pixels_agent_pos | dict: pixels as above, agent_pos [2] float32 (px)                                 |

    Reward: clip(coverage / 0.95, 0, 1), where coverage is the share of the goal's area that the block covers. The
    episode terminates when coverage exceeds 0.95.

    | info key       | meaning                                                                     |
    |----------------|-----------------------------------------------------------------------------|
    | is_success     | bool, coverage > 0.95                                                       |
    | coverage       | float in [0, 1]                                                             |
    | n_contacts     | int, the block's contact points per sub-step of this action, rounded up      |
    | agent_position | [2] float64, px                                                             |
    | agent_velocity | [2] float64, px/s                                                           |
    | state          | [5] float64, the state observation before rounding                          |

    `observe_state(state)` is the observation of a stored state.

    `reset(options=...)` accepts `state` or `start_rule`: see `pusht_start.start_episode`. If a state is given, the
    agent and the block start at rest.

    Args:
        obs_type: one of the observation types in the table.
        render_mode: None, "rgb_array" or "human" (a window; requires pygame).
        render_size: side length of rendered frames in px.

    Raises:
        ValueError: obs_type or render_mode is unknown, render_size is below 1, an action is not two finite numbers, or
            `start_episode` rejects the options.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array", "human"],
        "render_fps": world.CONTROL_RATE_HZ,
        "observe_version": 1,  # raise it if `observe_state` draws other pixels
    }

    def __init__(self, obs_type: str = "state", render_mode: str | None = None, render_size: int = 512) -> None:
        if obs_type not in OBSERVATION_TYPES:
            raise ValueError(f"obs_type is {obs_type!r}; expected one of {list(OBSERVATION_TYPES)}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode is {render_mode!r}; expected None or one of {self.metadata['render_modes']}")
        if render_size < 1:
            raise ValueError(f"render_size is {render_size}; expected at least 1 px")
        self.obs_type = obs_type
        self.render_mode = render_mode
        self.render_size = render_size
        self.observation_space = _observation_space(obs_type)
        self.action_space = spaces.Box(0.0, world.WORLD_SIZE_PX, (2,), np.float32)
        self._physics: PushTPhysics | None = None
        self._state = (0.0,) * 5
        self._latest_action: tuple[float, float] | None = None
        self._renderers: dict[int, Any] = {}  # frame size in px -> PushTRenderer
        self._viewer = Viewer(render_mode, "Push-T", render_size, world.CONTROL_RATE_HZ)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see the class for `options`. Returns (observation, info)."""
        super().reset(seed=seed)
        self._physics = start_episode(self.np_random, seed, options)
        self._state = self._physics.state()
        self._latest_action = None
        info = self._info(self._physics, self._coverage())
        if self.render_mode == "human":
            self.render()
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run one action, 0.1 s. Returns (observation, reward, terminated, False, info)."""
        physics = self._physics
        if physics is None:
            raise gymnasium.error.ResetNeeded("step: call reset() before the first step()")
        target = checked_target(action, world.WORLD_SIZE_PX)
        physics.advance(*target)
        self._latest_action = target
        self._state = physics.state()
        covered = self._coverage()
        info = self._info(physics, covered)
        if self.render_mode == "human":
            self.render()
        return self._observation(), world.reward_of_coverage(covered), info["is_success"], False, info

    def render(self) -> np.ndarray | None:
        """rgb_array: the frame [size, size, 3] uint8. human: draw to the window. None without a render mode."""
        return self._viewer.show(lambda: self._renderer(self.render_size).draw(self._state, self._latest_action))

    def close(self) -> None:
        """Close the window if there is one."""
        self._viewer.close()

    def observe_state(self, state: Any) -> Any:
        """The observation of a stored state [5] (px, px, px, px, rad); the episode under way is not touched.

        Raises:
            ValueError: the state is not five finite numbers.
        """
        values = np.asarray(state, dtype=np.float64)
        if values.shape != (5,) or not np.isfinite(values).all():
            raise ValueError(f"observe_state: state is {state!r}; expected five finite numbers")
        return self._observe(tuple(values.tolist()))

    def _coverage(self) -> float:
        return coverage(self._state[2], self._state[3], self._state[4])

    def _info(self, physics: PushTPhysics, covered: float) -> dict[str, Any]:
        return {
            "is_success": covered > world.SUCCESS_COVERAGE,
            "coverage": covered,
            "n_contacts": physics.contacts_per_substep(),
            "agent_position": np.array(self._state[:2]),
            "agent_velocity": np.array(physics.agent.velocity),
            "state": np.array(self._state),
        }

    def _observation(self) -> Any:
        return self._observe(self._state)

    def _observe(self, state: tuple[float, ...]) -> Any:
        if self.obs_type == "state":
            return np.array(state, dtype=np.float32)
        agent_position = np.array(state[:2], dtype=np.float32)
        if self.obs_type == "keypoints":
            keypoints = world.block_keypoints(*state[2:])
            return np.concatenate([keypoints.ravel(), agent_position], dtype=np.float32)
        pixels = self._renderer(PIXELS_SIZE_PX).draw(state)
        return pixels if self.obs_type == "pixels" else {"pixels": pixels, "agent_pos": agent_position}

    def _renderer(self, size_px: int) -> Any:
        if size_px not in self._renderers:
            from diffpolicy_envs.pusht_render import PushTRenderer

            self._renderers[size_px] = PushTRenderer(size_px)
        return self._renderers[size_px]


def _observation_space(obs_type: str) -> spaces.Space:
    size = world.WORLD_SIZE_PX
    block_low, block_high = -_BLOCK_MARGIN_PX, size + _BLOCK_MARGIN_PX
    if obs_type == "state":
        low = np.array([0, 0, block_low, block_low, 0], dtype=np.float32)
        high = np.array([size, size, block_high, block_high, 2 * math.pi], dtype=np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    agent = spaces.Box(0.0, size, (2,), np.float32)
    if obs_type == "keypoints":
        low = np.concatenate([np.full(2 * world.KEYPOINT_COUNT, block_low), agent.low], dtype=np.float32)
        high = np.concatenate([np.full(2 * world.KEYPOINT_COUNT, block_high), agent.high], dtype=np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    pixels = spaces.Box(0, 255, (PIXELS_SIZE_PX, PIXELS_SIZE_PX, 3), np.uint8)
    return pixels if obs_type == "pixels" else spaces.Dict({"pixels": pixels, "agent_pos": agent})
