"""Whether confidence tells right answers from wrong ones."""

from __future__ import annotations

import numpy as np

from caltune.metrics.bootstrap import Statistic
from caltune.metrics.ece import first_of_ties
from caltune.types import FloatArray, Predictions


def auroc(predictions: Predictions) -> float:
    """The probability that a right answer has a higher confidence than a wrong one, ties half; higher is better.

    AUROC = P(c_right > c_wrong) + ½ P(c_right = c_wrong). 0.5 says that confidence is no guide; nan when all answers
    are right or all are wrong. It cannot see calibration: any increasing map of confidence leaves it as it is.
    Mann and Whitney 1947; Fawcett 2006.

    Right: 0.9 and 0.6; wrong: 0.6. The pairs score 1 and ½, mean 0.75.

    >>> auroc(Predictions(ids=("a", "b", "c"), confidence=[0.9, 0.6, 0.6], correct=[1, 1, 0]))
    0.75
    """
    is_right = predictions.correct > 0
    right, wrong = np.sort(predictions.confidence[is_right]), np.sort(predictions.confidence[~is_right])
    if not len(right) or not len(wrong):
        return float("nan")
    beaten = np.searchsorted(wrong, right, "left").sum() + np.searchsorted(wrong, right, "right").sum()
    return float(beaten / 2 / (len(right) * len(wrong)))


def auroc_statistic(predictions: Predictions) -> Statistic:
    """`auroc` of resampled questions, for `bootstrap`.

    >>> some = Predictions(ids=("a", "b", "c"), confidence=[0.9, 0.6, 0.6], correct=[1, 1, 0])
    >>> auroc_statistic(some)(np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]])).tolist()
    [0.5, nan]
    """
    order = np.argsort(predictions.confidence, kind="stable")
    wrong = 1.0 - predictions.correct[order]
    first = first_of_ties(predictions.confidence[order])
    last = len(first) - 1 - first_of_ties(-predictions.confidence[order][::-1])[::-1]
    is_right = np.flatnonzero(wrong == 0)

    def statistic(counts: FloatArray) -> FloatArray:
        counts = np.take(counts, order, axis=1)
        wrong_counts = counts * wrong
        up_to = np.zeros((len(counts), len(order) + 1))
        np.cumsum(wrong_counts, axis=1, out=up_to[:, 1:])
        right_counts = counts[:, is_right]
        # Wrong answers strictly below, plus half of those that tie.
        beaten = (up_to[:, first[is_right]] + up_to[:, last[is_right] + 1]) / 2
        pairs = right_counts.sum(axis=1) * up_to[:, -1]
        won = (right_counts * beaten).sum(axis=1)
        result: FloatArray = won / np.where(pairs > 0, pairs, np.nan)
        return result

    return statistic


def risk_coverage(predictions: Predictions) -> tuple[FloatArray, FloatArray]:
    """Accuracy of the answers kept when only the most confident ones are: (coverage (J,), accuracy (J,)).

    Ordered by rising coverage, one point for each of the J distinct confidences: the answers at or above it. Answers of
    equal confidence are kept or dropped together, since nothing says which comes first. A high accuracy at low coverage
    is good. Both arrays are empty for no predictions. Risk is 1 − accuracy. El-Yaniv and Wiener 2010.

    >>> some = Predictions(ids=("a", "b", "c", "d"), confidence=[0.9, 0.6, 0.6, 0.3], correct=[1, 1, 0, 0])
    >>> [curve.round(3).tolist() for curve in risk_coverage(some)]
    [[0.25, 0.75, 1.0], [1.0, 0.667, 0.5]]
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    falling = predictions.confidence[order]
    cuts = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(order) else np.arange(0)
    kept = cuts + 1.0
    return kept / max(1, len(order)), np.cumsum(predictions.correct[order])[cuts] / kept
