"""The reverse loop as a CUDA graph on a GPU makes the plans of the plain path there."""

import copy

import pytest
import torch
from one_case import over
from torch.testing import assert_close
from world import both, safety, start

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.constraints.planar.obstacles import disc
from diffpolicy.constraints.plant import State
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.sampler_choices import TABLES
from diffpolicy.safety.surroundings import Surroundings

pytestmark = pytest.mark.gpu
# Of actions of up to 10: kernels are chosen anew for a capture, and other ones round otherwise.
TOLERANCE = 1e-3


def make_policies(sampler: str) -> list[DiffusionPolicy]:
    """The same on the GPU twice, the second one compiled."""
    torch.manual_seed(0)
    config = PolicyConfig({"position": 3, "goal": 2}, 2, model=UNet1dConfig(widths=[16, 32], time_embedding_dim=16))
    if sampler.startswith("flow"):
        config.diffusion = DenoisingConfig(schedule="flow", parameterization="flow")
    policy = DiffusionPolicy(config)
    share = torch.linspace(0.0, 1.0, 100)[:, None]
    policy.fit({"position": share.expand(-1, 3), "goal": share.expand(-1, 2)}, 10.0 * share.expand(-1, 2))
    plain = policy.to("cuda").eval()
    compiled = copy.deepcopy(plain)
    compiled.capture()
    return [plain, compiled]


def captured(policy: DiffusionPolicy) -> int:
    assert policy._replays is not None
    recordings = list(policy._replays._recordings.values())
    assert None not in recordings, "the capture failed"
    return len(recordings)


@pytest.mark.parametrize("batch", [1, 64])
@over("sampler", sorted(TABLES))
def test_a_captured_loop_makes_the_plans_of_the_plain_path(sampler: str, batch: int) -> None:
    policies = make_policies(sampler)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        seen = {"position": torch.rand(batch, 2, 3, generator=generator), "goal": torch.rand(batch, 2, 2)}
        plans = []
        for policy in policies:
            noise = [torch.Generator().manual_seed(1000 * seed + row) for row in range(batch)]
            table = policy.sampler({"name": sampler, "steps": 5})
            plans.append(policy.predict_action_chunk(seen, noise, table).plan)
        assert_close(plans[1], plans[0], rtol=0, atol=TOLERANCE)
    assert captured(policies[1]) == 1


@pytest.mark.parametrize("mode", ["every_step", "last_half"])
@over("sampler", sorted(TABLES))
def test_with_safety_too_while_obstacles_come_and_go(sampler: str, mode: str) -> None:
    policies = make_policies(sampler)
    controllers, worlds = zip(*(start(one, safety(mode=mode), sampler=sampler) for one in policies), strict=True)
    state = [State(torch.tensor(world.position), torch.zeros(2, 2)) for world in worlds]
    observation = {"position": [[0.2, 0.4, 0.6]] * 2, "goal": [[0.5, 0.5]] * 2}
    for tick in range(17):
        near = both(disc(6.5 - 0.05 * tick, 6.5, 0.8, speed=0.5)) if tick else None
        actions = [
            controller.select_action(observation, Surroundings(measured, near))
            for controller, measured in zip(controllers, state, strict=True)
        ]
        assert_close(*map(torch.from_numpy, actions), rtol=0, atol=TOLERANCE)
    assert captured(policies[1]) == 1, "one graph serves whatever is around"


def test_new_weights_are_seen_wherever_they_lie() -> None:
    plain, compiled = make_policies("ddim")
    seen = {"position": torch.rand(1, 2, 3), "goal": torch.rand(1, 2, 2)}

    def plan(policy: DiffusionPolicy) -> torch.Tensor:
        return policy.predict_action_chunk(seen, [torch.Generator().manual_seed(0)]).plan

    for _ in range(2):
        for policy in (plain, compiled):
            policy.load_state_dict({key: 1.1 * value for key, value in policy.state_dict().items()})
        assert_close(plan(compiled), plan(plain), rtol=0, atol=TOLERANCE)
        for policy in (plain, compiled):
            for parameter in policy.parameters():
                parameter.data = 1.1 * parameter.data
        torch.cuda.empty_cache()
        assert_close(plan(compiled), plan(plain), rtol=0, atol=TOLERANCE)
