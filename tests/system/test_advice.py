"""Advice works when it is pasted: a shell and hydra read from it what it was made for."""

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from one_case import over

from diffpolicy.system.advice import override

FOLDERS = [
    "outputs/pusht/2026-01-01_10-00-00",
    "/data/my runs/x",
    "a=b",
    "lr=0.1,seed=2",
    "it's",
    'say "hi"',
    "back\\slash",
    "ends in\\",
    'both\\" of them',
    "${HOME}",
    "$HOME `x` !y",
    "two\\\\${x}",
    "[1,2]{a: b}",
    "~/a*b?c#d;e&f|g<h>(i)",
    "été",
    "12",
    "1e3",
    "true",
    "null",
    "nan",
    " spaces ",
    "a:b@c%d+e",
]


@over("folder", FOLDERS)
def test_a_setting_is_read_back_by_the_shell_and_hydra(folder: str) -> None:
    (word,) = shlex.split(override("hydra.run.dir", folder))
    parsed = OverridesParser.create().parse_override(word)
    assert parsed.key_or_group == "hydra.run.dir"
    settings = OmegaConf.create({"found": parsed.value()})
    assert settings.found == folder


def test_a_plain_value_stays_as_it_is() -> None:
    assert override("hydra.run.dir", FOLDERS[0]) == f"hydra.run.dir={FOLDERS[0]}"
