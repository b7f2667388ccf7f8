"""The metrics of answers alone: how sure and whether right, where the other options' probabilities are not known."""

from __future__ import annotations

import numpy as np

from caltune.errors import InputError
from caltune.metrics.bootstrap import Statistic, mean_statistic
from caltune.metrics.paired import (
    Comparison,
    compare_statistics,
    count_answers_differing,
    count_differing,
    matching_rows,
)
from caltune.metrics.summary import Direction, Summary, summarise_statistic, together
from caltune.types import FloatArray, Predictions

ANSWER_DIRECTIONS: dict[str, Direction] = {
    "accuracy": "higher",
    "confidence": "neither",
    "overconfidence": "neither",
    "ece": "lower",
    "ece_mass": "lower",
    "smooth_ece": "lower",
    "answer_brier": "lower",
    "answer_nll": "lower",
    "auroc": "higher",
}


def answer_brier_per_question(predictions: Predictions) -> FloatArray:
    """(c − t)² of each answer, (N,), t being 1 where it is right; lower is better, in [0, 1].

    Not the `brier` of option probabilities, which sums over all options. Brier 1950, for the event "it is right".

    >>> answer_brier_per_question(Predictions(("a", "b"), [0.8, 0.5], [1, 0])).round(4).tolist()
    [0.04, 0.25]
    """
    result: FloatArray = np.square(predictions.confidence - predictions.correct)
    return result


def answer_nll_per_question(predictions: Predictions) -> FloatArray:
    """−ln c where the answer is right and −ln(1 − c) where it is wrong, (N,), in nats; lower is better.

    Not the `nll` of option probabilities, which asks what the right option got. Infinite for a sure answer that is
    wrong.

    >>> answer_nll_per_question(Predictions(("a", "b"), [0.5, 0.75], [1, 0])).round(4).tolist()
    [0.6931, 1.3863]
    """
    with np.errstate(divide="ignore"):
        given = np.where(predictions.correct == 1, predictions.confidence, 1 - predictions.confidence)
        result: FloatArray = 0.0 - np.log(given)
    return result


def summarise_answers(predictions: Predictions, *, draws: int | None = None, seed: int = 0) -> Summary:
    """What `summarise` tells of scores, of answers: its metrics are those of `ANSWER_DIRECTIONS`.

    `answer_brier` and `answer_nll` are proper scores of the statement "the answer is right"; NLL, Brier score and
    classwise ECE need the probabilities of all options and are not among them.

    Raises `InputError` for no answers or fewer than one draw.

    >>> found = summarise_answers(Predictions(("a", "b"), [0.8, 0.5], [1, 0]), draws=100)
    >>> round(found.metrics["answer_brier"].value, 4), "brier" in found.metrics
    (0.145, False)
    """
    return summarise_statistic(answer_metrics(predictions), ANSWER_DIRECTIONS, predictions, draws=draws, seed=seed)


def compare_answers(a: Predictions, b: Predictions, *, draws: int | None = None, seed: int = 0) -> Comparison:
    """What `compare` tells of two sets of scores, of answers to the same questions.

    Raises `InputError` when the ids differ, or there are no answers.

    >>> a = Predictions(("p", "q"), [0.8, 0.5], [1, 0])
    >>> compare_answers(a, a, draws=50).metrics["answer_nll"].verdict
    'no clear difference'
    """
    rows = matching_rows(a.ids, b.ids)
    b = Predictions(a.ids, b.confidence[rows], b.correct[rows], tuple(b.groups[row] for row in rows))
    differing = count_answers_differing(a, b)
    differing["answer_brier"] = count_differing(answer_brier_per_question(a), answer_brier_per_question(b))
    differing["answer_nll"] = count_differing(answer_nll_per_question(a), answer_nll_per_question(b))
    statistics = answer_metrics(a), answer_metrics(b)
    return compare_statistics(*statistics, ANSWER_DIRECTIONS, len(a), differing, draws=draws, seed=seed)


def answer_metrics(predictions: Predictions) -> Statistic:
    """Every metric in the order of `ANSWER_DIRECTIONS` for resampled answers: counts (D, N) to (D, metrics).

    Raises `InputError` for no answers.
    """
    if not len(predictions):
        raise InputError("metrics need at least one answer, got none")
    of_answers = {
        "answer_brier": mean_statistic(answer_brier_per_question(predictions)),
        "answer_nll": mean_statistic(answer_nll_per_question(predictions)),
    }
    return together(ANSWER_DIRECTIONS, predictions, of_answers)
