"""Child process of benchmark_inference.py: plans chunks with one contestant, block by block.

It needs only torch, diffusers, safetensors and the contestant, so that an interpreter with other pinned versions can
run it. It reads one JSON request per line from stdin ({"threads": n, "chunks": n}) and writes one JSON answer per line
to stdout.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HORIZON, ACTION_DIM, N_OBS_STEPS, OBSERVATION_DIM = 16, 2, 2, 20
LEVELS = 100

Plan = Callable[[], Tensor]  # returns chunks [batch, HORIZON, ACTION_DIM], planned from noise


@dataclass(frozen=True)
class Work:
    """The work of one call: plan `batch` chunks by a sampler with `steps` steps, on a device."""

    sampler: str
    steps: int
    batch: int
    device: str


def main() -> None:
    """Arguments: the contestant, the file of its weights under its own names, network settings and `Work` as JSON."""
    name, weights, model, work = sys.argv[1:]
    plan = CONTESTANTS[name](load_file(weights), json.loads(model), Work(**json.loads(work)))
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        print(json.dumps({**run_block(plan, request["chunks"]), "kernels": kernels()}), flush=True)


def run_block(plan: Plan, chunks: int) -> dict[str, object]:
    """Mean wall and CPU milliseconds per call, percentiles of the wall time, and the plan, which is always the same."""
    times_ms: list[float] = []
    cpu = time.process_time()
    for _ in range(chunks):
        start = time.perf_counter()
        made = plan().cpu()  # waits for a GPU
        times_ms.append(1e3 * (time.perf_counter() - start))
    cpu = time.process_time() - cpu
    p50, p99 = (float(torch.tensor(times_ms).quantile(q)) for q in (0.5, 0.99))
    wall = {"wall_ms": statistics.fmean(times_ms), "p50_ms": p50, "p99_ms": p99}
    return {**wall, "cpu_ms": 1e3 * cpu / chunks, "plan": made.flatten().tolist()}


def kernels() -> list[str]:
    """The forms of products that were timed in this process, if it runs our network."""
    products = sys.modules.get("diffpolicy.networks.layers.products")
    return [] if products is None else products.report()


def observation(batch: int) -> Tensor:
    """A normalised observation [batch, N_OBS_STEPS, OBSERVATION_DIM]."""
    drawn = torch.rand(batch, N_OBS_STEPS, OBSERVATION_DIM, generator=torch.Generator().manual_seed(1))
    return 2.0 * drawn - 1.0


def noise(work: Work) -> Tensor:
    """[batch, HORIZON, ACTION_DIM], the start noise that our policy draws when the row is the generator's seed."""
    shape = work.steps + 1, HORIZON, ACTION_DIM
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i))[0] for i in range(work.batch)])


def diffpolicy(weights: dict[str, Tensor], model: dict, work: Work) -> Plan:
    """`predict_action_chunk` with all its checks and normalisation, as a CUDA graph on a GPU."""
    policy = make_policy(weights, model).to(work.device)
    policy.capture()
    return chunks_of(policy, work)


def eager(weights: dict[str, Tensor], model: dict, work: Work) -> Plan:
    """The same without the CUDA graph."""
    return chunks_of(make_policy(weights, model).to(work.device), work)


def chunks_of(policy: Any, work: Work) -> Plan:
    """The plan of `predict_action_chunk`."""
    sampler, seen = policy.sampler(work.sampler, work.steps), {"keypoints": observation(work.batch)}
    seeds = range(work.batch)
    return lambda: policy.predict_action_chunk(seen, [torch.Generator().manual_seed(i) for i in seeds], sampler).plan


def plain(weights: dict[str, Tensor], model: dict, work: Work) -> Plan:
    """Our network as a module, called in a loop with the scheduler of diffusers."""
    network = make_policy(weights, model).to(work.device).network
    return scheduler_loop(lambda x, time, condition: network(x, time.float(), condition), work)


def lerobot(weights: dict[str, Tensor], model: dict, work: Work) -> Plan:
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
    return scheduler_loop(network.to(work.device), work)


CONTESTANTS = {"diffpolicy": diffpolicy, "eager": eager, "plain": plain, "lerobot": lerobot}


def make_policy(weights: dict[str, Tensor], model: dict) -> Any:
    """Our policy with these weights and identity normalisers."""
    from diffpolicy.policy.diffusion import DiffusionPolicy
    from diffpolicy.policy.settings import PolicyConfig

    policy = DiffusionPolicy(PolicyConfig({"keypoints": OBSERVATION_DIM}, ACTION_DIM, model=model))
    limits = torch.tensor([[-1.0], [1.0]])
    policy.fit({"keypoints": limits.expand(-1, OBSERVATION_DIM)}, limits.expand(-1, ACTION_DIM))
    policy.network.load_state_dict(weights)
    return policy.eval()


def scheduler_loop(network: Callable[[Tensor, Tensor, Tensor], Tensor], work: Work) -> Plan:
    """DDIM by diffusers, with the grid and the clipping that make its plan equal to ours."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler: Any = DDIMScheduler(
        LEVELS, beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
    )
    condition = observation(work.batch).flatten(1).to(work.device)

    @torch.inference_mode()
    def plan() -> Tensor:
        scheduler.set_timesteps(work.steps)  # keeps its tables on the CPU; on a GPU they would make it wait
        x = noise(work).to(work.device)
        for t in scheduler.timesteps:
            output = network(x, torch.full(x.shape[:1], int(t), dtype=torch.long, device=x.device), condition)
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
        return x

    return plan


if __name__ == "__main__":
    main()
