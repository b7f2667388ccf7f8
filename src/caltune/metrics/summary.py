"""Every metric of one set of scores, each with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from caltune.errors import InputError
from caltune.metrics.bootstrap import (
    Interval,
    Statistic,
    basic_interval,
    bootstrap,
    default_draws,
    finite_or_none,
    mean_statistic,
    percentile_interval,
)
from caltune.metrics.classwise import classwise_ece_statistic
from caltune.metrics.corrected import corrected_ece
from caltune.metrics.discrimination import auroc_statistic
from caltune.metrics.ece import ece_statistic, noise_floor
from caltune.metrics.proper import accuracy_interval, brier_per_question, nll_per_question
from caltune.metrics.smooth import smooth_ece_statistic
from caltune.notebook import interval, number, table
from caltune.types import FloatArray, OptionLogits, Predictions

Direction = Literal["higher", "lower", "neither"]
# Which way is good. Confidence by itself is neither, and overconfidence is best at 0.
DIRECTIONS: dict[str, Direction] = {
    "accuracy": "higher",
    "confidence": "neither",
    "overconfidence": "neither",
    "ece": "lower",
    "ece_mass": "lower",
    "classwise_ece": "lower",
    "smooth_ece": "lower",
    "brier": "lower",
    "nll": "lower",
    "auroc": "higher",
}
ENOUGH = 20  # answers right, and wrong, for intervals from resampling: see benchmarks/coverage.py
CALIBRATION_ERRORS = ("ece", "ece_mass", "classwise_ece", "smooth_ece")


@dataclass(frozen=True, slots=True)
class Summary:
    """`n` questions, an `Interval` for each name in `DIRECTIONS`, and the noise floors of the two ECEs.

    `corrected` holds `corrected_ece` for `ece` and `ece_mass`: what is left of them without chance, with an interval
    that holds it near 0 too. The intervals of calibration errors in `metrics` do not; see `basic_interval`.
    """

    n: int
    metrics: dict[str, Interval]
    noise_floor: float
    noise_floor_mass: float
    corrected: dict[str, Interval]

    @property
    def rarer(self) -> tuple[int, Literal["right", "wrong"]]:
        """How many answers are of the rarer kind, and which; below `ENOUGH`, bootstrap intervals are too narrow."""
        right = round(self.n * self.metrics["accuracy"].value)
        return (right, "right") if 2 * right < self.n else (self.n - right, "wrong")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; a number that is not finite becomes None."""
        return {
            "n": self.n,
            "metrics": {name: found.to_json() for name, found in self.metrics.items()},
            "noise_floor": finite_or_none(self.noise_floor),
            "noise_floor_mass": finite_or_none(self.noise_floor_mass),
            "corrected": {name: found.to_json() for name, found in self.corrected.items()},
        }

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        floors = {"ece": self.noise_floor, "ece_mass": self.noise_floor_mass}
        rows = []
        for name, found in self.metrics.items():
            whole = "" if name in CALIBRATION_ERRORS else interval(found.low, found.high)
            way = DIRECTIONS.get(name, "neither")
            better = "" if way == "neither" else f"{way} is better"
            rows.append([name, number(found.value), whole, better])
            if name in self.corrected:
                left = self.corrected[name]
                rows.append([f"{name} by chance alone", number(floors[name]), "", ""])
                rows.append([f"{name} without chance", number(left.value), interval(left.low, left.high), ""])
        return table(f"{self.n:,} questions", ["", "value", "95 % interval", ""], rows)


def summarise(scores: OptionLogits, *, draws: int | None = None, seed: int = 0) -> Summary:
    """All metrics with 95 % intervals over questions; the ECEs use 15 bins.

    Intervals are `accuracy_interval` for accuracy and of the bootstrap for the rest: `basic_interval` for calibration
    errors, `percentile_interval` otherwise. With fewer than 20 answers wrong, or right, those of the bootstrap are too
    narrow: resamples of none are all alike. `overconfidence` is mean confidence − accuracy: above 0 the model claims
    more than it knows. `draws` is by default 1,000, and fewer for
    more than 100,000 questions: see `default_draws`.

    Raises `InputError` for no questions, an unknown label or fewer than one draw.

    >>> scores = OptionLogits(ids=("a", "b"), logits=[[2.0, 2.0], [1.0, 1.0]], labels=[0, 1])
    >>> found = summarise(scores, draws=100)
    >>> found.n, found.metrics["confidence"], found.metrics["brier"]
    (2, Interval(value=0.5, low=0.5, high=0.5), Interval(value=0.5, low=0.5, high=0.5))
    """
    return summarise_statistic(all_metrics(scores), DIRECTIONS, scores.decide(), draws=draws, seed=seed)


def summarise_statistic(
    statistic: Statistic, names: Iterable[str], predictions: Predictions, *, draws: int | None, seed: int
) -> Summary:
    """The `Summary` of a statistic whose columns are `names`, of the questions of `predictions`."""
    draws = default_draws(len(predictions)) if draws is None else draws
    values = metric_values(statistic, len(predictions))
    replicates = bootstrap(statistic, len(predictions), draws=draws, seed=seed)
    metrics = {
        name: (basic_interval if name in CALIBRATION_ERRORS else percentile_interval)(
            float(values[i]), replicates[:, i]
        )
        for i, name in enumerate(names)
    }
    metrics["accuracy"] = accuracy_interval(predictions)
    return Summary(
        n=len(predictions),
        metrics=metrics,
        noise_floor=noise_floor(predictions, draws=draws, seed=seed),
        noise_floor_mass=noise_floor(predictions, binning="mass", draws=draws, seed=seed),
        corrected={
            "ece": corrected_ece(predictions, seed=seed),
            "ece_mass": corrected_ece(predictions, binning="mass", seed=seed),
        },
    )


def all_metrics(scores: OptionLogits) -> Statistic:
    """Every metric in the order of `DIRECTIONS` for resampled questions: counts (D, N) to (D, metrics).

    Raises `InputError` for no questions or an unknown label.
    """
    if not len(scores):
        raise InputError("metrics need at least one question, got none")
    of_options = {
        "classwise_ece": classwise_ece_statistic(scores),
        "brier": mean_statistic(brier_per_question(scores)),
        "nll": mean_statistic(nll_per_question(scores)),
    }
    return together(DIRECTIONS, scores.decide(), of_options)


def together(names: Iterable[str], predictions: Predictions, more: Mapping[str, Statistic]) -> Statistic:
    """The metrics of those `names` as one statistic: what confidences tell, and `more`, by name."""
    statistics: dict[str, Statistic] = {
        "accuracy": mean_statistic(predictions.correct),
        "confidence": mean_statistic(predictions.confidence),
        "overconfidence": mean_statistic(predictions.confidence - predictions.correct),
        "ece": ece_statistic(predictions),
        "ece_mass": ece_statistic(predictions, binning="mass"),
        "smooth_ece": smooth_ece_statistic(predictions),
        "auroc": auroc_statistic(predictions),
        **more,
    }
    chosen = [statistics[name] for name in names]
    return lambda counts: np.stack([statistic(counts) for statistic in chosen], axis=1)


def metric_values(statistic: Statistic, size: int) -> FloatArray:
    """The statistic of the questions as they are, each once."""
    result: FloatArray = statistic(np.ones((1, size)))[0]
    return result
