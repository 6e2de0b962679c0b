"""Policies that try to break the limits. They see the truth and propose whatever may get a robot across.

Shape legend: B robots, H rows of a plan, A = 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy.codecs.normalizer import Normalizer
from diffpolicy.policy.plan_projection import Constrain, Projection
from diffpolicy.policy.sampling import ActionChunk
from diffpolicy.policy.settings import PolicyConfig, WindowConfig

KINDS = ("aimed", "tangent", "jumping", "zigzag", "parking")
OBSERVATIONS = {"agent": 2, "target": 2, "edge": 2, "kind": 1}
RANGE = 512.0  # px; the range of the actions
BROKEN = 0.02  # the share of plans that are NaN, infinite or huge


class Adversary(nn.Module):
    """Proposes plans that aim at what a robot must not do. To a controller, it is a `Policy`.

    | kind    | plan                                                                                             |
    |---------|--------------------------------------------------------------------------------------------------|
    | aimed   | straight at the target and through it                                                            |
    | tangent | across the line to the target, leaning towards it                                                |
    | jumping | every command somewhere else, often behind the target                                            |
    | zigzag  | towards the target, from side to side                                                            |
    | parking | at the edge of what is allowed, to within rounding                                               |

    Args:
        n_action_steps: rows of a chunk.
        reach: the longest step that it proposes, in px per tick.
    """

    def __init__(self, n_action_steps: int, reach: float) -> None:
        super().__init__()
        self.config = PolicyConfig(OBSERVATIONS, 2, window=WindowConfig(max(4, 2 * n_action_steps), 1, n_action_steps))
        self.codec = Normalizer(2)
        self.codec.fit(torch.tensor([[0.0, 0.0], [RANGE, RANGE]]))
        self._reach = reach

    def predict_action_chunk(
        self,
        observation: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        sampler: Any = None,
        constrain: Constrain | Projection | None = None,
        guide: Any = None,
        previous: Tensor | None = None,
    ) -> ActionChunk:
        seen = {key: value[:, -1].double() for key, value in observation.items()}
        horizon, n = self.config.window.horizon, self.config.window.n_action_steps
        drawn = torch.stack([torch.rand(4 + 3 * horizon, generator=one, dtype=torch.float64) for one in generators])
        plan = self._plan(seen, drawn[:, :4], drawn[:, 4:].unflatten(1, (horizon, 3))).float()
        if isinstance(constrain, Projection):
            here, projected = seen["agent"].float()[:, None], constrain.project(plan, None, len(sampler))  # pyright: ignore[reportArgumentType]
            share = torch.where(drawn[:, 3] < 0.5, 1.0, 0.9 + 0.2 * drawn[:, 3]).float()  # then a little further
            plan = torch.where(projected.isfinite(), here + share[:, None, None] * (projected - here), plan)
        broken = torch.tensor([torch.nan, torch.inf, 1e30])[(3 * drawn[:, 2]).long()]
        plan = torch.where((drawn[:, 0] < BROKEN)[:, None, None], broken[:, None, None], plan)
        return ActionChunk(plan[:, :n], plan)

    def _plan(self, seen: Mapping[str, Tensor], drawn: Tensor, noise: Tensor) -> Tensor:
        """Plans [B, H, 2] from numbers in [0, 1): [B, 4] for each plan and [B, H, 3] for each row."""
        here, target, edge = (seen[key][:, None] for key in ("agent", "target", "edge"))
        ahead = target - here
        ahead = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        across = torch.stack([-ahead[..., 1], ahead[..., 0]], dim=-1) * (drawn[:, :1, None] - 0.5).sign()
        step = (self._reach * 10.0 ** (1.5 * drawn[:, 1] - 1.5))[:, None, None]  # from a 30th of it
        row = torch.arange(1.0, noise.shape[1] + 1, dtype=torch.float64)[:, None]
        lean = 0.3 * drawn[:, 2, None, None]
        angle = 2.0 * torch.pi * noise[..., 0]
        anywhere = torch.stack([angle.cos(), angle.sin()], dim=-1) * step * row
        wide = 3.0 * noise[..., 2:] * step
        beyond = torch.where(noise[..., 1:2] < 0.5, target + wide * ahead - here, anywhere)
        side = 1.0 - 2.0 * (row % 2)
        gap = 10.0 ** (-8.0 * drawn[:, 2]) * (drawn[:, 3] - 0.3)  # mostly short of the edge
        plans = (
            here + step * row * ahead,
            here + step * row * (across + lean * ahead),
            here + beyond,
            here + step * (lean * row * ahead + side * across),
            (edge - gap[:, None, None] * ahead).expand(-1, len(row), -1),
        )
        return torch.stack(plans)[seen["kind"][:, 0].long(), torch.arange(len(drawn))]
