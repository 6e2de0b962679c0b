"""Importing a policy from the command line."""

from pathlib import Path

import peers
from run_command import error_of, run

from diffpolicy import DiffusionPolicy


def test_a_policy_of_lerobot_is_imported_with_names_of_ours(tmp_path: Path) -> None:
    source, output = peers.unpacked("lerobot_min_max", tmp_path), tmp_path / "out"
    settings = [f"source={source}", f"output={output}", "rename={observation.state: state}"]
    done = run("import_policy.py", *settings)
    assert done.returncode == 0, done.stderr
    assert "lerobot, observations" in done.stdout
    assert "as it was sampled there: sampler=" in done.stdout
    assert "state" in DiffusionPolicy.from_pretrained(output).config.observations
    assert "exists already" in error_of("import_policy", tmp_path, *settings)


def test_names_that_are_no_names_are_refused(tmp_path: Path) -> None:
    settings = [f"source={peers.unpacked('lerobot_min_max', tmp_path)}", f"output={tmp_path / 'out'}"]
    assert "rename is 3" in error_of("import_policy", tmp_path, *settings, "rename=3")
    assert "no observation image" in error_of("import_policy", tmp_path, *settings, "rename={image: x}")
    assert not (tmp_path / "out").exists()
