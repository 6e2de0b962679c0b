"""Record demonstrations from a scripted expert: python scripts/generate_demos.py task=pusht episodes=1750

    python scripts/generate_demos.py task=reach episodes=200 seed=1 workers=2 output=FILE.zarr.zip
    python scripts/generate_demos.py task=pusht mode=corrections checkpoint=RUN/checkpoints/last output=FILE.zarr.zip
    torchrun --nproc-per-node 4 scripts/generate_demos.py task=pusht episodes=1750 output=FILE.zarr.zip

The installed command is `diffpolicy-demos`. You can interrupt it at any time and run it again: it continues where it
stopped. Episodes are collected in a directory next to the output, which is packed and removed at the end. The file is
bit for bit the same for any number of processes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING

from diffpolicy.commands.command import command
from diffpolicy.commands.known import UNUSED
from diffpolicy.demos.generate import generate
from diffpolicy.evaluation.settings import Episodes
from diffpolicy.system.distributed import joined
from diffpolicy.system.schema import Range
from diffpolicy.system.time_limits import Seconds

DEMONSTRATIONS, CORRECTIONS = "demonstrations", "corrections"


@dataclass
class GenerateConfig:
    """All settings of `generate_demos.py`; see configs/generate.yaml."""

    task: str = MISSING
    episodes: Episodes = 1750
    seed: Annotated[int, Range(0, 4000)] = 0
    output: str = MISSING
    mode: str = DEMONSTRATIONS  # or corrections
    checkpoint: str | None = None  # whose failures are corrected
    workers: Annotated[int, Range(1, 256)] = 1
    limit_s: Seconds = 600.0  # how long a worker may take for one attempt
    expert: dict[str, Any] = field(default_factory=dict)
    data: Any = field(default=None, metadata=UNUSED)
    diffusion: Any = field(default=None, metadata=UNUSED)
    encoder: Any = field(default=None, metadata=UNUSED)
    env: Any = field(default=None, metadata=UNUSED)
    trainer: Any = field(default=None, metadata=UNUSED)
    window: Any = field(default=None, metadata=UNUSED)


@command("generate", GenerateConfig)
def main(config: GenerateConfig, _: Path) -> None:
    _check(config)
    output = Path(config.output)
    did = "already exists, with the same" if output.exists() else "made, with"
    with joined() as ranks:
        generate(
            config.task,
            config.episodes,
            config.seed,
            output,
            config.workers,
            config.expert,
            ranks,
            config.limit_s,
            config.checkpoint,
        )
    if ranks.is_first:
        print(f"{output}: {did} {config.episodes} episodes, {output.stat().st_size / 1e6:.2f} MB")


def _check(config: GenerateConfig) -> None:
    if config.mode not in (DEMONSTRATIONS, CORRECTIONS):
        raise ValueError(f"mode: {config.mode!r} is unknown, expected {DEMONSTRATIONS} or {CORRECTIONS}")
    if config.mode == CORRECTIONS and config.checkpoint is None:
        raise ValueError("mode: corrections are of a policy's failures; give checkpoint=RUN/checkpoints/last")
    if config.mode == DEMONSTRATIONS and config.checkpoint is not None:
        raise ValueError("checkpoint: demonstrations need no policy; give mode=corrections to correct its failures")
