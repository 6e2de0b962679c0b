"""The layering of the library, what an import may load, and what the source must not contain."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LIBRARY = REPOSITORY / "diffpolicy"
ENVS = REPOSITORY / "envs" / "diffpolicy_envs"
SCRIPTS = REPOSITORY / "scripts"
EXAMPLES = REPOSITORY / "examples"

# Rooms from the ground floor up. A file imports from its own room and from lower floors, never from another room on the
# same floor. Files in a room must not import each other in a circle.
FLOORS = (
    {"_version", "system"},
    {"codecs", "constraints", "data", "diffusion", "networks"},
    {"formats", "policy", "safety"},
    {"control", "interop"},
    {"evaluation"},
    {"demos", "training"},
    {"benchmarks"},
    {"commands"},
)
# Inside a room too, files stand on shelves: from the second upwards these, a folder standing for its files; what is not
# named stands on the lowest. A file imports from lower shelves; files of one shelf do not know each other.
SHELVES = {
    "benchmarks": ("adversary inference_worker",),
    "codecs": ("autoencoder normalizer", "vae"),
    "commands": (
        "command",
        "benchmark_adversary benchmark_envs benchmark_gpu benchmark_inference benchmark_planning "
        "benchmark_safety benchmark_samplers benchmark_streaming benchmark_training convert_data evaluate_policy "
        "export_policy generate_demos import_policy optimize_steps plot_baselines plot_diffusion plot_safety "
        "train_policy training_cost",
    ),
    "constraints": (
        "plant planar/obstacles",
        "constraint",
        "limits planar/keep_out region task trajectory",
        "assumptions calls knots",
        "margins projector",
        "certificate",
        "fallback",
    ),
    "control": ("drawing", "controller wrapper", "latency"),
    "data": ("images memory_bounds replacing", "store stream", "arrays", "replay_buffer", "demonstrations locate"),
    "demos": ("corrections parts", "generate"),
    "diffusion": (
        "samplers/table schedules step_grids weighting",
        "samplers reverse spacing",
        "diffusers_sampler guidance objectives ode",
        "likelihood",
    ),
    "evaluation": ("monitor outcome saved_env", "rollout", "env_check sharded views", "video", "evaluate"),
    "formats": (
        "images statistics zarr_source",
        "hdf5 parquet video",
        "lerobot_meta minari robomimic",
        "lerobot_names",
        "lerobot to_lerobot to_zarr",
        "table",
        "convert recognise",
    ),
    "interop": (
        "eyes lerobot_statistics machine network_tensors onnx_modules plain_config published_statistics schedulers "
        "transformer_names views",
        "building lerobot_eyes names onnx_metadata onnx_parts published_images renaming",
        "lerobot onnx_file pickles to_lerobot_images",
        "onnx_export torch_file",
        "diffusion_policy to_lerobot",
        "importing",
    ),
    "networks": ("layers", "protocols", "backbones encoders"),
    "policy": (
        "normalizers",
        "build plan_projection",
        "migration sampling",
        "protocol",
        "model_card",
        "pretrained",
        "diffusion",
        "analysis kinds",
    ),
    "safety": ("build memory projection", "samples", "choice", "layer"),
    "system": ("lock schema tensor_file", "checkpoint pixels pool tables time_limits", "distributed"),
    "training": (
        "drawing mixture",
        "batches rendering evaluating run_folder run_log run_settings",
        "data_formats sharded_loss",
        "optimization splits starting teaching validation",
        "trainer",
    ),
}
# Folders whose files are entries of one table and must not import each other. Files named after the folder are shared.
TABLES = {
    "diffusion/samplers": {"table", "settings"},
    "diffusion/objectives": {"objective", "levels", "denoising"},
    "networks/encoders": {"images", "imagenet"},
}
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
    "pyarrow",
    "av",
    "h5py",
    "PIL",
    "onnx",
    "onnxruntime",
    "huggingface_hub",
]
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"}
HOME_PATH = re.compile(r"(?<![\w.~*:/-])/(?:home|work|root|Users)/\w")


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path, root: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, at any depth; `from a import b` gives a.b."""
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
    """The library file that defines a name such as diffpolicy.data.store.open_root; None for a package."""
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


