"""Modular conformal calibration: numeric answers whose quantiles hold, whatever the model that predicted them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.recalibrate.guards import read_array, read_ids, read_object, require_unseen
from caltune.types import FloatArray


@dataclass(frozen=True, slots=True)
class NumericForecasts:
    """What a model says of N numeric answers: `center` (N,) and `spread` (N,) above 0; `outcomes` (N,) where known.

    Raises `InputError` for other shapes, repeated ids, numbers that are not finite or a spread not above 0.

    >>> NumericForecasts(("a",), [10.0], [2.0]).spread.tolist()
    [2.0]
    """

    ids: tuple[str, ...]
    center: FloatArray
    spread: FloatArray
    outcomes: FloatArray | None = None

    def __post_init__(self) -> None:
        ids = tuple(self.ids)
        if len(set(ids)) != len(ids):
            raise InputError(f"ids must be unique, got {len(set(ids))} different among {len(ids)}")
        object.__setattr__(self, "ids", ids)
        for name in ("center", "spread", "outcomes"):
            if name == "outcomes" and self.outcomes is None:
                continue
            found = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if found.shape != (len(ids),) or not np.isfinite(found).all():
                raise InputError(f"{name} must be {len(ids)} finite numbers, one an id, got {found.shape} {found[:3]}")
            object.__setattr__(self, name, found)
        if (self.spread <= 0).any():
            raise InputError(f"spread must be above 0, got {self.spread.min()}")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False, slots=True)
class ConformalCalibration:
    """F(y | x) = rank of s(x, y) among the fitted scores / (n + 1), interpolated; s = (y − center) / spread.

    `scores` (n,) are those of the fitted questions, sorted. The k-th lowest has F = k / (n + 1), equal ones the mean of
    theirs. The order of answers by their center stays where the spread is the same. Questions fitted on are refused.
    """

    scores: FloatArray = field(repr=False)
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or not len(self.scores):
            raise InputError(f"conformal calibration needs at least one score, got {self.scores.shape}")
        object.__setattr__(self, "scores", np.sort(self.scores))

    def cdf(self, forecasts: NumericForecasts, at: ArrayLike) -> FloatArray:
        """Calibrated P(answer ≤ `at`), (N,): 0 below the lowest and 1 above the highest fitted score.

        For outcomes drawn as the fitted ones were, the values are uniform on 1/(n + 1), …, n/(n + 1) but for the ends.
        """
        values, levels = self._steps()
        found = (np.asarray(at, dtype=np.float64) - self._unseen(forecasts).center) / forecasts.spread
        result: FloatArray = np.interp(found, values, levels, left=0.0, right=1.0)
        return result

    def quantile(self, forecasts: NumericForecasts, level: float) -> FloatArray:
        """The number that each answer stays below with the probability `level`, (N,).

        P(outcome ≤ quantile) is `level` to within 1/(n + 1), for any model and any n, when fitted and new questions are
        exchangeable and scores differ. Levels below the lowest or above the highest rank/(n + 1) are -inf and inf: n
        questions cannot tell. Raises `InputError` for a level outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise InputError(f"a level must lie in [0, 1], got {level}")
        values, levels = self._steps()
        outside = 1e-12  # so that 0.9 is not above 9 / 10
        low = -np.inf if level < levels[0] - outside else values[0]
        high = np.inf if level > levels[-1] + outside else values[-1]
        score = low if level < levels[0] else high if level > levels[-1] else np.interp(level, levels, values)
        result: FloatArray = self._unseen(forecasts).center + forecasts.spread * score
        return result

    def interval(self, forecasts: NumericForecasts, coverage: float) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends, (N,) each, between which the answer lies with the probability `coverage`."""
        return self.quantile(forecasts, (1 - coverage) / 2), self.quantile(forecasts, (1 + coverage) / 2)

    def crps(self, forecasts: NumericForecasts) -> FloatArray:
        """Continuous ranked probability score of each outcome, (N,), in its unit; lower is better, 0 is best.

            CRPS = spread · (mean_i |s_i − s| − ½ mean_ij |s_i − s_j|)

        of the distribution with a mass of 1/n at each fitted score (Gneiting, Raftery 2007, equation 21).
        Raises `InputError` when outcomes are not known.
        """
        outcomes = self._unseen(forecasts).outcomes
        if outcomes is None:
            raise InputError("the CRPS needs outcomes, got forecasts without")
        n = len(self.scores)
        s = (outcomes - forecasts.center) / forecasts.spread
        # Sorted, so that Σ_ij |s_i − s_j| is 2 Σ_i (2i − n − 1) s_i and Σ_i |s_i − s| comes from partial sums.
        sums = np.concatenate([[0.0], np.cumsum(self.scores)])
        below = np.searchsorted(self.scores, s)
        apart = (s * (2 * below - n) + sums[-1] - 2 * sums[below]) / n
        spread = ((2 * np.arange(1, n + 1) - n - 1) @ self.scores) / n**2
        result: FloatArray = forecasts.spread * (apart - spread)
        return result

    def _steps(self) -> tuple[FloatArray, FloatArray]:
        """Different scores, rising, and their mean rank / (n + 1)."""
        values, counts = np.unique(self.scores, return_counts=True)
        last = np.cumsum(counts)
        return values, (last - (counts - 1) / 2) / (len(self.scores) + 1)

    def _unseen(self, forecasts: NumericForecasts) -> NumericForecasts:
        require_unseen("conformal calibration", forecasts.ids, self.fitted_on)
        return forecasts

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> ConformalCalibration(np.array([1.0, 0.0]), ("a", "b")).to_json()
        {'scores': [0.0, 1.0], 'fitted_on': ['a', 'b']}
        """
        return {"scores": self.scores.tolist(), "fitted_on": list(self.fitted_on)}

    @classmethod
    def from_json(cls, data: Any) -> ConformalCalibration:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("conformal calibration", data, ("scores", "fitted_on"))
        return cls(read_array(data, "scores", 1), read_ids(data))


