"""A policy makes the same plans on a GPU as on a CPU, from the same noise."""

import copy

import pytest
import torch
from one_case import over
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy
from diffpolicy.evaluation.evaluate import evaluate
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.kinds import load_policy
from diffpolicy.policy.sampler_choices import TABLES

pytestmark = pytest.mark.gpu


@over("sampler", sorted(set(TABLES) - {"flow_euler", "flow_heun"}))
def test_a_plan_is_the_same_on_both_devices(small_policy: DiffusionPolicy, sampler: str) -> None:
    on_gpu = copy.deepcopy(small_policy).to("cuda")
    seen = {"position": torch.rand(4, 2, 3), "goal": torch.rand(4, 2, 2)}
    plans = [
        policy.predict_action_chunk(
            seen,
            [torch.Generator().manual_seed(row) for row in range(4)],
            policy.sampler({"name": sampler, "steps": 5}),
        ).plan.cpu()
        for policy in (small_policy, on_gpu)
    ]
    # Sums in another order: some ulp of actions of up to 10, in each of five steps.
    assert_close(plans[1], plans[0], rtol=0, atol=1e-3)


def test_the_shipped_checkpoint_solves_push_t_on_a_gpu(shipped_checkpoint) -> None:
    policy = load_policy(str(shipped_checkpoint), torch.device("cuda"))
    env = EnvConfig(**policy.metadata["env"])
    episodes = evaluate(policy, env, {"name": "ddim", "steps": 10}, range(100_000, 100_016), 16)
    assert sum(episode.score for episode in episodes) / 16 > 0.85