def test_imports_go_down_only():
    wrong = []
    for path in python_files(LIBRARY):
        here = room_of(path)
        if here == "__init__":
            continue  # exports the public names of all floors
        for name in imports(path, LIBRARY):
            if top_of(name) != "diffpolicy":
                continue
            there = name.split(".")[1]
            if there not in FLOOR_OF:
                wrong.append(f"{name_of(path)} imports {name}, expected the module that defines it")
            elif there != here and FLOOR_OF[there] >= FLOOR_OF[here]:
                wrong.append(f"{name_of(path)} (floor {FLOOR_OF[here]}) imports {name} (floor {FLOOR_OF[there]})")
    assert wrong == [], "expected imports from lower floors"


def shelf_of(path: Path) -> tuple[int, str]:
    """The number of a file's shelf, 0 if it is not named, and the name in SHELVES that it stands there by: the longest
    that fits."""
    room, _, rest = str(path.relative_to(LIBRARY).with_suffix("")).partition("/")
    places = {name: number for number, names in enumerate(SHELVES.get(room, ()), start=1) for name in names.split()}
    name = rest if rest in places else rest.partition("/")[0]
    return (places[name], name) if name in places else (0, rest)


def test_inside_a_room_imports_go_down_only_too():
    wrong = []
    for path in python_files(LIBRARY):
        if path.name == "__init__.py":
            continue  # gives the public names from all shelves
        (here, name) = shelf_of(path)
        for other in files_imported_by(path) - {path}:
            (there, others_name) = shelf_of(other)
            if room_of(other) == room_of(path) and name != others_name and there >= here:
                wrong.append(f"{name_of(path)} (shelf {here}) imports {name_of(other)} (shelf {there})")
    assert wrong == [], "expected imports from lower shelves"
    files = {str(path.relative_to(LIBRARY).with_suffix("")) for path in LIBRARY.rglob("*")}
    names = {f"{room}/{name}" for room, shelves in SHELVES.items() for names in shelves for name in names.split()}
    assert names <= files, "SHELVES names what does not exist"


def test_entries_of_a_table_do_not_know_each_other():
    wrong = []
    for folder, shared in TABLES.items():
        entries = [path for path in python_files(LIBRARY / folder) if path.stem not in {"__init__", *shared}]
        assert entries, f"{folder} holds no entry"
        for path in entries:
            wrong += [
                f"{name_of(path)} imports {name_of(one)}" for one in files_imported_by(path) & {*entries} - {path}
            ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    left = {path: files_imported_by(path) for path in python_files(LIBRARY) if path.name != "__init__.py"}
    while ready := [path for path, needed in left.items() if not needed & left.keys()]:
        for path in ready:
            del left[path]
    assert not left, f"in a circle, or above one: {sorted(map(name_of, left))}"


def test_files_name_the_file_that_defines_what_they_import():
    """Importing a room's public names instead would load the whole room and hide which file is needed."""
    found = [
        f"{name_of(path)} imports {name}"
        for path in python_files(LIBRARY)
        for name in imports(path, LIBRARY)
        if path.name != "__init__.py" and top_of(name) == "diffpolicy" and file_of(name) is None
    ]
    assert [line for line in found if " imports diffpolicy._version" not in line] == []


def test_no_file_is_longer_than_250_lines():
    files = [path for root in (LIBRARY, ENVS, SCRIPTS) for path in python_files(root)]
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 250} == {}


def test_no_function_has_40_lines():
    found = {
        f"{name_of(path)}: {node.name}"
        for root in (LIBRARY, ENVS, SCRIPTS, EXAMPLES)
        for path in python_files(root)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 39
    }
    assert found == set()


