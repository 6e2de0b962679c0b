"""Child process of benchmark_inference.py: plans chunks with one contestant, block by block.

Needs torch, diffusers, safetensors and the contestant only, so that an interpreter with other pins can run it.
One JSON request per line on stdin ({"threads": n, "chunks": n}), one JSON answer per line on stdout.
"""

import json
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HORIZON, ACTION_DIM, N_OBS_STEPS, OBSERVATION_DIM = 16, 2, 2, 20
LEVELS = 100

Plan = Callable[[], Tensor]  # one chunk from noise, [1, HORIZON, ACTION_DIM]


def main() -> None:
    """Arguments: contestant, file of the weights under its names, settings of the network in JSON, DDIM steps."""
    name, weights, model, steps = sys.argv[1:]
    plan = CONTESTANTS[name](load_file(weights), json.loads(model), int(steps))
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        print(json.dumps(run_block(plan, request["chunks"])), flush=True)


def run_block(plan: Plan, chunks: int) -> dict[str, object]:
    """Wall and CPU milliseconds a chunk, and the plan, which is the same every time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(chunks):
        made = plan()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_ms": 1e3 * wall / chunks, "cpu_ms": 1e3 * cpu / chunks, "plan": made.flatten().tolist()}


def observation() -> Tensor:
    """[1, N_OBS_STEPS, OBSERVATION_DIM], normalised."""
    return 2.0 * torch.rand(1, N_OBS_STEPS, OBSERVATION_DIM, generator=torch.Generator().manual_seed(1)) - 1.0


def noise(steps: int) -> Tensor:
    """[1, HORIZON, ACTION_DIM], what our policy draws as the start with the generator's seed 0."""
    return torch.randn(steps + 1, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(0))[:1]


def diffpolicy(weights: dict[str, Tensor], model: dict, steps: int) -> Plan:
    """`predict_action_chunk`, with all that it checks and normalises."""
    from diffpolicy.config import SamplerConfig

    policy = make_policy(weights, model)
    sampler = policy.sampler(SamplerConfig("ddim", steps))
    seen = {"keypoints": observation()}
    return lambda: policy.predict_action_chunk(seen, [torch.Generator().manual_seed(0)], sampler).plan


def plain(weights: dict[str, Tensor], model: dict, steps: int) -> Plan:
    """Our network as a module, called in a loop with diffusers' scheduler."""
    network = make_policy(weights, model).network
    return scheduler_loop(lambda x, time, condition: network(x, time.float(), condition), steps)


def lerobot(weights: dict[str, Tensor], model: dict, steps: int) -> Plan:
    """LeRobot's network in LeRobot's loop (DiffusionModel.conditional_sample)."""
    from lerobot.policies.diffusion.modeling_diffusion import (  # pyright: ignore[reportMissingImports]
        DiffusionConditionalUnet1d,
    )

    config = SimpleNamespace(
        down_dims=model["widths"],
        diffusion_step_embed_dim=model["time_embedding_dim"],
        kernel_size=model["kernel_size"],
        n_groups=model["groups"],
        use_film_scale_modulation=True,
        action_feature=SimpleNamespace(shape=(ACTION_DIM,)),
    )
    network = DiffusionConditionalUnet1d(config, N_OBS_STEPS * OBSERVATION_DIM).eval()
    network.load_state_dict(weights)
    return scheduler_loop(network, steps)


CONTESTANTS = {"diffpolicy": diffpolicy, "plain": plain, "lerobot": lerobot}


def make_policy(weights: dict[str, Tensor], model: dict) -> Any:
    """Our policy with these weights; its normalisers change nothing."""
    from diffpolicy import DiffusionPolicy
    from diffpolicy.config import ModelConfig, PolicyConfig

    policy = DiffusionPolicy(PolicyConfig({"keypoints": OBSERVATION_DIM}, ACTION_DIM, model=ModelConfig(**model)))
    limits = torch.tensor([[-1.0], [1.0]])
    policy.fit_normalizers({"keypoints": limits.expand(-1, OBSERVATION_DIM)}, limits.expand(-1, ACTION_DIM))
    policy.network.load_state_dict(weights)
    return policy.eval()


def scheduler_loop(network: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> Plan:
    """DDIM by diffusers, on the grid and with the clipping that make its plan equal to ours."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler: Any = DDIMScheduler(
        LEVELS, beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
    )
    condition = observation().flatten(1)

    @torch.inference_mode()
    def plan() -> Tensor:
        scheduler.set_timesteps(steps)
        x = noise(steps)
        for t in scheduler.timesteps:
            output = network(x, torch.full(x.shape[:1], t, dtype=torch.long), condition)
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
        return x

    return plan


if __name__ == "__main__":
    main()
