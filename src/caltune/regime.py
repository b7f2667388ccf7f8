"""Can this model be calibrated at this accuracy? What its option logits hold at best, and what lies beyond.

Definitions and proofs are in `docs/papers.md`, "Regimes". numpy only; `cross_fitted` is in `caltune.cross_fitting`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from caltune.cross_fitting import cross_fitted, options_there
from caltune.metrics import (
    Collapse,
    Interval,
    accuracy_interval,
    bootstrap,
    collapse,
    corrected_ece,
    ece,
    mean_statistic,
    percentile_interval,
    target_calibration_error_per_question,
)
from caltune.types import FloatArray, OptionLogits

LEAST = 10  # questions, two for each of five folds
Regime = Literal["calibratable", "non-calibratable", "undecided"]


@dataclass(frozen=True, slots=True)
class Reachable:
    """What a model's option logits hold, estimated on questions that no part of the estimate was fitted on.

    `accuracy` estimates A* = E max_k η_k(Z), the best accuracy that any recalibration of the logits Z reaches, which is
    also the mean confidence of the perfectly recalibrated model. `recalibrated_accuracy` and `recalibrated_confidence`
    are the two sides it was made from. `gain` is recalibrated_accuracy − the accuracy of the answers as they are: above
    0 where recalibration would change answers for the better, as with a bias for one position. `target_error` is the
    target calibration error against `target`, the cross-fitted recalibration of the same questions.
    """

    accuracy: Interval
    recalibrated_accuracy: float
    recalibrated_confidence: float
    gain: Interval
    target_error: Interval
    target: OptionLogits


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `caltune advise` tells of one model: `n` questions, metrics with intervals, collapse, what is reachable.

    `chance` is the accuracy of guessing; `position` the option that is right most often, from 0, and the share of
    questions in which it is; `impossible` the number of questions whose right option is ruled out with -inf, so that no
    temperature fits them; `corrected` the ECE without what chance adds.
    """

    n: int
    chance: float
    position: tuple[int, float]
    impossible: int
    accuracy: Interval
    confidence: float
    overconfidence: Interval
    ece: float
    corrected: Interval
    collapse: Collapse
    reachable: Reachable


def reachable_accuracy(scores: OptionLogits, *, folds: int = 5, draws: int = 1000, seed: int = 0) -> Reachable:
    """A*, the best accuracy that these option logits hold, with a 95 % interval, and the distance from it.

    With η̂ of `cross_fitted`: P is how often argmax η̂ is right, M the mean of max η̂. A* is estimated by (P + M) / 2,
    or by what it cannot be below where that is more: the accuracy of the answers as they are, and that of guessing. P
    is the accuracy of a rule that uses the logits only, so E P ≤ A*; noise in η̂ raises M. The interval therefore goes
    from the 2.5 % quantile of P to the 97.5 % quantile of max(P, M) in bootstrap resamples of questions, with the fits
    kept. Its low end is not above Wilson's for P: resamples of answers that are all right are all alike; and not below
    guessing, whose E 1/K is resampled likewise. If η is far from the family of `cross_fitted`, this is the best
    accuracy within the family, a lower bound of A*. `benchmarks/regime.py` measures how often the interval holds A*.

    Raises `InputError` as `cross_fitted` does, and for fewer than one draw.

    Right 6 times of 10, and logits that tell nothing but which option is preferred: A* is about 0.6.

    >>> scores = OptionLogits(tuple("abcdefghij"), np.log([[0.9, 0.1], [0.1, 0.9]] * 5), [0, 1] * 3 + [1, 0] * 2)
    >>> found = reachable_accuracy(scores)
    >>> found.recalibrated_accuracy, round(found.accuracy.value, 1), round(found.target_error.value, 1)
    (0.6, 0.6, 0.3)
    """
    target = cross_fitted(scores, folds=folds, seed=seed)
    recalibrated, given = target.decide(), scores.decide()
    distances, guesses = target_calibration_error_per_question(scores, target), _guesses(scores)
    gains = recalibrated.correct - given.correct
    means = [
        mean_statistic(values) for values in (recalibrated.correct, recalibrated.confidence, gains, distances, guesses)
    ]
    replicates = bootstrap(
        lambda counts: np.stack([mean(counts) for mean in means], axis=1), len(scores), draws=draws, seed=seed
    )
    right, sure = float(recalibrated.correct.mean()), float(recalibrated.confidence.mean())
    as_is, chance = float(given.correct.mean()), percentile_interval(float(guesses.mean()), replicates[:, 4])
    value = max((right + sure) / 2, as_is, chance.value)
    low = max(chance.low, min(percentile_interval(right, replicates[:, 0]).low, _wilson_low(right, len(scores))))
    high = percentile_interval(value, replicates[:, :2].max(axis=1)).high
    return Reachable(
        accuracy=Interval(value, min(value, low), max(value, high)),
        recalibrated_accuracy=right,
        recalibrated_confidence=sure,
        gain=percentile_interval(right - as_is, replicates[:, 2]),
        target_error=percentile_interval(float(distances.mean()), replicates[:, 3]),
        target=target,
    )


