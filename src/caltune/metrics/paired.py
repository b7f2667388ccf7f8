"""Two sets of scores on the same questions: which is better, and could it be chance?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from caltune.errors import InputError
from caltune.metrics.bootstrap import (
    Interval,
    Statistic,
    bootstrap,
    default_draws,
    finite_or_none,
    percentile_interval,
)
from caltune.metrics.proper import brier_per_question, nll_per_question
from caltune.metrics.summary import DIRECTIONS, Direction, all_metrics, metric_values
from caltune.notebook import interval, number, table
from caltune.types import FloatArray, OptionLogits, Predictions

Verdict = Literal["better", "worse", "higher", "lower", "no clear difference"]
FEW = 30  # below this many questions a bootstrap calls equal models different too often: no p-value, no verdict
_ROUNDING = 1e-6  # what float32 logits cannot tell apart


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of a and of b, the interval of `difference` = b − a, and the two-sided bootstrap `p_value`.

    `verdict` speaks of b: `better` or `worse` where p_value < 0.05, else `no clear difference`. Metrics for which
    neither way is good say `higher` or `lower` instead. Below 30 questions p_value is nan and nothing is clear.
    """

    value_a: float
    value_b: float
    difference: Interval
    p_value: float
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; a number that is not finite becomes None."""
        return {
            "value_a": finite_or_none(self.value_a),
            "value_b": finite_or_none(self.value_b),
            "difference": self.difference.to_json(),
            "p_value": finite_or_none(self.p_value),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The `Difference` of each name in `DIRECTIONS` over `n` shared questions."""

    n: int
    metrics: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; a number that is not finite becomes None."""
        return {"n": self.n, "metrics": {name: found.to_json() for name, found in self.metrics.items()}}

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        rows = []
        for name, found in self.metrics.items():
            values = [number(one) for one in (found.value_a, found.value_b, found.difference.value)]
            whole = interval(found.difference.low, found.difference.high)
            rows.append([name, *values, whole, number(found.p_value), found.verdict])
        header = ["", "a", "b", "b − a", "95 % interval", "p", "b is"]
        return table(f"b against a on the same {self.n:,} questions", header, rows, too_few([self.n]))


def compare(a: OptionLogits, b: OptionLogits, *, draws: int | None = None, seed: int = 0) -> Comparison:
    """Every metric of b minus that of a, with a paired bootstrap: both are seen on the same resampled questions.

    Rows are matched by id and may come in any order. The p-value is twice the smaller share of resampled differences on
    either side of 0, at most 1, counting one more draw so that it is never 0: 2 (1 + #) / (1 + draws). It is at least
    2^(1 − m), m being the questions on which the two differ in what the metric sees: so often m fair coins fall all one
    way. Below 30 questions it is nan and no difference is clear: there a bootstrap called equal
    models different in 8 to 25 % of simulations with 12 to 3 questions, and always with one.
    In simulations at most 5 % of pairs with equal ECE were called different, of two calibrated models none. When one
    side is nearly calibrated the interval of a calibration error leans towards no difference, since chance adds more to
    that side. Two nearly equal models can differ clearly by a trifle: read the size, not only the verdict.

    `draws` is by default 1,000, and fewer for more than 100,000 questions: see `default_draws`.

    Raises `InputError` when the ids or the labels differ, a label is unknown, or there are no questions.

    >>> a = OptionLogits(tuple(map(str, range(40))), [[1.0, 0.0], [0.0, 2.0]] * 20, [0] * 40)
    >>> same = compare(a, a.take(range(39, -1, -1)), draws=50).metrics["nll"]
    >>> same.difference, same.p_value, same.verdict
    (Interval(value=0.0, low=0.0, high=0.0), 1.0, 'no clear difference')
    """
    b = align(a, b)
    differing = count_answers_differing(a.decide(), b.decide())
    differing["brier"] = count_differing(brier_per_question(a), brier_per_question(b))
    differing["nll"] = count_differing(nll_per_question(a), nll_per_question(b))
    differing["classwise_ece"] = max(differing.values())
    return compare_statistics(all_metrics(a), all_metrics(b), DIRECTIONS, len(a), differing, draws=draws, seed=seed)


def compare_statistics(
    metric_a: Statistic,
    metric_b: Statistic,
    directions: Mapping[str, Direction],
    size: int,
    differing: Mapping[str, int],
    *,
    draws: int | None,
    seed: int,
) -> Comparison:
    """The `Comparison` of two statistics of the same `size` questions, whose columns are those of `directions`.

    `differing` tells for each metric on how many questions the two sides differ, for the least p-value.
    """
    draws = default_draws(size) if draws is None else draws
    values_a, values_b = metric_values(metric_a, size), metric_values(metric_b, size)
    replicates = bootstrap(lambda counts: minus(metric_b(counts), metric_a(counts)), size, draws=draws, seed=seed)
    values = minus(values_b, values_a)
    metrics = {}
    for i, (name, direction) in enumerate(directions.items()):
        p_value = paired_p_value(float(values[i]), replicates[:, i], size, differing[name])
        metrics[name] = Difference(
            value_a=float(values_a[i]),
            value_b=float(values_b[i]),
            difference=percentile_interval(float(values[i]), replicates[:, i]),
            p_value=p_value,
            verdict=_verdict(float(values[i]), p_value, direction),
        )
    return Comparison(n=size, metrics=metrics)


def align(a: OptionLogits, b: OptionLogits) -> OptionLogits:
    """The rows of `b` in the order of `a`.

    Raises `InputError` when the ids or the labels differ.
    """
    b = b.take(matching_rows(a.ids, b.ids))
    differs = np.flatnonzero(a.labels != b.labels)
    if len(differs):
        row = differs[0]
        raise InputError(
            f"a comparison needs the same labels on both sides, got {len(differs)} that differ, "
            f"first id {a.ids[row]!r}: {a.labels[row]} and {b.labels[row]}"
        )
    return b


def matching_rows(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """The rows of the ids `b` in the order of the ids `a`.

    Raises `InputError` when one has an id that the other lacks.

    >>> matching_rows(("p", "q"), ("q", "p"))
    [1, 0]
    """
    row_of = {name: row for row, name in enumerate(b)}
    only_a = [name for name in a if name not in row_of]
    known = set(a)
    only_b = [name for name in b if name not in known]
    if only_a or only_b:
        first, where = (only_a[0], "first") if only_a else (only_b[0], "second")
        raise InputError(
            f"a comparison needs the same questions on both sides, got {len(only_a)} only in the first and "
            f"{len(only_b)} only in the second; id {first!r} is only in the {where}"
        )
    return [row_of[name] for name in a]


def minus(b: FloatArray, a: FloatArray) -> FloatArray:
    """b − a, 0 where float32 logits could not tell them apart, nan where both are infinite."""
    with np.errstate(invalid="ignore"):  # inf − inf is nan: undefined, and says so
        difference = b - a
    # Rounding is no difference, however steadily it leans one way.
    difference[np.abs(difference) < _ROUNDING] = 0.0
    return difference


def two_sided_p_value(replicates: FloatArray) -> float:
    """2 (1 + #) / (1 + draws) for the smaller number # of replicates (draws,) on either side of 0, at most 1.

    nan replicates are left out; nan without any.

    >>> two_sided_p_value(np.array([0.1] * 19)), two_sided_p_value(np.array([0.1, -0.1, np.nan]))
    (0.1, 1.0)
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return float("nan")
    tail = int(min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0)))
    return min(1.0, 2 * (1 + tail) / (1 + len(defined)))


