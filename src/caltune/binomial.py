"""Error rates behind counts of errors: the binomial tail and the bounds that follow from it."""

from __future__ import annotations

import math
import sys
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def fewest(limit: float, level: float) -> int:
    """How many answers without an error show a rate below `limit`: the lowest m with (1 − limit)^m ≤ level.

    Where that is more than a machine counts to, the most it counts to.

    >>> fewest(0.05, 0.05), fewest(0.5, 0.25)
    (59, 2)
    """
    return max(1, math.ceil(min(math.log(level) / math.log1p(-limit) - 1e-9, sys.maxsize)))


@lru_cache(maxsize=8)
def allowed_errors(count: int, limit: float, level: float) -> NDArray[np.intp]:
    """How many errors m answers may hold to show a rate below `limit`, for m = 0 … `count`: (count + 1,), −1 for none.

    The highest e with P(X ≤ e) ≤ level for X ~ Binomial(m, limit): then the Clopper-Pearson bound with confidence
    1 − level lies at or below `limit`. From m to m + 1 it grows by at most 1, which makes one pass of

        P(X_{m+1} ≤ e) = P(X_m ≤ e) − limit · P(X_m = e).

    Three coins, one error or none: P(X ≤ 0) is 1/2, 1/4, 1/8 for m = 1, 2, 3; P(X ≤ 1) is 1/2 for m = 3.

    >>> allowed_errors(3, 0.5, 0.25).tolist(), allowed_errors(3, 0.5, 0.5).tolist()
    ([-1, -1, 0, 0], [-1, 0, 0, 1])
    """
    allowed = np.full(count + 1, -1, dtype=np.intp)
    errors, first = 0, fewest(limit, level)
    level *= 1 + 1e-10  # rounding must not cost an error that is exactly allowed
    exactly = at_most = (1 - limit) ** first
    for m in range(first, count + 1):
        if m > first:
            at_most -= limit * exactly
            exactly *= (1 - limit) * m / (m - errors)
        one_more = exactly * (m - errors) / (errors + 1) * limit / (1 - limit)
        if at_most + one_more <= level:
            errors, exactly, at_most = errors + 1, one_more, at_most + one_more
        allowed[m] = errors
    allowed.setflags(write=False)
    return allowed


def upper_bound(errors: float, count: int, confidence: float) -> float:
    """Clopper-Pearson: the highest error rate p for which P(X ≤ errors) ≥ 1 − confidence, X ~ Binomial(count, p).

    Clopper and Pearson 1934. 1 for no answers. Without an error it is 1 − (1 − confidence)^(1/count):

    >>> round(upper_bound(0, 10, 0.95), 6), round(1 - 0.05**0.1, 6)
    (0.258866, 0.258866)
    """
    if errors >= count:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_cdf(errors, count, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def binomial_cdf(errors: float, count: int, rate: float) -> float:
    """P(X ≤ errors) for X ~ Binomial(count, rate), a rate in (0, 1).

    Two coins: P(X ≤ 0) = 1/4, P(X ≤ 1) = 3/4.

    >>> [round(binomial_cdf(errors, 2, 0.5), 12) for errors in (-1, 0, 1, 2)]
    [0.0, 0.25, 0.75, 1.0]
    """
    if errors < 0 or errors >= count:
        return float(errors >= count)
    k = np.arange(errors + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    logs = factorials[count] - factorials[: len(k)] - factorials[count - np.arange(len(k))]
    of_other = math.log1p(-rate) if rate < 1 else -math.inf  # a rate may round to 1
    terms = np.exp(logs + k * math.log(rate) + (count - k) * of_other)
    return min(1.0, float(terms.sum()))
