"""The wheel holds the packages and the shipped files; its core acts without any extra; with `train` it trains."""

import json
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
from pendulum import make_task

REPOSITORY = Path(__file__).parents[1]
linked = pytest.mark.skipif(os.name == "nt", reason="links need privileges there")
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
observation = {key: np.full((1, spec.features), 256.0) for key, spec in policy.config.observations.items()}
actions = np.stack([controller.select_action(observation) for _ in range(20)])
assert actions.shape == (20, 1, policy.config.action_dim) and np.isfinite(actions).all()
print(diffpolicy.__file__)
"""


def run(*command: str | Path, folder: Path | None = None, **environment: str) -> str:
    """Run a command that must succeed in `folder`, without the checkout on its path; returns its standard output."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DIFFPOLICY_DATA")}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=folder, env=clean | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY)
    (path,) = folder.glob("diffpolicy-*.whl")
    return path


def distributions(extra: str = "") -> list[metadata.Distribution]:
    """The transitive dependencies of diffpolicy, with or without an extra, excluding diffpolicy itself."""
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
    """Make an installed distribution and its metadata visible in another environment."""
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        source, target = Path(str(distribution.locate_file(top))), site_packages / top
        if source.exists() and not target.exists():
            target.symlink_to(source, target_is_directory=source.is_dir())


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:
    """Create an environment with the wheel and its dependencies only; returns its interpreter."""
    venv.create(folder, symlinks=os.name != "nt")
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder), "installed_base": str(folder)}))
    python = scripts / Path(sys.executable).name
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for distribution in distributions(extra):
        link(distribution, site_packages)
    # Without an index, pip fails here if the wheel needs anything that is not linked.
    wanted = f"{wheel}[{extra}]" if extra else wheel
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", wanted, PIP_FIND_LINKS="")
    return python


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with torch, numpy, einops, safetensors and their dependencies."""
    return environment(tmp_path_factory.mktemp("bare") / "environment", wheel)


@pytest.fixture(scope="module")
def train_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as `pip install 'diffpolicy[train]'` creates it."""
    return environment(tmp_path_factory.mktemp("train") / "environment", wheel, "train")


def files_of(*folders: str) -> set[str]:
    """Paths in the repository of all files in a folder, without compiled ones."""
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    return {path.relative_to(REPOSITORY).as_posix() for path in found if "__pycache__" not in path.parts}


def test_it_holds_the_two_packages_the_configs_the_data_and_metadata_alone(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    version = re.match(r"diffpolicy-([^-]+)-", wheel.name)
    assert version
    metadata_files = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    expected = files_of("diffpolicy") | {f"diffpolicy-{version[1]}.dist-info/{name}" for name in metadata_files}
    expected |= {name.removeprefix("envs/") for name in files_of("envs/diffpolicy_envs")}
    expected |= {f"diffpolicy/shipped/{name}" for name in files_of("configs", "data")}
    assert names == expected
    assert {"diffpolicy/py.typed", "diffpolicy_envs/py.typed"} <= names


def test_it_stays_small(wheel: Path):
    """17 MB of it are the shipped demonstrations and three checkpoints, one of a policy that sees (4 MB)."""
    assert wheel.stat().st_size < 18_500_000


def test_an_editable_install_copies_nothing(tmp_path: Path):
    """An editable install reads configs and data from the checkout."""
    program = f"import os; os.chdir({str(REPOSITORY)!r})\n"
    program += f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
    name = run(sys.executable, "-c", program).strip()
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert [each for each in archive.namelist() if ".dist-info/" not in each] == ["_diffpolicy.pth"]


@linked
def test_without_extras_it_loads_the_shipped_checkpoint_and_acts(
    bare_python: Path, shipped_checkpoint: Path, tmp_path: Path
):
    program = tmp_path / "act.py"
    program.write_text(ACT)
    location = run(bare_python, "-I", program, shipped_checkpoint, *EXTRAS)
    assert Path(location.strip()).is_relative_to(bare_python.parents[1])


def installed(python: Path, name: str, folder: Path, *settings: str) -> str:
    """Run one of the wheel's commands outside the checkout.

    Without numba's compiler, which would take longer than these few steps do without it.
    """
    script = python.with_name(f"{name}.exe" if os.name == "nt" else name)
    return run(script, *settings, folder=folder, NUMBA_DISABLE_JIT="1", OMP_NUM_THREADS="1")


TINY = ["model.widths=[8,16]", "model.time_embedding_dim=8", "trainer.batch_size=16", "trainer.steps=4", "device=cpu"]


@linked
def test_with_the_train_extra_the_code_that_runs_is_the_wheels(train_python: Path, tmp_path: Path):
    names = ("diffpolicy", "diffpolicy_envs")
    program = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {names}))"
    for location in run(train_python, "-c", program, folder=tmp_path).split():
        assert Path(location).is_relative_to(train_python.parents[1])


@linked
def test_it_trains_on_the_shipped_demonstrations(train_python: Path, tmp_path: Path):
    done = installed(train_python, "diffpolicy-train", tmp_path, "task=pusht", "env=null", *TINY, "hydra.run.dir=run")
    assert f"checkpoint: {tmp_path / 'run' / 'checkpoints' / 'last'}" in done
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()


@linked
def test_it_evaluates_the_shipped_checkpoint(train_python: Path, tmp_path: Path):
    name = "data/checkpoints/pusht_small"
    settings = [f"checkpoint={name}", "episodes=2", "videos=0", "inference_batch=2", "device=cpu", "hydra.run.dir=out"]
    installed(train_python, "diffpolicy-evaluate", tmp_path, *settings)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["checkpoint"], results["task"], results["n_episodes"]) == (name, "pusht", 2)


@linked
@pytest.mark.slow
def test_it_records_demonstrations(train_python: Path, tmp_path: Path):
    done = installed(train_python, "diffpolicy-demos", tmp_path, "task=reach", "episodes=1", "output=one.zarr.zip")
    assert "one.zarr.zip: made, with 1 episodes" in done
    assert [path.name for path in tmp_path.iterdir()] == ["one.zarr.zip"]


@linked
@pytest.mark.slow
def test_it_knows_the_settings_of_the_sampler_benchmark(train_python: Path, tmp_path: Path):
    done = installed(train_python, "diffpolicy-benchmark-samplers", tmp_path, "--cfg", "job")
    assert "latency_calls: 50\n" in done
    assert list(tmp_path.iterdir()) == []


@linked
@pytest.mark.slow
def test_a_task_of_the_users_own_trains_from_a_folder_of_theirs(train_python: Path, tmp_path: Path):
    folder = make_task(tmp_path / "tasks")
    short = ["evaluation.episodes=1", "evaluation.inference_batch=1", "sampler.steps=1", "hydra.run.dir=run"]
    installed(train_python, "diffpolicy-train", tmp_path, "--config-dir", str(folder), "task=pendulum", *TINY, *short)
    config = json.loads((tmp_path / "run" / "checkpoints" / "last" / "config.json").read_text())
    assert config["task"] == "pendulum"
    assert config["env"]["id"] == "Pendulum-v1"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("mean_score" in row for row in rows)


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
