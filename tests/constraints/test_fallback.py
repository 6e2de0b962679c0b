"""The ladder, rung by rung, over everything that may be known."""

import itertools

import torch
from one_case import over

from diffpolicy.constraints.certificate import Certificate
from diffpolicy.constraints.fallback import CANDIDATE, HOLD, PLAN, PREFIX, STORED, Situation, decide

N, S = 3, 4
PLANNED, LAST, STORED_AT = 100.0, -7.0, 50.0
STOPS = torch.stack([200.0 + 10.0 * prefix + torch.arange(S) for prefix in range(N + 1)])  # of each prefix


def numbers(rows: torch.Tensor) -> torch.Tensor:
    """[1, ..., 2] of a row's number."""
    return rows.double()[None, ..., None].expand(1, *rows.shape, 2).clone()


def certificate(length: int, can_stop: bool) -> Certificate:
    margin = torch.tensor([[0.5 if can_stop else -0.5, *(1.0 + i if i < length else -1.0 for i in range(N))]])
    return Certificate(torch.tensor([length]), margin.double(), numbers(STOPS))


def situation(is_known=True, is_as_expected=True, is_timely=True, has_stored=True) -> Situation:
    stored = numbers(STORED_AT + torch.arange(S)) if has_stored else numbers(torch.full((S,), torch.nan))
    flags = (torch.tensor([flag]) for flag in (is_known, is_as_expected, is_timely))
    last = torch.full((1, 2), LAST, dtype=torch.float64)
    return Situation(*flags, stored=stored, last=last, may_stay=torch.tensor([is_known]))


def sent(length: int, can_stop: bool, now: Situation, rung: int = PLAN):
    plan = numbers(PLANNED + torch.arange(N))
    return decide(plan, certificate(length, can_stop), now, torch.tensor([rung]))


def expected(length, can_stop, is_known, is_as_expected, is_timely, has_stored):
    """In words: (rung, first rows, the stop kept for the next tick, with None after the last row that is certified)."""
    stop, stored = STOPS.tolist(), [STORED_AT + i for i in range(S)]
    plan = [PLANNED + i for i in range(N)]
    go = length if is_known and is_as_expected and is_timely else 0
    if go:
        return (PLAN if go == N else PREFIX), (plan[:go] + stop[go])[:N], stop[1]
    if is_known and can_stop:
        return PREFIX, stop[0][:N], [*stop[0][1:], None]
    if is_as_expected and has_stored:
        return STORED, stored[:N], [*stored[1:], stored[-1] if is_known else None]
    return HOLD, [LAST] * N, None


EVERY = list(itertools.product(range(N + 1), *[[False, True]] * 5))


@over("rung", [PLAN, CANDIDATE])
def test_every_situation_leads_to_its_rung(rung: int) -> None:
    for length, can_stop, *known in EVERY:
        decision = sent(length, can_stop, situation(*known), rung)
        step, rows, stop = expected(length, can_stop, *known)
        case = (length, can_stop, *known)
        assert int(decision.rung) == (rung if step == PLAN else step), case
        assert decision.chunks[0, :, 0].tolist() == rows, case
        if stop is None:
            assert bool(decision.stored.isnan().all()), case
        else:
            kept = [None if row != row else row for row in decision.stored[0, :, 0].tolist()]
            assert kept == stop, case
        assert bool((decision.margin >= 0) == (step <= PREFIX or (step == HOLD and can_stop))), case


def test_nothing_but_hold_and_stored_is_sent_without_a_measured_state() -> None:
    rungs = {int(sent(length, can_stop, situation(False, *rest)).rung) for length, can_stop, _, *rest in EVERY}
    assert rungs == {STORED, HOLD}


@over("is_known, at_the_end", [(False, (HOLD, LAST)), (True, (STORED, STORED_AT + S - 1))])
def test_a_way_to_stop_is_followed_to_its_end_which_is_held_while_the_state_is_known(is_known, at_the_end) -> None:
    now, seen = situation(is_known), []
    for _ in range(S + 1):
        decision = sent(0, False, now)
        seen.append((int(decision.rung), float(decision.chunks[0, 0, 0])))
        now = Situation(now.is_known, now.is_as_expected, now.is_timely, decision.stored, now.last, now.may_stay)
    assert seen == [(STORED, STORED_AT + i) for i in range(S)] + [at_the_end]


@over("axis", [0, 1])
def test_a_way_to_stop_that_begins_with_nan_is_none(axis: int) -> None:
    now = situation()
    now.stored[0, 0, axis] = torch.nan
    assert int(sent(0, False, now).rung) == HOLD


def test_robots_are_decided_one_by_one() -> None:
    plan = torch.cat([numbers(PLANNED + torch.arange(N))] * 2)
    whole, none = certificate(N, True), certificate(0, False)
    pairs = zip((whole.length, whole.margin, whole.stops), (none.length, none.margin, none.stops), strict=True)
    found = Certificate(*(torch.cat(pair) for pair in pairs))
    one, other = situation(), situation(has_stored=False)
    now = Situation(*(torch.cat(pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True)))
    decision = decide(plan, found, now, torch.tensor([CANDIDATE, PLAN]))
    assert decision.rung.tolist() == [CANDIDATE, HOLD]
    assert decision.chunks[:, 0, 0].tolist() == [PLANNED, LAST]


def test_a_chunk_longer_than_its_way_to_stop_ends_holding() -> None:
    short = Certificate(torch.tensor([1]), torch.ones(1, N + 1).double(), numbers(STOPS[:, :1]))
    decision = decide(numbers(PLANNED + torch.arange(N)), short, situation(), torch.tensor([PLAN]))
    assert decision.chunks[0, :, 0].tolist() == [PLANNED, 210.0, 210.0]


def test_certificates_are_picked_and_replaced_by_robot() -> None:
    both = Certificate(torch.tensor([1, 2]), torch.zeros(2, N + 1), torch.zeros(2, N + 1, S, 2))
    better = Certificate(torch.tensor([3]), torch.ones(1, N + 1), torch.ones(1, N + 1, S, 2))
    replaced = both.replaced(torch.tensor([1]), better)
    assert replaced.length.tolist() == [1, 3]
    assert both.length.tolist() == [1, 2]
    assert replaced.robots(torch.tensor([1])).margin.tolist() == better.margin.tolist()
