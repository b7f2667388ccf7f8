"""Covariate shift: a temperature fitted on source questions, weighted to look like the target's.

Labels are known for the source only. Where the target differs in which questions are asked, and not in what is right
for a question, source questions weighted with p_target(x) / p_source(x) stand for the target's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.recalibrate.guards import as_features, require_fit
from caltune.recalibrate.logistic import fit_logistic
from caltune.recalibrate.projection import fit_projection
from caltune.recalibrate.temperature import LOG_RANGE, Temperature
from caltune.types import FloatArray, OptionLogits


def density_ratio(
    source: ArrayLike,
    target: ArrayLike,
    *,
    components: int = 64,
    folds: int = 5,
    largest: float = 10.0,
    ridge: float = 1.0,
    seed: int = 0,
) -> FloatArray:
    """How much more often each source question would be asked in the target, (N,), with a mean of 1.

        w(x) = p(target | x) / p(source | x) · N_source / N_target,   at most `largest`, then divided by their mean

    from a logistic regression on up to `components` principal components of `source` (N, d) and `target` (M, d)
    features. Cross-fitted: a question's weight comes from a regression that has not seen it, since on its own questions
    the regression separates too well and weights become extreme. Pampari, Ermon 2020 (Unsupervised calibration under
    covariate shift); the clipping, the folds and the components are ours.

    It cannot see a change in what is right for a question. Raises `InputError` for features of different widths, or
    fewer source or target questions than `folds`.

    >>> same = np.random.default_rng(0).normal(size=(200, 2))
    >>> density_ratio(same, same[::-1]).round(0).min() == 1
    np.True_
    """
    here = as_features(source, len(np.asarray(source)), "source features")
    there = as_features(target, len(np.asarray(target)), "target features", here.shape[1])
    if folds < 2 or min(len(here), len(there)) < folds or not largest > 0:
        raise InputError(
            "a density ratio needs at least 2 folds, as many source and target questions and a bound above 0, got "
            f"{folds} folds, {len(here)} and {len(there)} questions and {largest}"
        )
    both = np.vstack([here, there])
    both = fit_projection(both, components)(both)
    from_target = np.repeat([0.0, 1.0], [len(here), len(there)])
    generator = np.random.default_rng(seed)
    fold = np.concatenate([generator.permutation(len(part)) % folds for part in (here, there)])
    log_odds = np.empty(len(here))
    for number in range(folds):
        coefficients = fit_logistic(both[fold != number], from_target[fold != number], ridge)
        rows = np.flatnonzero(fold[: len(here)] == number)
        log_odds[rows] = both[rows] @ coefficients[:-1] + coefficients[-1]
    log_odds += math.log(len(here) / len(there))
    weights = np.exp(np.minimum(log_odds, math.log(largest)))
    result: FloatArray = weights / weights.mean()
    return result


def effective_size(weights: ArrayLike) -> float:
    """How many questions of equal weight know as much: (Σ w)² / Σ w², from 1 to N; small means the weights rest on few.

    Raises `InputError` unless the weights are finite, none below 0 and not all 0.

    >>> effective_size([1, 1, 1, 1]), effective_size([1, 0, 0, 0])
    (4.0, 1.0)
    """
    found = as_weights(weights)
    return float(found.sum() ** 2 / np.square(found).sum())


def fit_weighted_temperature(scores: OptionLogits, weights: ArrayLike) -> Temperature:
    """The temperature with the lowest weighted NLL, Σ_i w_i (−log softmax(z_i / T)_y) / Σ_i w_i; answers stay.

    With weights from `density_ratio` it is the temperature for the target; equal weights give `fit_temperature`. The
    root of the NLL's derivative in 1/T is found by bisection in log T.

    Raises `InputError` for weights that are not one a question, finite, ≥ 0 and above 0 somewhere, and when no T
    between exp(-5) and exp(5) is best for the questions of weight above 0.

    Right 3 times of 4 by weight, with logits 2 and 0: T = 2 / ln 3, as from four questions.

    >>> scores = OptionLogits(ids=("a", "b"), logits=[[2.0, 0.0]] * 2, labels=[0, 1])
    >>> round(fit_weighted_temperature(scores, [3.0, 1.0]).temperature, 4)
    1.8205
    """
    require_fit("a weighted temperature", scores)
    found = as_weights(weights)
    if len(found) != len(scores):
        raise InputError(f"weights must be one a question, {len(scores)}, got {len(found)}")
    heavy = np.flatnonzero(found > 0)
    found = found[heavy] / found[heavy].sum()
    logits = scores.logits[heavy].astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    of_label = shifted[np.arange(len(heavy)), scores.labels[heavy]]
    if np.isneginf(of_label).any():
        row = heavy[int(np.flatnonzero(np.isneginf(of_label))[0])]
        raise InputError(
            f"a temperature needs a finite logit for the right option, got none for id {scores.ids[row]!r}"
        )
    finite = np.where(np.isneginf(shifted), 0.0, shifted)

    def slope(log_beta: float) -> float:
        p = np.exp(math.exp(log_beta) * shifted)
        return float(found @ ((p * finite).sum(axis=1) / p.sum(axis=1) - of_label))

    low, high = -LOG_RANGE, LOG_RANGE
    if not slope(low) < 0 < slope(high):
        raise InputError(
            f"no temperature between exp(-{LOG_RANGE:g}) and exp({LOG_RANGE:g}) has the lowest weighted NLL: its slope "
            f"in 1/T goes from {slope(low):.3g} to {slope(high):.3g}, as when the answers that weigh are all right "
            f"or no better than chance; the weights are worth {effective_size(found):.1f} questions"
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return Temperature(math.exp(-(low + high) / 2), fitted_on=scores.ids)


def as_weights(weights: ArrayLike) -> FloatArray:
    """Weights as float64 (N,). Raises `InputError` unless they are finite, none below 0 and not all 0."""
    found = np.asarray(weights, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise InputError(f"weights (N,) must be finite, none below 0 and not all 0, got {found.shape} {found[:5]}")
    return found
