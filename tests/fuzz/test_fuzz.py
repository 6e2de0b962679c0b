"""Whatever is changed in a file or on a command line is refused in one line, or loaded as it stands."""

from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("resource")  # not on Windows

import fuzzing
import overrides
from judge import judged


def check(cases: int, base: Path) -> None:
    found = fuzzing.fuzz(first=0, cases=cases, seed=0, workers=2, kinds=list(fuzzing.KINDS), base=base)
    assert len(found) == cases
    assert fuzzing.faults(found) == [], fuzzing.table(found)


def test_500_changes_are_refused_or_loaded_as_they_stand(tmp_path: Path) -> None:
    check(500, tmp_path)


EXTREME = [  # sizes that would take all memory, or for ever
    *("data.workers=1000000000000", "evaluation.inference_batch=1000000000000", "seed=1000000000000", "seed=-1"),
    *("model.widths=[32768,65536]", "model.time_embedding_dim=65536", "window.horizon=4096", "trainer.log_every=0"),
    *("trainer.batch_size=1000000000000", "trainer.steps=1000000000000", "evaluation.episodes=1000000000"),
    *("sampler.steps=1000000000", "diffusion.num_levels=1000000000", "limits.env_s=1e300"),
]


def test_extreme_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    fuzzing.stores.prepare(tmp_path)
    for setting in EXTREME:
        folder = tmp_path / setting
        folder.mkdir()
        verdict = judged(setting, partial(overrides._train, tmp_path, folder, [setting]))
        assert verdict.kind in ("refused", "over budget"), verdict  # a busy machine may take longer
        assert "ValueError: error: " in verdict.said, verdict
        assert verdict.megabytes < 1000, verdict


@pytest.mark.slow
def test_20_000_changes_are_refused_or_loaded_as_they_stand(tmp_path: Path) -> None:
    check(20_000, tmp_path)
