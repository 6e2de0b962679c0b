"""A recorder for the CPU: torch traces the calls and replays the traced graph, without the Python code around it."""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.networks.backbones.dit import DiTConfig
from diffpolicy.networks.backbones.transformer import TransformerConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.sampler_choices import TABLES
from diffpolicy.system.replay import Function, Replay

A_KIND_EACH = ("dpmpp_2m", "heun", "predictor_corrector")  # with earlier estimates, with corrections, with noise
EVERY_SAMPLER = [name if name in A_KIND_EACH else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TABLES)]


class Traced:
    """A `Recorder` whose replays omit whatever a function reads on the host or does besides calling torch."""

    def __init__(self, device: torch.device) -> None:
        self.recorded = 0

    def record(
        self, function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator] = ()
    ) -> tuple[Replay, Sequence[Tensor]]:
        graph = make_fx(lambda *tensors: list(function(tensors)))(*inputs)
        outputs = [one.clone() for one in graph(*inputs)]
        self.recorded += 1

        def replay() -> None:
            for output, made in zip(outputs, graph(*inputs), strict=True):
                output.copy_(made)

        return replay, outputs

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


MODELS: dict[str, Any] = {
    "unet1d": UNet1dConfig(widths=[8, 8], time_embedding_dim=8),
    "transformer": TransformerConfig(layers=2, heads=2, width=8),
    "dit": DiTConfig(layers=2, heads=2, width=8),
}


def make_policy(sampler: str = "ddim", model: str = "unet1d") -> DiffusionPolicy:
    """An untrained policy with the schedule that the sampler needs; observations in [0, 1], actions in [0, 10]."""
    torch.manual_seed(0)
    observations = {"position": 3, "goal": 2}
    config = PolicyConfig(observations, 2, model=MODELS[model])
    if sampler.startswith("flow"):
        config.diffusion = DenoisingConfig(schedule="flow", parameterization="flow")
    policy = DiffusionPolicy(config)
    share = torch.linspace(0.0, 1.0, 100)[:, None]
    statistics = {key: share.expand(-1, dim) for key, dim in observations.items()}
    policy.fit(statistics, 10.0 * share.expand(-1, 2))
    if model == "dit":  # which begins with zeros
        for parameter in policy.network.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return policy.eval()


def compiled(policy: DiffusionPolicy) -> DiffusionPolicy:
    other = copy.deepcopy(policy)
    other.capture()
    return other


def sampler_config(name: str, steps: int = 3) -> dict[str, Any]:
    """The settings of a sampler, with one Langevin step per level if it has any."""
    walks = {"langevin_steps": 1} if name in ("langevin", "predictor_corrector") else {}
    return {"name": name, "steps": steps, **walks}


def plan(
    policy: DiffusionPolicy, seed: int = 0, batch: int = 2, sampler: str = "ddim", steps: int = 1, **other
) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    observation = {
        "position": torch.rand(batch, 2, 3, generator=generator),
        "goal": torch.rand(batch, 2, 2, generator=generator),
    }
    generators = [torch.Generator().manual_seed(1000 * seed + row) for row in range(batch)]
    table = policy.sampler(sampler_config(sampler, steps))
    return policy.predict_action_chunk(observation, generators, table, **other).plan


def recorded(policy: DiffusionPolicy) -> int:
    """The number of recordings since the weights were last moved."""
    assert policy._replays is not None
    assert isinstance(policy._replays._recorder, Traced)
    return policy._replays._recorder.recorded


def in_place(policy: DiffusionPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)


def new_memory(policy: DiffusionPolicy) -> None:
    for parameter in policy.parameters():
        parameter.data = 1.1 * parameter.data
