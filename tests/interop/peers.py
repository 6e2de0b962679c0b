"""Fixtures of other libraries: unpacking, and comparing our plans with theirs at every step."""

import tarfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.table import Row
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.plan_projection import PlanProjection

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 1e-4  # of the range: theirs and ours round differently, in float32, at every one of up to 100 steps


def unpacked(name: str, folder: Path) -> Path:
    """The folder with the files of a fixture."""
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder / name, filter="data")
    return folder / name


def names(prefix: str) -> list[str]:
    return sorted(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob(f"{prefix}*.tar.xz"))


def golden(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "golden.safetensors")


@torch.inference_mode()
def worst_of(
    policy: DiffusionPolicy, observation: dict[str, Tensor], sampler: object, theirs: dict[str, Tensor]
) -> float:
    """The largest difference to their plan, and to what enters their network at any step, as a part of the range.

    Args:
        theirs: noise [steps + 1, B, H, A], x [steps or more, B, H, A] that enters the network, and plan [B, H, A].
    """
    table, seen = policy.sampler(sampler), []
    denoise = policy.denoiser_at(policy.condition(observation), table.rows)

    def watched(x: Tensor, row: Row) -> Tensor:
        seen.append(x.clone())
        return denoise(x, row)

    projection = PlanProjection(policy.codec, 0, None)
    last = reverse(watched, table, theirs["noise"], projection.project)
    plan = projection.finish(last, table.rows[-1], len(table))
    steps = torch.stack(seen)
    pairs = [(plan, theirs["plan"]), *zip(steps, theirs["x"], strict=False)]
    return max(float((ours - others).abs().max() / (others.max() - others.min())) for ours, others in pairs)


def of_kind(found: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): value for name, value in found.items() if name.startswith(kind)}
