"""The number of steps of each plan, chosen so that the plan is made in time."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.sampling import Sampling

REPEATS = 5  # timed calls for each number of steps, after one that warms up
REMEMBERED = 20  # plans whose further cost counts
GROWTH = 1.25  # of the numbers of steps that are tried: 1 to 5, 6, 8, 10, 13, 16, ...


class Deadline:
    """Chooses the most steps whose plan is made within a deadline.

    At the start, a call of the policy is measured for each number of steps; the longest of several counts. What else a
    tick with a plan takes is learned as it goes, the most of the last 20 such ticks: projection, certificate, further
    candidates, other load on the machine. If not even the fewest steps fit, they are used, with a RuntimeWarning.

    Args:
        policy: draws the plans.
        sampling: with the most steps that may be chosen; its `settings` name the sampler.
        deadline_ms: from the call of `select_action` to the action.
        clock: seconds.

    Attributes:
        steps: of the latest plan; those of `sampling` before the first.
        costs_ms: {steps: the measured time of a call}; empty before `measure`.
        missed: how many plans took longer than the deadline.

    Raises:
        ValueError: the deadline is not above 0.
    """

    def __init__(
        self, policy: Policy, sampling: Sampling, deadline_ms: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if not (math.isfinite(deadline_ms) and deadline_ms > 0):
            raise ValueError(f"controller: deadline_ms {deadline_ms} must be above 0")
        self.deadline_ms, self.steps, self.missed = deadline_ms, int(sampling.settings.steps), 0
        self._policy, self._clock, self._most = policy, clock, sampling
        self._choices = {steps: one for steps in _counts(self.steps) if (one := self._sampling(steps)) is not None}
        self.costs_ms: dict[int, float] = {}
        self._further: deque[float] = deque(maxlen=REMEMBERED)
        self._is_warned = False

    def measure(self, batch: int) -> None:
        """Measure calls for `batch` robots with each number of steps; takes some hundred evaluations of the network."""
        self._further.clear()
        for steps, sampling in self._choices.items():
            call = blank_call(self._policy, sampling, batch)
            call()
            self.costs_ms[steps] = max(self._taken_ms(call) for _ in range(REPEATS))

    def choose(self) -> Sampling:
        """How the next plan is to be drawn."""
        further = max(self._further, default=0.0)
        fitting = [steps for steps, cost in self.costs_ms.items() if cost + further <= self.deadline_ms]
        fewest = min(self.costs_ms)
        if not fitting and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"controller: the deadline of {self.deadline_ms:g} ms is shorter than a plan of {fewest} steps, which "
                f"takes {self.costs_ms[fewest] + further:.1f} ms; plans will be late",
                RuntimeWarning,
                stacklevel=4,
            )
        self.steps = max(fitting, default=fewest)
        return self._choices[self.steps]

    def took(self, seconds: float) -> None:
        """Take note of how long the tick with the latest plan took."""
        self.missed += 1e3 * seconds > self.deadline_ms
        self._further.append(max(0.0, 1e3 * seconds - self.costs_ms[self.steps]))

    def _taken_ms(self, call: Callable[[], None]) -> float:
        began = self._clock()
        call()
        return 1e3 * (self._clock() - began)

    def _sampling(self, steps: int) -> Sampling | None:
        """The sampling with so many steps; None if the policy was not trained for them."""
        settings = self._most.settings
        if steps == settings.steps:
            return self._most
        if warm := getattr(settings, "warm_start", None):
            settings = replace(settings, warm_start=min(warm, steps - 1) or None)
        try:
            return self._policy.sampling(replace(settings, steps=steps))
        except ValueError:
            return None


def blank_call(policy: Policy, sampling: Sampling, batch: int = 1) -> Callable[[], None]:
    """A call of the policy for `batch` robots that see zeros, to measure the time to an action chunk."""
    config = policy.config
    observation = {
        key: torch.zeros(batch, config.window.n_obs_steps, *spec.shape, dtype=spec.dtype)
        for key, spec in config.observations.items()
    }

    def call() -> None:
        generators = [torch.Generator() for _ in range(batch)]
        policy.predict_action_chunk(observation, generators, sampling.sampler, guide=sampling.guide).actions.cpu()

    return call


def _counts(most: int) -> list[int]:
    counts, count = [], 1
    while count < most:
        counts.append(count)
        count = max(count + 1, round(GROWTH * count))
    return [*counts, most]
