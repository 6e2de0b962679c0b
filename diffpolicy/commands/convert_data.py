"""Convert a data set: python scripts/convert_data.py source=FOLDER output=FILE.zarr

    python scripts/convert_data.py source=FILE.hdf5 output=FILE.zarr workers=4
    python scripts/convert_data.py source=FILE.zarr output=FOLDER to=lerobot fps=10 images=video
    python scripts/convert_data.py source=FILE.zarr output=FILE.hdf5 to=robomimic

Reads LeRobot (v3.0 and v2.1), robomimic, Minari (HDF5) and zarr; docs/formats.md says what is kept. Nothing is at
`output` before all of it is. You can interrupt a conversion to zarr at any time and run it again: it continues where it
stopped.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from diffpolicy.commands.command import command
from diffpolicy.data.locate import find_data_set
from diffpolicy.formats.convert import convert
from diffpolicy.formats.recognise import recognise
from diffpolicy.formats.recording import Recording
from diffpolicy.formats.table import WriteSettings, open_recording
from diffpolicy.system.schema import Range


@dataclass
class ConvertConfig:
    """All settings of `convert_data.py`; see configs/convert.yaml."""

    source: str = MISSING
    output: str = MISSING
    format: str = "auto"
    to: str = "zarr"
    leave_out: list[str] = field(default_factory=list)
    fps: float | None = None
    images: str = "png"
    task_name: str = ""
    workers: Annotated[int, Range(1, 256)] = 1
    limit_s: Annotated[float, Range(above=0)] = 600.0  # how long a worker may take for one part


@command("convert", ConvertConfig)
def main(config: ConvertConfig, _: Path) -> None:
    location = find_data_set(config.source)
    name = recognise(location) if config.format == "auto" else config.format
    source = open_recording(location, name)
    print(f"{location}: {described(source, name)}")
    output = Path(config.output)
    settings = WriteSettings(config.fps, config.images, config.task_name, config.workers, config.limit_s)
    convert(source, output, config.to, settings, config.leave_out)
    source.close()
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{output}: made, {config.to}, {source.n_episodes} episodes, {size / 1e6:.2f} MB")


def described(source: Recording, name: str) -> str:
    """What an opened data set is, for a person."""
    version, fps = source.about.get("version"), source.about.get("fps")
    told = [f"{name} {version}" if version else name, f"{source.n_episodes} episodes", f"{source.n_steps} steps"]
    told += [f"{fps:g} steps per second"] if fps else []
    arrays = [f"{key} {list(shape)} {dtype}" for key, (shape, dtype) in source.specs.items()]
    return f"{', '.join(told)}; arrays: {', '.join(arrays)}"
