"""The evaluation during training: scores of the averaged policy in the env, shared by all processes."""

from collections.abc import Callable, Sequence

from diffpolicy.evaluation.evaluate import evaluate, summarize
from diffpolicy.evaluation.rollout import Episode
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.evaluation.sharded import sharded
from diffpolicy.policy.protocol import Policy
from diffpolicy.system.distributed import Ranks
from diffpolicy.system.patience import Patience
from diffpolicy.system.stopping import StopSignals
from diffpolicy.training.settings import TrainConfig


class Evaluation:
    """Runs the episodes of `config.evaluation` in `env`. A stop signal interrupts them at once.

    Args:
        stop_if_asked: raises StoppedError in all processes if one of them was asked to stop.
    """

    def __init__(
        self, config: TrainConfig, env: EnvConfig, ranks: Ranks, stop: StopSignals, stop_if_asked: Callable[[], None]
    ) -> None:
        self._config, self._env, self._ranks, self._stop, self._stop_if_asked = config, env, ranks, stop, stop_if_asked

    def __call__(self, policy: Policy, step: int, left: str) -> dict[str, float]:
        """Mean score and success rate at a step; `left` says how to resume, if an error ends the process.

        Raises:
            StoppedError: a signal asked to stop.
            ChildProcessError, TimeoutError: the env died or hangs.
            ValueError: the env does not fit, or a reward is not finite.
        """
        config, sampler, limit_s = self._config.evaluation, self._config.sampler, self._config.limits.env_s

        def run(seeds: Sequence[int]) -> list[Episode]:
            patience = Patience("the env", limit_s, "limits.env_s", left)
            with self._stop.at_once():
                check = self._stop.check
                return evaluate(policy, self._env, sampler, seeds, config.inference_batch, None, check, patience)

        try:
            episodes = sharded(self._ranks, range(config.seed, config.seed + config.episodes), run)
        except Exception as error:
            self._stop_if_asked()  # a signal to all processes also kills the env processes
            if isinstance(error, ValueError):
                raise ValueError(f"training, step {step}: {error}; {left}") from error
            if isinstance(error, OSError | EOFError) and not isinstance(error, TimeoutError | ChildProcessError):
                # raised by a pipe to a dead process
                raise ChildProcessError(f"the evaluation failed because an env died ({error!r})") from error
            raise
        summary = summarize(episodes)
        return {key: summary[key] for key in ("mean_score", "success_rate")}
