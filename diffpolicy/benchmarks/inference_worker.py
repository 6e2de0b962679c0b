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
from torch import Tensor, nn

HORIZON, ACTION_DIM, N_OBS_STEPS, OBSERVATION_DIM = 16, 2, 2, 20
SIDE, CROP, IMAGE_FEATURES, KEYPOINTS = 96, 84, 64, 32  # px, px; those of our encoders and of LeRobot's
LEVELS = 100

Plan = Callable[[], Tensor]  # returns chunks [batch, HORIZON, ACTION_DIM], planned from noise


@dataclass(frozen=True)
class Work:
    """The work of one call: plan `batch` chunks by a sampler with `steps` steps, on a device."""

    sampler: str
    steps: int
    batch: int
    device: str


@dataclass(frozen=True)
class Contestant:
    """What makes a plan, and the module in it that encodes observations, if there is one."""

    plan: Plan
    encoder: nn.Module | None


def main() -> None:
    """Arguments: the contestant, the file of its weights under its own names, network settings and `Work` as JSON."""
    name, weights, model, work = sys.argv[1:]
    contestant = CONTESTANTS[name](load_file(weights), json.loads(model), Work(**json.loads(work)))
    encoding_s = [] if contestant.encoder is None else timed(contestant.encoder)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        answer = run_block(contestant.plan, encoding_s, request["chunks"])
        print(json.dumps({**answer, "kernels": kernels()}), flush=True)


def timed(module: nn.Module) -> list[float]:
    """A list to which every call of the module from now on adds its seconds; on a GPU, those of launching it."""
    seconds: list[float] = []
    module.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))
    module.register_forward_hook(lambda *_: seconds.append(seconds.pop() + time.perf_counter()))
    return seconds


def run_block(plan: Plan, encoding_s: list[float], chunks: int) -> dict[str, object]:
    """Mean wall and CPU milliseconds per call, percentiles of the wall time, and the plan, which is always the same.

    `encoding_s` collects the seconds of each call of the encoder; their mean per call of `plan` is `encoder_ms`.
    """
    times_ms: list[float] = []
    encoding_s.clear()
    cpu = time.process_time()
    for _ in range(chunks):
        start = time.perf_counter()
        made = plan().cpu()  # waits for a GPU
        times_ms.append(1e3 * (time.perf_counter() - start))
    cpu = time.process_time() - cpu
    p50, p99 = (float(torch.tensor(times_ms).quantile(q)) for q in (0.5, 0.99))
    wall = {"wall_ms": statistics.fmean(times_ms), "p50_ms": p50, "p99_ms": p99}
    each = {"cpu_ms": 1e3 * cpu / chunks, "encoder_ms": 1e3 * sum(encoding_s) / chunks}
    return {**wall, **each, "plan": made.flatten().tolist()}


def kernels() -> list[str]:
    """The forms of products that were timed in this process, if it runs our network."""
    products = sys.modules.get("diffpolicy.networks.layers.products")
    return [] if products is None else products.report()


def sees(model: dict) -> bool:
    """Whether the model sees images."""
    return model["encoder"] != "low_dim"


def observation(model: dict, batch: int) -> dict[str, Tensor]:
    """A normalised vector [batch, N_OBS_STEPS, features], beside frames [..., SIDE, SIDE, 3] of uint8 if it sees."""
    generator = torch.Generator().manual_seed(1)
    if not sees(model):
        return {"keypoints": 2.0 * torch.rand(batch, N_OBS_STEPS, OBSERVATION_DIM, generator=generator) - 1.0}
    frames = torch.randint(256, (batch, N_OBS_STEPS, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return {"agent_pos": 2.0 * torch.rand(batch, N_OBS_STEPS, ACTION_DIM, generator=generator) - 1.0, "pixels": frames}


def noise(work: Work) -> Tensor:
    """[batch, HORIZON, ACTION_DIM], the start noise that our policy draws when the row is the generator's seed."""
    shape = work.steps + 1, HORIZON, ACTION_DIM
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i))[0] for i in range(work.batch)])


def diffpolicy(weights: dict[str, Tensor], model: dict, work: Work) -> Contestant:
    """`predict_action_chunk` with all its checks and normalisation, as a CUDA graph on a GPU."""
    policy = make_policy(model, weights).to(work.device)
    policy.capture()
    return chunks_of(policy, model, work)


def eager(weights: dict[str, Tensor], model: dict, work: Work) -> Contestant:
    """The same without the CUDA graph."""
    return chunks_of(make_policy(model, weights).to(work.device), model, work)


def chunks_of(policy: Any, model: dict, work: Work) -> Contestant:
    """The plan of `predict_action_chunk`."""
    sampler, seen, seeds = policy.sampler(work.sampler, work.steps), observation(model, work.batch), range(work.batch)

    def plan() -> Tensor:
        return policy.predict_action_chunk(seen, [torch.Generator().manual_seed(i) for i in seeds], sampler).plan

    return Contestant(plan, policy.encoder)


