"""Calibration of parts: of each group of questions, and of each option's probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caltune.errors import InputError
from caltune.types import FloatArray, OptionLogits, Predictions

_SHORT = 64  # up to here plain sums are faster than Fourier transforms


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of `n` answers: what it `says` and the share that is `right`; chance allows `low` to `high`."""

    name: str
    n: int
    says: float
    right: float
    low: float
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the share right lies outside what chance allows."""
        return not self.low - 1e-9 <= self.right <= self.high + 1e-9


def group_calibration(predictions: Predictions, level: float = 0.95) -> list[Stratum]:
    """How sure and how right the answers of each group are, with what chance allows; groups in order of their names.

    The number right in a group of a calibrated model is Poisson-binomial with its confidences; `low` and `high` are its
    quantiles, exact, at a level corrected for the number of groups G: 1 − (1 − level) / G. So with probability of at
    least `level` a calibrated model has every group inside. Answers that go wrong together, as about one text, make
    chance larger than this. An empty list for no predictions.

    Raises `InputError` for a level outside (0, 1).

    Two answers at 0.9 in "a", both wrong, which happens in 1 of 100; one at 0.5 in "b", right:

    >>> some = Predictions(("1", "2", "3"), [0.9, 0.9, 0.5], [0, 0, 1], ("a", "a", "b"))
    >>> [(one.name, one.n, one.right, one.low, one.beyond_chance) for one in group_calibration(some)]
    [('a', 2, 0.0, 0.5, True), ('b', 1, 1.0, 0.0, False)]
    """
    names, group = np.unique(np.asarray(predictions.groups, dtype=object), return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]) if len(names) else []
    return [
        _stratum(str(name), predictions.confidence[rows], predictions.correct[rows], level, len(names))
        for name, rows in zip(names, members, strict=True)
    ]


def option_calibration(scores: OptionLogits, level: float = 0.95) -> list[Stratum]:
    """The mean probability of each option against how often it is the right one; named A, B, C, …

    Over the questions that have it (a finite logit, or the right answer); one that none has is left out. Chance as in
    `group_calibration`. For shuffled multiple choice options are positions: a model that favours A says more than is
    right there. Errors that cancel within an option are not seen; `classwise_ece` sees them.

    Raises `InputError` when a label is unknown, or for a level outside (0, 1).

    >>> scores = OptionLogits(ids=("1", "2"), logits=[[0.0, 0.0], [0.0, -np.inf]], labels=[0, 0])
    >>> [(one.name, one.n, one.says, one.right) for one in option_calibration(scores)]
    [('A', 2, 0.75, 1.0), ('B', 1, 0.5, 0.0)]
    """
    scores.require_labels()
    probabilities = np.minimum(scores.probabilities(), 1.0)
    has = np.isfinite(scores.logits)
    has[np.arange(len(scores)), scores.labels] = True  # also where it was ruled out
    options = np.flatnonzero(has.any(axis=0)).tolist()
    found = []
    for k in options:
        rows = has[:, k]
        name = chr(ord("A") + k) if k < 26 else str(k + 1)
        found.append(
            _stratum(name, probabilities[rows, k], (scores.labels[rows] == k).astype(np.float64), level, len(options))
        )
    return found


def poisson_binomial(probabilities: FloatArray) -> FloatArray:
    """P(exactly j of N happen), (N + 1,), for independent events with the given probabilities (N,).

    Exact up to rounding: halves are joined two by two, long ones by their Fourier transforms, so that time grows with
    N log² N. Reviewed by Hong, Computational Statistics & Data Analysis 2013.

    >>> poisson_binomial(np.array([0.5, 0.5])).tolist(), poisson_binomial(np.array([])).tolist()
    ([0.25, 0.5, 0.25], [1.0])
    """
    count = len(probabilities)
    parts = np.zeros((1 << max(0, count - 1).bit_length(), 2))
    parts[:, 0] = 1.0  # events that never happen make it a power of two
    parts[:count] = np.column_stack([1 - probabilities, probabilities])
    while len(parts) > 1:
        parts = _joined(parts[::2], parts[1::2])
    return parts[0, : count + 1]


def _joined(a: FloatArray, b: FloatArray) -> FloatArray:
    """The distributions of the sums of what the rows of a and b (M, W) are distributions of: (M, 2 W − 1)."""
    width = a.shape[1]
    if width <= _SHORT:
        result = np.zeros((len(a), 2 * width - 1))
        for i in range(width):
            result[:, i : i + width] += a[:, i : i + 1] * b
        return result
    product = np.fft.rfft(a, 2 * width, axis=1) * np.fft.rfft(b, 2 * width, axis=1)
    return np.maximum(np.fft.irfft(product, 2 * width, axis=1)[:, :-1], 0.0)


def _stratum(name: str, says: FloatArray, right: FloatArray, level: float, parts: int) -> Stratum:
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    tail = (1 - level) / parts / 2
    below = np.cumsum(poisson_binomial(says))
    count = len(says)
    low, high = (min(int(np.searchsorted(below, share - 1e-12)), count) for share in (tail, 1 - tail))
    return Stratum(name, count, float(says.mean()), float(right.mean()), low / count, high / count)