def guessing_accuracy(scores: OptionLogits) -> float:
    """How often guessing among a question's options is right, E 1/K; `options_there` says which it has."""
    return float(_guesses(scores).mean())


def known_share(accuracy: float, guessing: float) -> float:
    """The share of questions that a model knows, if it guesses evenly among the options of the rest; in [0, 1].

    accuracy = k + (1 − k) g, so k = max(0, (accuracy − g) / (1 − g)); g = E 1/K of `guessing_accuracy`. With equal K
    that is (right − wrong / (K − 1)) / N, the correction for guessing of test theory; to read it as a model's knowledge
    is ours and an assumption: who rules out some options, or takes wrong ones for right, does not guess evenly, and
    what is known should not depend on K. nan where g is 1.

    >>> known_share(0.625, 0.25), known_share(0.2, 0.25)
    (0.5, 0.0)
    """
    return max(0.0, (accuracy - guessing) / (1 - guessing)) if guessing < 1 else float("nan")


def calibration_error_bound(claimed: float, reachable: float) -> float:
    """The least calibration error of a model that claims more than is reachable: max(0, claimed − A*); 0 is best.

    With `claimed` its mean confidence on questions: ECE there ≥ C − A* (proposition 3 of `docs/papers.md`).
    With `claimed` its accuracy on questions it has learned by heart: their ECE and that on new questions, taken as sure
    of as those, add up to at least this (proposition 4).

    >>> calibration_error_bound(0.75, 0.5), calibration_error_bound(0.4, 0.5)
    (0.25, 0.0)
    """
    return max(0.0, claimed - reachable)


def regime(accuracy: Interval, reachable: Interval) -> Regime:
    """Where an accuracy lies beside A*: "non-calibratable" above it, where accuracy and calibration trade off.

    "non-calibratable" if the accuracy's interval lies above that of A*, "calibratable" if its value does not lie above
    the interval of A*, else "undecided". On new questions no rule that uses the logits of A* alone is above A*; what
    can be is accuracy on questions learned by heart, or that of a model which was trained further.

    >>> regime(Interval(0.9, 0.88, 0.92), Interval(0.6, 0.57, 0.63))
    'non-calibratable'
    >>> regime(Interval(0.6, 0.5, 0.7), Interval(0.6, 0.57, 0.63))
    'calibratable'
    """
    if accuracy.low > reachable.high:
        return "non-calibratable"
    return "calibratable" if accuracy.value <= reachable.high else "undecided"


def diagnose(scores: OptionLogits, *, draws: int = 1000, seed: int = 0) -> Diagnosis:
    """Accuracy, confidence, ECE, collapse and what is reachable, each with its interval where it has one.

    Raises `InputError` when a label is unknown or there are fewer than 10 questions.

    >>> scores = OptionLogits(tuple("abcdefghij"), np.log([[0.9, 0.1], [0.1, 0.9]] * 5), [0, 1] * 3 + [1, 0] * 2)
    >>> found = diagnose(scores, draws=100)
    >>> found.chance, found.accuracy.value, round(found.confidence, 2), round(found.ece, 2)
    (0.5, 0.6, 0.9, 0.3)
    """
    given = scores.decide()
    gaps = given.confidence - given.correct
    replicates = bootstrap(mean_statistic(gaps), len(scores), draws=draws, seed=seed)
    right = np.bincount(scores.labels)
    return Diagnosis(
        n=len(scores),
        chance=guessing_accuracy(scores),
        position=(int(right.argmax()), float(right.max() / len(scores))),
        impossible=int(np.isneginf(scores.logits[np.arange(len(scores)), scores.labels]).sum()),
        accuracy=accuracy_interval(given),
        confidence=float(given.confidence.mean()),
        overconfidence=percentile_interval(float(gaps.mean()), replicates),
        ece=ece(given),
        corrected=corrected_ece(given, draws=draws, seed=seed),
        collapse=collapse(scores),
        reachable=reachable_accuracy(scores, draws=draws, seed=seed),
    )


def _guesses(scores: OptionLogits) -> FloatArray:
    """1/K of each question."""
    found: FloatArray = 1 / options_there(scores).sum(axis=1)
    return found


def _wilson_low(share: float, size: int) -> float:
    """The low end of Wilson's 95 % interval of a share (Wilson 1927), which is below 1 even if the share is 1."""
    square = 1.959964**2
    half = np.sqrt(square * (share * (1 - share) / size + square / (4 * size**2)))
    return float((share + square / (2 * size) - half) / (1 + square / size))
