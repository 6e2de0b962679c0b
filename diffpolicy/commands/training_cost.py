"""Measure a training step against the machine's matrix products: python scripts/training_cost.py model=unet

    python scripts/training_cost.py model=unet trainer.batch_size=64

The settings are those of train_policy.py. Steps and matrix products are timed in turns. On a CPU, times are
core-seconds, so other load hardly matters. Writes cost.json into the run folder.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffpolicy.commands.command import command
from diffpolicy.system.files import write_text
from diffpolicy.training.settings import TrainConfig
from diffpolicy.training.trainer import Trainer

ROUNDS = 7
STEPS_ON_GPU = 20  # per round, so that the host runs ahead of the GPU as it does in training
PRODUCT, PRODUCT_ON_GPU = 1536, 8192  # rows and columns of the matrices
# Memory passes per weight: the weight is read in forward and in backward (2); its gradient is written (1), read for the
# norm (1) and scaled (2); AdamW reads the weight, gradient and two moments and writes three (7); the average reads two
# and writes one (3).
PASSES = 2 + 1 + 1 + 2 + 7 + 3


def counted(trainer: Trainer) -> dict[str, float]:
    """Count the GFLOP of a step's products and convolutions (forward and backward), and the MB that it must move."""
    saved: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in trainer.policy.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    in_place = {torch.ops.aten.baddbmm_: products_added}  # used in networks/layers/conv.py; torch counts the others
    with (
        FlopCounterMode(display=False, custom_mapping=in_place) as counter,
        torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept),
    ):
        trainer.train_step()
    parameters = sum(parameter.numel() for parameter in trainer.policy.parameters())
    return {
        "parameters": parameters,
        "gflop": counter.get_total_flops() / 1e9,
        "weight_mb": 4e-6 * PASSES * parameters,
        "activation_mb": 2e-6 * sum(saved.values()),  # written forward, read backward
    }


def products_added(
    target: torch.Size, left: torch.Size, right: torch.Size, out_shape: torch.Size, **scales: float
) -> int:
    """FLOPs of target += left @ right, for left [batch, rows, inner] and right [batch, inner, columns]."""
    return 2 * left.numel() * right[-1]


def measured(trainer: Trainer, gflop: float) -> dict[str, float]:
    """Time steps and matrix products of the same precision in turns; `fraction` is the median ratio of their rates."""
    is_on_cpu, precision = trainer.device.type == "cpu", getattr(torch, trainer.config.trainer.precision)
    size, repeats = (PRODUCT, 1) if is_on_cpu else (PRODUCT_ON_GPU, STEPS_ON_GPU)
    left, right = torch.randn(2, size, size, device=trainer.device, dtype=precision)
    products = max(1, round(repeats * gflop / (2e-9 * size**3)))
    trainer.train_step()
    torch.mm(left, right)
    steps, rates = [], []
    for _ in range(ROUNDS):
        steps.append(seconds(trainer, lambda: [trainer.train_step() for _ in range(repeats)]) / repeats)
        spent = seconds(trainer, lambda: [torch.mm(left, right) for _ in range(products)])
        rates.append(2e-9 * size**3 * products / spent)
    fractions = [gflop / step / rate for step, rate in zip(steps, rates, strict=True)]
    return {
        "step_s": statistics.median(steps),
        "step_gflops": gflop / statistics.median(steps),
        "product_gflops": statistics.median(rates),
        "fraction": statistics.median(fractions),
        "fraction_low": min(fractions),
        "fraction_high": max(fractions),
    }


def seconds(trainer: Trainer, work: Callable[[], object]) -> float:
    """The time that `work` takes: core-seconds on a CPU, wall-clock seconds on a GPU."""
    if trainer.device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.accelerator.synchronize()
    start = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


@command("train", TrainConfig)
def main(config: TrainConfig, folder: Path) -> None:
    plain = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, compile=False))
    cost = counted(Trainer(plain, folder))  # torch does not count compiled code
    cost |= measured(Trainer(config, folder), cost["gflop"])
    write_text(folder / "cost.json", json.dumps(cost, indent=2))
    print(
        f"{cost['parameters']:,} parameters, batch {config.trainer.batch_size}: {cost['gflop']:.2f} GFLOP per step; "
        f"at least {cost['weight_mb']:.0f} MB moved for weights and {cost['activation_mb']:.0f} MB for activations\n"
        f"{cost['step_s']:.4f} s per step, {cost['step_gflops']:.1f} GFLOP/s; products {cost['product_gflops']:.1f} "
        f"GFLOP/s; fraction {cost['fraction']:.0%} [{cost['fraction_low']:.0%}, {cost['fraction_high']:.0%}]\n"
        f"{folder / 'cost.json'}"
    )
