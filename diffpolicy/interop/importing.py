"""Policies of other libraries as policies of ours: what a file or folder is, is recognised by its content."""

from collections.abc import Mapping
from pathlib import Path

from diffpolicy.interop.building import built
from diffpolicy.interop.diffusion_policy import read_diffusion_policy
from diffpolicy.interop.lerobot import read_lerobot
from diffpolicy.interop.reading import Imported
from diffpolicy.interop.renaming import renamed
from diffpolicy.policy.diffusion import DiffusionPolicy

WEIGHTS = ("ema", "model")


def import_policy(source: str | Path, weights: str = "ema", rename: Mapping[str, str] | None = None) -> DiffusionPolicy:
    """The policy in a folder of LeRobot, or in a .ckpt file of diffusion_policy; ready to act, or to be saved.

    No code of the file runs, and nothing is unpickled. `policy.metadata["imported"]` has the sampler that the other
    library would use, and what was lost.

    Args:
        weights: of a .ckpt file: ema, the averaged weights, or model, those of the last step.
        rename: their observation -> the name that it gets here.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is of another kind, damaged or refused, the policy has what ours cannot represent, or a name does
            not fit.
    """
    return built(renamed(read_policy(Path(source), weights), rename or {}))


def read_policy(source: Path, weights: str = "ema") -> Imported:
    """What `import_policy` builds its policy from; raises as it does."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} must be one of {', '.join(WEIGHTS)}")
    if source.is_file():
        return read_diffusion_policy(source, weights)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder")
    if (source / "config.json").is_file():
        return read_lerobot(source)
    found = ", ".join(sorted(path.name for path in source.iterdir())[:8])
    raise ValueError(
        f"{source} is no checkpoint: expected config.json and model.safetensors, as LeRobot writes them, or instead of "
        f"a folder a .ckpt file; it holds {found}"
    )
