"""Checks an env before any work is done in it: everything that a rollout will ask of it, once."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch

from diffpolicy.evaluation.rollout import make_vector_env, observation_by_key
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.protocol import Policy
from diffpolicy.system.patience import Patience
from diffpolicy.system.schema import check_settings
from diffpolicy.system.time_limits import LimitsConfig


def check_env(config: EnvConfig, policy: Policy, limit_s: float = LimitsConfig.env_s) -> None:
    """Make the env, reset it and take one step, with an action from the middle of those demonstrated.

    Args:
        limit_s: how long all of this may take.

    Raises:
        ValueError: one of these fails, or the env does not match the policy's observations and actions.
    """
    check_settings(config, "env")
    with Patience("the env", limit_s, "limits.env_s"):
        _try(config, policy)


def _try(config: EnvConfig, policy: Policy) -> None:
    env = make_vector_env(config, 1)
    try:
        with _calling(config, "reset"):
            observation, _ = env.reset(seed=[0], options=dict(config.reset_options))
        _check_observation(config, observation, policy)
        space, dim = env.single_action_space, policy.config.action_dim
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (dim,):
            raise ValueError(f"env: {config.id} takes actions {space}, but the demonstrations have {dim} numbers each")
        action = _middle_action(policy)
        with _calling(config, f"step({action[0].tolist()})"):
            observation, reward, *_ = env.step(action)
        _check_observation(config, observation, policy)
        if not math.isfinite(reward[0]):
            raise ValueError(f"env: {config.id} gives the reward {reward[0]}, expected a finite number")
    finally:
        env.close()


def why_not_drawn(config: EnvConfig) -> str | None:
    """Why no videos can be made of an env; None if they can."""
    try:
        env = make_vector_env(config, 1, render_mode="rgb_array")
    except ValueError as error:
        return str(error)
    try:
        env.reset(seed=[0], options=dict(config.reset_options))
        frames = env.render()
    except Exception as error:  # such as a missing drawing package
        return f"env: {config.id} cannot be drawn: {type(error).__name__}: {error}"
    finally:
        env.close()
    if frames is None or frames[0] is None:
        return f"env: {config.id} has no render_mode 'rgb_array'"
    return None


def _check_observation(config: EnvConfig, observation: Any, policy: Policy) -> None:
    specs, seen = policy.config.observations, observation_by_key(observation, policy)
    for key, spec in specs.items():
        if spec.kind == "image" and (shape := np.shape(seen[key])[1:]) != spec.pixels.delivered(spec.shape):
            delivered = list(spec.pixels.delivered(spec.shape))
            raise ValueError(
                f"env: {config.id} shows {key!r} as {list(shape)} (channels {spec.channels}), but the images that the "
                f"policy was trained on have {delivered}; choose an env that shows these, or data with its size"
            )
    checked_observation(seen, specs, (1,))


def _middle_action(policy: Policy) -> np.ndarray:
    """An action in the middle of those demonstrated, float32 [1, action]."""
    encoded = torch.zeros(1, *policy.codec.encoded_shape(policy.config.window.horizon), device=policy.device)
    with torch.no_grad():
        return policy.codec.decode(encoded)[:, 0].float().cpu().numpy()


@contextlib.contextmanager
def _calling(config: EnvConfig, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the env's author wrote
        raise ValueError(f"env: {config.id}: {what} fails with {type(error).__name__}: {error}") from error
