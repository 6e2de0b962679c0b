"""The checkpoint that ships with the repository solves Push-T and matches its description in the README."""

from pathlib import Path

from diffpolicy import DiffusionPolicy
from diffpolicy.evaluation.evaluate import evaluate, summarize
from diffpolicy.evaluation.settings import EnvConfig


def test_it_solves_push_t(shipped_checkpoint: Path) -> None:
    """Sixteen episodes on separate seeds; a failing policy scores about 0.2, a good one above 0.93."""
    policy = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    env = EnvConfig(**policy.metadata["env"])
    summary = summarize(evaluate(policy, env, {"name": "ddim", "steps": 10}, range(70_000, 70_016), inference_batch=16))
    assert summary["mean_score"] > 0.8
    assert summary["success_rate"] > 0.35


def test_it_is_small_and_complete(shipped_checkpoint: Path) -> None:
    files = {path.name: path.stat().st_size for path in shipped_checkpoint.iterdir()}
    assert set(files) == {"config.json", "model.safetensors"}
    assert sum(files.values()) < 6_000_000


def test_it_was_made_by_the_default_command(shipped_checkpoint: Path) -> None:
    metadata = DiffusionPolicy.from_pretrained(shipped_checkpoint).metadata
    assert metadata["task"] == "pusht"
    assert metadata["step"] == metadata["training"]["trainer"]["steps"]
    assert metadata["training"]["data"]["path"] == "data/pusht_expert.zarr.zip"
