"""Can this model be calibrated at this accuracy? What its option logits hold at best, and what lies beyond.

Definitions and proofs are in `docs/papers.md`, "Regimes". numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
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

Regime = Literal["calibratable", "non-calibratable", "undecided"]

# Prior precisions of the recalibration's weights around the logits as they are: the slope is all but free, a position
# is believed to be biased only where dozens of questions say so.
_SLOPE, _SHAPE, _POSITION = 0.01, 1.0, 20.0
_STEPS = 200  # Newton; the objective is convex and ten are usual


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
    questions in which it is; `corrected` the ECE without what chance adds.
    """

    n: int
    chance: float
    position: tuple[int, float]
    accuracy: Interval
    confidence: float
    overconfidence: Interval
    ece: float
    corrected: Interval
    collapse: Collapse
    reachable: Reachable


def cross_fitted(scores: OptionLogits, *, folds: int = 5, seed: int = 0) -> OptionLogits:
    """The same questions with recalibrated logits, each from a fit on the questions of the other folds only.

    η̂_k = softmax_k(β ln q_k + u·[−ln(1 − ln q_k)] + v·q_k + w·1[k is the top option] + b_k) over a question's options,
    with q = softmax(z / s) and s the root mean square of the logits around their question's mean: a temperature, two
    terms that let strong beliefs count for less or more than weak ones, one that makes the mean confidence of the top
    option what it should be, and a bias of each position. The weights minimise
    Σ_i −ln η̂_i(y_i) + 0.005 (β − 1)² + 0.5 (u² + v² + w²) + 10 Σ_k b_k², which is convex. s makes the result the same
    for all temperatures of the logits. Folds are drawn by seed over the sorted ids, so the order of the questions does
    not matter. An option at -inf stays there; a question whose right option is at -inf is not fitted on.

    Raises `InputError` when a label is unknown, for fewer than 2 folds or fewer than 2 questions a fold.

    A model that always says 0.9 and is right 6 times of 10 is told to say about 0.6:

    >>> scores = OptionLogits(tuple("abcdefghij"), np.log([[0.9, 0.1], [0.1, 0.9]] * 5), [0, 1] * 3 + [1, 0] * 2)
    >>> cross_fitted(scores).probabilities().max(axis=1).mean().round(1)
    np.float64(0.6)
    """
    scores.require_labels()
    if folds < 2 or len(scores) < 2 * folds:
        raise InputError(
            f"cross-fitting needs at least 2 folds and 2 questions a fold, got {folds} folds, {len(scores)} questions"
        )
    features, present = _features(scores)
    learnable = present[np.arange(len(scores)), scores.labels]
    order = np.argsort(np.array(scores.ids), kind="stable")
    fold = np.empty(len(scores), dtype=np.intp)
    fold[order] = np.random.default_rng(seed).permutation(len(scores)) % folds
    logits = np.full(scores.logits.shape, -np.inf)
    for held_out in range(folds):
        fit = (fold != held_out) & learnable
        weights = _fit(features[fit], present[fit], scores.labels[fit])
        rows = fold == held_out
        logits[rows] = np.where(present[rows], features[rows] @ weights, -np.inf)
    return OptionLogits(scores.ids, logits.astype(np.float32), scores.labels, scores.groups)


