"""The ladder: what to send where a plan is not certified as a whole.

    plan, candidate   all rows are certified
    retreat           so are those of the way back out of a dead end
    prefix            the certified rows, then their way to stop; with no row left, stopping now
    stored            the way to stop that an earlier certificate left
    hold              nothing certified is left: the last command, and an alarm

Shape legend: Q robots, n rows of a chunk, S rows of a way to stop, A action.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.certificate import Certificate

PLAN, CANDIDATE, RETREAT, PREFIX, STORED, HOLD = range(6)
RUNGS = ("plan", "candidate", "retreat", "prefix", "stored", "hold")


@dataclass(frozen=True)
class Situation:
    """What is known of the robots besides the certificate, [Q] each.

    Attributes:
        is_known: the state was measured, so that a certificate from it means something.
        is_as_expected: nothing contradicts the assumptions of earlier certificates.
        is_timely: the plan is not stale.
        stored: the way to stop that is left, [Q, S, A]; NaN where there is none, and after its last row.
        last: the last command [Q, A].
    """

    is_known: Tensor
    is_as_expected: Tensor
    is_timely: Tensor
    stored: Tensor
    last: Tensor


@dataclass(frozen=True)
class Decision:
    """What to send: chunks [Q, n, A], the rung [Q], the way to stop after the first row [Q, S, A], margins [Q]."""

    chunks: Tensor
    rung: Tensor
    stored: Tensor
    margin: Tensor


def decide(chunks: Tensor, found: Certificate, situation: Situation, rung: Tensor) -> Decision:
    """Take the highest rung that holds.

    Args:
        chunks: proposed [Q, n, A].
        found: their certificate.
        situation: of the robots.
        rung: of a chunk that is certified as a whole [Q].
    """
    n = chunks.shape[1]
    may_go_on = situation.is_known & situation.is_as_expected & situation.is_timely
    length = torch.where(may_go_on, found.length, 0)
    if n > 0 and bool((length == n).all()):  # most often; what follows would come to the same
        return Decision(chunks, rung, found.stops[:, 1], found.margin[:, n])
    is_certified = situation.is_known & ((length > 0) | found.can_stop)
    has_stored = situation.is_as_expected & situation.stored[:, 0].isfinite().all(-1)
    step = torch.where(is_certified, torch.where(length == n, rung, PREFIX), torch.where(has_stored, STORED, HOLD))
    robots = torch.arange(len(chunks))
    hold = situation.last[:, None].expand_as(situation.stored)
    rest = torch.where(has_stored[:, None, None], _held_at_the_end(situation.stored), hold)
    sent = _with_stop(chunks, length, found.stops[robots, length])
    rows = torch.where(is_certified[:, None, None], sent, _filled(rest, n))
    next_stop = torch.where((length > 0)[:, None, None], found.stops[:, 1], _shifted(found.stops[:, 0]))
    nothing = torch.full_like(situation.stored, torch.nan)
    left = torch.where(has_stored[:, None, None], _shifted(situation.stored), nothing)
    stored_or_none = torch.where(has_stored, torch.nan, found.margin[:, 0])  # tells how bad stopping here is
    margin = torch.where(is_certified, found.margin[robots, length], stored_or_none)
    return Decision(rows, step, torch.where(is_certified[:, None, None], next_stop, left), margin)


def _with_stop(chunks: Tensor, length: Tensor, stops: Tensor) -> Tensor:
    """The first `length` [Q] rows of each chunk, then its way to stop [Q, S, A]: [Q, n, A]."""
    since = torch.arange(chunks.shape[1]) - length[:, None]  # [Q, n], rows of the way to stop that come before
    index = since.clamp(0, stops.shape[1] - 1)[..., None].expand_as(chunks)
    return torch.where((since < 0)[..., None], chunks, torch.gather(stops, 1, index))


def _filled(rows: Tensor, n: int) -> Tensor:
    """The first n rows, the last of them repeated where there are fewer."""
    return torch.cat([rows, rows[:, -1:].expand(-1, n, -1)], dim=1)[:, :n]


def _shifted(rows: Tensor) -> Tensor:
    """A tick later; what was certified ends with the last row."""
    return torch.cat([rows[:, 1:], torch.full_like(rows[:, -1:], torch.nan)], dim=1)


def _held_at_the_end(rows: Tensor) -> Tensor:
    """With the last finite row in place of NaN."""
    count = rows.isfinite().all(-1).sum(1, keepdim=True)
    index = torch.minimum(torch.arange(rows.shape[1]), (count - 1).clamp(min=0))
    return torch.gather(rows, 1, index[..., None].expand_as(rows))
