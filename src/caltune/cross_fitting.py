"""Recalibration of option logits in which no question is fitted on itself; `caltune.regime` estimates A* by it.

numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
from caltune.types import FloatArray, OptionLogits

# Prior precisions of the recalibration's weights around the logits as they are: the slope is all but free, a position
# is believed to be biased only where dozens of questions say so.
_SLOPE, _SHAPE, _POSITION = 0.01, 1.0, 20.0
_STEPS = 200  # Newton; the objective is convex and ten are usual


def options_there(scores: OptionLogits) -> NDArray[np.bool_]:
    """Which options each question has, (N, K), those that the model rules out with -inf among them.

    A question has two options at least, and those up to its last finite logit or its label. Where -inf stands before
    that, the file rules options out, and what stands last may be ruled out as well as missing. Then all questions are
    taken to have as many as the longest, unless -inf stands last in more than three times the share of rows that it
    has of the places before: so many do not come from ruling out alone.

    >>> options_there(OptionLogits(("a", "b"), [[1.0, 0.0, 2.0], [1.0, 0.0, -np.inf]], [0, 0])).tolist()
    [[True, True, True], [True, True, False]]
    >>> options_there(OptionLogits(("a", "b"), [[1.0, -np.inf, 2.0], [1.0, 0.0, -np.inf]], [0, 0])).tolist()
    [[True, True, True], [True, True, True]]
    """
    finite = np.isfinite(scores.logits)
    width = finite.shape[1]
    last = np.maximum(np.maximum(width - finite[:, ::-1].argmax(axis=1), scores.labels + 1), min(2, width))
    there: NDArray[np.bool_] = np.arange(width) < last[:, None]
    inside = np.arange(width) < last[:, None] - 1
    ruled_out = (inside & ~finite).sum() / max(1, inside.sum())
    return np.ones_like(there) if 0 < (last < width).mean() <= 3 * ruled_out else there


def cross_fitted(scores: OptionLogits, *, folds: int = 5, seed: int = 0) -> OptionLogits:
    """The same questions with recalibrated logits, each from a fit on the questions of the other folds only.

    η̂_k = softmax_k(β ln q_k + u·[−ln(1 − ln q_k)] + v·q_k + w·1[k is the top option] + b_k) over a question's options,
    with q = softmax(z / s) and s the root mean square of the logits around their question's mean: a temperature, two
    terms that let strong beliefs count for less or more than weak ones, one that makes the mean confidence of the top
    option what it should be, and a bias of each position. The weights minimise
    Σ_i −ln η̂_i(y_i) + 0.005 (β − 1)² + 0.5 (u² + v² + w²) + 10 Σ_k b_k², which is convex. s makes the result the same
    for all temperatures of the logits. Folds are drawn by seed over the sorted ids, so the order of the questions does
    not matter. An option ruled out with -inf (`options_there`) is taken for less likely by s than the least likely
    one of the file; one that is not there stays at -inf.

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
    order = np.argsort(np.array(scores.ids), kind="stable")
    fold = np.empty(len(scores), dtype=np.intp)
    fold[order] = np.random.default_rng(seed).permutation(len(scores)) % folds
    logits = np.full(scores.logits.shape, -np.inf)
    for held_out in range(folds):
        fit = fold != held_out
        weights = _fit(features[fit], present[fit], scores.labels[fit])
        rows = fold == held_out
        logits[rows] = np.where(present[rows], features[rows] @ weights, -np.inf)
    return OptionLogits(scores.ids, logits.astype(np.float32), scores.labels, scores.groups)


def _features(scores: OptionLogits) -> tuple[FloatArray, NDArray[np.bool_]]:
    """ln q, −ln(1 − ln q), q, whether top, and the position of each option, (N, K, 4 + K); which options there are."""
    finite, present = np.isfinite(scores.logits), options_there(scores)
    logs, spread = _centred(scores.logits.astype(np.float64), finite)
    logs, spread = _centred(np.where(finite, logs, logs.min() - spread), present)
    logs = logs / spread
    top = logs.max(axis=1, keepdims=True)
    logs = logs - top - np.log(np.where(present, np.exp(logs - top), 0.0).sum(axis=1, keepdims=True))
    logs = np.where(present, logs, 0.0)
    width = logs.shape[1]
    first = np.arange(width) == np.where(present, logs, -np.inf).argmax(axis=1)[:, None]
    shape = np.stack([logs, -np.log1p(-logs), np.exp(logs), first], axis=2)
    return np.concatenate([shape, np.broadcast_to(np.eye(width), (len(logs), width, width))], axis=2), present


def _centred(values: FloatArray, where: NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """Less the mean of their row, 0 elsewhere, and their root mean square, 1 where that is 0."""
    count = where.sum(axis=1, keepdims=True)
    values = np.where(where, values, 0.0)
    values = np.where(where, values - values.sum(axis=1, keepdims=True) / count, 0.0)
    return values, float(np.sqrt(np.square(values).sum() / count.sum())) or 1.0


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
