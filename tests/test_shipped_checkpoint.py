"""The checkpoints that ship with the repository solve Push-T and are what their names say."""

from pathlib import Path

import pytest

from diffpolicy import DiffusionPolicy
from diffpolicy.evaluation.evaluate import evaluate, summarize
from diffpolicy.evaluation.settings import EnvConfig

SHIPPED = sorted(path for path in (Path(__file__).parents[1] / "data" / "checkpoints").iterdir() if path.is_dir())
SEEING = [
    pytest.param(path, marks=pytest.mark.slow if "image" in path.name else ()) for path in SHIPPED
]  # drawing and encoding frames takes longer than 20 s


@pytest.mark.parametrize("checkpoint", SEEING, ids=lambda path: path.name)
def test_it_solves_push_t(checkpoint: Path) -> None:
    """Sixteen episodes on separate seeds; a failing policy scores about 0.2, a good one above 0.93.

    On 500 other seeds `pusht` succeeds in 93 %: fewer than eleven of sixteen would be chance once in 1,500 times.
    """
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    env = EnvConfig(**policy.metadata["env"])
    summary = summarize(evaluate(policy, env, {"name": "ddim", "steps": 10}, range(70_000, 70_016), inference_batch=16))
    assert summary["mean_score"] > 0.8
    assert summary["success_rate"] > (0.65 if checkpoint.name == "pusht" else 0.35)


@pytest.mark.parametrize("checkpoint", SHIPPED, ids=lambda path: path.name)
def test_it_is_small_and_complete(checkpoint: Path) -> None:
    files = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert set(files) - {"README.md"} == {"config.json", "model.safetensors"}
    assert sum(files.values()) < 6_000_000


@pytest.mark.parametrize("checkpoint", SHIPPED, ids=lambda path: path.name)
def test_it_was_made_by_the_default_command(checkpoint: Path) -> None:
    metadata = DiffusionPolicy.from_pretrained(checkpoint).metadata
    assert metadata["task"] == checkpoint.name.removesuffix("_small")
    assert metadata["step"] == metadata["training"]["trainer"]["steps"]
    assert metadata["training"]["data"]["path"] == "data/pusht_expert.zarr.zip"
