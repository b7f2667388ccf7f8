"""Which of several sets of scores is best, as far as chance lets one say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.metrics.bootstrap import Interval, bootstrap, finite_or_none, mean_statistic, percentile_interval
from caltune.metrics.paired import minus, two_sided_p_value
from caltune.metrics.planning import detectable_difference, holm
from caltune.metrics.proper import brier, nll_per_question
from caltune.notebook import table
from caltune.types import FloatArray, OptionLogits

_LEVEL = 0.05
_DRAWS_A_PAIR = 100  # the smallest p-value must stay below 0.05 when Holm multiplies it by the number of pairs


@dataclass(frozen=True, slots=True)
class Gap:
    """One metric of b minus that of a, with its 95 % interval; `p_value` is Holm-adjusted over all pairs.

    `clear` where p_value < 0.05; of files on other questions, where the two intervals do not meet. Then p_value and
    the interval of `difference` are nan.
    """

    difference: Interval
    p_value: float
    clear: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files by name, a before b in the order; `same_questions` says whether the comparison is paired.

    `detectable` is the difference in NLL that so many questions show with probability 0.8, nan where it is not paired.
    """

    a: str
    b: str
    same_questions: bool
    nll: Gap
    accuracy: Gap
    detectable: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Names in the `order` of rising NLL, the first and last place that chance leaves each, and all `pairs`."""

    order: tuple[str, ...]
    places: dict[str, tuple[int, int]]
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """For each name its places and its differences from every other: own value minus theirs, None if undefined."""
        against: dict[str, list[dict[str, Any]]] = {name: [] for name in self.order}
        for pair in self.pairs:
            for name, other, sign in ((pair.b, pair.a, 1.0), (pair.a, pair.b, -1.0)):
                found = {key: _gap_json(gap, sign) for key, gap in (("nll", pair.nll), ("accuracy", pair.accuracy))}
                against[name].append({"file": other, "same_questions": pair.same_questions, **found})
        return {
            name: {"first_place": self.places[name][0], "last_place": self.places[name][1], "against": against[name]}
            for name in self.order
        }

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        places = [sorted(set(self.places[name])) for name in self.order]
        rows = [[name, " to ".join(map(str, place))] for name, place in zip(self.order, places, strict=True)]
        return table("Places by NLL", ["", "place"], rows, "A range where chance leaves it open.")


def rank(scores: Mapping[str, OptionLogits], *, draws: int | None = None, seed: int = 0) -> Ranking:
    """Order sets of scores by NLL, lowest first, and say which places chance leaves open to each.

    Of M sets the first possible place of one is 1 + how many are clearly better, its last M − how many are clearly
    worse. Clear is a paired bootstrap difference of NLL with p < 0.05 after Holm's correction over all pairs, so that
    with probability 0.95 no two equal models are told apart. Sets whose ids or labels differ are not paired: clear is
    then that their 95 % intervals do not meet, and it may be the questions that differ and not the models. Equal NLL,
    as of two infinite ones, is ordered by the Brier score. `draws` is by default 1,000, or 100 a pair if that is more.

    Confidence sets of ranks from pairwise tests: Mogstad, Romano, Shaikh, Wilhelm, Review of Economic Studies 2024.

    Raises `InputError` for no sets, no questions, an unknown label or fewer than one draw.

    Sure and right against sure and wrong, forty questions:

    >>> ids, sure = tuple(map(str, range(40))), [[2.0, 0.0]] * 40
    >>> found = rank({"wrong": OptionLogits(ids, sure, [1] * 40), "right": OptionLogits(ids, sure, [0] * 40)})
    >>> found.order, found.places["right"], found.pairs[0].same_questions
    (('right', 'wrong'), (1, 1), False)
    """
    if not scores:
        raise InputError("a ranking needs at least one set of scores, got none")
    for name, one in scores.items():
        if not len(one):
            raise InputError(f"{name}: a ranking needs at least one question, got none")
    count = len(scores)
    draws = max(1000, _DRAWS_A_PAIR * count * (count - 1) // 2) if draws is None else draws
    measured = {name: _measure(one) for name, one in scores.items()}
    order = tuple(sorted(scores, key=lambda name: (measured[name].nll.mean(), brier(scores[name]))))
    replicates = _replicates(measured, draws, seed)
    pairs = _pairs(order, measured, replicates)
    clear = [(pair.a, pair.b) for pair in pairs if pair.nll.clear]
    places = {name: (1 + sum(b == name for _, b in clear), count - sum(a == name for a, _ in clear)) for name in order}
    return Ranking(order, places, pairs)


@dataclass(frozen=True, slots=True)
class _Measured:
    questions: tuple[tuple[str, int], ...]  # ids with labels, sorted
    nll: FloatArray
    correct: FloatArray


def _measure(scores: OptionLogits) -> _Measured:
    rows = sorted(range(len(scores)), key=scores.ids.__getitem__)
    scores = scores.take(rows)
    questions = tuple(zip(scores.ids, scores.labels.tolist(), strict=True))
    return _Measured(questions, nll_per_question(scores), scores.decide().correct)


def _replicates(measured: Mapping[str, _Measured], draws: int, seed: int) -> dict[str, FloatArray]:
    """Mean NLL and accuracy, (draws, 2), of each set; those on the same questions see the same resamples."""
    found: dict[str, FloatArray] = {}
    for questions in {one.questions for one in measured.values()}:
        names = [name for name, one in measured.items() if one.questions == questions]
        means = [mean_statistic(values) for name in names for values in (measured[name].nll, measured[name].correct)]
        together = bootstrap(
            lambda counts, means=means: np.stack([mean(counts) for mean in means], axis=1),  # type: ignore[misc]
            len(questions),
            draws=draws,
            seed=seed,
        )
        found |= {name: together[:, 2 * i : 2 * i + 2] for i, name in enumerate(names)}
    return found


def _pairs(
    order: tuple[str, ...], measured: Mapping[str, _Measured], replicates: Mapping[str, FloatArray]
) -> tuple[Pair, ...]:
    found = []
    for place, a in enumerate(order):
        for b in order[place + 1 :]:
            one, two = measured[a], measured[b]
            paired = one.questions == two.questions
            gaps = [
                (_paired if paired else _apart)(*values, replicates[a][:, i], replicates[b][:, i])
                for i, values in enumerate(((one.nll, two.nll), (one.correct, two.correct)))
            ]
            spread = math.nan
            if paired and len(one.nll) > 1 and np.isfinite(one.nll).all() and np.isfinite(two.nll).all():
                spread = detectable_difference(len(one.nll), float(np.var(two.nll - one.nll, ddof=1)))
            found.append(Pair(a, b, paired, gaps[0], gaps[1], spread))
    adjusted = [holm([getattr(pair, name).p_value for pair in found]) for name in ("nll", "accuracy")]
    return tuple(
        Pair(
            pair.a,
            pair.b,
            pair.same_questions,
            _corrected(pair.nll, float(adjusted[0][i])),
            _corrected(pair.accuracy, float(adjusted[1][i])),
            pair.detectable,
        )
        for i, pair in enumerate(found)
    )


def _paired(a: FloatArray, b: FloatArray, drawn_a: FloatArray, drawn_b: FloatArray) -> Gap:
    value = float(minus(b.mean(keepdims=True), a.mean(keepdims=True))[0])
    drawn = minus(drawn_b, drawn_a)
    p_value = math.nan if math.isnan(value) else two_sided_p_value(drawn)
    return Gap(percentile_interval(value, drawn), p_value, clear=False)


def _apart(a: FloatArray, b: FloatArray, drawn_a: FloatArray, drawn_b: FloatArray) -> Gap:
    first, second = (percentile_interval(float(x.mean()), drawn) for x, drawn in ((a, drawn_a), (b, drawn_b)))
    value = float(minus(b.mean(keepdims=True), a.mean(keepdims=True))[0])
    clear = first.high < second.low or second.high < first.low
    return Gap(Interval(value, math.nan, math.nan), math.nan, clear)


def _corrected(gap: Gap, p_value: float) -> Gap:
    return Gap(gap.difference, p_value, gap.clear or (p_value < _LEVEL and gap.difference.value != 0))


def _gap_json(gap: Gap, sign: float) -> dict[str, Any]:
    ends = [sign * gap.difference.low, sign * gap.difference.high][:: int(sign)]
    turned = Interval(sign * gap.difference.value, ends[0], ends[1])
    return {"difference": turned.to_json(), "p_value": finite_or_none(gap.p_value), "clear": gap.clear}
