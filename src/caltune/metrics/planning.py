"""How many questions a comparison of two models needs, and what to make of many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from caltune.errors import InputError
from caltune.types import FloatArray


def questions_needed(difference: float, variance: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """How many questions, asked of both models, show a true mean `difference` with probability `power`.

    N = ⌈(z_{1−level/2} + z_power)² · variance / difference²⌉ for a two-sided paired test; `variance` is that of the
    per-question differences, such as `np.var(brier_b − brier_a, ddof=1)` of a pilot, or `discordance_variance` for
    accuracy. A normal approximation: do not trust it below about 30 questions. Never below 2. A pilot in which nothing
    is wrong shows far too little variance.

    Raises `InputError` for a difference of 0 or a number that is not finite, a variance below 0, or a power or level
    outside (0, 1).

    (1.960 + 0.842)² = 7.849; with variance 0.1 and a difference of 0.05, 7.849 · 0.1 / 0.0025 = 313.96.

    >>> questions_needed(0.05, 0.1)
    314
    """
    if not math.isfinite(difference) or difference == 0:
        raise InputError(f"difference must be a finite number other than 0, got {difference}")
    return max(2, math.ceil(_factor(variance, power, level) / difference**2))


def detectable_difference(size: int, variance: float, *, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true mean difference that `size` shared questions show with probability `power`.

    d = (z_{1−level/2} + z_power) · √(variance / size), `questions_needed` turned round. Smaller differences may be
    there and are mostly not seen.

    Raises `InputError` for fewer than two questions, a variance below 0, or a power or level outside (0, 1).

    >>> round(detectable_difference(314, 0.1), 4)
    0.05
    """
    if size < 2:
        raise InputError(f"size must be at least 2, got {size}")
    return math.sqrt(_factor(variance, power, level) / size)


def discordance_variance(discordant: float, difference: float) -> float:
    """The variance of the per-question difference in accuracy when only a share `discordant` is answered differently.

    The difference is 1, −1 or 0, so E d² = discordant, and the variance is discordant − difference². Two models that
    are wrong on the same questions need few of them. Connor 1987, for McNemar's test.

    Raises `InputError` unless |difference| <= discordant <= 1.

    One is right where the other is wrong on 20 % of the questions, and 10 points better: 0.15 against 0.05.

    >>> round(discordance_variance(0.2, 0.1), 4)
    0.19
    """
    if not abs(difference) <= discordant <= 1:
        raise InputError(
            f"discordant must lie between the size of the difference, {abs(difference)}, and 1, got {discordant}"
        )
    return discordant - difference**2


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Adjusted p-values (M,) of M comparisons: below 0.05 for any true null with probability at most 0.05.

    In rising order, p̃_(j) = max_{i<=j} min(1, (m − i + 1) p_(i)) over the m that are not nan; a nan stays nan and
    counts for nothing. Holds however the comparisons depend on each other. Holm 1979.

    Raises `InputError` for a p-value outside [0, 1].

    Smallest times 3, next times 2, largest times 1 but not below the one before:

    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64)
    wrong = ~(np.isnan(given) | ((given >= 0) & (given <= 1)))
    if wrong.any():
        raise InputError(f"a p-value must lie in [0, 1] or be nan, got {given[wrong][0]}")
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    adjusted = np.full(given.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _factor(variance: float, power: float, level: float) -> float:
    if not (math.isfinite(variance) and variance >= 0):
        raise InputError(f"variance must be a finite number of at least 0, got {variance}")
    for name, number in (("power", power), ("level", level)):
        if not 0 < number < 1:
            raise InputError(f"{name} must lie between 0 and 1, got {number}")
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) ** 2 * variance
