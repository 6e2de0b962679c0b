"""The files of an exported policy: for each the module, and inputs of any batch size to trace and to compare it with.

Shape legend: B batch, H horizon, A action.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diffpolicy.diffusion.samplers.table import StepTable
from diffpolicy.interop import onnx_modules as modules
from diffpolicy.policy.diffusion import DiffusionPolicy

PARTS = ("encoder", "step", "policy")


@dataclass(frozen=True)
class Part:
    """One file.

    Attributes:
        module: what it computes.
        inputs: of a batch size, by name: {name: tensor}.
        outputs: their names.
        batch_at: the dimension of the batch, where it is not 0.
    """

    module: nn.Module
    inputs: Callable[[int], dict[str, Tensor]]
    outputs: tuple[str, ...]
    batch_at: Mapping[str, int | None] = field(default_factory=dict)


def part_of(policy: DiffusionPolicy, name: str, table: StepTable, box: modules.Box | None) -> Part:
    reads: tuple[str, ...] = policy.network.reads
    shape = policy.codec.encoded_shape(policy.config.window.horizon)
    encode = modules.Encode(policy)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, *shape, generator=torch.Generator().manual_seed(0)).to(policy.device)

    def of_step(batch: int) -> dict[str, Tensor]:
        row = table.rows[len(table) // 2]
        numbers = torch.tensor([getattr(row, column) for column in modules.row_of(policy)], dtype=torch.float64)
        fields = encode(*modules.inputs_of(policy, batch).values())
        own = {"x": random(batch), "noise": random(batch).flip(0), "row": numbers.to(policy.device)}
        return {**own, **dict(zip(reads, fields, strict=True))}

    if name == "encoder":
        return Part(encode, lambda batch: modules.inputs_of(policy, batch), reads)
    if name == "step":
        return Part(modules.Step(policy, box), of_step, ("clean", "next", "plan"), {"row": None})
    loop = modules.Loop(policy, table, box)
    outputs = ("actions", "plan", "is_finite")

    def of_loop(batch: int) -> dict[str, Tensor]:
        return {"noise": random(len(table) + 1, batch), **modules.inputs_of(policy, batch)}

    return Part(loop, of_loop, outputs, {"noise": 1})
