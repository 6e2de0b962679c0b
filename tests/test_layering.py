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

# Rooms from the ground up. A file imports from its own room and from lower floors; rooms of one floor do not know each
# other. Inside a room, files may not import in a circle.
FLOORS = (
    {"_version", "system"},
    {"codecs", "constraints", "data", "diffusion", "networks"},
    {"policy", "safety"},
    {"control"},
    {"evaluation"},
    {"demos", "training"},
    {"benchmarks"},
    {"commands"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

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


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def file_of(name: str) -> Path | None:
    """The file of the library that a name such as diffpolicy.data.store.open_root comes from; None for a package."""
    parts = name.split(".")[1:]
    for length in (len(parts), len(parts) - 1):
        path = LIBRARY.joinpath(*parts[:length]).with_suffix(".py") if length else None
        if path is not None and path.is_file():
            return path
    return None


def files_imported_by(path: Path) -> set[Path]:
    found = {file_of(name) for name in imports(path, LIBRARY) if top_of(name) == "diffpolicy"}
    return {one for one in found if one is not None}


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in python_files(LIBRARY)} - {"__init__"}
    assert rooms == set(FLOOR_OF), "a new room needs a place in FLOORS, a removed one must leave it"


def test_at_the_top_of_the_library_stand_rooms_only():
    files = {path.name for path in LIBRARY.iterdir() if path.is_file()}
    assert files == {"__init__.py", "_version.py", "py.typed"}


@pytest.mark.parametrize("path", python_files(LIBRARY), ids=name_of)
def test_imports_go_down_only(path: Path):
    here = room_of(path)
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


def test_no_files_import_each_other_in_a_circle():
    left = {path: files_imported_by(path) for path in python_files(LIBRARY) if path.name != "__init__.py"}
    while ready := [path for path, needed in left.items() if not needed & left.keys()]:
        for path in ready:
            del left[path]
    assert not left, f"in a circle, or above one: {sorted(map(name_of, left))}"


@pytest.mark.parametrize("path", python_files(LIBRARY), ids=name_of)
def test_files_name_the_file_that_defines_what_they_import(path: Path):
    """Not a room's own list of public names: that would load all of it, and hide who needs whom."""
    if path.name == "__init__.py":
        return
    packages = [n for n in imports(path, LIBRARY) if top_of(n) == "diffpolicy" and file_of(n) is None]
    assert [name for name in packages if not name.startswith("diffpolicy._version")] == []


@pytest.mark.parametrize("path", [p for root in (LIBRARY, ENVS, SCRIPTS) for p in python_files(root)], ids=name_of)
def test_no_file_is_longer_than_250_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("path", python_files(SCRIPTS), ids=name_of)
def test_a_script_is_a_call_of_its_command(path: Path):
    assert (LIBRARY / "commands" / path.name).is_file()
    assert set(imports(path, SCRIPTS)) == {f"diffpolicy.commands.{path.stem}.main"}


@pytest.mark.parametrize("path", python_files(LIBRARY) + python_files(ENVS), ids=name_of)
def test_library_and_envs_know_neither_each_other_nor_scripts(path: Path):
    root, other = (LIBRARY, "diffpolicy_envs") if path.is_relative_to(LIBRARY) else (ENVS, "diffpolicy")
    above = {"scripts", "examples", "tests", other}
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
    source.write_text("from ..policy import DiffusionPolicy\nfrom . import windows\nimport diffpolicy.training\n")
    assert list(imports(source, tmp_path / "diffpolicy")) == [
        "diffpolicy.policy.DiffusionPolicy",
        "diffpolicy.data.windows",
        "diffpolicy.training",
    ]
    for folder in ("home", "Users"):
        assert HOME_PATH.search(f"data in /{folder}/me/data")
        assert not HOME_PATH.search(f"https://example.org/{folder}/me, outputs/{folder}/me")
