"""Draws observations from stored states with an env, in this process or in several."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.system.pool import Pool

Arrays = dict[str, np.ndarray]
"""{key of the env's observation: [n, ...]}."""


class Drawer:
    """Draws rows of states; see `training.rendering`.

    Raises:
        ValueError: the env cannot be made or has no `observe_state`.
    """

    def __init__(self, config: EnvConfig) -> None:
        try:
            self.env: Any = gymnasium.make(config.id, **config.kwargs).unwrapped
        except Exception as error:  # whatever the env's author wrote
            raise ValueError(f"env: {config.id} with {config.kwargs} cannot be made: {error}") from error
        if not callable(getattr(self.env, "observe_state", None)):
            raise ValueError(f"data: render: {config.id} has no method observe_state(state), see docs/data_format.md")

    def __call__(self, states: Mapping[str, np.ndarray]) -> Arrays:
        """{key: [n, features]} -> {key: [n, *shape]}."""
        return {key: np.stack([self.one(key, row) for row in rows]) for key, rows in states.items()}

    def one(self, key: str, state: np.ndarray) -> np.ndarray:
        """The observation `key` of one state; of an env that observes an array, that array."""
        seen = self.env.observe_state(state)
        if isinstance(seen, Mapping) and key not in seen:
            raise ValueError(f"the env observes {sorted(seen)}, not {key!r}")
        return np.asarray(seen[key] if isinstance(seen, Mapping) else seen)


def tried(config: EnvConfig, states: Mapping[str, np.ndarray]) -> tuple[Arrays, Any]:
    """The observation of the first state, so that mistakes are found at once, and the env's `observe_version`.

    Raises:
        ValueError: the env cannot be made, or fails.
    """
    drawer = Drawer(config)
    try:
        version = (getattr(drawer.env, "metadata", None) or {}).get("observe_version")
        return {key: drawer.one(key, rows[0]) for key, rows in states.items()}, version
    except Exception as error:  # whatever the env's author wrote
        shapes = {key: list(rows.shape[1:]) for key, rows in states.items()}
        raise ValueError(f"data: render: {config.id} cannot observe states of shape {shapes}: {error}") from error
    finally:
        drawer.env.close()


def all_drawn(
    config: EnvConfig, blocks: Sequence[Mapping[str, np.ndarray]], workers: int, limit_s: float
) -> Iterator[Arrays]:
    """Draw blocks of states {key: [n, features]}, in order; at most two blocks per worker wait.

    Raises:
        ChildProcessError: a worker died or took longer than `limit_s` for a block.
    """
    if workers < 2 or len(blocks) < 2:
        yield from map(Drawer(config), blocks)
        return
    pool = Pool(workers, "renders", limit_s, "limits.data_s", _begin, (config,))
    try:
        ahead = 2 * workers
        futures = [pool.submit(_drawn, one) for one in blocks[:ahead]]
        for number in range(len(blocks)):
            yield pool.result(futures.pop(0))
            futures += [pool.submit(_drawn, one) for one in blocks[number + ahead : number + ahead + 1]]
    finally:
        pool.close()


_drawer: Drawer | None = None  # in a worker process, set once by _begin


def _begin(config: EnvConfig) -> None:
    """Initialise a worker."""
    global _drawer
    _drawer = Drawer(config)


def _drawn(states: Mapping[str, np.ndarray]) -> Arrays:
    assert _drawer is not None
    return _drawer(states)