def reachable_accuracy(scores: OptionLogits, *, folds: int = 5, draws: int = 1000, seed: int = 0) -> Reachable:
    """A*, the best accuracy that these option logits hold, with a 95 % interval, and the distance from it.

    With η̂ of `cross_fitted`: P is how often argmax η̂ is right, M the mean of max η̂. A* is estimated by (P + M) / 2,
    or by what it cannot be below where that is more: the accuracy of the answers as they are, and that of guessing.
    P is the accuracy of a rule that uses the logits only, so E P ≤ A*; noise in η̂ raises M. The interval therefore
    goes from the 2.5 % quantile of P to the 97.5 % quantile of max(P, M) in bootstrap resamples of questions, with the
    fits kept. Its low end is not above Wilson's for P: resamples of answers that are all right are all alike; and no
    end is below guessing. If η is far from the family of `cross_fitted`, this is the best accuracy within the family,
    a lower bound of A*. `benchmarks/regime.py` measures how often the interval holds A*.

    Raises `InputError` as `cross_fitted` does, and for fewer than one draw.

    Right 6 times of 10, and logits that tell nothing but which option is preferred: A* is about 0.6.

    >>> scores = OptionLogits(tuple("abcdefghij"), np.log([[0.9, 0.1], [0.1, 0.9]] * 5), [0, 1] * 3 + [1, 0] * 2)
    >>> found = reachable_accuracy(scores)
    >>> found.recalibrated_accuracy, round(found.accuracy.value, 1), round(found.target_error.value, 1)
    (0.6, 0.6, 0.3)
    """
    target = cross_fitted(scores, folds=folds, seed=seed)
    recalibrated, given = target.decide(), scores.decide()
    distances = target_calibration_error_per_question(scores, target)
    means = [
        mean_statistic(values)
        for values in (recalibrated.correct, recalibrated.confidence, recalibrated.correct - given.correct, distances)
    ]
    replicates = bootstrap(
        lambda counts: np.stack([mean(counts) for mean in means], axis=1), len(scores), draws=draws, seed=seed
    )
    right, sure = float(recalibrated.correct.mean()), float(recalibrated.confidence.mean())
    as_is, chance = float(given.correct.mean()), guessing_accuracy(scores)
    value = max((right + sure) / 2, as_is, chance)
    low = max(chance, min(percentile_interval(right, replicates[:, 0]).low, _wilson_low(right, len(scores))))
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
    """How often guessing among a question's options is right, E 1/K; options at -inf do not count."""
    return float((1 / np.isfinite(scores.logits).sum(axis=1)).mean())


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
        accuracy=accuracy_interval(given),
        confidence=float(given.confidence.mean()),
        overconfidence=percentile_interval(float(gaps.mean()), replicates),
        ece=ece(given),
        corrected=corrected_ece(given, draws=draws, seed=seed),
        collapse=collapse(scores),
        reachable=reachable_accuracy(scores, draws=draws, seed=seed),
    )


def _wilson_low(share: float, size: int) -> float:
    """The low end of Wilson's 95 % interval of a share (Wilson 1927), which is below 1 even if the share is 1."""
    square = 1.959964**2
    half = np.sqrt(square * (share * (1 - share) / size + square / (4 * size**2)))
    return float((share + square / (2 * size) - half) / (1 + square / size))


def _features(scores: OptionLogits) -> tuple[FloatArray, NDArray[np.bool_]]:
    """ln q, −ln(1 − ln q), q, whether top, and the position of each option, (N, K, 4 + K); which options there are."""
    logs = scores.log_probabilities()
    present = np.isfinite(logs)
    count = present.sum(axis=1, keepdims=True)
    logs = np.where(present, logs, 0.0)
    centred = np.where(present, logs - logs.sum(axis=1, keepdims=True) / count, 0.0)
    spread = float(np.sqrt(np.square(centred).sum() / max(1, count.sum()))) or 1.0
    logs = centred / spread
    top = logs.max(axis=1, keepdims=True)
    logs = logs - top - np.log(np.where(present, np.exp(logs - top), 0.0).sum(axis=1, keepdims=True))
    logs = np.where(present, logs, 0.0)
    width = logs.shape[1]
    first = np.arange(width) == np.where(present, logs, -np.inf).argmax(axis=1)[:, None]
    shape = np.stack([logs, -np.log1p(-logs), np.exp(logs), first], axis=2)
    return np.concatenate([shape, np.broadcast_to(np.eye(width), (len(logs), width, width))], axis=2), present


def _fit(features: FloatArray, present: NDArray[np.bool_], labels: NDArray[np.int32]) -> FloatArray:
    """The weights of `cross_fitted`, by Newton steps that are halved until they lower the objective."""
    size = features.shape[2]
    prior = np.zeros(size)
    prior[0] = 1.0
    precision = np.array([_SLOPE, *[_SHAPE] * 3, *[_POSITION] * (size - 4)])
    right = features[np.arange(len(labels)), labels]
    flat = features.reshape(-1, size)

    def objective(weights: FloatArray) -> tuple[float, FloatArray]:
        logits = np.where(present, features @ weights, -np.inf)
        top = logits.max(axis=1, initial=-np.inf)
        odds = np.exp(logits - top[:, None])
        total = odds.sum(axis=1)
        penalty = 0.5 * float(precision @ np.square(weights - prior))
        return float((top + np.log(total) - right @ weights).sum()) + penalty, odds / total[:, None]

    weights = prior
    value, share = objective(weights)
    for _ in range(_STEPS):
        mean = np.einsum("nk,nkf->nf", share, features)
        gradient = (mean - right).sum(axis=0) + precision * (weights - prior)
        curvature = (flat * share.reshape(-1, 1)).T @ flat - mean.T @ mean + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        descent = float(gradient @ step)
        while descent > 1e-9:
            lower, at_lower = objective(weights - step)
            if lower <= value - 1e-4 * descent:
                break
            step, descent = step / 2, descent / 2
        else:
            return weights
        weights, value, share = weights - step, lower, at_lower
    return weights
