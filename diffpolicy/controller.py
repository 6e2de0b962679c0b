"""From observations, one a tick, to actions, one a tick: history, receding horizon, one noise stream an episode."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy.build import Sampler
from diffpolicy.config import SamplerConfig
from diffpolicy.diffusion.guidance import Guide
from diffpolicy.observations import checked_observation
from diffpolicy.plan_projection import Constrain
from diffpolicy.policy import DiffusionPolicy


class PolicyController:
    """Runs a policy on a batch of robots (or one: batch 1), each in its own episode.

    Every `n_action_steps` ticks a robot gets a new chunk from the last `n_obs_steps` observations; between them
    its actions are read off. After a reset the first observation stands for the ones before it.

    Args:
        policy: ready to act, from `DiffusionPolicy.from_pretrained`.
        sampler: a name, or a table from `policy.sampler`.
        num_inference_steps: of a sampler given by name.
        safety: constrains the plan in physical units at every reverse step; see `predict_action_chunk`.
        inference_batch: every call of the policy is padded to this batch, so that an episode is bit-equal alone or
            among others: a network's rounding depends on its batch size and, unless that is a multiple of 8, on
            the row. By default no padding.
        guide: steers the samples, from `policy.guide` or your own; see `predict_action_chunk`.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        sampler: str | Sampler = "ddim",
        num_inference_steps: int = 10,
        safety: Constrain | None = None,
        inference_batch: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        if isinstance(sampler, str):
            sampler = policy.sampler(SamplerConfig(name=sampler, steps=num_inference_steps))
        self.policy = policy
        self.sampler = sampler
        self.safety = safety
        self.inference_batch = inference_batch
        self.guide = guide
        self._generators: list[torch.Generator] = []

    def reset(self, seeds: Sequence[int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Begin new episodes.

        Args:
            seeds: of the noise, one per robot.
            mask: [batch], which robots begin anew; all by default. The others go on, and their seeds are not read.
        """
        if mask is None:
            if self.inference_batch is not None and len(seeds) > self.inference_batch:
                raise ValueError(f"reset: {len(seeds)} robots, expected at most inference_batch {self.inference_batch}")
            self._begin(len(seeds))
            mask = np.ones(len(seeds), dtype=bool)
        elif mask.dtype != np.bool_:
            raise ValueError(f"reset: mask is {mask.dtype}, expected bool, one per robot")
        if not len(mask) == len(seeds) == len(self._generators):
            raise ValueError(
                f"reset: {len(seeds)} seeds, mask of {len(mask)}, expected {len(self._generators)} of each"
            )
        for index in np.flatnonzero(mask).tolist():
            self._generators[index].manual_seed(int(seeds[index]))
        self._is_first[mask] = True
        self._position[mask] = self.policy.config.window.n_action_steps

    def select_action(self, observation: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.float32]:
        """The action of this tick [batch, action], physical units.

        Args:
            observation: {key: [batch, dim]} of this tick, physical units.

        Raises:
            ValueError: no reset before, or an observation of the wrong keys, shape or with NaN.
        """
        if not self._generators:
            raise ValueError("controller: call reset(seeds) before the first select_action")
        self._remember(observation)
        due = np.flatnonzero(self._position >= self.policy.config.window.n_action_steps)
        if len(due):
            self._chunk[due] = self._plan(due)
            self._position[due] = 0
        action = self._chunk[np.arange(len(self._chunk)), self._position]
        self._position += 1
        return action

    def _begin(self, batch: int) -> None:
        config = self.policy.config
        steps = config.window.n_obs_steps
        self._generators = [torch.Generator() for _ in range(batch)]
        self._history = {key: torch.zeros(batch, steps, dim) for key, dim in config.observations.items()}
        self._chunk = np.zeros((batch, config.window.n_action_steps, config.action_dim), dtype=np.float32)
        self._position = np.zeros(batch, dtype=np.intp)
        self._is_first = np.ones(batch, dtype=bool)

    def _remember(self, observation: Mapping[str, npt.ArrayLike]) -> None:
        now = checked_observation(observation, self.policy.config.observations, (len(self._generators),))
        first = torch.from_numpy(self._is_first)
        for key, history in self._history.items():
            history[:, :-1] = history[:, 1:].clone()
            history[:, -1] = now[key]
            history[first] = now[key][first, None]
        self._is_first[:] = False

    def _plan(self, due: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """New chunks [len(due), n_action_steps, action] for these robots, in one padded call."""
        padding = max(0, (self.inference_batch or 0) - len(due))
        rows = np.pad(due, (0, padding), mode="edge")
        generators = [self._generators[i] for i in due] + [torch.Generator() for _ in range(padding)]
        observation = {key: history[rows] for key, history in self._history.items()}
        chunk = self.policy.predict_action_chunk(observation, generators, self.sampler, self.safety, self.guide)
        return chunk.actions[: len(due)].float().cpu().numpy()
