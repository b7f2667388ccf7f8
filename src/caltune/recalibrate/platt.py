"""Platt scaling: two numbers that map the log-odds of the confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.confidence import calibration_set, log_confidence, with_confidence
from caltune.recalibrate.guards import read_ids, read_number, read_object, require_unseen
from caltune.recalibrate.logistic import sigmoid
from caltune.recalibrate.monotone import fit_monotone
from caltune.types import FloatArray, OptionLogits, Predictions, Scores


@dataclass(frozen=True, slots=True)
class Platt:
    """c′ = σ(`slope` · ln(c / (1 − c)) + `offset`): below 1 a slope draws confidences together, an offset shifts all.

    It keeps the answer and, among questions of equally many options, the order of the confidences, since the slope is
    not negative; how the other options share the rest, and that no answer gets less than 1/K, is told at
    `caltune.recalibrate.confidence.with_confidence`.
    `fitted_on` are the ids it was fitted on: applying it to any of them raises.

    Raises `InputError` for a slope that is negative or a number that is not finite.

    c = 0.9 has the log-odds ln 9, and σ(½ ln 9) = 3/4.

    >>> Platt(0.5, 0.0)(Predictions(("a",), [0.9], [1.0])).confidence.round(6).tolist()
    [0.75]
    """

    slope: float
    offset: float
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.offset) and self.slope >= 0):
            raise InputError(
                f"Platt scaling needs a slope of at least 0 and a finite offset, got {self.slope} and {self.offset}"
            )
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def __call__(self, scores: Scores, /) -> Scores:
        """The same questions and answers with new confidences. Raises `InputError` when a question was fitted on."""
        require_unseen("Platt scaling", scores.ids, self.fitted_on)
        top, rest = log_confidence(scores)
        return with_confidence(scores, sigmoid(self.slope * (top - rest) + self.offset))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Platt(0.5, -0.1, ("a",)).to_json()
        {'slope': 0.5, 'offset': -0.1, 'fitted_on': ['a']}
        """
        return {"slope": self.slope, "offset": self.offset, "fitted_on": list(self.fitted_on)}

    @classmethod
    def from_json(cls, data: Any) -> Platt:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("Platt scaling", data, ("slope", "offset", "fitted_on"))
        return cls(read_number(data, "slope"), read_number(data, "offset"), read_ids(data))


def fit_platt(scores: OptionLogits | Predictions) -> Platt:
    """The slope ≥ 0 and offset with the lowest binary NLL of "the answer is right" on `scores`.

    argmin −Σ_i [t_i ln c′_i + (1 − t_i) ln(1 − c′_i)], with Platt's targets t = (R + 1)/(R + 2) for the R right answers
    and 1/(W + 2) for the W wrong ones, so that it is finite when all are right. Where all confidences are alike the
    slope is 1 and the offset makes them the accuracy. Platt 1999, section 2.2; Lin, Lin and Weng 2007, equation 1.

    Raises `InputError` when a label is unknown or no question has two options.

    The targets of three right and one wrong are 4/5 and 1/3, 0.6833 in the mean:

    >>> cal = Predictions(tuple("abcd"), [0.9] * 4, [1, 1, 1, 0])
    >>> fit_platt(cal)(Predictions(("new",), [0.9], [1.0])).confidence.round(4).tolist()
    [0.6833]
    """
    top, rest, correct, _ = calibration_set("Platt scaling", scores)
    slope, offset = fit_monotone((top - rest)[:, None], platt_targets(correct), start=np.ones(1))
    return Platt(slope, offset, fitted_on=scores.ids)


def platt_targets(correct: FloatArray) -> FloatArray:
    """(R + 1)/(R + 2) where right and 1/(W + 2) where wrong.

    >>> platt_targets(np.array([1.0, 1.0, 0.0])).round(4).tolist()
    [0.75, 0.75, 0.3333]
    """
    right = correct.sum()
    wrong = len(correct) - right
    result: FloatArray = np.where(correct == 1, (right + 1) / (right + 2), 1 / (wrong + 2))
    return result