def fit_conformal(forecasts: NumericForecasts) -> ConformalCalibration:
    """Keep the scores (outcome − center) / spread of questions whose outcomes are known.

    Marx, Zhou, Neiswanger, Ermon 2022 (Modular conformal calibration): any score that rises with y will do, and any
    interpolation of the ranks between; ours is this score with linear interpolation, without randomised ties.

    Raises `InputError` without outcomes or without questions.

    Four outcomes -1, 0, 1 and 2 spreads off: the levels 1/5 to 4/5. The median lies between 0 and 1.

    >>> seen = NumericForecasts(tuple("abcd"), [0.0] * 4, [1.0] * 4, [-1.0, 0.0, 1.0, 2.0])
    >>> fitted = fit_conformal(seen)
    >>> new = NumericForecasts(("n",), [100.0], [10.0], [100.0])
    >>> [fitted.quantile(new, level).tolist() for level in (0.1, 0.2, 0.5, 0.8)]
    [[-inf], [90.0], [105.0], [120.0]]
    >>> fitted.cdf(new, [105.0]).round(4).tolist()
    [0.5]
    """
    if forecasts.outcomes is None or not len(forecasts):
        raise InputError(f"conformal calibration needs questions with outcomes, got {len(forecasts)} questions")
    return ConformalCalibration((forecasts.outcomes - forecasts.center) / forecasts.spread, forecasts.ids)


def pool_spread(forecasts: Sequence[ArrayLike], least: float = 1e-9) -> tuple[FloatArray, FloatArray]:
    """Center and spread, (N,) each, of several numeric answers a question: mean and standard deviation.

    `least` keeps the spread above 0 where all agree. Raises `InputError` for fewer than two members.

    >>> [part.tolist() for part in pool_spread([[1.0, 5.0], [3.0, 5.0]], least=0.5)]
    [[2.0, 5.0], [1.4142135623730951, 0.5]]
    """
    members = np.asarray(forecasts, dtype=np.float64)
    if members.ndim != 2 or len(members) < 2:
        raise InputError(f"members must be at least two lists of one length, got the shape {members.shape}")
    return members.mean(axis=0), np.maximum(members.std(axis=0, ddof=1), least)
