"""Two recalibrators on data that scikit-learn ships: selective scaling on digits, conformal calibration on diabetes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from caltune.metrics import auroc, brier, ece, nll
from caltune.recalibrate import (
    NumericForecasts,
    SelectiveScaling,
    fit_conformal,
    fit_selective,
    fit_temperature,
    pool_spread,
)
from caltune.types import FloatArray, OptionLogits, Predictions

LEVELS = (0.5, 0.8, 0.9)
TRAINED, NOISE = 300, 5.0  # digits: few images to learn from, and noise on all, so that a tenth is read wrong


def digits(splits: int) -> dict[str, dict[str, dict[str, float]]]:
    """Selective scaling on images of digits by a logistic regression: calibration questions, rows, means of metrics."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for split in range(splits):
        generator = np.random.default_rng(split)
        seen = images + generator.normal(scale=NOISE, size=images.shape)
        order = generator.permutation(len(images))
        train, rest = order[:TRAINED], order[TRAINED:]
        model = LogisticRegression(C=100.0, max_iter=2000).fit(seen[train], labels[train])
        logits = model.decision_function(seen)
        scores = OptionLogits(tuple(map(str, range(len(images)))), logits, labels)
        for count in (100, 500):
            fit, test = scores.take(rest[:count]), scores.take(rest[500:])
            ours, paper = fit_selective(fit), fit_selective(fit, right=1.0)
            rows: dict[str, OptionLogits | Predictions] = {
                "none": test,
                "temperature": fit_temperature(fit)(test),
                "selective, both fitted": ours(test),
                "selective, as in the paper": paper(test),
                "the selector's probability": selector(ours, test),
            }
            for name, after in rows.items():
                found.setdefault(str(count), {}).setdefault(name, []).append(_measure(after))
    return {count: {name: _means(values) for name, values in rows.items()} for count, rows in found.items()}


def selector(fitted: SelectiveScaling, scores: OptionLogits) -> Predictions:
    """The simpler rival: no scaling at all."""
    return fitted.selector_predictions(scores)


def _measure(after: OptionLogits | Predictions) -> dict[str, float]:
    decided = after.decide() if isinstance(after, OptionLogits) else after
    both = {
        "accuracy": float(decided.correct.mean()),
        "ece": ece(decided),
        "auroc": auroc(decided),
        "confidence_brier": float(np.square(decided.confidence - decided.correct).mean()),
    }
    return both | ({"nll": nll(after), "brier": brier(after)} if isinstance(after, OptionLogits) else {})


def regression(splits: int) -> dict[str, dict[str, dict[str, float]]]:
    """Coverage at 50, 80 and 90 %, mean width and CRPS on the diabetes data, before and after calibration.

    221 patients train, 110 calibrate, 111 test. A linear model says one spread for all, that of its residuals; a
    forest the standard deviation of its trees, which is no forecast of the outcome's.
    """
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression

    x, y = load_diabetes(return_X_y=True)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(x))
        train, fit, test = order[:221], order[221:331], order[331:]
        linear = LinearRegression().fit(x[train], y[train])
        residual = float(np.std(y[train] - linear.predict(x[train])))
        forest = RandomForestRegressor(100, min_samples_leaf=5, random_state=split).fit(x[train], y[train])
        trees = [tree.predict(x) for tree in forest.estimators_]
        for name, (center, spread) in {
            "linear": (linear.predict(x), np.full(len(x), residual)),
            "forest": pool_spread(trees, least=1.0),
        }.items():
            seen, new = (
                NumericForecasts(tuple(map(str, rows)), center[rows], spread[rows], y[rows]) for rows in (fit, test)
            )
            calibrated = fit_conformal(seen)
            intervals = {level: calibrated.interval(new, level) for level in LEVELS}
            rows = found.setdefault(name, {"as a normal distribution": [], "calibrated": []})
            rows["calibrated"].append(_told(new, intervals, calibrated.crps(new)))
            normal = {level: (new.center - z * new.spread, new.center + z * new.spread) for level, z in _normal()}
            rows["as a normal distribution"].append(_told(new, normal, normal_crps(new)))
    return {name: {row: _means(values) for row, values in rows.items()} for name, rows in found.items()}


def _normal() -> list[tuple[float, float]]:
    from statistics import NormalDist

    return [(level, NormalDist().inv_cdf((1 + level) / 2)) for level in LEVELS]


def normal_crps(forecasts: NumericForecasts) -> FloatArray:
    """σ [z (2Φ(z) − 1) + 2φ(z) − 1/√π] (Gneiting, Raftery 2007, equation 21)."""
    assert forecasts.outcomes is not None
    z = (forecasts.outcomes - forecasts.center) / forecasts.spread
    below = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in z])
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    result: FloatArray = forecasts.spread * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))
    return result


def _told(
    forecasts: NumericForecasts, intervals: dict[float, tuple[FloatArray, FloatArray]], crps: FloatArray
) -> dict[str, float]:
    found = {"crps": float(crps.mean())}
    for level, (low, high) in intervals.items():
        inside = (low <= forecasts.outcomes) & (forecasts.outcomes <= high)
        found[f"coverage_{level}"] = float(inside.mean())
        found[f"width_{level}"] = float((high - low).mean())
    return found


def _means(values: list[dict[str, Any]]) -> dict[str, float]:
    return {key: float(np.mean([value[key] for value in values])) for key in values[0]}
