"""What so many questions cannot show, in sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import NormalDist

import numpy as np

from caltune.metrics import brier_per_question, detectable_difference, nll_per_question
from caltune.metrics.paired import FEW, align, difference_variance
from caltune.report.text import number, questions
from caltune.types import FloatArray, OptionLogits

_HALVINGS = 20
# Six questions that all speak for one side are the fewest that give p < 0.05, since 2 · 0.5 ** 6 = 0.03. Where eight
# are expected there are six in four of five cases.
_DISCORDANT = 8


def detectable_overconfidence(confidence: FloatArray) -> float:
    """The smallest overconfidence g that answers with these confidences (N,) show with probability 0.8; nan for none.

    Right answers are counted, with the variance Σ c (1 − c) where the model is calibrated and Σ p (1 − p) where its
    accuracy is p = max(0, c − g). The smallest g for which, with ½ since counts are whole,

        Σ (c − p) ≥ z_0.975 √(Σ c (1 − c)) + z_0.8 √(Σ p (1 − p)) + ½.

    It does not depend on which answers were right: where all were, correct − confidence hardly varies, and would say
    that nearly nothing goes unseen. Against exact tests of whether chance explains a gap, of 30 to 2,000 answers, it
    was between 15 % less and 30 % more.

    Fifty answers at 1.0, of which a calibrated model has none wrong: 50 g = 0.842 √(50 g (1 − g)) + 0.5 at g = 0.0305.

    >>> round(detectable_overconfidence(np.ones(50)), 4), detectable_overconfidence(np.array([0.5]))
    (0.0305, nan)
    """
    normal = NormalDist()
    calibrated = normal.inv_cdf(0.975) * math.sqrt(float((confidence * (1 - confidence)).sum()))

    def shows(gap: float) -> bool:
        right = np.maximum(0.0, confidence - gap)
        needed = calibrated + normal.inv_cdf(0.8) * math.sqrt(float((right * (1 - right)).sum())) + 0.5
        return float((confidence - right).sum()) >= needed

    if not shows(1.0):
        return math.nan
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def power_lines(names: Sequence[str], scores: Sequence[OptionLogits], comparable: Collection[int]) -> list[str]:
    """The smallest overconfidence, and the smallest differences from the first, that these questions mostly show.

    Nothing below 30 questions, which get no verdict.
    """
    least = min(len(one) for one in scores)
    if least < FEW:
        return []
    own = [detectable_overconfidence(one.decide().confidence) for one in scores]
    lines = []
    if not any(map(math.isnan, own)):
        size = questions(least)
        lines.append(f"With {size} an overconfidence under {_range(own, 100, 1)}\u00a0points is mostly not seen.")
    gaps: dict[str, list[float]] = {"accuracy": [], "brier": [], "nll": []}
    for i in sorted(set(comparable) - {0}):
        for name, gap in _differences(scores[0], align(scores[0], scores[i])).items():
            gaps[name].append(gap)
    seen = [
        f"{_range(kept, factor, digits)}{unit}"
        for name, factor, digits, unit in (
            ("accuracy", 100, 1, "\u00a0points of accuracy"),
            ("brier", 1, 3, " of the Brier score"),
            ("nll", 1, 3, " of NLL"),
        )
        if (
            kept := [gap for gap in gaps[name] if gap * factor >= 0.5 * 10**-digits]
        )  # neither undefined nor printed as 0
    ]
    if seen:
        words = " or ".join([", ".join(seen[:-1]), seen[-1]] if len(seen) > 1 else seen)
        lines.append(f"Of differences from {names[0]}, those under {words} are mostly not seen.")
    return lines


def _differences(a: OptionLogits, b: OptionLogits) -> dict[str, float]:
    """What shows of the differences in accuracy, Brier score and NLL; nan undefined, 0 where no answer can differ."""
    options = min(a.logits.shape[1], b.logits.shape[1])  # padding may differ
    logs = [one.log_probabilities()[:, :options] for one in (a, b)]
    chances = [np.exp(log) for log in logs]
    chosen = [chance.argmax(axis=1) for chance in chances]
    picked = [np.eye(options)[choice] for choice in chosen]
    chance = (chances[0] + chances[1]) / 2
    with np.errstate(invalid="ignore"):  # inf − inf is nan: undefined
        seen = {
            "accuracy": b.decide().correct - a.decide().correct,
            "brier": brier_per_question(b) - brier_per_question(a),
            "nll": nll_per_question(b) - nll_per_question(a),
        }
        possible = {
            "accuracy": picked[1] - picked[0],
            "brier": 2 * (chances[0] - chances[1]),  # but for what does not depend on the label
            "nll": logs[0] - logs[1],
        }
    variances = {name: difference_variance(seen[name], possible[name], chance) for name in seen}
    if (chosen[0] != chosen[1]).any():
        variances["accuracy"] = max(variances["accuracy"], _DISCORDANT / len(a))
    return {
        name: math.nan if math.isnan(variance) else detectable_difference(len(a), variance)
        for name, variance in variances.items()
    }


def _range(values: Sequence[float], factor: float, digits: int) -> str:
    """One number, or the smallest to the largest.

    >>> _range([0.01, 0.0301], 100, 1), _range([0.5, 0.5], 1, 1)
    ('1.0 to 3.0', '0.5')
    """
    ends = [number(factor * end, digits) for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
