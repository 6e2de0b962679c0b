"""Scenes of the safety benchmark: envs, obstacles that the policy has never seen, and faults."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from diffpolicy.constraints.plant import State
from diffpolicy.control.protocol import Controller
from diffpolicy.control.wrapper import ControllerWrapper
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.safety.build import SafetyConfig
from diffpolicy.safety.surroundings import Surroundings

SLOTS, CORNERS = 6, 4
Place = Callable[[Mapping[str, Any], Any], tuple[float, float, float]]
"""Maps (info, observation) when the obstacle appears to a disc x, y, radius that only safety is told about."""


@dataclass(frozen=True)
class Scene:
    """An env, its safety settings, and obstacles that its info reports but its observation does not."""

    env: EnvConfig
    demands: SafetyConfig
    place: Place | None = None
    from_tick: int = 0


class UnseenObstacle(gymnasium.Wrapper):
    """Adds a disc to info["obstacles"] from a given tick on. The observation does not show it."""

    def __init__(self, env: gymnasium.Env, place: Place, from_tick: int) -> None:
        super().__init__(env)
        self._place, self._from_tick = place, from_tick
        self._tick = 0
        self._disc: tuple[float, float, float] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._tick, self._disc = 0, None
        return observation, self._with_disc(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._tick += 1
        return observation, reward, terminated, truncated, self._with_disc(observation, info)

    def _with_disc(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        """Add the disc in an extra last slot, because the env may use all of its own."""
        known = {key: np.asarray(value) for key, value in info.get("obstacles", empty_slots()).items()}
        obstacles = {key: np.concatenate([value, np.zeros_like(value[:1])]) for key, value in known.items()}
        if self._tick >= self._from_tick:
            self._disc = self._disc or self._place(info, observation)
            x, y, radius = self._disc
            obstacles["vertices"][-1] = x, y
            obstacles["radius"][-1], obstacles["mask"][-1] = radius, True
        return {**info, "obstacles": obstacles}


class LateAction(gymnasium.Wrapper):
    """Delays every action by one tick. info["executed_action"] reports the action that took effect."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._waiting = np.asarray(info["agent_position"], dtype=np.float32)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        executed, self._waiting = self._waiting, np.asarray(action, dtype=np.float32)
        observation, reward, terminated, truncated, info = self.env.step(executed)
        return observation, reward, terminated, truncated, {**info, "executed_action": executed}


class LateCall(gymnasium.Wrapper):
    """Now and then the next call comes a whole tick late, as info["time_s"] reports. The target is held meanwhile."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._random = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        if result[2] or result[3] or self._random.random() >= 0.05:
            return result
        later = self.env.step(action)
        counts = [key for key in ("contact_substeps", "contact_substeps_at_rest") if key in later[4]]
        contacts = {key: result[4][key] + later[4][key] for key in counts}
        return (
            later[0],
            max(float(result[1]), float(later[1])),
            *later[2:4],
            {**later[4], **contacts},
        )  # scores are largest rewards


def empty_slots() -> dict[str, npt.NDArray[Any]]:
    """No obstacles, in the layout of info["obstacles"]."""
    return {
        "vertices": np.zeros((SLOTS, CORNERS, 2)),
        "radius": np.zeros(SLOTS),
        "speed_bound": np.zeros(SLOTS),
        "mask": np.zeros(SLOTS, dtype=bool),
    }


def beside_the_obstacle(info: Mapping[str, Any], observation: Any) -> tuple[float, float, float]:
    """A disc that blocks one side of the way past the first obstacle. The last bit of the start decides which side."""
    start, goal = np.asarray(info["agent_position"]), np.asarray(observation["goal"], dtype=np.float64)
    along = (goal - start) / np.linalg.norm(goal - start)
    across = np.array([-along[1], along[0]])
    vertices, radius = info["obstacles"]["vertices"][0], float(info["obstacles"]["radius"][0])
    center = vertices.mean(0)
    side = 1.0 if int(np.round(1e3 * start.sum())) % 2 else -1.0
    reach = radius + float(((vertices - center) @ (side * across)).max())
    size = 30.0
    x, y = center + side * (reach + size) * across
    return float(x), float(y), size


def in_the_farthest_corner(info: Mapping[str, Any], observation: Any) -> tuple[float, float, float]:
    """A disc in the corner of Push-T's workspace that is furthest from the agent, which is thus never inside it."""
    x, y = np.where(np.asarray(info["agent_position"]) > 256.0, 70.0, 442.0)
    return float(x), float(y), 30.0


def ahead_of_the_agent(info: Mapping[str, Any], observation: Any) -> tuple[float, float, float]:
    """A disc right in the way, 20 px further than the agent needs to stop."""
    position, velocity = np.asarray(info["agent_position"]), np.asarray(info["agent_velocity"])
    speed = float(np.linalg.norm(velocity))
    direction = velocity / speed if speed > 1.0 else np.array([1.0, 0.0])
    x, y = position + (15.0 + 20.0 + 20.0 + 0.25 * speed) * direction
    return float(x), float(y), 20.0


