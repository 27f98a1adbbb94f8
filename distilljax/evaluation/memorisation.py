"""Does a sampler hand out its training data?

Two comparisons with what real data does to itself. The near tail finds copies: how
many samples lie as close to a training example as only the closest 0.1 % of real
examples lie to one another. The bulk finds blurred or noisy copies of everything: half
of the data is held against the other half, and the samples against that same half.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from distilljax.evaluation.inputs import check_features, check_same_width
from distilljax.evaluation.statistics import (
    leave_one_out_distance,
    nearest_distance,
    nearest_ratio,
)

# On the digits samplers that do not copy reach 0.87 to 1.0, copies with pixel noise of
# standard deviation 0.15 only 0.5.
_LEAST_SPREAD = 0.6
_FALSE_ALARM = 1e-3
# Below it a sample is a copy in Yoon et al. 2023.
_COPY_RATIO = 1 / 3


class Memorisation(NamedTuple):
    """What `memorisation_check` found.

    Attributes:
      share: share of samples no farther than `threshold` from a training example.
      expected: the same share among real examples, each against all others.
      limit: the largest share that chance explains.
      threshold: distance in units of the features.
      spread: lower quartile of the samples' distances to half of the data, over that of
        the other half's distances; 1 for a sampler as varied as the data, towards 0 if
        it repeats the data.
      singled_out: share of samples less than a third as far from the nearest training
        example as from the second nearest (`nearest_ratio`); a sign of copies that
        needs no threshold, reported beside the verdict.
    """

    share: float
    expected: float
    limit: float
    threshold: float
    spread: float
    singled_out: float

    @property
    def copies(self) -> bool:
        """Whether the samples repeat training examples more than chance explains."""
        return self.share > self.limit or self.spread < _LEAST_SPREAD

    def __str__(self) -> str:
        verdict = "copies of training data" if self.copies else "no sign of copies"
        return (
            f"{verdict}: {100 * self.share:.2f} % of the samples lie within "
            f"{self.threshold:.3g} of a training example, as do "
            f"{100 * self.expected:.2f} % of real examples (chance explains up to "
            f"{100 * self.limit:.2f} %); distances to half of the data are "
            f"{self.spread:.2f} times those of the other half; "
            f"{100 * self.singled_out:.2f} % lie three times nearer to one example "
            "than to any other"
        )


def _largest_by_chance(seen: int, among: int, drawn: int) -> int:
    """Largest count among `drawn` that `seen` among `among` explains.

    The rate is unknown: with a flat prior the count is negative binomial with
    ``seen + 1`` and ``among / (among + drawn)``; its 99.9 % quantile is returned.
    """
    shape = seen + 1
    success = shape * math.log(among / (among + drawn))
    failure = math.log(drawn / (among + drawn))
    total = 0.0
    for count in range(drawn + 1):
        log_choose = math.lgamma(count + shape) - math.lgamma(count + 1)
        total += math.exp(log_choose - math.lgamma(shape) + success + count * failure)
        if total >= 1 - _FALSE_ALARM:
            return count
    return drawn


def memorisation_check(
    samples: ArrayLike,
    training: ArrayLike,
    *,
    quantile: float = 1e-3,
    seed: int = 0,
) -> Memorisation:
    """Holds the samples' distances to the training data against the data's own.

    Args:
      samples: features ``[N, D]``; samples of several seeds may be stacked.
      training: features ``[M, D]`` of the training data, ``M >= 4``.
      quantile: which quantile of the leave-one-out distances of the training data is
        the threshold, in (0, 1).
      seed: of the random halves.

    Returns:
      Shares, threshold and spread; `Memorisation.copies` is the verdict and ``str``
      puts it in words.

    Raises:
      ValueError: wrong rank, too few rows, unequal widths, NaN, bad quantile.
    """
    if not 0 < quantile < 1:
        raise ValueError(
            f"quantile must lie between 0 and 1, got {quantile}; 0.001 asks for the "
            "closest 0.1 % of the data."
        )
    x = check_features("samples", samples, least=1)
    y = check_features("training", training, least=4)
    check_same_width("samples", x, "training", y)

    own = leave_one_out_distance(y)
    threshold = float(np.quantile(own, quantile))
    seen = int((own <= threshold).sum())
    limit = _largest_by_chance(seen, len(y), len(x)) / len(x)

    order = np.random.default_rng(seed).permutation(len(y))
    half, other = y[order[: len(y) // 2]], y[order[len(y) // 2 :]]
    usual = float(np.quantile(nearest_distance(other, half), 0.25))
    found = float(np.quantile(nearest_distance(x, half), 0.25))
    return Memorisation(
        share=float((nearest_distance(x, y) <= threshold).mean()),
        expected=seen / len(y),
        limit=limit,
        threshold=threshold,
        spread=found / usual if usual > 0 else 1.0,
        singled_out=float((nearest_ratio(x, y) < _COPY_RATIO).mean()),
    )
