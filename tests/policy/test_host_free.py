"""The reverse loop reads no value on the host and stays on its device: what a captured CUDA graph may not do."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from traced import EVERY_SAMPLER, MODELS, sampler_config
from world import CONSTRAINTS, safety, start

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.constraints.constraint import Quantity
from diffpolicy.constraints.limits import Polytope
from diffpolicy.constraints.planar.keep_out import BarrierDecrease
from diffpolicy.constraints.planar.obstacles import disc
from diffpolicy.constraints.plant import State
from diffpolicy.constraints.trajectory import Start
from diffpolicy.diffusion.objectives.denoising import DenoisingConfig
from diffpolicy.policy.plan_projection import PlanProjection
from diffpolicy.policy.sampling import sampled
from diffpolicy.safety.projection import SafetyProjection
from diffpolicy.system.replay import tensors_in, with_tensors

ALL_CONSTRAINTS = [
    *CONSTRAINTS,
    Polytope([[1, 0], [0, 1]], [9.5, 9.5], Quantity("commands")),
    BarrierDecrease(0.5, 0.2),
]


class NoHost(TorchDispatchMode):
    """Refuses to copy between GPU and host.

    The GPU is torch's meta device, which has shapes and no values: what reads a value on the host raises by itself.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
        assert all(one.device.type == "meta" for one in tensors), f"{func} reaches to the host"
        return result


class NoNumbers(TorchFunctionMode):
    """Refuses to make tensors from Python's numbers, which would be copied to the GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, Tensor.new_tensor), f"{func} takes numbers from the host"
        return func(*args, **(kwargs or {}))


def on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def make_policy(sampler: str, model: str) -> DiffusionPolicy:
    config = PolicyConfig({"position": 3, "goal": 2}, 2, model=MODELS[model])
    if sampler.startswith("flow"):
        config.diffusion = DenoisingConfig(schedule="flow", parameterization="flow")
    policy = DiffusionPolicy(config)
    policy.fit({"position": torch.eye(3), "goal": torch.eye(2)}, 10.0 * torch.eye(2))
    return policy.eval()


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_nothing_in_the_loop_reads_a_value_or_leaves_the_device(sampler: str) -> None:
    check_loop(sampler, "unet1d")


@pytest.mark.parametrize("model", [name for name in MODELS if name != "unet1d"])
def test_nor_does_any_other_backbone(model: str) -> None:
    check_loop("heun", model)


def check_loop(sampler: str, model: str) -> None:
    policy, batch = make_policy(sampler, model), 2
    controller, _ = start(policy, safety(ALL_CONSTRAINTS, mode="every_step"), np.full((batch, 2), 3.0))
    assert controller._layer is not None
    projector = controller._layer._projector
    state = State(torch.full((batch, 2), 3.0), torch.zeros(batch, 2))
    near = disc(6.5, 6.5, 0.8).robots(torch.zeros(batch, dtype=torch.long))
    task = projector.task(Start(state, torch.full((batch, 3, 2), 3.0)), near)
    projector._may_look = False  # as off the CPU
    for name, part in vars(projector).items():
        if isinstance(part, Tensor):
            setattr(projector, name, on_meta(part))
    policy.to("meta")
    task = with_tensors(task, {id(one): on_meta(one) for one in tensors_in(task)})
    table = policy.sampler(sampler_config(sampler))
    noise = torch.empty(len(table) + 1, batch, 16, 2, device="meta")
    observation = {key: torch.empty(batch, 2, dim, device="meta") for key, dim in {"position": 3, "goal": 2}.items()}

    def projection() -> PlanProjection:
        constrain = SafetyProjection(controller.safety, projector, task, 1, len(table))
        return PlanProjection(policy.codec, 1, constrain)

    before_capture, captured = projection(), projection()
    with torch.inference_mode():
        denoise = policy._denoiser(observation, None, table)
        sampled(denoise, table, noise, before_capture)  # copies the constants of constraints, once
        with NoNumbers(), NoHost():
            denoised = sampled(policy._denoiser(observation, None, table), table, noise, captured)
    assert denoised.clean.shape == (batch, 16, 2)
    assert denoised.is_finite.shape == (batch,)
    assert denoised.is_finite.device.type == "meta"
    assert all(one.device.type == "meta" for one in captured.left())


def test_the_check_sees_what_it_looks_for() -> None:
    values = torch.empty(2, device="meta")
    for call in (
        lambda: bool(values.any()),
        lambda: values.tolist(),
        lambda: values.nonzero(),
        lambda: values[0].item(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            call()
    for call in (
        lambda: torch.zeros(2).to("meta"),
        lambda: values + torch.zeros(2).to("meta"),
        lambda: values.new_tensor([0.0, 1.0]),
    ):
        with NoNumbers(), NoHost(), pytest.raises(AssertionError):
            call()
