"""Start states of Push-T episodes: the options of `reset` and the two start rules."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffpolicy_envs.pusht_physics import PushTPhysics

START_RULES = ("random", "legacy")
_OPTION_KEYS = ("state", "start_rule")


def start_episode(generator: np.random.Generator, seed: int | None, options: Mapping[str, Any] | None) -> PushTPhysics:
    """A new world in the start state that `options` ask for.

    Options:
        state: [5] agent x, y, block x, y (px), block angle (rad). It is set exactly, and nothing is drawn.
        start_rule: "random" (default) draws from `generator`; "legacy" draws what published evaluations draw from
            `seed`. Both have the same distribution: agent in [50, 450), block in [100, 400) before it is turned about
            its centre of gravity, any angle; then one physics sub-step.

    Raises:
        ValueError: options are unknown or contradict each other, the state is not five finite numbers, or "legacy" has
            no seed.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - set(_OPTION_KEYS))
    if unknown:
        raise ValueError(f"reset: unknown options {unknown}; expected some of {list(_OPTION_KEYS)}")
    rule = options.get("start_rule") or "random"
    if rule not in START_RULES:
        raise ValueError(f"reset: start_rule is {rule!r}; expected one of {list(START_RULES)}")
    physics = PushTPhysics()
    if options.get("state") is not None:
        if rule != "random":
            raise ValueError(f"reset: options give both a state and start_rule {rule!r}; expected one of them")
        physics.place(*_checked_state(options["state"]))
    elif rule == "legacy":
        physics.place_legacy(*_legacy_draw(seed))
    else:
        physics.place_legacy(*_random_draw(generator))
    return physics


def _checked_state(state: Any) -> list[float]:
    try:
        numbers = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reset: state is {state!r}; expected five numbers") from error
    if numbers.shape != (5,):
        raise ValueError(f"reset: state has shape {numbers.shape}; expected (5,)")
    if not np.isfinite(numbers).all():
        raise ValueError(f"reset: state is {numbers}; expected finite numbers")
    return numbers.tolist()


def _legacy_draw(seed: int | None) -> list[float]:
    if seed is None:
        raise ValueError("reset: start_rule 'legacy' needs a seed, found None; expected reset(seed=...)")
    generator = np.random.RandomState(seed)
    agent = [generator.randint(50, 450), generator.randint(50, 450)]
    block = [generator.randint(100, 400), generator.randint(100, 400)]
    return [float(number) for number in (*agent, *block, generator.randn() * 2 * np.pi - np.pi)]


def _random_draw(generator: np.random.Generator) -> list[float]:
    agent, block = generator.integers(50, 450, size=2), generator.integers(100, 400, size=2)
    return [float(number) for number in (*agent, *block, generator.uniform(-np.pi, np.pi))]
