"""ObstacleReach: a round agent moves to its goal without touching obstacles (gymnasium)."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from diffpolicy_envs import reach_world as world
from diffpolicy_envs.actions import checked_target
from diffpolicy_envs.reach_geometry import signed_distance
from diffpolicy_envs.reach_layout import Layout, layout_from
from diffpolicy_envs.reach_observation import PixelObserver, observation_space, observe, pixels_space
from diffpolicy_envs.reach_physics import advance, offsets
from diffpolicy_envs.reach_variants import draw_layout
from diffpolicy_envs.window import Viewer

OBSERVATION_TYPES = ("vectors", "pixels_agent")
_OPTION_KEYS = ("layout",)


class ObstacleReachEnv(gymnasium.Env):
    """Reach a goal among obstacles, at 10 Hz. Id `diffpolicy/ObstacleReach-v0`, 100 steps.

    The agent is a disc of radius 15 px under Push-T's PD control. Action: [2] float32 in [0, 512] px, the target
    position of the agent. Values outside are clipped to the box. Obstacles do not stop the agent: contact is measured
    exactly, over the straight motion of each sub-step of 0.01 s.

    | observation       | float32                                                                                 |
    |-------------------|-----------------------------------------------------------------------------------------|
    | agent             | [2] px                                                                                  |
    | goal              | [2] px                                                                                  |
    | obstacles         | [54] px, six slots: 4 vertices x, y and the radius by which their convex hull is inflated |
    | obstacle_mask     | [6] 1 where the slot is used; other slots are zero                                      |
    | obstacle_velocity | [12] px/s                                                                               |
    | free_distance     | [24] px <= 150, free distance before contact, every 15 degrees from +x towards +y       |
    | tangents          | [24] px, two points per slot where the agent, going straight, would just pass it        |

    With obs_type `pixels_agent` it is `pixels` [96, 96, 3] uint8 RGB, of goal, obstacles and agent, and `agent`.

    An obstacle keeps its slot for the whole episode. The one nearest to the line from start to goal comes first.

    Reward: 1 on success; before that, 1 - distance / distance at the start, in [0, 0.99]. The episode terminates on
    success (within 20 px of the goal and slower than 40 px/s), and as a failure on contact.

    | variant    | what is between start and goal                                                             |
    |------------|--------------------------------------------------------------------------------------------|
    | symmetric  | one obstacle exactly halfway: left and right are equally long                              |
    | narrow_gap | two obstacles with 54 to 70 px between them                                                |
    | random     | 1 to 6 discs and polygons                                                                  |
    | moving     | 1 to 3 obstacles that move back and forth at constant speeds of 15 to 30 px/s              |
    | thin_wall  | a wall 6 px thick                                                                          |
    | mixed      | one of the five, drawn for each episode                                                    |

    | info key                 | meaning                                                                      |
    |--------------------------|------------------------------------------------------------------------------|
    | is_success               | bool                                                                         |
    | agent_position           | [2] float64 px                                                               |
    | agent_velocity           | [2] float64 px/s                                                             |
    | obstacles                | dict, at present: vertices [6, 4, 2] and radius [6] float64 px, mask [6]     |
    |                          | bool, speed_bound [6] px/s (never exceeded, 0 for static obstacles)          |
    | clearance                | float px, least over this action; negative in contact, inf without obstacles |
    | penetration              | float px, max(0, -clearance)                                                 |
    | contact_substeps         | int, sub-steps of this action in contact                                     |
    | contact_substeps_at_rest | int, those in which the agent was slower than 1 px/s                         |
    | time_s                   | float s since the reset                                                      |
    | side                     | int, where the agent was furthest from the line from start to goal, seen     |
    |                          | along it in a picture (y down): 1 to its right, -1 to its left, 0 never off  |

    `reset(options={"layout": {...}})` places everything by hand: see `reach_layout.layout_from`.

    Args:
        variant: one of the variants in the table.
        obs_type: vectors or pixels_agent.
        terminate_on_contact: whether a contact ends the episode as a failure.
        render_mode: None, "rgb_array" or "human" (a window; requires pygame).
        render_size: side length of rendered frames in px.

    Raises:
        ValueError: variant, obs_type, render_mode or an option is unknown, render_size is below 1, an action is not two
            finite numbers, or `layout_from` rejects the layout.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array", "human"],
        "render_fps": world.CONTROL_RATE_HZ,
        "observe_version": 1,  # raise it if `observe_state` draws other pixels
    }

    def __init__(
        self,
        variant: str = "random",
        terminate_on_contact: bool = True,
        render_mode: str | None = None,
        render_size: int = 512,
        obs_type: str = "vectors",
    ) -> None:
        if variant not in (*world.VARIANTS, "mixed"):
            raise ValueError(f"variant is {variant!r}; expected one of {[*world.VARIANTS, 'mixed']}")
        if obs_type not in OBSERVATION_TYPES:
            raise ValueError(f"obs_type is {obs_type!r}; expected one of {list(OBSERVATION_TYPES)}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode is {render_mode!r}; expected None or one of {self.metadata['render_modes']}")
        if render_size < 1:
            raise ValueError(f"render_size is {render_size}; expected at least 1 px")
        self.variant = variant
        self.terminate_on_contact = terminate_on_contact
        self.render_mode = render_mode
        self.render_size = render_size
        self._pixels = PixelObserver() if obs_type == "pixels_agent" else None
        self.observation_space = observation_space() if self._pixels is None else pixels_space()
        self.action_space = spaces.Box(0.0, world.WORLD_SIZE_PX, (2,), np.float32)
        self._layout: Layout | None = None
        self._renderer: Any = None
        self._viewer = Viewer(render_mode, "ObstacleReach", render_size, world.CONTROL_RATE_HZ)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; see the class for `options`. Returns (observation, info)."""
        super().reset(seed=seed)
        layout = _layout(self.np_random, self.variant, options)
        self._layout = layout
        self._state = np.concatenate([layout.agent, layout.velocity])
        self._steps = 0
        self._deviation = 0.0  # px, the largest in magnitude so far, positive to the right
        self._latest_action: tuple[float, float] | None = None
        self._vertices = layout.vertices
        distances = [
            signed_distance(layout.agent[0], layout.agent[1], layout.vertices[slot], layout.radius[slot])
            for slot in range(layout.count)
        ]
        self._clearance = min(distances, default=np.inf) - world.AGENT_RADIUS_PX
        info = self._info(layout, (0, 0), self._is_at_goal(layout))
        if self.render_mode == "human":
            self.render()
        return self._observation(layout), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Run one action, 0.1 s. Returns (observation, reward, terminated, False, info)."""
        layout = self._layout
        if layout is None:
            raise gymnasium.error.ResetNeeded("step: call reset() before the first step()")
        target = checked_target(action, world.WORLD_SIZE_PX)
        contacts = self._advance(layout, target)
        is_failure = contacts[0] > 0 and self.terminate_on_contact
        is_success = self._is_at_goal(layout) and not is_failure
        info = self._info(layout, contacts, is_success)
        if self.render_mode == "human":
            self.render()
        reward = 1.0 if is_success else self._progress(layout)
        return self._observation(layout), reward, is_success or is_failure, False, info

    def render(self) -> np.ndarray | None:
        """rgb_array: the frame [size, size, 3] uint8. human: draw to the window. None without a render mode."""
        return self._viewer.show(self._frame)

    def close(self) -> None:
        """Close the window if there is one."""
        self._viewer.close()

    def observe_state(self, state: Any) -> dict[str, np.ndarray]:
        """The observation of stored agent, goal, obstacles and obstacle_mask, joined [64]; see the table for units.

        Raises:
            ValueError: the state is not 64 finite numbers, or obs_type is not pixels_agent.
        """
        if self._pixels is None:
            raise ValueError("observe_state: obs_type is 'vectors'; expected 'pixels_agent'")
        return self._pixels.observe_state(state)

    def _advance(self, layout: Layout, target: tuple[float, float]) -> tuple[int, int]:
        """Move agent and obstacles. Returns the number of sub-steps in contact, and of those at rest."""
        count, time_s = layout.count, self._steps / world.CONTROL_RATE_HZ
        motion = layout.travel, layout.speed, layout.phase
        self._clearance, *contacts = advance(
            self._state,
            *target,
            time_s,
            layout.vertices[:count],
            layout.radius[:count],
            *(part[:count] for part in motion),
        )
        self._steps += 1
        self._latest_action = target
        moved = offsets(self._steps / world.CONTROL_RATE_HZ, *motion)
        self._vertices = layout.vertices + moved[:, None]
        way, gone = layout.goal - layout.agent, self._state[:2] - layout.agent
        deviation = float(way[0] * gone[1] - way[1] * gone[0]) / max(float(np.hypot(*way)), 1e-9)
        if abs(deviation) > abs(self._deviation):
            self._deviation = deviation
        return contacts[0], contacts[1]

    def _distance(self, layout: Layout) -> float:
        return float(np.hypot(*(self._state[:2] - layout.goal)))

    def _is_at_goal(self, layout: Layout) -> bool:
        is_slow = float(np.hypot(*self._state[2:])) < world.GOAL_SPEED_PX_S
        return is_slow and self._distance(layout) <= world.GOAL_RADIUS_PX

    def _progress(self, layout: Layout) -> float:
        at_start = max(float(np.hypot(*(layout.agent - layout.goal))), 1e-9)
        return min(max(1.0 - self._distance(layout) / at_start, 0.0), world.REWARD_BEFORE_SUCCESS)

    def _info(self, layout: Layout, contacts: tuple[int, int], is_success: bool) -> dict[str, Any]:
        return {
            "is_success": is_success,
            "agent_position": self._state[:2].copy(),
            "agent_velocity": self._state[2:].copy(),
            "obstacles": {
                "vertices": self._vertices.copy(),
                "radius": layout.radius.copy(),
                "speed_bound": np.where(np.abs(layout.travel).any(axis=1), layout.speed, 0.0),
                "mask": layout.mask.copy(),
            },
            "clearance": self._clearance,
            "penetration": max(0.0, -self._clearance),
            "contact_substeps": contacts[0],
            "contact_substeps_at_rest": contacts[1],
            "time_s": self._steps / world.CONTROL_RATE_HZ,
            "side": int(np.sign(self._deviation)),
        }

    def _observation(self, layout: Layout) -> dict[str, np.ndarray]:
        if self._pixels is not None:
            used = slice(layout.count)
            return self._pixels.observe(self._state[:2], layout.goal, self._vertices[used], layout.radius[used])
        return observe(layout, self._state[:2], self._vertices, self._steps / world.CONTROL_RATE_HZ)

    def _frame(self) -> np.ndarray:
        if self._renderer is None:
            from diffpolicy_envs.reach_render import ReachRenderer

            self._renderer = ReachRenderer(self.render_size)
        if self._layout is None:
            raise gymnasium.error.ResetNeeded("render: call reset() first")
        count = self._layout.count
        shown = self._state[:2], self._layout.goal, self._vertices[:count], self._layout.radius[:count]
        return self._renderer.draw(*shown, self._clearance < 0.0, self._latest_action)


def _layout(generator: np.random.Generator, variant: str, options: Mapping[str, Any] | None) -> Layout:
    options = dict(options or {})
    unknown = sorted(set(options) - set(_OPTION_KEYS))
    if unknown:
        raise ValueError(f"reset: unknown options {unknown}; expected some of {list(_OPTION_KEYS)}")
    if options.get("layout") is None:
        return draw_layout(generator, variant)
    return layout_from(options["layout"])
