"""Collect wheels for a GPU machine without network: python tests/gpu_wheels.py FOLDER 3.12 x86_64

The machine has python and torch, and what usually comes with them (numpy, matplotlib, numba, opencv, pytest, ...).
These are the other packages that benchmark_gpu.py needs, in the versions of constraints.txt; about 20 MB. Videos are
left out: their encoder alone is 68 MB.
"""

import subprocess
import sys
from pathlib import Path

PACKAGES = (
    *("antlr4-python3-runtime", "cffi", "diffusers", "donfig", "einops", "farama-notifications", "google-crc32c"),
    *("gymnasium", "hydra-core", "hypothesis", "importlib-metadata", "lazy-importer", "numcodecs", "omegaconf"),
    *("pycparser", "pymunk", "pytest-xdist", "safetensors", "sortedcontainers", "zarr", "zipp"),
)
ONLY_AS_SOURCE = {"antlr4-python3-runtime"}  # pure Python, so that the wheel that pip builds here fits everywhere
GLIBC = (17, 27, 28, 34)  # manylinux_2_N: pip compares them exactly
LIMIT_MB = 60


def main(folder: Path, python: str, processor: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):  # two versions of one package would stop the installation
        wheel.unlink()
    pins = dict(line.split("==") for line in constraints().splitlines() if "==" in line)
    wanted = [f"{name}=={pins[name]}" for name in PACKAGES]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [part for n in GLIBC for part in ("--platform", f"manylinux_2_{n}_{processor}")]
    target += ["--platform", f"manylinux2014_{processor}", "--dest", str(folder)]
    source = [one for one in wanted if one.partition("==")[0] in ONLY_AS_SOURCE]
    subprocess.run([*pip, "download", "--no-deps", *target, *(set(wanted) - set(source))], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *source], check=True)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) / 1e6
    if size > LIMIT_MB:
        sys.exit(f"error: {folder} holds {size:.0f} MB of wheels, expected at most {LIMIT_MB}")
    print(f"{folder}: {len(wanted)} wheels, {size:.0f} MB; copy it to the machine and run: make gpu WHEELS={folder}")


def constraints() -> str:
    return (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
