"""The numerical tests pass with a smaller instruction set too, so they do not depend on the kernels of one processor.

Where the libraries do not support such a limit, the tests run unchanged.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("diffusion", "networks", "codecs", "constraints", "safety", "policy", "control")
QUICK = ("control/test_row_check.py", "networks/test_unet1d.py", "networks/test_blocks.py")
# MKL computes the matrix products, oneDNN the convolutions, torch itself the rest.
LIMITS = {
    "avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "sse": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
PROGRAM = """
import sys, pytest, torch
print("torch runs with", torch.backends.cpu.get_cpu_capability())
sys.exit(pytest.main(sys.argv[1:]))
"""


def passes(repository: Path, limit: str, *tests: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | LIMITS[limit]
    settings = ["-q", "-m", "not slow", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]
    command = [sys.executable, "-c", PROGRAM, *settings]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert "torch runs with AVX512" not in done.stdout
    if limit == "sse":
        assert "torch runs with AVX2" not in done.stdout


def test_networks_pass_with_the_lowest_instruction_set(repository: Path) -> None:
    passes(repository, "sse", *QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_the_numerical_tests_pass_with_lower_instruction_sets(repository: Path, limit: str) -> None:
    passes(repository, limit, *FOLDERS)
