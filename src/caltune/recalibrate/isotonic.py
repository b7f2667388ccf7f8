"""Isotonic regression: the rising curve of the confidence that fits best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.confidence import Indices, calibration_set, log_confidence, with_confidence
from caltune.recalibrate.guards import read_array, read_ids, read_object, require_unseen
from caltune.types import FloatArray, OptionLogits, Predictions, Scores


@dataclass(frozen=True, slots=True)
class Isotonic:
    """c′ = the straight lines through (`log_odds`, `confidences`) at ln(c / (1 − c)), level beyond both ends.

    It keeps the answer and, among questions of equally many options, the order of the confidences but for ties: two
    different ones may become equal, so AUROC may move. How the other options share the rest, and that no answer gets
    less than 1/K, is told at `caltune.recalibrate.confidence.with_confidence`. `fitted_on` are the ids it was fitted
    on: applying it to any of them raises.

    Raises `InputError` unless both have one length of at least 1, neither ever falls, and confidences lie in [0, 1].

    Halfway between log-odds 0 and ln 9 lies c = 3/4, and halfway between 0.4 and 0.8 lies 0.6.

    >>> curve = Isotonic((0.0, float(np.log(9))), (0.4, 0.8))
    >>> curve(Predictions(("a", "b"), [0.75, 0.99], [1, 1])).confidence.round(6).tolist()
    [0.6, 0.8]
    """

    log_odds: tuple[float, ...]
    confidences: tuple[float, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        x, y = np.asarray(self.log_odds), np.asarray(self.confidences)
        rising = (
            x.shape == y.shape and x.ndim == 1 and len(x) > 0 and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
        )
        if not (rising and np.isfinite(x).all() and y[0] >= 0 and y[-1] <= 1):
            raise InputError(
                "an isotonic curve needs log-odds and as many confidences in [0, 1] that never fall, got "
                f"{x.shape} and {y.shape}"
            )
        for name in ("log_odds", "confidences", "fitted_on"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, scores: Scores, /) -> Scores:
        """The same questions and answers with new confidences. Raises `InputError` when a question was fitted on."""
        require_unseen("the isotonic curve", scores.ids, self.fitted_on)
        top, rest = log_confidence(scores)
        return with_confidence(scores, np.interp(top - rest, self.log_odds, self.confidences))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Isotonic((0.0,), (0.4,), ("a",)).to_json()
        {'log_odds': [0.0], 'confidences': [0.4], 'fitted_on': ['a']}
        """
        return {name: list(getattr(self, name)) for name in ("log_odds", "confidences", "fitted_on")}

    @classmethod
    def from_json(cls, data: Any) -> Isotonic:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("an isotonic curve", data, ("log_odds", "confidences", "fitted_on"))
        x, y = (tuple(read_array(data, name, 1).tolist()) for name in ("log_odds", "confidences"))
        return cls(x, y, read_ids(data))


def fit_isotonic(scores: OptionLogits | Predictions) -> Isotonic:
    """The never falling curve m with the lowest Σ_i (a_i − m(c_i))² on `scores`, a_i being 1 where the answer is right.

    Questions of equal confidence are one point, their mean. The solution is a step for each block of questions; between
    blocks the curve goes straight in log-odds. A block that is all right or all wrong says (N + 1)/(N + 2) or
    1/(N + 2), N the number of questions: N answers cannot show a confidence of 1. Zadrozny and Elkan 2002; the pool of
    adjacent violators is Ayer et al. 1955.

    Raises `InputError` when a label is unknown or no question has two options.

    At 0.6 all wrong, then right, wrong, right: the middle two violate the order and become 1/2.

    >>> cal = Predictions(tuple("abcd"), [0.6, 0.7, 0.8, 0.9], [0, 1, 0, 1])
    >>> [round(c, 4) for c in fit_isotonic(cal).confidences]
    [0.1667, 0.5, 0.5, 0.8333]
    """
    top, rest, correct, _ = calibration_set("an isotonic curve", scores)
    x, place = np.unique(top - rest, return_inverse=True)
    weight = np.bincount(place).astype(np.float64)
    level, last = pool_adjacent(np.bincount(place, correct) / weight, weight)
    count = len(correct)
    level = np.clip(level, 1 / (count + 2), (count + 1) / (count + 2))
    first = np.append(0, last[:-1] + 1)
    # Both ends of each block; a block of one point needs that point once.
    ends = np.column_stack([first, last]).ravel()
    kept = np.append(True, np.diff(ends) > 0)
    return Isotonic(tuple(x[ends[kept]].tolist()), tuple(np.repeat(level, 2)[kept].tolist()), fitted_on=scores.ids)


def pool_adjacent(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, Indices]:
    """Levels of the blocks, rising, and the index of each block's last value: the weighted least squares fit.

    >>> level, last = pool_adjacent(np.array([1.0, 3.0, 2.0]), np.ones(3))
    >>> level.tolist(), last.tolist()
    ([1.0, 2.5], [0, 2])
    """
    blocks: list[tuple[float, float, int]] = []  # weighted sum, weight, last index
    for i, (value, weight) in enumerate(zip((values * weights).tolist(), weights.tolist(), strict=True)):
        while blocks and blocks[-1][0] * weight >= value * blocks[-1][1]:
            before, before_weight, _ = blocks.pop()
            value, weight = value + before, weight + before_weight
        blocks.append((value, weight, i))
    level = np.array([value / weight for value, weight, _ in blocks])
    return level, np.array([last for _, _, last in blocks], dtype=np.intp)
