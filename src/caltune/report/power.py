"""What so many questions cannot show, in sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from caltune.metrics import brier_per_question, detectable_difference, nll_per_question
from caltune.metrics.paired import align
from caltune.report.text import number, questions
from caltune.types import FloatArray, OptionLogits


def detectable(values: FloatArray) -> float:
    """The mean of `values` (N,) that shows as different from 0 with probability 0.8; nan where that is undefined.

    >>> round(detectable(np.array([1.0, -1.0] * 50)), 3), detectable(np.array([1.0]))
    (0.282, nan)
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return detectable_difference(len(values), float(np.var(values, ddof=1)))


def power_lines(names: Sequence[str], scores: Sequence[OptionLogits], comparable: Collection[int]) -> list[str]:
    """The smallest overconfidence, and the smallest differences from the first, that these questions mostly show."""
    decided = [one.decide() for one in scores]
    size = questions(min(len(one) for one in scores))
    own = [detectable(one.confidence - one.correct) for one in decided]
    lines = []
    if not any(map(math.isnan, own)):
        lines.append(f"With {size} an overconfidence under {_range(own, 100, 1)}\u00a0points is mostly not seen.")
    gaps: dict[str, list[float]] = {"accuracy": [], "brier": [], "nll": []}
    for i in sorted(set(comparable) - {0}):
        other = align(scores[0], scores[i])
        gaps["accuracy"].append(detectable(other.decide().correct - decided[0].correct))
        for name, function in (("brier", brier_per_question), ("nll", nll_per_question)):
            with np.errstate(invalid="ignore"):  # inf − inf is nan: undefined
                gaps[name].append(detectable(function(other) - function(scores[0])))
    seen = [
        f"{_range(kept, factor, digits)}{unit}"
        for name, factor, digits, unit in (
            ("accuracy", 100, 1, "\u00a0points of accuracy"),
            ("brier", 1, 3, " of the Brier score"),
            ("nll", 1, 3, " of NLL"),
        )
        if (kept := [gap for gap in gaps[name] if gap > 0])  # neither undefined nor of answers that are all the same
    ]
    if seen:
        words = " or ".join([", ".join(seen[:-1]), seen[-1]] if len(seen) > 1 else seen)
        lines.append(f"Of differences from {names[0]}, those under {words} are mostly not seen.")
    return lines


def _range(values: Sequence[float], factor: float, digits: int) -> str:
    """One number, or the smallest to the largest.

    >>> _range([0.01, 0.0301], 100, 1), _range([0.5, 0.5], 1, 1)
    ('1.0 to 3.0', '0.5')
    """
    ends = [number(factor * end, digits) for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
