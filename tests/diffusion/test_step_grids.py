"""Optimised steps: what the search finds, and which stored grids are refused."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from mixture import IN_1D
from run_command import error_of, run
from traced import MODELS

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.schedules import cosine, linear
from diffpolicy.diffusion.spacing import trailing
from diffpolicy.diffusion.step_grids import optimized, stored, with_grid
from diffpolicy.policy.clip import identity
from diffpolicy.policy.sampler_choices import Given, build_sampler

SCHEDULE = cosine(100)
NOISE = torch.randn(1, 200, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plans(indices: Sequence[int]) -> torch.Tensor:
    table = ddim(SCHEDULE.levels[np.array(indices)])
    return reverse(IN_1D.denoise, table, NOISE.expand(len(table) + 1, -1, -1, -1), identity).clean


FINE = plans(range(99, -1, -1))


def error(indices: Sequence[int]) -> float:
    return float((plans(indices) - FINE).square().mean())


def test_of_two_steps_the_search_finds_the_best_of_all_second_levels() -> None:
    best = min(range(99), key=lambda index: error([99, index]))
    assert optimized(100, 2, error) == [99, best]


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_grid_falls_from_the_last_level_and_is_no_worse_than_trailing_steps(steps: int) -> None:
    grid = optimized(100, steps, error)
    even = [round(100 * (1 - step / steps)) - 1 for step in range(steps)]
    np.testing.assert_array_equal(SCHEDULE.levels.time[even], trailing(SCHEDULE, steps).time)
    assert grid[0] == 99
    assert sorted(grid, reverse=True) == grid
    assert error(grid) <= error(even) * (1.0 if steps == 1 else 0.8)


def test_a_grid_is_kept_beside_others_of_its_schedule_and_replaces_those_of_another() -> None:
    grids = with_grid(with_grid(None, SCHEDULE, [99, 40]), SCHEDULE, [99, 60, 20])
    np.testing.assert_array_equal(stored(SCHEDULE, 2, grids).time, SCHEDULE.levels.time[[99, 40]])
    np.testing.assert_array_equal(stored(SCHEDULE, 3, grids).time, SCHEDULE.levels.time[[99, 60, 20]])
    assert list(with_grid(grids, linear(1000), [999, 10])["levels"]) == ["2"]
    table = build_sampler(SCHEDULE, {"name": "ddim", "spacing": "stored"}, 2, Given(16, grids))
    assert [row.time for row in table.rows] == [99.0, 40.0]


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (None, "stores no grid, expected one of 2; store one with python scripts/optimize_steps.py checkpoint="),
        (with_grid(None, SCHEDULE, [99, 60, 20]), "stores grids of 3 steps, expected one of 2"),
        (with_grid(None, linear(1000), [999, 40]), "the grid is for another schedule than the policy's"),
        (with_grid(None, SCHEDULE, [99, 99]), r"the grid is \[99, 99\], expected 2 levels that fall from 99"),
        (with_grid(None, SCHEDULE, [50, 40]), "expected 2 levels that fall from 99"),
        ({"levels": {"2": [99, "x"]}}, "spacing stored"),
    ],
)
def test_grids_that_are_missing_foreign_or_damaged_are_refused(grids: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_sampler(SCHEDULE, {"name": "ddim", "spacing": "stored"}, 2, Given(16, grids))


@pytest.mark.parametrize(
    ("diffusion", "steps", "message"),
    [
        ("consistency", 2, "ddim"),
        ("regression", 2, "ddim"),
        ("denoising", 101, "steps 101 must be between 1 and 100"),
        ("denoising", 2, "does not say what it was trained on, expected a run of ours"),
    ],
)
def test_the_command_refuses_what_it_cannot_search(diffusion: str, steps: int, message: str, tmp_path) -> None:
    policy = DiffusionPolicy(PolicyConfig({"state": 3}, 2, model=MODELS["unet1d"], diffusion=diffusion))
    policy.fit({"state": torch.randn(9, 3)}, torch.randn(9, 2))
    policy.save_pretrained(tmp_path / "policy")
    arguments = [f"checkpoint={tmp_path / 'policy'}", f"steps={steps}", f"output={tmp_path / 'new'}", "device=cpu"]
    assert message in error_of("optimize_steps", tmp_path / "run", *arguments)
    assert not (tmp_path / "new").exists()


def test_the_command_stores_a_grid_that_the_copy_samples_with(repository, tmp_path) -> None:
    source = repository / "data" / "checkpoints" / "pusht_small"
    arguments = [f"checkpoint={source}", "windows=4", "reference_steps=10", "device=cpu"]
    result = run("optimize_steps.py", *arguments, "steps=2", f"output={tmp_path / 'new'}")
    assert result.returncode == 0, result.stderr
    assert "ddim with 2 steps at the levels [99, " in result.stdout
    before, after = (DiffusionPolicy.from_pretrained(one) for one in (source, tmp_path / "new"))
    assert dataclasses.asdict(after.config) == dataclasses.asdict(before.config)
    grid = after.metadata["step_grids"]["levels"]["2"]
    table = after.sampler({"name": "ddim", "spacing": "stored", "steps": 2})
    assert [row.time for row in table.rows] == after.objective.schedule.levels.time[grid].tolist()
    with pytest.raises(ValueError, match="stores no grid, expected one of 2"):
        before.sampler({"name": "ddim", "spacing": "stored", "steps": 2})
    again = error_of("optimize_steps", tmp_path / "run", *arguments, "steps=2", f"output={tmp_path / 'new'}")
    assert "exists already; choose another folder" in again