def paired_p_value(value: float, replicates: FloatArray, size: int, differing: int) -> float:
    """`two_sided_p_value` of a difference on `size` questions, at least 2^(1 − m) where the two differ on m of them.

    nan for an undefined value, or below 30 questions.

    Four questions of 100, all for one side, as four fair coins in one of eight cases:

    >>> paired_p_value(0.04, np.array([0.04] * 99), 100, 4), paired_p_value(0.04, np.array([0.04] * 99), 29, 29)
    (0.125, nan)
    """
    if size < FEW or np.isnan(value):
        return float("nan")
    return max(two_sided_p_value(replicates), min(1.0, 2.0 ** (1 - differing)))


def count_differing(a: FloatArray, b: FloatArray) -> int:
    """On how many questions two sides differ, by a value each (N,); two infinities count.

    >>> count_differing(np.array([0.0, 1.0, np.inf]), np.array([1.0, 1.0, np.inf]))
    2
    """
    return int(np.count_nonzero(minus(b, a)))


def count_answers_differing(a: Predictions, b: Predictions) -> dict[str, int]:
    """For each metric of answers on how many questions they differ in what it sees.

    >>> found = count_answers_differing(Predictions(("p",), [0.8], [1]), Predictions(("p",), [0.8], [0]))
    >>> found["accuracy"], found["confidence"], found["ece"]
    (1, 0, 1)
    """
    differs = (minus(b.confidence, a.confidence) != 0) | (a.correct != b.correct)
    either = dict.fromkeys(("overconfidence", "ece", "ece_mass", "smooth_ece", "auroc"), int(differs.sum()))
    accuracy, confidence = count_differing(a.correct, b.correct), count_differing(a.confidence, b.confidence)
    return {"accuracy": accuracy, "confidence": confidence, **either}


def difference_variance(seen: FloatArray, possible: FloatArray, chance: FloatArray) -> float:
    """The variance of a difference from question to question: of those `seen` (N,), or at least what labels alone make.

    max(Var d, (1/N) Σ_i Var_{y~chance_i} d_i(y)). `possible` (N, K) holds the difference d_i(y) for every label y, and
    `chance` (N, K) how probable that label is. As long as nothing is wrong the differences seen hardly vary, and say
    nothing of what a wrong answer will do. Infinite ones that are only possible are left out; nan where one seen is not
    finite, or for fewer than two questions.

    Seen 1 twice, where −1 is as probable: the variance is 1.

    >>> difference_variance(np.ones(2), np.array([[1.0, -1.0]] * 2), np.full((2, 2), 0.5))
    1.0
    """
    if len(seen) < 2 or not np.isfinite(seen).all():
        return float("nan")
    known = np.where(np.isfinite(possible), possible, 0.0)
    by_label = (chance * known**2).sum(axis=1) - np.square((chance * known).sum(axis=1))
    return max(float(np.var(seen, ddof=1)), float(by_label.mean()))


def too_few(sizes: Iterable[int]) -> str:
    """What to say of files of so many questions each; nothing where all have 30 or more.

    >>> too_few([7, 400]), too_few([30])
    ('7 questions are too few: below 30 no difference is called clear, and intervals are too narrow', '')
    """
    least = min(sizes)
    if least >= FEW:
        return ""
    subject = f"{least} questions are" if least > 1 else "one question is"
    return f"{subject} too few: below {FEW} no difference is called clear, and intervals are too narrow"


def _verdict(value: float, p_value: float, direction: Literal["higher", "lower", "neither"]) -> Verdict:
    if not p_value < 0.05 or value == 0:
        return "no clear difference"
    way: Literal["higher", "lower"] = "higher" if value > 0 else "lower"
    if direction == "neither":
        return way
    return "better" if way == direction else "worse"
