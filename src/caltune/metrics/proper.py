"""Accuracy, mean confidence and the proper scores, whole and per question."""

from __future__ import annotations

import math

import numpy as np

from caltune.binomial import upper_bound
from caltune.errors import InputError
from caltune.metrics.bootstrap import Interval
from caltune.types import FloatArray, OptionLogits, Predictions


def accuracy(predictions: Predictions) -> float:
    """The share of answers that are right; higher is better. nan for no predictions.

    >>> accuracy(Predictions(ids=("a", "b"), confidence=[0.9, 0.6], correct=[1, 0]))
    0.5
    """
    return _mean(predictions.correct)


def accuracy_interval(predictions: Predictions, level: float = 0.95) -> Interval:
    """The accuracy with its Clopper-Pearson interval, which holds the true one in `level` of all cases or more.

    The accuracies p for which neither P(X ≤ right) nor P(X ≥ right) is below (1 − level) / 2, X ~ Binomial(N, p); all
    answers right leave more than a point, where resampling them does not. Clopper and Pearson 1934. All nan for no
    predictions.

    Raises `InputError` for a level outside (0, 1).

    Two of two right: from √0.025 = 0.1581 on.

    >>> found = accuracy_interval(Predictions(ids=("a", "b"), confidence=[0.9, 0.6], correct=[1, 1]))
    >>> found.value, round(found.low, 4), found.high
    (1.0, 0.1581, 1.0)
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    count = len(predictions)
    if not count:
        return Interval(math.nan, math.nan, math.nan)
    right, share = int(predictions.correct.sum()), (1 + level) / 2
    return Interval(
        accuracy(predictions), 1 - upper_bound(count - right, count, share), upper_bound(right, count, share)
    )


def mean_confidence(predictions: Predictions) -> float:
    """The mean confidence; neither high nor low is good, equal to the accuracy is. nan for no predictions.

    >>> mean_confidence(Predictions(ids=("a", "b"), confidence=[0.9, 0.6], correct=[1, 0]))
    0.75
    """
    return _mean(predictions.confidence)


def brier(scores: OptionLogits) -> float:
    """Mean squared distance between the probabilities and the truth; lower is better, in [0, 2]. nan for no questions.

    Brier = (1/N) Σ_i Σ_k (p_ik − 1[k = y_i])², over all options. Brier 1950.
    Some tools score the top option only, or halve this for two options; this is the sum over options.

    Raises `InputError` when a label is unknown.

    Two even options: (0.5 − 1)² + 0.5² = 0.5.

    >>> brier(OptionLogits(ids=("a",), logits=[[0.0, 0.0]], labels=[0]))
    0.5
    """
    return _mean(brier_per_question(scores))


def brier_per_question(scores: OptionLogits) -> FloatArray:
    """Σ_k (p_k − 1[k = y])² of each question, (N,); lower is better.

    Raises `InputError` when a label is unknown.

    >>> brier_per_question(OptionLogits(ids=("a",), logits=[[0.0, 0.0, -np.inf]], labels=[1])).tolist()
    [0.5]
    """
    scores.require_labels()
    distance = scores.probabilities()
    distance[np.arange(len(scores)), scores.labels] -= 1.0
    result: FloatArray = np.square(distance).sum(axis=1)
    return result


def nll(scores: OptionLogits) -> float:
    """Mean negative log-probability of the right option, in nats; lower is better. nan for no questions.

    NLL = −(1/N) Σ_i log p_i,y. Infinite where a right option has the logit -inf.

    Raises `InputError` when a label is unknown.

    Two even options: ln 2.

    >>> round(nll(OptionLogits(ids=("a",), logits=[[0.0, 0.0]], labels=[0])), 4)
    0.6931
    """
    return _mean(nll_per_question(scores))


def nll_per_question(scores: OptionLogits) -> FloatArray:
    """−log p_y of each question, (N,), in nats; lower is better.

    Raises `InputError` when a label is unknown.

    >>> nll_per_question(OptionLogits(ids=("a",), logits=[[0.0, 0.0, 0.0, 0.0]], labels=[2])).round(4).tolist()
    [1.3863]
    """
    scores.require_labels()
    result: FloatArray = 0.0 - scores.log_probabilities()[np.arange(len(scores)), scores.labels]
    return result


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else float("nan")
