"""The wheel holds the two packages alone, and its core runs a policy with no extra in reach."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
EXTRAS = ["gymnasium", "hydra", "omegaconf", "zarr", "pymunk", "numba", "cv2", "tqdm", "matplotlib", "wandb"]

ACT = """
import importlib.util, sys
import numpy as np
import diffpolicy
from diffpolicy import DiffusionPolicy, PolicyController

checkpoint, *extras = sys.argv[1:]
found = [name for name in extras if importlib.util.find_spec(name)]
assert not found, f"in reach: {found}"
policy = DiffusionPolicy.from_pretrained(checkpoint)
controller = PolicyController(policy)
controller.reset(seeds=[0])
observation = {key: np.full((1, dim), 256.0) for key, dim in policy.config.observations.items()}
actions = np.stack([controller.select_action(observation) for _ in range(20)])
assert actions.shape == (20, 1, policy.config.action_dim) and np.isfinite(actions).all()
print(diffpolicy.__file__)
"""


def run(*command: str | Path, **environment: str) -> str:
    """Standard output of a command that must succeed; the checkout is not on its path."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=clean | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY)
    (path,) = folder.glob("diffpolicy-*.whl")
    return path


def distributions(extra: str = "") -> list[metadata.Distribution]:
    """What diffpolicy needs with an extra or without, and what that needs in turn; not diffpolicy itself."""
    found: dict[tuple[str, str], metadata.Distribution] = {}
    waiting = [("diffpolicy", ""), ("diffpolicy", extra)]
    while waiting:
        name, extra = key = waiting.pop()
        if key not in found:
            found[key] = metadata.distribution(name)
            for requirement in map(Requirement, found[key].requires or []):
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    waiting += [(canonicalize_name(requirement.name), one) for one in ("", *requirement.extras)]
    return [distribution for (name, _), distribution in found.items() if name != "diffpolicy"]


def link(distribution: metadata.Distribution, site_packages: Path) -> None:
    """Make an installed distribution, its metadata included, visible in another environment."""
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        source, target = Path(str(distribution.locate_file(top))), site_packages / top
        if source.exists() and not target.exists():
            target.symlink_to(source, target_is_directory=source.is_dir())


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:
    """The interpreter of a new environment with the wheel, what it needs, and nothing else."""
    venv.create(folder, symlinks=os.name != "nt")
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder), "installed_base": str(folder)}))
    python = scripts / Path(sys.executable).name
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for distribution in distributions(extra):
        link(distribution, site_packages)
    # Without an index: pip stops here if the wheel asks for anything that is not among the links.
    wanted = f"{wheel}[{extra}]" if extra else wheel
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", wanted, PIP_FIND_LINKS="")
    return python


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With torch, numpy, einops, safetensors, and what these need."""
    return environment(tmp_path_factory.mktemp("bare") / "environment", wheel)


@pytest.fixture(scope="module")
def train_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pip install 'diffpolicy[train]'` makes it."""
    return environment(tmp_path_factory.mktemp("train") / "environment", wheel, "train")


def test_it_holds_the_two_packages_and_metadata_alone(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    version = re.match(r"diffpolicy-([^-]+)-", wheel.name)
    assert version
    assert {name.split("/")[0] for name in names} == {
        "diffpolicy",
        "diffpolicy_envs",
        f"diffpolicy-{version[1]}.dist-info",
    }
    assert {"diffpolicy/py.typed", "diffpolicy_envs/py.typed"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.skipif(os.name == "nt", reason="links need privileges there")
def test_without_extras_it_loads_the_shipped_checkpoint_and_acts(
    bare_python: Path, shipped_checkpoint: Path, tmp_path: Path
):
    program = tmp_path / "act.py"
    program.write_text(ACT)
    location = run(bare_python, "-I", program, shipped_checkpoint, *EXTRAS)
    assert Path(location.strip()).is_relative_to(bare_python.parents[1])


def test_the_tested_set_pins_every_direct_dependency_within_its_range():
    pins = {
        canonicalize_name(pin.name): pin
        for pin in map(Requirement, re.findall(r"^\w.*$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    }
    for text in metadata.requires("diffpolicy") or []:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in ("diffpolicy", "pip"):  # itself; the installer
            continue
        assert name in pins, f"constraints.txt does not pin {name}"
        (version,) = pins[name].specifier
        assert requirement.specifier.contains(version.version), f"{pins[name]} is not within {requirement}"
