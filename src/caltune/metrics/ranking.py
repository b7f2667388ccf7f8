"""Which of several sets of scores is best, as far as chance lets one say."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.metrics.bootstrap import Interval, bootstrap, finite_or_none, mean_statistic, percentile_interval
from caltune.metrics.paired import FEW, count_differing, difference_variance, minus, paired_p_value
from caltune.metrics.planning import detectable_difference, holm
from caltune.metrics.proper import brier
from caltune.notebook import table
from caltune.types import FloatArray, OptionLogits, Predictions

_LEVEL = 0.05
_DRAWS_A_PAIR = 100  # the smallest p-value must stay below 0.05 when Holm multiplies it by the number of pairs


@dataclass(frozen=True, slots=True)
class Gap:
    """One metric of b minus that of a, with its 95 % interval; `p_value` is Holm-adjusted over all pairs.

    `clear` where p_value < 0.05; of files on other questions, where the two intervals do not meet. Then p_value and
    the interval of `difference` are nan. With fewer than 30 questions on either side p_value is nan, nothing clear.
    """

    difference: Interval
    p_value: float
    clear: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files by name, a before b in the order; `same_questions` says whether the comparison is paired.

    `score` is the difference in what ranks them. `detectable` is the difference in it that so many questions show with
    probability 0.8, nan where it is not paired or of fewer than 30 questions.
    """

    a: str
    b: str
    same_questions: bool
    score: Gap
    accuracy: Gap
    detectable: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Names in the `order` of rising `measure`, the first and last place that chance leaves each, and all `pairs`.

    `measure` is nll, or answer_brier of answers.
    """

    order: tuple[str, ...]
    places: dict[str, tuple[int, int]]
    pairs: tuple[Pair, ...]
    measure: str = "nll"

    def to_json(self) -> dict[str, dict[str, Any]]:
        """For each name its places and its differences from every other: own value minus theirs, None if undefined."""
        against: dict[str, list[dict[str, Any]]] = {name: [] for name in self.order}
        for pair in self.pairs:
            gaps = ((self.measure, pair.score), ("accuracy", pair.accuracy))
            for name, other, sign in ((pair.b, pair.a, 1.0), (pair.a, pair.b, -1.0)):
                found = {key: _gap_json(gap, sign) for key, gap in gaps}
                against[name].append({"file": other, "same_questions": pair.same_questions, **found})
        return {
            name: {"first_place": self.places[name][0], "last_place": self.places[name][1], "against": against[name]}
            for name in self.order
        }

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        places = [sorted(set(self.places[name])) for name in self.order]
        rows = [[name, " to ".join(map(str, place))] for name, place in zip(self.order, places, strict=True)]
        measure = "NLL" if self.measure == "nll" else "answer Brier score"
        return table(f"Places by {measure}", ["", "place"], rows, "A range where chance leaves it open.")


def rank(scores: Mapping[str, OptionLogits], *, draws: int | None = None, seed: int = 0) -> Ranking:
    """Order sets of scores by NLL, lowest first, and say which places chance leaves open to each.

    Of M sets the first possible place of one is 1 + how many are clearly better, its last M − how many are clearly
    worse. Clear is a paired bootstrap difference of NLL with p < 0.05 after Holm's correction over all pairs, so that
    with probability 0.95 no two equal models are told apart (simulated with five models: 0.91 with 30 questions, 0.95
    with 60 and more). Sets whose ids or labels differ are not paired: clear is then that their 95 % intervals do not
    meet, and it may be the questions that differ and not the models. A set of fewer than 30 questions is not clearly
    better or worse than any. Equal NLL, as of two infinite ones, is ordered by the Brier score. `draws` is by default
    1,000, or 100 a pair if that is more.

    Confidence sets of ranks from pairwise tests: Mogstad, Romano, Shaikh, Wilhelm, Review of Economic Studies 2024.

    Raises `InputError` for no sets, no questions, an unknown label or fewer than one draw.

    Sure and right against sure and wrong, forty questions:

    >>> ids, sure = tuple(map(str, range(40))), [[2.0, 0.0]] * 40
    >>> found = rank({"wrong": OptionLogits(ids, sure, [1] * 40), "right": OptionLogits(ids, sure, [0] * 40)})
    >>> found.order, found.places["right"], found.pairs[0].same_questions
    (('right', 'wrong'), (1, 1), False)
    """
    _require_some(scores)
    return _rank({name: _measure(one) for name, one in scores.items()}, "nll", draws, seed)


def rank_answers(answers: Mapping[str, Predictions], *, draws: int | None = None, seed: int = 0) -> Ranking:
    """`rank` for answers alone: by their answer Brier score, which tells how good the confidences are.

    Not how good the answers are: one who is always wrong and knows it has 0, the best. So look at the accuracy too,
    which each `Pair` holds. The answer NLL would do as well, were it not infinite for one sure answer that is wrong.
    Equal scores are ordered by accuracy. Sets whose ids differ are not paired.

    Raises `InputError` for no sets, no answers or fewer than one draw.

    Right at 0.9 against right at 0.6, forty answers:

    >>> ids = tuple(map(str, range(40)))
    >>> found = rank_answers({"b": Predictions(ids, [0.6] * 40, [1] * 40), "a": Predictions(ids, [0.9] * 40, [1] * 40)})
    >>> found.order, found.places["a"], round(found.pairs[0].score.difference.value, 4)
    (('a', 'b'), (1, 1), 0.15)
    """
    _require_some(answers)
    return _rank({name: _measure_answers(one) for name, one in answers.items()}, "answer_brier", draws, seed)


def _require_some(sets: Mapping[str, OptionLogits] | Mapping[str, Predictions]) -> None:
    if not sets:
        raise InputError("a ranking needs at least one set of scores, got none")
    for name, one in sets.items():
        if not len(one):
            raise InputError(f"{name}: a ranking needs at least one question, got none")


@dataclass(frozen=True, slots=True)
class _Measured:
    """By id: questions, the score of each label (N, K), how probable that label is, the score it has, and accuracy."""

    questions: tuple[Hashable, ...]
    possible: FloatArray
    chance: FloatArray
    score: FloatArray
    correct: FloatArray
    second: float  # orders those of equal score


def _measure(scores: OptionLogits) -> _Measured:
    scores = scores.take(sorted(range(len(scores)), key=scores.ids.__getitem__))
    questions = tuple(zip(scores.ids, scores.labels.tolist(), strict=True))
    correct = scores.decide().correct
    possible = 0.0 - scores.log_probabilities()
    score = possible[np.arange(len(scores)), scores.labels]
    return _Measured(questions, possible, np.exp(-possible), score, correct, brier(scores))


def _measure_answers(answers: Predictions) -> _Measured:
    rows = sorted(range(len(answers)), key=answers.ids.__getitem__)
    confidence, correct = answers.confidence[rows], answers.correct[rows]
    possible = np.stack([np.square(confidence), np.square(1 - confidence)], axis=1)  # wrong, right
    chance = np.stack([1 - confidence, confidence], axis=1)
    questions = tuple(answers.ids[row] for row in rows)
    return _Measured(questions, possible, chance, np.square(confidence - correct), correct, -float(correct.mean()))


def _rank(measured: Mapping[str, _Measured], measure: str, draws: int | None, seed: int) -> Ranking:
    count = len(measured)
    draws = max(1000, _DRAWS_A_PAIR * count * (count - 1) // 2) if draws is None else draws
    order = tuple(sorted(measured, key=lambda name: (measured[name].score.mean(), measured[name].second)))
    pairs = _pairs(order, measured, _replicates(measured, draws, seed))
    clear = [(pair.a, pair.b) for pair in pairs if pair.score.clear]
    places = {name: (1 + sum(b == name for _, b in clear), count - sum(a == name for a, _ in clear)) for name in order}
    return Ranking(order, places, pairs, measure)


def _replicates(measured: Mapping[str, _Measured], draws: int, seed: int) -> dict[str, FloatArray]:
    """Mean score and accuracy, (draws, 2), of each set; those on the same questions see the same resamples."""
    found: dict[str, FloatArray] = {}
    for questions in {one.questions for one in measured.values()}:
        names = [name for name, one in measured.items() if one.questions == questions]
        means = [mean_statistic(values) for name in names for values in (measured[name].score, measured[name].correct)]
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
                for i, values in enumerate(((one.score, two.score), (one.correct, two.correct)))
            ]
            found.append(Pair(a, b, paired, gaps[0], gaps[1], _detectable(one, two) if paired else math.nan))
    adjusted = [holm([getattr(pair, name).p_value for pair in found]) for name in ("score", "accuracy")]
    return tuple(
        Pair(
            pair.a,
            pair.b,
            pair.same_questions,
            _corrected(pair.score, float(adjusted[0][i])),
            _corrected(pair.accuracy, float(adjusted[1][i])),
            pair.detectable,
        )
        for i, pair in enumerate(found)
    )


def _detectable(a: _Measured, b: _Measured) -> float:
    options = min(a.possible.shape[1], b.possible.shape[1])  # padding may differ
    with np.errstate(invalid="ignore"):  # inf − inf is nan: undefined
        seen = b.score - a.score
        possible = b.possible[:, :options] - a.possible[:, :options]
    variance = difference_variance(seen, possible, (a.chance[:, :options] + b.chance[:, :options]) / 2)
    return math.nan if math.isnan(variance) or len(seen) < FEW else detectable_difference(len(seen), variance)


def _paired(a: FloatArray, b: FloatArray, drawn_a: FloatArray, drawn_b: FloatArray) -> Gap:
    value = float(minus(b.mean(keepdims=True), a.mean(keepdims=True))[0])
    drawn = minus(drawn_b, drawn_a)
    p_value = paired_p_value(value, drawn, len(a), count_differing(a, b))
    return Gap(percentile_interval(value, drawn), p_value, clear=False)


def _apart(a: FloatArray, b: FloatArray, drawn_a: FloatArray, drawn_b: FloatArray) -> Gap:
    first, second = (percentile_interval(float(x.mean()), drawn) for x, drawn in ((a, drawn_a), (b, drawn_b)))
    value = float(minus(b.mean(keepdims=True), a.mean(keepdims=True))[0])
    clear = min(len(a), len(b)) >= FEW and (first.high < second.low or second.high < first.low)
    return Gap(Interval(value, math.nan, math.nan), math.nan, clear)


def _corrected(gap: Gap, p_value: float) -> Gap:
    return Gap(gap.difference, p_value, gap.clear or (p_value < _LEVEL and gap.difference.value != 0))


def _gap_json(gap: Gap, sign: float) -> dict[str, Any]:
    ends = [sign * gap.difference.low, sign * gap.difference.high][:: int(sign)]
    turned = Interval(sign * gap.difference.value, ends[0], ends[1])
    return {"difference": turned.to_json(), "p_value": finite_or_none(gap.p_value), "clear": gap.clear}
