"""The choice among certified samples.

Shape legend: Q plans, D of them in doubt, n rows of a chunk.
"""

import torch
from torch import Tensor

from diffpolicy.constraints.certificate import Certificate
from diffpolicy.constraints.fallback import CANDIDATE
from diffpolicy.safety.samples import Considered, Samples

SHARES = (0.97, 0.8, 0.6, 0.4, 0.2)  # of the steps of a plan
LARGE_SHIFT = 0.02  # of half the range of the actions; a plan moved further is compared with other samples


def is_troubled(samples: Samples, found: Certificate, n: int) -> Tensor:
    """[Q], whether a plan is not certified as a whole, or was moved far from what the policy wanted."""
    return (found.length < n) | (samples.shift > LARGE_SHIFT)


def in_doubt(samples: Samples, found: Certificate, n: int) -> Tensor:
    """Indices of the plans that are troubled or do not lead on."""
    return (is_troubled(samples, found, n) | ~samples.is_open).nonzero().squeeze(1)


def best_of(considered: Considered, others: Samples, others_found: Certificate, further: int, n: int) -> Considered:
    """The best of the samples. A robot takes no further sample once it is no longer in doubt.

    Args:
        others: `further` more samples of each robot in doubt: the second one of each, then the third, and so on.
        others_found: their certificates.
    """
    asked, found = considered.doubtful, considered.found
    if found is None:
        raise ValueError("safety: further samples, but the first ones were not certified")
    samples, rung = considered.samples, considered.rung.clone()
    left = torch.arange(len(asked))  # the robots still in doubt
    for sample in range(further):
        doubtful, index = asked[left], sample * len(asked) + left
        new, again = others.robots(index), others_found.robots(index)
        is_better = new.worth(again) > samples.robots(doubtful).worth(found.robots(doubtful))
        better = doubtful[is_better]
        samples = samples.replaced(better, new.robots(is_better))
        found = found.replaced(better, again.robots(is_better))
        rung[better] = CANDIDATE
        left = left[in_doubt(samples.robots(doubtful), found.robots(doubtful), n)]
        if len(left) == 0:
            break
    return Considered(considered.robots, samples, found, rung, asked[left])


def in_smaller_steps(chunks: Tensor, last: Tensor) -> Tensor:
    """[S, Q, n, A], the same ways from the last commands [Q, A] in smaller and smaller steps."""
    last = last.to(chunks)[:, None]
    return last + chunks.new_tensor(SHARES)[:, None, None, None] * (chunks - last)
