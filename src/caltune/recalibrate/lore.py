"""LoRe: a question's confidence is the accuracy among similar questions of the same confidence bin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.recalibrate.confidence import Indices, with_confidence
from caltune.recalibrate.guards import (
    as_features,
    read_array,
    read_ids,
    read_number,
    read_object,
    require_fit,
    require_unseen,
)
from caltune.recalibrate.projection import Projection, fit_projection
from caltune.types import FloatArray, OptionLogits, Predictions, Scores

# What leave-one-out chooses from; 100 is nearly histogram binning.
WIDTHS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 100.0)


@dataclass(frozen=True, eq=False, slots=True)
class LoRe:
    """c′(x) = Σ_i a_i k(x, x_i) / Σ_i k(x, x_i) over the fitted questions of x's bin, k = exp(−‖φ − φ_i‖₁ / (d·γ)).

    c′ is cut to [1/(s + 2), (s + 1)/(s + 2)], s = (Σ k)² / Σ k² being the questions it rests on: as Laplace's rule says
    of s answers that are all wrong or all right. So a few neighbours that are all right do not make it 1.

    `points` (M, d) are the fitted questions' components φ, `confidence` and `correct` (M,) their confidence and
    correctness, γ is `width`. Bins of confidence are right-closed and of equal width; one without fitted questions
    borrows the filled bin nearest to it. Answers stay, since only their confidence is replaced; the order of confidence
    does not. How the other options of `OptionLogits` share the rest is told at
    `caltune.recalibrate.confidence.with_confidence`. Features of another width and questions fitted on are refused.
    """

    projection: Projection
    points: FloatArray = field(repr=False)
    confidence: FloatArray = field(repr=False)
    correct: FloatArray = field(repr=False)
    width: float
    bins: int
    fitted_on: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not (len(self.points) == len(self.confidence) == len(self.correct) > 0):
            raise InputError(
                "LoRe needs points, confidence and correct of one length above 0, got "
                f"{len(self.points)}, {len(self.confidence)} and {len(self.correct)}"
            )
        width = self.projection.directions.shape[1]
        if self.points.ndim != 2 or self.points.shape[1] != width:
            raise InputError(f"LoRe needs points (M, {width}), as the projection makes, got {self.points.shape}")
        if not (math.isfinite(self.width) and self.width > 0) or self.bins < 1:
            raise InputError(f"LoRe needs a width above 0 and at least 1 bin, got {self.width} and {self.bins}")

    def __call__(self, scores: Scores, features: ArrayLike, /) -> Scores:
        """The same answers with the accuracy of their neighbourhood as confidence; `features` (N, d) a row each.

        Raises `InputError` for features of another width, or a question that was fitted on.
        """
        confidence = np.empty(len(scores))
        for rows, columns, weights in self._weights(scores, features):
            least = 1 / (2 + _size(weights))
            confidence[rows] = np.clip(weights @ self.correct[columns], least, 1 - least)
        return with_confidence(scores, confidence)

    def effective_size(self, scores: OptionLogits | Predictions, features: ArrayLike) -> FloatArray:
        """On how many fitted questions each confidence rests, (N,): (Σ k)² / Σ k², at least 1; more is surer."""
        size = np.empty(len(scores))
        for rows, _, weights in self._weights(scores, features):
            size[rows] = _size(weights)
        return size

    def _weights(
        self, scores: OptionLogits | Predictions, features: ArrayLike
    ) -> Iterator[tuple[Indices, Indices, FloatArray]]:
        require_unseen("LoRe", scores.ids, self.fitted_on)
        found = as_features(features, len(scores), width=len(self.projection.center))
        confidence = scores.probabilities().max(axis=1) if isinstance(scores, OptionLogits) else scores.confidence
        bins = nearest_filled(bin_numbers(confidence, self.bins), bin_numbers(self.confidence, self.bins))
        return _kernel(self.projection(found), self.points, bins, bin_numbers(self.confidence, self.bins), self.width)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {
            "projection": self.projection.to_json(),
            **{name: getattr(self, name).tolist() for name in ("points", "confidence", "correct")},
            "width": self.width,
            "bins": self.bins,
            "fitted_on": list(self.fitted_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> LoRe:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("LoRe", data, cls.__slots__)
        return cls(
            Projection.from_json(data["projection"]),
            read_array(data, "points", 2),
            read_array(data, "confidence", 1),
            read_array(data, "correct", 1),
            read_number(data, "width"),
            int(read_number(data, "bins")),
            read_ids(data),
        )


def fit_lore(
    scores: OptionLogits | Predictions,
    features: ArrayLike,
    *,
    width: float | None = None,
    bins: int = 15,
    components: int = 20,
) -> LoRe:
    """Keep the questions' components, confidence and correctness; choose the kernel's width by leave-one-out Brier.

    φ are the first `components` principal components of `features` (N, D) with a mean |φ| of 1. Luo et al. 2022
    (Local calibration: metrics and recalibration): 15 bins, a width given, c′ not cut. With a large width LoRe is
    histogram binning, with a small one the correctness of the nearest question of the bin. `width=None` takes, out of
    `WIDTHS`, the one whose leave-one-out confidences, not cut, have the lowest Brier score; among equals the largest.

    Raises `InputError` for fewer than 2 questions, an unknown label, features of another length, or features that are
    all the same.

    Two kinds of question, all answered with the confidence 0.8: the one always right, 5 times of 5, the other never.
    Of 5 alike Laplace's rule says 6/7 and 1/7:

    >>> kinds = np.repeat([[0.0], [1.0]], 5, axis=0)
    >>> seen = Predictions(tuple("abcdefghij"), [0.8] * 10, [1.0] * 5 + [0.0] * 5)
    >>> new = Predictions(("y", "z"), [0.8, 0.8], [1.0, 0.0])
    >>> fit_lore(seen, kinds)(new, [[0.0], [1.0]]).confidence.round(3).tolist()
    [0.857, 0.143]
    """
    require_fit("LoRe", scores, least=2)
    predictions = scores.decide() if isinstance(scores, OptionLogits) else scores
    found = as_features(features, len(predictions))
    projection = fit_projection(found, components)
    points = projection(found)
    if width is None:
        losses = _left_out_brier(points, predictions, bins)
        width = WIDTHS[len(WIDTHS) - 1 - int(np.argmin(np.round(losses[::-1], 12)))]
    return LoRe(projection, points, predictions.confidence, predictions.correct, width, bins, predictions.ids)


def bin_numbers(confidence: FloatArray, bins: int) -> FloatArray:
    """Numbers from 0 of right-closed bins of equal width; 0 belongs to the first.

    >>> bin_numbers(np.array([0.0, 0.1, 0.11, 1.0]), 10).tolist()
    [0.0, 0.0, 1.0, 9.0]
    """
    result: FloatArray = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left").astype(np.float64)
    return result


def nearest_filled(wanted: FloatArray, filled: FloatArray) -> FloatArray:
    """For each of `wanted` the nearest number among `filled`, the lower of two that are equally near.

    >>> nearest_filled(np.array([0.0, 2.0, 4.0]), np.array([1.0, 3.0])).tolist()
    [1.0, 1.0, 3.0]
    """
    there = np.unique(filled)
    result: FloatArray = there[np.abs(wanted[:, None] - there).argmin(axis=1)]
    return result


def _kernel(
    at: FloatArray, points: FloatArray, bins: FloatArray, point_bins: FloatArray, width: float
) -> Iterator[tuple[Indices, Indices, FloatArray]]:
    """Some rows, the points of their bin, and the rows' weights of these, until all rows have come."""
    for number in np.unique(bins):
        columns = np.flatnonzero(point_bins == number)
        for rows in _slices(np.flatnonzero(bins == number)):
            yield rows, columns, _weights_at(_distances(at[rows], points[columns]), width)