def plain(weights: dict[str, Tensor], model: dict, work: Work) -> Contestant:
    """Our encoder and network as modules, called in a loop with the scheduler of diffusers."""
    policy, seen = make_policy(model, weights).to(work.device), observation(model, work.batch)

    def condition() -> Tensor:
        return policy.encoder({key: value.to(work.device) for key, value in seen.items()}).vector

    network = policy.network
    plan = scheduler_loop(lambda x, level, vector: network(x, level.float(), vector), condition, work)
    return Contestant(plan, policy.encoder)


def lerobot(weights: dict[str, Tensor], model: dict, work: Work) -> Contestant:
    """LeRobot's networks, and its loop (DiffusionModel.generate_actions)."""
    from lerobot.policies.diffusion.modeling_diffusion import (  # pyright: ignore[reportMissingImports]
        DiffusionConditionalUnet1d,
        DiffusionRgbEncoder,
    )

    config = SimpleNamespace(
        down_dims=model["widths"],
        diffusion_step_embed_dim=model["time_embedding_dim"],
        kernel_size=model["kernel_size"],
        n_groups=model["groups"],
        use_film_scale_modulation=True,
        action_feature=SimpleNamespace(shape=(ACTION_DIM,)),
        resize_shape=None,
        crop_shape=(CROP, CROP),
        crop_is_random=True,  # in training
        vision_backbone="resnet18",
        pretrained_backbone_weights=None,
        use_group_norm=True,
        image_features={"pixels": SimpleNamespace(shape=(3, SIDE, SIDE))},
        spatial_softmax_num_keypoints=KEYPOINTS,
    )
    encoder = DiffusionRgbEncoder(config).eval().to(work.device) if sees(model) else None
    if encoder is not None:  # its grid of places is a buffer
        encoder.load_state_dict({**part(weights, "encoder"), "pool.pos_grid": encoder.pool.pos_grid})
    features = OBSERVATION_DIM if encoder is None else ACTION_DIM + IMAGE_FEATURES
    network = DiffusionConditionalUnet1d(config, N_OBS_STEPS * features).eval().to(work.device)
    network.load_state_dict(part(weights, "network"))
    seen = observation(model, work.batch)

    def condition() -> Tensor:
        if encoder is None:
            return seen["keypoints"].flatten(1).to(work.device)
        frames = seen["pixels"].to(work.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0
        found = encoder((frames - 0.5) / 0.5).unflatten(0, (work.batch, N_OBS_STEPS))
        return torch.cat([seen["agent_pos"].to(work.device), found], dim=-1).flatten(1)

    return Contestant(scheduler_loop(network, condition, work), encoder)


def onnx(weights: dict[str, Tensor], model: dict, work: Work) -> Contestant:
    """The whole loop as one file for onnxruntime, which also encodes."""
    from diffpolicy.benchmarks.onnx_loop import exported_loop

    policy = make_policy(model, weights)
    return Contestant(exported_loop(policy, work.sampler, work.steps, observation(model, work.batch)), None)


CONTESTANTS = {"diffpolicy": diffpolicy, "eager": eager, "plain": plain, "lerobot": lerobot, "onnx": onnx}


def part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of `encoder` or `network`."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def make_policy(model: dict, weights: dict[str, Tensor] | None = None) -> Any:
    """Our policy with identity normalisers, and with these weights or random ones."""
    from diffpolicy.networks.observation import ObservationSpec
    from diffpolicy.policy.diffusion import DiffusionPolicy
    from diffpolicy.policy.settings import PolicyConfig

    vectors = {"agent_pos": ACTION_DIM} if sees(model) else {"keypoints": OBSERVATION_DIM}
    images = {"pixels": ObservationSpec("image", (SIDE, SIDE, 3))} if sees(model) else {}
    network = {key: value for key, value in model.items() if key != "encoder"}
    config = PolicyConfig({**vectors, **images}, ACTION_DIM, model=network, encoder=model["encoder"])
    policy: Any = DiffusionPolicy(config)
    limits = torch.tensor([[-1.0], [1.0]])
    policy.fit({key: limits.expand(-1, size) for key, size in vectors.items()}, limits.expand(-1, ACTION_DIM))
    if weights is not None:
        policy.encoder.load_state_dict(part(weights, "encoder"))
        policy.network.load_state_dict(part(weights, "network"))
    return policy.eval()


def scheduler_loop(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Callable[[], Tensor], work: Work
) -> Plan:
    """DDIM by diffusers, with the grid and the clipping that make its plan equal to ours."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler: Any = DDIMScheduler(
        LEVELS, beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
    )

    @torch.inference_mode()
    def plan() -> Tensor:
        scheduler.set_timesteps(work.steps)  # keeps its tables on the CPU; on a GPU they would make it wait
        x, seen = noise(work).to(work.device), condition()
        for t in scheduler.timesteps:
            output = network(x, torch.full(x.shape[:1], int(t), dtype=torch.long, device=x.device), seen)
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
        return x

    return plan


if __name__ == "__main__":
    main()