def _reach(variant: str) -> EnvConfig:
    return EnvConfig("diffpolicy_envs:diffpolicy/ObstacleReach-v0", {"variant": variant, "terminate_on_contact": False})


PUSHT = EnvConfig("diffpolicy_envs:diffpolicy/PushT-v0", {"obs_type": "keypoints"}, {"start_rule": "legacy"})
PUSHT_IMAGE = replace(PUSHT, kwargs={"obs_type": "pixels_agent_pos"})
AGENT = SafetyConfig(mode="last_half", workspace=[0.0, 512.0], max_speed=250.0, slots=7)  # the env's and an unseen one
PUSHER = replace(AGENT, workspace=[0.0, 512.0], max_speed=600.0)

SCENES: Mapping[str, Scene] = {
    **{
        variant: Scene(_reach(variant), AGENT)
        for variant in ("random", "narrow_gap", "symmetric", "thin_wall", "moving")
    },
    "blocked": Scene(_reach("symmetric"), AGENT, beside_the_obstacle),
    "appears": Scene(_reach("random"), AGENT, ahead_of_the_agent, from_tick=11),
    "pusht": Scene(PUSHT, PUSHER, in_the_farthest_corner),
    "pusht_image": Scene(PUSHT_IMAGE, PUSHER, in_the_farthest_corner),
    "pusht_appears": Scene(PUSHT, PUSHER, in_the_farthest_corner, from_tick=20),
}


def register_scene(name: str, fault: str, max_ticks: int | None) -> EnvConfig:
    """Register the scene's env under its own id, with its unseen obstacle and the fault."""
    scene = SCENES[name]
    env = scene.env

    def make(**kwargs: Any) -> gymnasium.Env:
        made = gymnasium.make(env.id, **kwargs)
        if scene.place is not None:
            made = UnseenObstacle(made, scene.place, scene.from_tick)
        wrapper = {"delay": LateAction, "late": LateCall}.get(fault)
        return made if wrapper is None else wrapper(made)

    scene_id = f"benchmark/{name}-{fault}-v0"
    if scene_id not in gymnasium.registry:
        gymnasium.register(scene_id, entry_point=make, disable_env_checker=True, order_enforce=False)
    limit = {} if max_ticks is None else {"max_episode_steps": max_ticks}
    return EnvConfig(scene_id, {**env.kwargs, **limit}, env.reset_options)


class Faulty(ControllerWrapper):
    """A controller that is told too little or too late. What it is told stays within the bounds that it assumes.

    | fault   | what happens                                                                                    |
    |---------|-------------------------------------------------------------------------------------------------|
    | delay   | nothing here: the env executes every action one tick late                                       |
    | late    | nothing here, only in the env's time_s: one call in twenty comes a whole tick late              |
    | dropped | one state in ten is not received                                                                |
    | noise   | position and velocity are off by up to the declared bounds                                      |
    | nan     | one robot in twenty sees NaN obstacles, drawn again at every tick                               |
    """

    def __init__(self, controller: Controller, fault: str, seed: int, bounds: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__(controller)
        self.fault, self.bounds = fault, bounds
        self.random = np.random.default_rng(seed)

    def reset(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Reset the controller. Nothing is dropped in the first tick of an episode."""
        super().reset(seeds, mask)
        self._fresh = np.ones(len(seeds), dtype=bool) if mask is None else mask

    def select_action(
        self, observation: Mapping[str, npt.ArrayLike], surroundings: Surroundings | None = None
    ) -> npt.NDArray[np.float32]:
        """The action of the controller under the fault."""
        assert surroundings is not None, "every scene's env reports them"
        assert surroundings.plant_state is not None
        state, obstacles = surroundings.plant_state, surroundings.obstacles
        position, velocity = state.position.clone(), state.velocity.clone()
        hit = self.random.random(len(position))
        if self.fault == "dropped":
            position[torch.from_numpy((hit < 0.1) & ~self._fresh)] = torch.nan
        if self.fault == "noise":
            position += self.bounds[0] * self._in_ball(position.shape)
            velocity += self.bounds[1] * self._in_ball(position.shape)
        if self.fault == "nan" and obstacles is not None:
            radius = torch.where(torch.from_numpy(hit < 0.05)[:, None], torch.nan, obstacles.radius)
            obstacles = replace(obstacles, radius=radius)
        self._fresh = np.zeros(len(position), dtype=bool)
        return super().select_action(
            observation, Surroundings(State(position, velocity), obstacles, surroundings.time_s)
        )

    def _in_ball(self, shape: torch.Size) -> torch.Tensor:
        direction = self.random.normal(size=shape)
        length = np.linalg.norm(direction, axis=-1, keepdims=True)
        return torch.from_numpy(direction / length * self.random.random((shape[0], 1)))


FAULTS: Mapping[str, Mapping[str, Any]] = {  # what the controller must assume for each
    "none": {},
    "delay": {"delay_substeps": 10},
    "late": {},
    "dropped": {},
    "noise": {"position_error": 1.0, "velocity_error": 0.5},
    "nan": {},
}
