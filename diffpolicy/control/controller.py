"""From observations, one a tick, to actions, one a tick: history, receding horizon, one noise stream an episode."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from diffpolicy.constraints.planar.obstacles import Obstacles
from diffpolicy.constraints.plant import State
from diffpolicy.diffusion.guidance import Guide
from diffpolicy.policy.build import Sampler
from diffpolicy.policy.observations import checked_observation
from diffpolicy.policy.plan_projection import Constrain
from diffpolicy.policy.protocol import Policy
from diffpolicy.safety.layer import MakeProjection, PlanReport, SafetyLayer
from diffpolicy.safety.settings import Safety

SAMPLE_SEEDS = 1_000_003  # from one sample's noise to the next one's


class PolicyController:
    """Runs a policy on a batch of robots (or one: batch 1), each in its own episode.

    Every `n_action_steps` ticks a robot gets a new chunk from the last `n_obs_steps` observations; between them
    its actions are read off. After a reset the first observation stands for the ones before it.

    Args:
        policy: ready to act, from `DiffusionPolicy.from_pretrained`.
        sampler: a name, or a table from `policy.sampler`.
        num_inference_steps: of a sampler given by name.
        safety: what every action has to meet; see docs/safety.md. Then `last_plan` tells what stands behind the
            actions of the latest tick.
        inference_batch: every call of the policy is padded to this batch, so that an episode is bit-equal alone or
            among others: a network's rounding depends on its batch size and, unless that is a multiple of 8, on
            the row. By default no padding.
        guide: steers the samples, from `policy.guide` or your own; see `predict_action_chunk`.
        constrain: a projection of your own of every clean estimate, in physical units, without a certificate; see
            `predict_action_chunk`.

    Attributes:
        last_plan: `PlanReport` of the latest tick; None without safety.

    Raises:
        ValueError: both safety and constrain, or safety that cannot be (a constraint on the motion without a plant,
            actions that are not normalised by scale and offset).
    """

    def __init__(
        self,
        policy: Policy,
        sampler: str | Sampler = "ddim",
        num_inference_steps: int = 10,
        safety: Safety | None = None,
        inference_batch: int | None = None,
        guide: Guide | None = None,
        constrain: Constrain | None = None,
    ) -> None:
        if safety is not None and constrain is not None:
            raise ValueError("controller: safety and constrain cannot both be given")
        if isinstance(sampler, str):
            sampler = policy.sampler(sampler, num_inference_steps)
        self.policy = policy
        self.sampler = sampler
        self.safety = safety
        self.inference_batch = inference_batch
        self.guide = guide
        self.constrain = constrain
        self.last_plan: PlanReport | None = None
        self._generators: list[list[torch.Generator]] = []  # of each robot, one per sample drawn for a chunk
        self._layer: SafetyLayer | None = None
        self._layer = self._safety_layer(1)

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
            for sample, generator in enumerate(self._generators[index]):
                generator.manual_seed(int(seeds[index]) + SAMPLE_SEEDS * sample)
        self._is_first[mask] = True
        if self._layer is not None:
            self._layer.forget(mask)
        self._position[mask] = self.policy.config.window.n_action_steps

    def select_action(
        self,
        observation: Mapping[str, npt.ArrayLike],
        plant_state: State | None = None,
        obstacles: Obstacles | None = None,
        time_s: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float32]:
        """The action of this tick [batch, action], physical units.

        Args:
            observation: {key: [batch, dim]} of this tick, physical units.
            plant_state: measured position and velocity [batch, action] of the robots; NaN where none was received.
            obstacles: as they are at this tick; none by default.
            time_s: of this tick, one number or [batch]; by default a period after the last.

        Raises:
            ValueError: no reset before, an observation of the wrong keys, shape or with NaN; with safety, no plant
                state though a constraint acts on the motion, too many obstacles, time that runs backwards; obstacles
                without safety.
        """
        if not self._generators:
            raise ValueError("controller: call reset(seeds) before the first select_action")
        if self._layer is None and obstacles is not None:
            raise ValueError("controller: obstacles are given, but no safety that would heed them")
        now = checked_observation(observation, self.policy.config.observations, (len(self._generators),))
        if self._layer is not None:
            self._layer.observe(plant_state, obstacles, time_s)
        self._remember(now)
        is_due = self._position >= self.policy.config.window.n_action_steps
        if self._layer is not None:
            self._check(np.flatnonzero(~is_due), self._layer)
        if is_due.any():
            self._chunk[is_due] = self._plan(np.flatnonzero(is_due))
            self._position[is_due] = 0
        action = self._chunk[np.arange(len(self._chunk)), self._position]
        self._position += 1
        if self._layer is not None:
            self.last_plan = self._layer.sent(action)
        return action

    def _begin(self, batch: int) -> None:
        config = self.policy.config
        steps = config.window.n_obs_steps
        samples = self.safety.candidates if self.safety else 1
        self._generators = [[torch.Generator() for _ in range(samples)] for _ in range(batch)]
        self._layer = self._safety_layer(batch)
        self._history = {
            key: torch.zeros(batch, steps, *spec.shape, dtype=spec.dtype) for key, spec in config.observations.items()
        }
        self._chunk = np.zeros((batch, config.window.n_action_steps, config.action_dim), dtype=np.float32)
        self._position = np.zeros(batch, dtype=np.intp)
        self._is_first = np.ones(batch, dtype=bool)

    def _remember(self, now: Mapping[str, torch.Tensor]) -> None:
        first = torch.from_numpy(self._is_first)
        for key, history in self._history.items():
            history[:, :-1] = history[:, 1:].clone()
            history[:, -1] = now[key]
            history[first] = now[key][first, None]
        self._is_first[:] = False

    def _plan(self, due: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """New chunks [len(due), n_action_steps, action] for these robots."""
        if self._layer is None:
            return self._propose(torch.from_numpy(due), 0, None)[:, : self.policy.config.window.n_action_steps]
        return self._layer.plan(torch.from_numpy(due), self._propose)

    def _check(self, robots: npt.NDArray[np.intp], layer: SafetyLayer) -> None:
        """Let the layer replace what remains of these robots' chunks."""
        if len(robots) == 0:
            return
        n = self.policy.config.window.n_action_steps
        rows = np.minimum(self._position[robots, None] + np.arange(n), n - 1)
        checked = layer.check(torch.from_numpy(robots), self._chunk[robots[:, None], rows])
        for robot, chunk in zip(robots.tolist(), checked, strict=True):
            self._chunk[robot, self._position[robot] :] = chunk[: n - self._position[robot]]

    def _propose(self, robots: torch.Tensor, sample: int, projection: MakeProjection | None) -> npt.NDArray[np.float32]:
        """A plan from the present on for each, [len(robots), horizon - n_obs_steps + 1, action], in one padded call."""
        padding = max(0, (self.inference_batch or 0) - len(robots))
        rows = torch.cat([robots, robots[-1:].expand(padding)])
        generators = [self._generators[robot][sample] for robot in robots.tolist()]
        generators += [torch.Generator() for _ in range(padding)]
        observation = {key: history[rows] for key, history in self._history.items()}
        present = self.policy.config.window.n_obs_steps - 1
        constrain = projection(rows, present, len(self.sampler)) if projection else self.constrain
        chunk = self.policy.predict_action_chunk(observation, generators, self.sampler, constrain, self.guide)
        return chunk.plan[: len(robots), present:].float().cpu().numpy()

    def _safety_layer(self, batch: int) -> SafetyLayer | None:
        if self.safety is None:
            return None
        codec, window = self.policy.codec, self.policy.config.window
        metric = codec.metric
        if metric is None:
            raise ValueError(
                f"safety: actions are encoded by {type(codec).__name__}, which has no metric; the projection needs a "
                "scale per axis, as the codec normalizer has"
            )
        if self._layer is not None and self._layer.serves(self.safety, batch, metric):
            return self._layer
        horizon = window.horizon - (window.n_obs_steps - 1)
        return SafetyLayer(self.safety, batch, horizon, window.n_action_steps, metric)
