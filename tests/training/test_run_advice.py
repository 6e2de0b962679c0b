"""What a run advises works when it is pasted, whatever its folder is called."""

import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffpolicy.training.run_checkpoints import RunCheckpoints


@pytest.mark.parametrize("name", ["plain", "my run/lr=0.1,seed=2", "it's $HOME"])
def test_the_way_to_resume_can_be_pasted(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    checkpoints = RunCheckpoints(folder)
    checkpoints.write(1, {"step": 1}, {"weight": torch.zeros(1)}, {"weight": torch.zeros(1)})
    said = checkpoints.left(can_go_on=True)
    words = shlex.split(said[said.index("resume=true") :])
    found = [OverridesParser.create().parse_override(word) for word in words]
    assert {each.key_or_group: each.value() for each in found} == {"resume": True, "hydra.run.dir": str(folder)}
