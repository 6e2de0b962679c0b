"""Exporting a policy from the command line, and the example that acts with what it writes, without torch."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from one_case import over
from run_command import REPOSITORY, error_of, run
from walk import PATIENCE_S

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.interop import import_policy
from diffpolicy.policy.settings import WindowConfig

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLE = REPOSITORY / "examples" / "onnx_control_loop.py"

# The example, as a program whose last word is whether anything has loaded torch.
WITHOUT_TORCH = f"""
import runpy, sys
sys.argv = [{str(EXAMPLE)!r}, *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
print([name for name in ("torch", "diffpolicy") if name in sys.modules])
"""


def test_the_files_are_written_and_told_and_the_example_pushes_the_t_with_them_without_torch(
    shipped_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = run(
        "export_policy.py",
        f"checkpoint={shipped_checkpoint}",
        f"output={output}",
        "sampler.steps=5",
        "box={low: [0, 0], high: [512, 512]}",
    )
    assert done.returncode == 0, done.stderr
    told = re.findall(r"(\w+)\.onnx: [\d.]+ MB, differs from torch by at most ([\d.e-]+) of", done.stdout)
    assert [name for name, _ in told] == ["encoder", "step", "policy"]
    assert all(float(apart) <= 1e-5 for _, apart in told)
    assert sorted(path.name for path in output.iterdir()) == ["encoder.onnx", "policy.onnx", "step.onnx"]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(output / "policy.onnx"), "--episodes", "1", "--ticks", "120"]
    acted = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=REPOSITORY / "envs")
    assert acted.returncode == 0, acted.stderr
    result, loaded = acted.stdout.splitlines()
    assert float(re.fullmatch(r"episode 100000: coverage ([\d.]+), success \w+", result)[1]) > 0.7
    assert loaded == "[]"


def test_the_example_says_in_one_line_that_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_bytes(b"no policy")
    main = runpy.run_path(str(EXAMPLE))["main"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onnx_control_loop", str(tmp_path / "policy.onnx")])
        with pytest.raises(SystemExit, match=r"^error: .*policy\.onnx: "):
            main()


def two_vectors(folder: Path) -> Path:
    """A checkpoint that LeRobot can represent."""
    model = {"name": "unet1d", "widths": [8, 16], "time_embedding_dim": 8, "kernel_size": 3}
    policy = DiffusionPolicy(PolicyConfig({"agent": 2, "blocks": 3}, 2, model=model, window=WindowConfig(8, 2, 4)))
    policy.fit({"agent": torch.rand(9, 2), "blocks": torch.rand(9, 3)}, torch.rand(9, 2))
    policy.save_pretrained(folder / "two")
    return folder / "two"


def test_a_checkpoint_of_lerobot_is_written_with_the_scheduler_of_the_sampler(tmp_path: Path) -> None:
    checkpoint, output = two_vectors(tmp_path), tmp_path / "out"
    names = "names={agent: observation.state, blocks: observation.environment_state}"
    settings = [f"checkpoint={checkpoint}", f"output={output}", "format=lerobot", names, "sampler.steps=7"]
    done = run("export_policy.py", *settings)
    assert done.returncode == 0, done.stderr
    assert f"{output}: a checkpoint of LeRobot, DDIM with 7 steps" in done.stdout
    sampler = import_policy(output).metadata["imported"]["sampler"]
    assert (sampler["name"], sampler["steps"]) == ("ddim", 7)
    assert "LeRobot has no heun" in error_of("export_policy", tmp_path, *settings[:-1], "output=x", "sampler=heun")


@over(
    "override, message",
    [
        ("opset=9", "opset 9 must be between 17 and 20"),
        ("parts=[]", "parts has 0 entries"),
        ("parts=[loop]", "must be some of encoder, step, policy"),
        ("box.low=[0]", "box has 1 and 0 limits, expected 2"),
        ("format=torchscript", "format 'torchscript' must be one of onnx, lerobot"),
        ("sampler.guidance.weight=1.0", "guidance"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    override: str, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said = error_of("export_policy", tmp_path, f"checkpoint={tiny_checkpoint}", f"output={tmp_path / 'out'}", override)
    assert message in said
    assert list(tmp_path.iterdir()) == []