def test_a_script_is_a_call_of_its_command():
    scripts = python_files(SCRIPTS)
    assert [name_of(path) for path in scripts if not (LIBRARY / "commands" / path.name).is_file()] == []
    found = {name_of(path): {*imports(path, SCRIPTS)} for path in scripts}
    assert found == {name_of(path): {f"diffpolicy.commands.{path.stem}.main"} for path in scripts}


def strangers(folder: Path, is_stranger: Callable[[str], bool]) -> list[str]:
    """Imports in `folder` from packages that its files must not use."""
    return [
        f"{name_of(path)} imports {name}"
        for path in python_files(folder)
        for name in imports(path, folder)
        if is_stranger(top_of(name))
    ]


def test_library_and_envs_know_neither_each_other_nor_scripts():
    above = {"scripts", "examples", "tests"}
    assert strangers(LIBRARY, (above | {"diffpolicy_envs"}).__contains__) == []
    assert strangers(ENVS, (above | {"diffpolicy"}).__contains__) == []


def test_examples_need_the_core_only():
    siblings = {path.stem for path in EXAMPLES.glob("*.py")}
    allowed = {"diffpolicy", "numpy", "torch", *siblings, *sys.stdlib_module_names}
    found = strangers(EXAMPLES, lambda package: package not in allowed)
    without_torch = [f"examples/onnx_control_loop.py imports {package}" for package in ("gymnasium", "onnxruntime")]
    assert found == without_torch


def loaded_by(imported: str, among: list[str]) -> set[str]:
    """The modules in `among` that a fresh interpreter has loaded after an import."""
    program = f"import sys, {imported}; print(*[name for name in {among!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    return set(done.stdout.split())


def test_the_library_alone_pulls_in_no_extra():
    by_dependencies = loaded_by("torch, numpy, einops, safetensors.torch", NOT_IN_THE_CORE)  # torch takes tqdm if there
    assert loaded_by("diffpolicy", NOT_IN_THE_CORE) <= by_dependencies


def test_registering_the_envs_loads_no_physics_drawing_or_compiler():
    heavy = ["pymunk", "cv2", "pygame", "numba", "torch", "diffpolicy"]
    assert loaded_by("diffpolicy_envs", heavy) <= loaded_by("gymnasium", heavy)


def dangers(path: Path) -> Iterator[str]:
    """Calls and imports in a file that could run code from data."""
    yield from (name for name in imports(path, path.parent) if top_of(name) in UNSAFE_MODULES)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in UNSAFE_CALLS:
                yield f"line {node.lineno}: {ast.unparse(node.func)}"
            for word in node.keywords:
                is_off = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg == "allow_pickle" and not is_off:
                    yield f"line {node.lineno}: allow_pickle"


def test_no_file_can_run_code_from_data():
    files = [path for root in (LIBRARY, ENVS, SCRIPTS, EXAMPLES) for path in python_files(root)]
    assert {name_of(path): found for path in files if (found := [*dangers(path)])} == {}


def texts_of_repository() -> list[Path]:
    """Text files under version control; none without a git checkout."""
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
    source.write_text("import pickle\nx = eval('1')\nnp.load(p, allow_pickle=True)\nnp.load(p, allow_pickle=False)\n")
    assert list(dangers(source)) == ["pickle", "line 2: eval", "line 3: allow_pickle"]
    shelves = {"samplers/table.py": 1, "samplers/heun.py": 2, "schedule.py": 0}
    assert {name: shelf_of(LIBRARY / "diffusion" / name)[0] for name in shelves} == shelves
    for folder in ("home", "Users"):
        assert HOME_PATH.search(f"data in /{folder}/me/data")
        assert not HOME_PATH.search(f"https://example.org/{folder}/me, outputs/{folder}/me")