def _slices(rows: Indices) -> Iterator[Indices]:
    """Few enough rows at a time that their distances to all points are small in memory."""
    for start in range(0, len(rows), 256):
        yield rows[start : start + 256]


def _distances(at: FloatArray, points: FloatArray) -> FloatArray:
    """‖φ − φ_i‖₁ / d, (rows, points), one component at a time."""
    total = np.zeros((len(at), len(points)))
    for own, other in zip(at.T, points.T, strict=True):
        total += np.abs(own[:, None] - other)
    result: FloatArray = total / points.shape[1]
    return result


def _weights_at(distance: FloatArray, width: float) -> FloatArray:
    """Weights that sum to 1 in a row; computed from differences to the nearest point, so never 0 / 0."""
    kernel = np.exp((distance.min(axis=1, keepdims=True) - distance) / width)
    result: FloatArray = kernel / kernel.sum(axis=1, keepdims=True)
    return result


def _size(weights: FloatArray) -> FloatArray:
    result: FloatArray = 1.0 / np.square(weights).sum(axis=1)
    return result


def _left_out_brier(points: FloatArray, predictions: Predictions, bins: int) -> list[float]:
    """For each of `WIDTHS` the Brier score of each question by the others of its bin, where it has others."""
    numbers = bin_numbers(predictions.confidence, bins)
    squares = np.zeros(len(WIDTHS))
    for number in np.unique(numbers):
        columns = np.flatnonzero(numbers == number)
        if len(columns) == 1:
            continue
        for rows in _slices(columns):
            distance = _distances(points[rows], points[columns])
            distance[rows[:, None] == columns] = np.inf
            found = [_weights_at(distance, width) @ predictions.correct[columns] for width in WIDTHS]
            squares += np.square(np.array(found) - predictions.correct[rows]).sum(axis=1)
    return [float(one) for one in squares / len(predictions)]
