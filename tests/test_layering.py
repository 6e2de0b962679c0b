"""The floors of the library, what an import may pull in, and what the source may not contain."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LIBRARY = REPOSITORY / "diffpolicy"
ENVS = REPOSITORY / "envs" / "diffpolicy_envs"
SCRIPTS = REPOSITORY / "scripts"
EXAMPLES = REPOSITORY / "examples"

# From the ground up. A module imports from lower floors only; a folder counts as one module and may import itself.
FLOORS = (
    {
        "_version",
        "checkpoint",
        "config",
        "constraints",
        "data",
        "device",
        "diffusion",
        "files",
        "graph",
        "intervals",
        "networks",
        "observations",
        "stopping",
        "video",
    },
    {
        "build",
        "distributed",
        "metrics",
        "plan_projection",
        "run_checkpoints",
        "safety",
        "streaming",
        "trainer_settings",
        "training_state",
    },
    {"sampling"},
    {"batches", "policy"},
    {"controller", "ema"},
    {"rollout"},
    {"sharding"},
    {"evaluation"},
    {"trainer"},
)
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}

NOT_IN_THE_CORE = [
    "zarr",
    "gymnasium",
    "hydra",
    "omegaconf",
    "wandb",
    "diffusers",
    "matplotlib",
    "imageio",
    "cv2",
    "numba",
    "pymunk",
    "pygame",
    "tqdm",
]
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"}
HOME_PATH = re.compile(r"(?<![\w.~*:/-])/(?:home|work|root|Users)/\w")


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path, root: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it; `from a import b` gives a.b."""
    package = [root.name, *path.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top_of(name: str) -> str:
    return name.partition(".")[0]


def module_in_library(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def modules_of_library() -> set[str]:
    return {module_in_library(path) for path in python_files(LIBRARY)} - {"__init__"}


def test_every_module_has_a_floor():
    assert modules_of_library() == set(FLOOR_OF), "a new module needs a place in FLOORS, a removed one must leave it"


@pytest.mark.parametrize("path", python_files(LIBRARY), ids=name_of)
def test_imports_go_down_only(path: Path):
    here = module_in_library(path)
    if here == "__init__":
        return  # gives the public names from all floors
    for name in imports(path, LIBRARY):
        if top_of(name) != "diffpolicy":
            continue
        there = name.split(".")[1]
        assert there in FLOOR_OF, f"{name_of(path)} imports {name}, expected the module that defines it"
        assert there == here or FLOOR_OF[there] < FLOOR_OF[here], (
            f"{name_of(path)} (floor {FLOOR_OF[here]}) imports {name} (floor {FLOOR_OF[there]}); expected a lower floor"
        )


@pytest.mark.parametrize("path", python_files(LIBRARY) + python_files(ENVS), ids=name_of)
def test_library_and_envs_know_neither_each_other_nor_scripts(path: Path):
    root, other = (LIBRARY, "diffpolicy_envs") if path.is_relative_to(LIBRARY) else (ENVS, "diffpolicy")
    above = {"scripts", "examples", "tests", other} | {script.stem for script in python_files(SCRIPTS)}
    assert not above & {top_of(name) for name in imports(path, root)}


@pytest.mark.parametrize("path", python_files(EXAMPLES), ids=name_of)
def test_examples_need_the_core_only(path: Path):
    allowed = {"diffpolicy", "numpy", "torch", *sys.stdlib_module_names}
    assert {top_of(name) for name in imports(path, EXAMPLES)} <= allowed


def loaded_by(imported: str, among: list[str]) -> set[str]:
    """Which of the modules `among` a fresh interpreter has after importing."""
    program = f"import sys, {imported}; print(*[name for name in {among!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    return set(done.stdout.split())


def test_the_library_alone_pulls_in_no_extra():
    by_dependencies = loaded_by("torch, numpy, einops, safetensors.torch", NOT_IN_THE_CORE)  # torch takes tqdm if there
    assert loaded_by("diffpolicy", NOT_IN_THE_CORE) <= by_dependencies


def test_registering_the_envs_loads_no_physics_drawing_or_compiler():
    heavy = ["pymunk", "cv2", "pygame", "numba", "torch", "diffpolicy"]
    assert loaded_by("diffpolicy_envs", heavy) <= loaded_by("gymnasium", heavy)


@pytest.mark.parametrize(
    "path", [p for root in (LIBRARY, ENVS, SCRIPTS, EXAMPLES) for p in python_files(root)], ids=name_of
)
def test_no_file_can_run_code_from_data(path: Path):
    assert not UNSAFE_MODULES & {top_of(name) for name in imports(path, path.parent)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, f"{name_of(path)}:{node.lineno}"
            unpickles = [word for word in node.keywords if word.arg == "allow_pickle"]
            assert all(isinstance(word.value, ast.Constant) and word.value.value is False for word in unpickles)


def texts_of_repository() -> list[Path]:
    """Files under version control that are text; none where there is no git checkout."""
    if not shutil.which("git"):
        return []
    done = subprocess.run(["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, text=True)
    files = [REPOSITORY / name for name in done.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()]


def test_no_text_names_a_folder_of_the_authors_machine():
    files = texts_of_repository()
    if not files:
        pytest.skip("not a git checkout")
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if HOME_PATH.search(line)
    ]
    assert found == []


def test_the_checks_see_what_they_look_for(tmp_path: Path):
    source = tmp_path / "diffpolicy" / "data" / "module.py"
    source.parent.mkdir(parents=True)
    source.write_text("from ..policy import DiffusionPolicy\nfrom . import windows\nimport diffpolicy.trainer\n")
    assert list(imports(source, tmp_path / "diffpolicy")) == [
        "diffpolicy.policy.DiffusionPolicy",
        "diffpolicy.data.windows",
        "diffpolicy.trainer",
    ]
    for folder in ("home", "Users"):
        assert HOME_PATH.search(f"data in /{folder}/me/data")
        assert not HOME_PATH.search(f"https://example.org/{folder}/me, outputs/{folder}/me")
