"""The confidence in the chosen option, read from scores and written back: what the one-dimensional maps share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
from caltune.recalibrate.guards import require_fit
from caltune.types import FloatArray, OptionLogits, Predictions, Scores

Indices = NDArray[np.intp]
SMALLEST = 1e-16  # a stated confidence of 0 or 1 counts as this far from it, so that its log-odds are finite
GAP = np.float32(1e-6)  # in logits, between the answer and the others: the answer stays when they would tie


def log_confidence(scores: OptionLogits | Predictions) -> tuple[FloatArray, FloatArray]:
    """ln c and ln(1 − c), (N,) each, where c is the probability of the chosen option.

    From logits ln(1 − c) is the log-sum of the other options, so it is exact where 1 − c would round to 0. A question
    with one option has c = 1 and ln(1 − c) = 0 by convention, since nothing can be done about it.

    >>> log_top, log_rest = log_confidence(Predictions(("a", "b"), [0.75, 1.0], [1, 1]))
    >>> np.exp(log_top).tolist(), np.exp(log_rest).round(17).tolist()
    ([0.75, 1.0], [0.25, 1e-16])
    """
    if isinstance(scores, Predictions):
        confidence = scores.confidence
        return np.log(np.maximum(confidence, SMALLEST)), np.log(np.maximum(1 - confidence, SMALLEST))
    rows = np.arange(len(scores))
    log_probabilities = scores.log_probabilities()
    choice = chosen(scores)
    top = log_probabilities[rows, choice]
    log_probabilities[rows, choice] = -np.inf
    rest = np.logaddexp.reduce(log_probabilities, axis=1) if len(scores) else np.empty(0)
    return top, np.where(np.isneginf(rest), 0.0, rest)


def chosen(scores: OptionLogits) -> Indices:
    """The position of the chosen option, (N,): the one that `decide` takes."""
    result: Indices = scores.probabilities().argmax(axis=1)
    return result


def calibration_set(
    what: str, scores: OptionLogits | Predictions
) -> tuple[FloatArray, FloatArray, FloatArray, Indices]:
    """ln c, ln(1 − c), correct and row, (N',) each, of the questions with more than one option.

    Raises `InputError` when a label is unknown or there is no such question.
    """
    require_fit(what, scores)
    top, rest = log_confidence(scores)
    correct = scores.decide().correct if isinstance(scores, OptionLogits) else scores.correct
    rows = np.arange(len(scores))
    if isinstance(scores, OptionLogits):
        rows = np.flatnonzero(np.isfinite(scores.logits).sum(axis=1) > 1)
    if not len(rows):
        raise InputError(f"fitting {what} needs a question with two options, got {len(scores)} with one")
    return top[rows], rest[rows], correct[rows], rows


def with_confidence(scores: Scores, confidence: FloatArray) -> Scores:
    """The same questions and answers with the chosen options' probabilities set to `confidence` (N,).

    `Predictions` get it as it is. `OptionLogits` keep the chosen option, so it cannot fall below the others:

    - the other options share 1 − c in the proportions they had;
    - one that would pass c is cut to c, and the options behind it share what is left in their proportions;
    - below 1/K, K the row's options, that has no solution: c is 1/K there, all options alike.

    So among the others no two change places, though they may come to be equal. In logits the answer stays 1e-6 above
    them, which moves a confidence by that much at most. Questions with one option stay as they are.

    The rest of 0.8 is shared 3 to 1. At 0.45 the second option would get 0.55·0.9 = 0.495 and is cut:

    >>> scores = OptionLogits(("a",), np.log([[0.6, 0.3, 0.1]]), [0])
    >>> with_confidence(scores, np.array([0.8])).probabilities().round(4).tolist()
    [[0.8, 0.15, 0.05]]
    >>> scores = OptionLogits(("a",), np.log([[0.5, 0.45, 0.05]]), [0])
    >>> with_confidence(scores, np.array([0.45])).probabilities().round(4).tolist()
    [[0.45, 0.45, 0.1]]
    """
    if isinstance(scores, Predictions):
        return Predictions(scores.ids, confidence, scores.correct, scores.groups)
    rows = np.arange(len(scores))
    choice = chosen(scores)
    rest = scores.log_probabilities()
    rest[rows, choice] = -np.inf
    count = 1 + np.isfinite(rest).sum(axis=1)
    order = np.argsort(-rest, axis=1, kind="stable")
    sorted_rest = np.take_along_axis(rest, order, axis=1)
    # behind[:, m] is the log-sum of the others from the m-th on.
    behind = np.logaddexp.accumulate(sorted_rest[:, ::-1], axis=1)[:, ::-1]
    c = np.clip(confidence, 1.0 / count, np.nextafter(1.0, 0.0))
    log_c = np.log(c)
    sum_rest, share = np.zeros(len(scores)), np.zeros(len(scores))
    open_rows = count > 1
    for cut in range(rest.shape[1] - 1):  # how many of the others are cut to c
        left = np.maximum(1.0 - (1 + cut) * c, np.finfo(np.float64).tiny)
        log_left = np.log(left)
        with np.errstate(invalid="ignore"):  # inf − inf where a row has no such option
            below = sorted_rest[:, cut] - behind[:, cut] + log_left <= log_c
        fits = open_rows & (below | (cut == count - 2))
        sum_rest[fits], share[fits] = behind[fits, cut], log_left[fits]
        open_rows &= ~fits
    # The difference first: beside large logits a share would round away.
    logits = np.minimum(rest - sum_rest[:, None] + share[:, None], log_c[:, None]) - log_c[:, None]
    result = np.minimum(logits.astype(np.float32), -GAP)
    result[rows, choice] = 0.0
    return OptionLogits(ids=scores.ids, logits=result, labels=scores.labels, groups=scores.groups)
