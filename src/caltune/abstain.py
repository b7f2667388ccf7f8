"""Abstention with a guarantee: answer only above a confidence whose error rate is known to be low enough.

With wrong_i = 1 where an answer is wrong, and the selective error R(t) = P(wrong | c ≥ t) on questions to come:

- `fit_threshold`: P(R(t̂) > limit) ≤ 1 − confidence over the draw of the calibration questions;
- `fit_expected_loss`: E[loss · 1[c ≥ t̂]] ≤ limit, on average over calibration sets and over *all* questions.

Both assume that the questions to come are drawn like the calibration questions and independently of each other; `drift`
looks for signs that they are not. Questions in groups that rise and fall together break this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caltune.binomial import allowed_errors, binomial_cdf, fewest, upper_bound
from caltune.errors import InputError
from caltune.types import FloatArray, OptionLogits, Predictions

# The share of the calibration questions answered where testing starts, and the share of the level that it adds there.
STARTS = ((0.1, 0.5), (0.3, 0.25), (1.0, 0.25))
ALARM = 0.01  # a p-value below this is worth a warning


@dataclass(frozen=True, slots=True)
class Policy:
    """Answer where confidence ≥ `threshold`; None answers nothing: no threshold passed, though one may be safe.

    `limit` is what must not be exceeded, `confidence` with which probability (None for `crc`, which speaks of the
    mean). Of `n` calibration questions `answered` are answered, `wrong` of them wrongly. `bound` is the upper end for
    the error among the answered: Clopper-Pearson, as if for this threshold alone; for `crc` it is the bound on the
    expected loss. `fitted_on` and `confidences` are the ids and confidences of the calibration questions; `source` says
    how their scores were made.
    """

    threshold: float | None
    method: Literal["binomial", "crc"]
    limit: float
    confidence: float | None
    n: int
    answered: int
    wrong: float
    bound: float
    fitted_on: tuple[str, ...] = field(repr=False)
    confidences: tuple[float, ...] = field(repr=False)
    source: dict[str, Any] = field(default_factory=dict)

    def answers(self, confidence: FloatArray) -> NDArray[np.bool_]:
        """Whether a question is answered, by its confidence (N,).

        >>> fit_threshold(_even(100), 0.05).answers(np.array([0.2, 0.8])).tolist()
        [True, True]
        """
        if self.threshold is None:
            return np.zeros(len(confidence), dtype=np.bool_)
        result: NDArray[np.bool_] = np.asarray(confidence) >= self.threshold
        return result


@dataclass(frozen=True, slots=True)
class Decisions:
    """A policy's word on N questions: `choice` (N,) is the option answered, -1 where it abstains.

    `confidence` (N,) is of the most probable option, answered or not.
    """

    ids: tuple[str, ...]
    choice: NDArray[np.int32]
    confidence: FloatArray

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Whether each question is answered, (N,)."""
        return self.choice >= 0


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether later scores look like the calibration scores; small p-values speak against it.

    `confidence_p` is of the two-sample Kolmogorov-Smirnov test on the confidences. Of the `answered` questions with a
    label, `wrong` were wrong; `error_p` = P(X ≥ wrong) for X ~ Binomial(answered, limit), nan where there are none.
    """

    distance: float
    confidence_p: float
    answered: int
    wrong: int
    error_p: float


def fit_threshold(predictions: Predictions, limit: float, confidence: float = 0.95) -> Policy:
    """The lowest threshold found whose error among answered questions is below `limit`, with probability `confidence`.

    With m answered, e of them wrong, a threshold passes at a level a when P(X ≤ e) ≤ a for X ~ Binomial(m, limit).
    Thresholds are tested from the strictest down. Of the level 1 − confidence the first test has one half; one quarter
    is added where 30 % of the questions are answered and one where all are. A threshold that passes hands its level on
    to the next; one that fails loses it, and testing starts anew at the next addition. This is the fallback procedure
    (Wiens, Pharmaceutical Statistics 2003); it never answers less than the fixed sequences of Learn then Test from the
    same starts with the same shares (Angelopoulos et al. 2021, arXiv 2110.01052, section 3.2).

    Why it holds: call a threshold too low when its error is above `limit`. The first too low one that is tested has at
    most what the starts up to it added. If it fails, the next too low one has at most what later starts added, and so
    on: until one passes, these levels add up to 1 − confidence at most, and by the union bound none passes with
    probability `confidence`. What is tested, and in which order, depends on the confidences and never on the labels.

    The first threshold tested answers a tenth of the questions. Each start answers at least as many as it takes to pass
    without an error at the level it adds, or all there are. Questions of equal confidence are answered together; the
    threshold lies halfway to the next lower one.

    The guarantee is exact when the error among the answered does not fall as more are answered; where it falls across a
    start it may be missed by a little. It speaks of all answered questions together, not of each group or question.

    Raises `InputError` for no questions, or a `limit` or `confidence` outside (0, 1).

    Without an error 58 answers do not suffice, 59 do: 0.95⁵⁸ = 0.0510, 0.95⁵⁹ = 0.0485.

    >>> fit_threshold(_even(58), 0.05).threshold, fit_threshold(_even(59), 0.05).threshold
    (None, 0.0)
    """
    _require_shares(limit=limit, confidence=confidence)
    levels = _levels(predictions, 1.0 - predictions.correct)
    passed = _passed(levels, limit, 1 - confidence)
    answered, wrong = (0, 0.0) if passed is None else (int(levels.answered[passed]), float(levels.losses[passed]))
    return Policy(
        threshold=None if passed is None else float(levels.thresholds[passed]),
        method="binomial",
        limit=limit,
        confidence=confidence,
        n=len(predictions),
        answered=answered,
        wrong=wrong,
        bound=upper_bound(wrong, answered, confidence),
        fitted_on=predictions.ids,
        confidences=tuple(np.sort(predictions.confidence).tolist()),
    )


def fit_expected_loss(predictions: Predictions, limit: float, losses: FloatArray | None = None) -> Policy:
    """The lowest threshold that keeps the expected loss of answering at or below `limit`; abstaining costs nothing.

    t̂ = the lowest t with (Σ_i loss_i 1[c_i ≥ t] + 1) / (N + 1) ≤ `limit`. `losses` (N,) in [0, 1] is what an answer
    costs, by default 1 where it is wrong: then the share of *all* questions that are answered wrongly is controlled,
    which is not the error among the answered. Conformal risk control, Angelopoulos et al. 2022 (arXiv 2208.02814),
    equation 4 with B = 1: for exchangeable questions, on average over calibration sets, not with high probability.

    Raises `InputError` for no questions, a `limit` outside (0, 1) or losses outside [0, 1].

    Ten questions, the least sure one wrong: at 0.2 one wrong answer is allowed, (1 + 1) / 11 ≤ 0.2, at 0.1 none.

    >>> some = Predictions(tuple("abcdefghij"), np.linspace(1.0, 0.1, 10), [1.0] * 9 + [0.0])
    >>> fit_expected_loss(some, 0.2).answered, fit_expected_loss(some, 0.1).answered
    (10, 9)
    """
    _require_shares(limit=limit)
    losses = 1.0 - predictions.correct if losses is None else np.asarray(losses, dtype=np.float64)
    if losses.shape != (len(predictions),) or not ((losses >= 0) & (losses <= 1)).all():
        raise InputError(f"losses must be one number from 0 to 1 a question, got {losses.tolist()[:5]}")
    levels = _levels(predictions, losses)
    # A whole number plus one may miss the limit by rounding.
    passed = np.flatnonzero((levels.losses + 1) / (len(predictions) + 1) <= limit + 1e-12)
    answered, lost = (int(levels.answered[passed[-1]]), float(levels.losses[passed[-1]])) if len(passed) else (0, 0.0)
    return Policy(
        threshold=float(levels.thresholds[passed[-1]]) if len(passed) else None,
        method="crc",
        limit=limit,
        confidence=None,
        n=len(predictions),
        answered=answered,
        wrong=lost,
        bound=(lost + 1) / (len(predictions) + 1),
        fitted_on=predictions.ids,
        confidences=tuple(np.sort(predictions.confidence).tolist()),
    )


def apply_policy(policy: Policy, scores: OptionLogits | Predictions) -> Decisions:
    """What the policy answers; labels are not needed. Of `Predictions` the one answer there is has the place 0.

    Raises `InputError` when a question was fitted on.

    >>> policy = fit_threshold(_even(100), 0.05)
    >>> apply_policy(policy, OptionLogits(("new",), [[1.0, 3.0]], [-1])).choice.tolist()
    [1]
    """
    seen = set(policy.fitted_on)
    shared = [name for name in scores.ids if name in seen]
    if shared:
        raise InputError(
            f"the policy must not meet questions it was fitted on, got {len(shared)} of them, first id {shared[0]!r}"
        )
    if isinstance(scores, Predictions):
        confidence, best = scores.confidence, np.zeros(len(scores), dtype=np.intp)
    else:
        probabilities = scores.probabilities()
        confidence, best = np.minimum(probabilities.max(axis=1), 1.0), probabilities.argmax(axis=1)
    choice = np.where(policy.answers(confidence), best, -1).astype(np.int32)
    return Decisions(scores.ids, choice, confidence)


def drift(policy: Policy, decisions: Decisions, labels: NDArray[np.integer]) -> Drift:
    """Whether the questions decided on look drawn like the calibration questions; `labels` (N,), -1 where unknown.

    The Kolmogorov-Smirnov p-value is the asymptotic one, conservative for few or equal confidences; it sees
    confidences only, and a change that leaves them alone shows in the labels alone. For `crc` every labelled
    question counts, as its limit speaks of all of them. Raises `InputError` for no questions.
    """
    if not len(decisions.ids):
        raise InputError("drift needs at least one question, got none")
    old, new = np.asarray(policy.confidences), np.sort(decisions.confidence)
    places = np.concatenate([old, new])
    gaps = np.searchsorted(old, places, "right") / len(old) - np.searchsorted(new, places, "right") / len(new)
    distance = float(np.abs(gaps).max())
    root = math.sqrt(len(old) * len(new) / (len(old) + len(new)))
    known = labels >= 0
    counted = known if policy.method == "crc" else known & decisions.answered
    answered, wrong = int(counted.sum()), int((known & decisions.answered & (decisions.choice != labels)).sum())
    below = binomial_cdf(wrong - 1, answered, policy.limit)
    return Drift(distance, _kolmogorov(root * distance), answered, wrong, 1 - below if answered else math.nan)


@dataclass(frozen=True, slots=True)
class _Levels:
    thresholds: FloatArray
    answered: NDArray[np.intp]
    losses: FloatArray


def _levels(predictions: Predictions, losses: FloatArray) -> _Levels:
    """One level a distinct confidence, falling: its threshold, how many are answered, and their summed losses."""
    if not len(predictions):
        raise InputError("a threshold needs at least one question, got none")
    order = np.argsort(-predictions.confidence, kind="stable")
    falling = predictions.confidence[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    # Halfway, so that rounding on another machine moves no answer; below the lowest there is nothing to leave out.
    high, low = falling[last[:-1]], falling[last[:-1] + 1]
    middle = (high + low) / 2
    thresholds = np.append(np.where(middle > low, middle, high), 0.0)
    return _Levels(thresholds, last + 1, np.cumsum(losses[order])[last])


def _passed(levels: _Levels, limit: float, level: float) -> int | None:
    """The place of the lowest threshold that passes."""
    count = int(levels.answered[-1])
    ranks = [min(count, max(math.ceil(share * count - 1e-9), fewest(limit, part * level))) for share, part in STARTS]
    places = [*np.searchsorted(levels.answered, ranks).tolist(), len(levels.answered)]
    lowest, held = None, 0.0
    for (_, part), (begin, end) in zip(STARTS, pairwise(places), strict=True):
        held += part
        allowed = allowed_errors(count, limit, held * level)[levels.answered[begin:end]]
        failed = np.flatnonzero(levels.losses[begin:end] > allowed)
        stop = begin + int(failed[0]) if len(failed) else end
        if stop > begin:
            lowest = stop - 1
        if len(failed):
            held = 0.0
    return lowest


def _kolmogorov(value: float) -> float:
    if value < 0.2:  # the series converges slowly there, and its sum is 1 to twelve digits
        return 1.0
    terms = np.arange(1, 101)
    return float(np.clip(2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * value) ** 2)).sum(), 0.0, 1.0))


def _require_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            raise InputError(f"{name} must lie between 0 and 1, got {value}")


def _even(count: int) -> Predictions:
    """All right, all different: for the examples."""
    ids = tuple(f"q{i}" for i in range(count))
    return Predictions(ids, np.linspace(1.0, 0.5, count), np.ones(count))
