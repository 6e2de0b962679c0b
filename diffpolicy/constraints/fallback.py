"""The fallback ladder: what to send if a plan is not certified as a whole.

    plan, candidate   all rows are certified
    slower            no row was certified; the same way in smaller steps is, all rows of it
    retreat           the way back out of a dead end, all rows certified
    prefix            the certified rows, then their way to stop; with no row left, stopping now
    stored            the way to stop of an earlier certificate
    hold              nothing certified is left: the last command again, and an alarm

Shape legend: Q robots, n rows of a chunk, S rows of a way to stop, A action.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy.constraints.certificate import Certificate

PLAN, CANDIDATE, SLOWER, RETREAT, PREFIX, STORED, HOLD = range(7)
RUNGS = ("plan", "candidate", "slower", "retreat", "prefix", "stored", "hold")


@dataclass(frozen=True)
class Situation:
    """What is known about the robots besides the certificate, [Q] each unless stated.

    Attributes:
        is_known: whether the state was measured. Only then does a certificate from it mean anything.
        is_as_expected: whether nothing contradicts the assumptions of earlier certificates.
        is_timely: whether the plan is not stale.
        stored: [Q, S, A], the way to stop that is left; NaN if there is none, and after its last row.
        last: [Q, A], the last command.
        may_stay: whether everything was measured, so that a robot at the end of a way to stop may stay there.
    """

    is_known: Tensor
    is_as_expected: Tensor
    is_timely: Tensor
    stored: Tensor
    last: Tensor
    may_stay: Tensor


@dataclass(frozen=True)
class Decision:
    """What to send: chunks [Q, n, A], the rung [Q], the way to stop after the first row [Q, S, A], margins [Q]."""

    chunks: Tensor
    rung: Tensor
    stored: Tensor
    margin: Tensor


def decide(chunks: Tensor, found: Certificate, situation: Situation, rung: Tensor) -> Decision:
    """Choose the highest rung that holds.

    Args:
        chunks: [Q, n, A], the proposed chunks.
        found: the certificates of the chunks.
        situation: what else is known about the robots.
        rung: [Q], the rung of a chunk that is certified as a whole.
    """
    n = chunks.shape[1]
    may_go_on = situation.is_known & situation.is_as_expected & situation.is_timely
    length = torch.where(may_go_on, found.length, 0)
    if n > 0 and bool((length == n).all()):  # the usual case; the code below gives the same result
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
    # Its last target may be held for ever, but not for ever without knowing where the robot and the obstacles are.
    held = _held_at_the_end(situation.stored)
    longer = torch.cat([held[:, 1:], held[:, -1:]], dim=1)
    left = torch.where(situation.may_stay[:, None, None], longer, _shifted(situation.stored))
    left = torch.where(has_stored[:, None, None], left, nothing)
    stored_or_none = torch.where(has_stored, torch.nan, found.margin[:, 0])  # how bad it is to stop here
    margin = torch.where(is_certified, found.margin[robots, length], stored_or_none)
    return Decision(rows, step, torch.where(is_certified[:, None, None], next_stop, left), margin)


def _with_stop(chunks: Tensor, length: Tensor, stops: Tensor) -> Tensor:
    """The first `length` [Q] rows of each chunk, then its way to stop [Q, S, A]: [Q, n, A]."""
    since = torch.arange(chunks.shape[1]) - length[:, None]  # [Q, n], index into the way to stop if at least 0
    index = since.clamp(0, stops.shape[1] - 1)[..., None].expand_as(chunks)
    return torch.where((since < 0)[..., None], chunks, torch.gather(stops, 1, index))


def _filled(rows: Tensor, n: int) -> Tensor:
    """The first n rows. The last row is repeated if there are fewer."""
    return torch.cat([rows, rows[:, -1:].expand(-1, n, -1)], dim=1)[:, :n]


def _shifted(rows: Tensor) -> Tensor:
    """The rows one tick later. After the last row nothing is certified, so NaN follows."""
    return torch.cat([rows[:, 1:], torch.full_like(rows[:, -1:], torch.nan)], dim=1)


def _held_at_the_end(rows: Tensor) -> Tensor:
    """The rows with NaN replaced by the last finite row."""
    count = rows.isfinite().all(-1).sum(1, keepdim=True)
    index = torch.minimum(torch.arange(rows.shape[1]), (count - 1).clamp(min=0))
    return torch.gather(rows, 1, index[..., None].expand_as(rows))
