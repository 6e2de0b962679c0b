"""Export a policy: python scripts/export_policy.py checkpoint=RUN/checkpoints/last output=FOLDER

    python scripts/export_policy.py checkpoint=... output=FOLDER sampler=dpmpp_2m sampler.steps=5 parts=[policy]
    python scripts/export_policy.py checkpoint=... output=FOLDER 'box={low: [0, 0], high: [512, 512]}'
    python scripts/export_policy.py checkpoint=... output=FOLDER format=lerobot 'names={agent: observation.state, ...}'

The installed command is `diffpolicy-export`. Writes encoder.onnx, step.onnx and policy.onnx, the whole loop of the
sampler, for onnxruntime (docs/onnx.md); each is compared with torch before it is kept. With format=lerobot it writes a
checkpoint for LeRobot, whose scheduler and steps are those of the sampler, ddpm or ddim (docs/checkpoints.md).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from diffpolicy.commands.command import command
from diffpolicy.interop.onnx_export import OPSETS, export_onnx
from diffpolicy.interop.onnx_parts import PARTS
from diffpolicy.interop.to_lerobot import to_lerobot
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.system.schema import Count, OneOf, Range, read

SCHEDULERS = {"ddpm": "DDPM", "ddim": "DDIM"}


@dataclass
class BoxLimits:
    """The lowest and the highest value of each action feature, in physical units; empty for no limits."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass
class ExportPolicyConfig:
    """All settings of `export_policy.py`; see configs/export_policy.yaml."""

    checkpoint: str
    output: str
    format: Annotated[str, OneOf("onnx", "lerobot")] = "onnx"
    sampler: Any = "auto"
    parts: Annotated[list[str], Count(1, len(PARTS))] = field(default_factory=lambda: list(PARTS))
    box: BoxLimits = field(default_factory=BoxLimits)
    opset: Annotated[int, Range(*OPSETS)] = OPSETS[0]
    names: Any = None


@command("export_policy", ExportPolicyConfig)
def main(config: ExportPolicyConfig, _: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(config.checkpoint)
    if config.format == "lerobot":
        _to_lerobot(config, policy)
        return
    box = (config.box.low, config.box.high) if config.box.low or config.box.high else None
    found = export_onnx(policy, config.output, config.sampler, box=box, parts=config.parts, opset=config.opset)
    for name, apart in found.items():
        path = Path(config.output) / f"{name}.onnx"
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, differs from torch by at most {apart:.1e} of encoded units")


def _to_lerobot(config: ExportPolicyConfig, policy: DiffusionPolicy) -> None:
    sampler = policy.sampling(config.sampler).settings
    if sampler.name not in SCHEDULERS:
        raise ValueError(f"sampler: LeRobot has no {sampler.name}; use sampler=ddim or sampler=ddpm")
    names = read(dict[str, str] | None, config.names, "names")
    to_lerobot(policy, config.output, names, SCHEDULERS[sampler.name], sampler.steps)
    print(f"{config.output}: a checkpoint of LeRobot, {SCHEDULERS[sampler.name]} with {sampler.steps} steps")
