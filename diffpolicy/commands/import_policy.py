"""Import a policy of another library: python scripts/import_policy.py source=FILE_OR_FOLDER output=FOLDER

    python scripts/import_policy.py source=... output=FOLDER 'rename={observation.state: state}'

Reads folders of LeRobot's diffusion policies, and .ckpt files of diffusion_policy without running what they pickle.
The output is a checkpoint for DiffusionPolicy.from_pretrained. docs/checkpoints.md says what is kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from diffpolicy.commands.command import command
from diffpolicy.interop.importing import import_policy
from diffpolicy.system.schema import OneOf, read


@dataclass
class ImportPolicyConfig:
    """All settings of `import_policy.py`; see configs/import_policy.yaml."""

    source: str
    output: str
    weights: Annotated[str, OneOf("ema", "model")] = "ema"
    rename: Any = None


@command("import_policy", ImportPolicyConfig)
def main(config: ImportPolicyConfig, _: Path) -> None:
    rename = read(dict[str, str] | None, config.rename, "rename")
    policy = import_policy(config.source, config.weights, rename)
    policy.save_pretrained(config.output)
    imported = policy.metadata["imported"]
    sampler = imported["sampler"]
    shapes = ", ".join(f"{key} {list(spec.shape)}" for key, spec in policy.config.observations.items())
    print(f"{config.output}: {imported['format']}, observations {shapes}, actions [{policy.config.action_dim}]")
    settings = " ".join(f"sampler.{name}={value}" for name, value in sampler.items() if name != "name")
    print(f"as it was sampled there: sampler={sampler['name']} {settings}")
    for what in imported["lost"]:
        print(f"not kept: {what}")
