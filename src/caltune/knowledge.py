"""Does the model already know an answer? Categories of knowledge, and the NLL detector of CogCalib.

Gekhman et al. 2024, *Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?* (arXiv 2405.05904, section 3,
"SliCK"), with P(T) the probability of a right answer at temperature T over random few-shot prompts:

    HighlyKnown  P(0) = 1            MaybeKnown  0 < P(0) < 1
    WeaklyKnown  P(0) = 0, P(T) > 0  Unknown     P(0) = 0, P(T) = 0

`caltune.scoring.known` estimates them. The detector is that of Wang et al. 2025 (arXiv 2505.20903, section 4.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caltune.errors import InputError
from caltune.types import FloatArray

CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
KNOWN = CATEGORIES[:2]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What one model knows of N questions: a category each, and the two shares it comes from.

    `greedy_right` (N,) is P(T = 0), the share of few-shot prompts in which the model's best answer is right;
    `sampled_right` (N,) is P(T = 0.5), the probability that an answer drawn at that temperature is right, their mean.
    Known is what is HighlyKnown or MaybeKnown.

    Raises `InputError` for lengths that differ, repeated ids, a share outside [0, 1], or a category that is none or
    contradicts `greedy_right`.

    >>> found = Knowledge(("a", "b"), ("MaybeKnown", "Unknown"), [0.5, 0.0], [0.4, 0.0])
    >>> found.known.tolist(), found.counts()
    ([True, False], {'HighlyKnown': 0, 'MaybeKnown': 1, 'WeaklyKnown': 0, 'Unknown': 1})
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    greedy_right: FloatArray
    sampled_right: FloatArray

    def __post_init__(self) -> None:
        ids, categories = tuple(self.ids), tuple(self.categories)
        greedy = np.ascontiguousarray(self.greedy_right, dtype=np.float64)
        sampled = np.ascontiguousarray(self.sampled_right, dtype=np.float64)
        if not (len(ids) == len(categories) and greedy.shape == sampled.shape == (len(ids),)):
            raise InputError(
                "Knowledge needs ids, categories, greedy_right and sampled_right of one length, got "
                f"{len(ids)}, {len(categories)}, {greedy.shape} and {sampled.shape}"
            )
        if len(set(ids)) != len(ids):
            twice = next(i for n, i in enumerate(ids) if i in ids[:n])
            raise InputError(f"ids must be unique, got {twice!r} more than once")
        for i, category in zip(ids, categories, strict=True):
            if category not in CATEGORIES:
                raise InputError(f"a category must be one of {', '.join(CATEGORIES)}, got {category!r} for id {i!r}")
        for name, share in (("greedy_right", greedy), ("sampled_right", sampled)):
            outside = np.flatnonzero(~((share >= 0) & (share <= 1)))  # nan is outside, too
            if len(outside):
                raise InputError(f"{name} must lie in [0, 1], got {share[outside[0]]} for id {ids[outside[0]]!r}")
        # Whether sampling found the answer is taken from the category itself; greedy_right decides the rest.
        fitting = categorise(greedy, [category == "WeaklyKnown" for category in categories])
        for i, category, share, expected in zip(ids, categories, greedy, fitting, strict=True):
            if category != expected:
                raise InputError(f"greedy_right {share} must go with its category, got {category} for id {i!r}")
        for field, value in zip(self.__slots__, (ids, categories, greedy, sampled), strict=True):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether each question is HighlyKnown or MaybeKnown, (N,)."""
        return np.isin(self.categories, KNOWN)

    def counts(self) -> dict[str, int]:
        """How many questions each category has, in the order of `CATEGORIES`."""
        return {category: self.categories.count(category) for category in CATEGORIES}

    def known_of(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """Whether the questions with these ids are known. Raises `InputError` when some are not here."""
        known = dict(zip(self.ids, self.known.tolist(), strict=True))
        missing = [i for i in ids if i not in known]
        if missing:
            raise InputError(f"{len(missing)} of {len(ids)} questions have no category, the first is id {missing[0]!r}")
        return np.array([known[i] for i in ids], dtype=bool)


def categorise(greedy_right: ArrayLike, drawn: ArrayLike) -> tuple[str, ...]:
    """The SliCK category of each question: P(T = 0), and whether sampling finds the answer, each (N,).

    >>> categorise([1.0, 0.25, 0.0, 0.0], [True, True, True, False])
    ('HighlyKnown', 'MaybeKnown', 'WeaklyKnown', 'Unknown')
    """
    found = zip(np.asarray(greedy_right, dtype=np.float64).tolist(), np.asarray(drawn).tolist(), strict=True)
    return tuple(CATEGORIES[0 if p == 1 else 1 if p > 0 else 2 if once else 3] for p, once in found)


def drawn_at_least_once(probability: ArrayLike, samples: int) -> NDArray[np.bool_]:
    """Whether an answer of that probability is more likely than not among `samples` draws: 1 − (1 − p)ⁿ ≥ 1/2.

    The rule is ours. It stands in for P(T) > 0 where probabilities are computed, for those are never 0. Raises
    `InputError` unless `samples` is at least 1.

    >>> drawn_at_least_once([0.5, 0.3, 0.29], 2)  # 1 − 0.7² = 0.51, 1 − 0.71² = 0.496
    array([ True,  True, False])
    """
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    missed: FloatArray = (1 - np.asarray(probability, dtype=np.float64)) ** samples
    return missed <= 0.5


@dataclass(frozen=True, slots=True)
class Detector:
    """A question counts as known iff its answer's NLL (natural units) is at most `threshold`.

    `true_positive_rate` and `true_negative_rate` are those on the questions it was fitted on.
    """

    threshold: float
    true_positive_rate: float
    true_negative_rate: float


def fit_detector(answer_nll: FloatArray, known: NDArray[np.bool_]) -> Detector:
    """The threshold that maximises TPR + TNR, half-way between two neighbouring NLLs; the lowest among equals.

    Where none beats the largest NLL, that is the threshold and every question is taken as known. With only known (or
    only unknown) questions every question is taken as known (or unknown), and the rate that has nothing to count is
    nan. An answer that is ruled out has an NLL of inf.

    Raises `InputError` without questions, for shapes that differ, or NLLs of nan or -inf.

    >>> fit_detector(np.array([0.1, 0.4, 0.6, 2.0]), np.array([True, True, False, False]))
    Detector(threshold=0.5, true_positive_rate=1.0, true_negative_rate=1.0)
    """
    answer_nll = np.asarray(answer_nll, dtype=np.float64)
    known = np.asarray(known, dtype=bool)
    if answer_nll.ndim != 1 or answer_nll.shape != known.shape or not len(known):
        raise InputError(
            f"a detector needs NLLs and known flags of one length above 0, got {answer_nll.shape} and {known.shape}"
        )
    if np.isnan(answer_nll).any() or np.isneginf(answer_nll).any():
        raise InputError(f"an answer's NLL must be finite or inf, got {answer_nll[~np.isfinite(answer_nll)].min()}")
    answer_nll = np.minimum(answer_nll, 1e300)  # half-way to inf is inf
    if known.all():
        return Detector(np.inf, 1.0, np.nan)
    if not known.any():
        return Detector(-np.inf, np.nan, 1.0)
    order = np.argsort(answer_nll)
    values, flags = answer_nll[order], known[order]
    # After the i-th smallest: how many known lie at or below the cut, how many unknown above it.
    cut = np.flatnonzero(np.append(np.diff(values) > 0, True))
    positives, negatives = int(flags.sum()), int((~flags).sum())
    true_positive = np.cumsum(flags)[cut]
    true_negative = negatives - np.cumsum(~flags)[cut]
    # In whole numbers, so that equal sums of rates compare as equal.
    best = int(np.argmax(true_positive * negatives + true_negative * positives))
    upper = values[cut[best] + 1] if cut[best] + 1 < len(values) else values[cut[best]]
    return Detector(
        threshold=float((values[cut[best]] + upper) / 2) if values[cut[best]] < 1e300 else np.inf,
        true_positive_rate=float(true_positive[best] / positives),
        true_negative_rate=float(true_negative[best] / negatives),
    )


def detector_accuracy(ids: Sequence[str], answer_nll: FloatArray, known: NDArray[np.bool_]) -> float:
    """Share of questions that a detector fitted on other questions judges rightly; higher is better.

    Two halves, every second question in the order of SHA-256(id), are each judged by the threshold fitted on the other
    one. nan with fewer than two questions. Raises as `fit_detector` does.

    >>> detector_accuracy(["a", "b", "c", "d"], np.array([0.1, 0.2, 3.0, 4.0]), np.array([True, True, False, False]))
    1.0
    """
    if len(ids) < 2:
        return float("nan")
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    halves = order[::2], order[1::2]
    right = 0
    for fit, check in (halves, halves[::-1]):
        threshold = fit_detector(answer_nll[fit], known[fit]).threshold
        right += int(((answer_nll[check] <= threshold) == known[check]).sum())
    return right / len(ids)
