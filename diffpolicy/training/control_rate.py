"""Whether a data set has as many steps per second as the task's env has control ticks."""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from diffpolicy.data.source import DataSource
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.formats.zarr_source import ABOUT

SAME = 0.01  # part of a rate, which other formats round


def warn_of_other_rate(source: DataSource, env: EnvConfig | None) -> None:
    """Warn, naming both, if a data set tells another rate than the env's `render_fps`; say nothing if one has none."""
    found, expected = steps_per_second(source), None if env is None else control_rate(env)
    if env is None or found is None or expected is None or abs(found / expected - 1.0) <= SAME:
        return
    warnings.warn(
        f"data: {source.location} has {found:g} steps per second, but {env.id} has {expected:g} (its render_fps): a "
        "policy of these data acts there at another speed. Train with data of that rate, or evaluate with env=null",
        stacklevel=3,
    )


def steps_per_second(source: DataSource) -> float | None:
    """The rate that a data set of another format tells, or that it told before it was converted; None if it did not."""
    about = getattr(source, "about", None)
    if about is None:
        attributes = getattr(source, "episode_attributes", [])
        about = attributes[0].get(ABOUT) if attributes else None
    return _rate(about, "fps")


def control_rate(env: EnvConfig) -> float | None:
    """The `render_fps` of the env's class, without making one; None if it has none or cannot be found."""
    module, _, name = env.id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)  # registers it, as gymnasium.make does
        entry = gymnasium.spec(name).entry_point
        made_by: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    except (ImportError, AttributeError, gymnasium.error.Error):
        return None  # the env's own check says what is wrong
    return _rate(getattr(made_by, "metadata", None), "render_fps")


def _rate(found: Any, name: str) -> float | None:
    value = found.get(name) if isinstance(found, Mapping) else None
    return float(value) if isinstance(value, int | float) and value > 0 else None
