"""Tables whose waypoints have levels of their own."""

from typing import Any

import numpy as np
import pytest
import torch
from seams import TokenReader
from torch import Tensor
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy
from diffpolicy.diffusion.reverse import reverse
from diffpolicy.diffusion.samplers.ancestral import ddim
from diffpolicy.diffusion.samplers.multistep import dpmpp_2m
from diffpolicy.diffusion.samplers.table import Row, StepTable
from diffpolicy.diffusion.schedule import Levels
from diffpolicy.diffusion.schedules import cosine
from diffpolicy.networks.condition import Condition
from diffpolicy.networks.protocols import plain

SCHEDULE = cosine(100)
ROWS = [[99, 70, 40, 10], [99, 95, 60, 30], [80, 50, 20, 0]]  # levels of three waypoints


def denoise(x: Tensor, row: Row) -> Tensor:
    """Exact for Gaussian data of mean 0.3 and variance 0.2, waypoint by waypoint."""
    return 0.3 + 0.2 * row.alpha / (0.2 * row.alpha**2 + row.sigma**2) * (x - row.alpha * 0.3)


def unchanged(clean: Tensor, row: Row, step: int) -> Tensor:
    return clean


def side_by_side(tables: list[StepTable]) -> StepTable:
    """One table, a waypoint for each of `tables`."""

    def joined(part: Any) -> Any:
        return np.stack([part(table) for table in tables], axis=-1)

    names = ("alpha", "sigma", "time", "input_scale")
    now = Levels(*(joined(lambda table, name=name: getattr(table.now, name)) for name in names))
    past = None if tables[0].c is None else joined(lambda table: table.c)
    return StepTable(now, *(joined(lambda table, name=name: getattr(table, name)) for name in ("a", "b", "s")), c=past)


@pytest.mark.parametrize("make", [ddim, lambda now: ddim(now, eta=1.0), dpmpp_2m], ids=["ddim", "eta=1", "dpmpp_2m"])
def test_every_waypoint_follows_its_own_levels(make) -> None:
    tables = [make(SCHEDULE.levels[np.array(levels)]) for levels in ROWS]
    noise = torch.randn(5, 64, len(ROWS), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = reverse(denoise, side_by_side(tables), noise, unchanged).clean
    for waypoint, table in enumerate(tables):
        alone = reverse(denoise, table, noise[:, :, [waypoint]], unchanged).clean
        assert_close(found[:, [waypoint]], alone, rtol=0, atol=1e-12)


def test_a_last_row_that_is_not_the_clean_estimate_at_every_waypoint_is_refused() -> None:
    table = side_by_side([ddim(SCHEDULE.levels[np.array(levels)]) for levels in ROWS])
    wrong = table.b.copy()
    wrong[-1, 1] = 0.9
    with pytest.raises(ValueError, match=r"last row \(a, b, c..., s\) is .*0.9"):
        StepTable(table.now, a=table.a, b=wrong, s=table.s)


def test_a_backbone_that_sees_levels_of_waypoints_gets_their_times_and_the_u_net_refuses_them(
    small_policy: DiffusionPolicy,
) -> None:
    network, condition = TokenReader(2, 16), Condition(tokens=torch.randn(3, 4, 16))
    x, times = torch.randn(3, 8, 2), torch.linspace(0.0, 99.0, 8)
    at = plain(network, condition)
    assert_close(at(x, torch.full((8,), 50.0)), at(x, 50.0))
    assert (at(x, times) - at(x, 50.0)).abs().max() > 1e-3
    window = small_policy.config.window
    table = side_by_side([ddim(SCHEDULE.levels[np.array(ROWS[0])])] * window.horizon)
    seen = {
        key: torch.zeros(1, window.n_obs_steps, *spec.shape) for key, spec in small_policy.config.observations.items()
    }
    with pytest.raises(ValueError, match=r"unet1d: time has shape \[1, 16\], expected \[batch\]"):
        small_policy.predict_action_chunk(seen, [torch.Generator()], table)
