"""Beta calibration: three numbers that bend both ends of the confidence."""

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
from caltune.recalibrate.platt import platt_targets
from caltune.types import OptionLogits, Predictions, Scores


@dataclass(frozen=True, slots=True)
class Beta:
    """c′ = σ(`a` · ln c − `b` · ln(1 − c) + `offset`): a bends the end at 0, b the end at 1; a = b is Platt scaling.

    It keeps the answer and, among questions of equally many options, the order of the confidences, since a and b are
    not negative; how the other options share the rest, and that no answer gets less than 1/K, is told at
    `caltune.recalibrate.confidence.with_confidence`.
    `fitted_on` are the ids it was fitted on: applying it to any of them raises.

    Raises `InputError` for a or b that is negative, or a number that is not finite.

    With a = 2, b = 1: c²/(1 − c) at c = 1/2 is 1/2, odds of 1 to 2.

    >>> Beta(2.0, 1.0, 0.0)(Predictions(("a",), [0.5], [1.0])).confidence.round(6).tolist()
    [0.333333]
    """

    a: float
    b: float
    offset: float
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (all(map(math.isfinite, (self.a, self.b, self.offset))) and min(self.a, self.b) >= 0):
            raise InputError(
                f"beta calibration needs a and b of at least 0 and a finite offset, got {self.a}, {self.b} and "
                f"{self.offset}"
            )
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def __call__(self, scores: Scores, /) -> Scores:
        """The same questions and answers with new confidences. Raises `InputError` when a question was fitted on."""
        require_unseen("beta calibration", scores.ids, self.fitted_on)
        top, rest = log_confidence(scores)
        return with_confidence(scores, sigmoid(self.a * top - self.b * rest + self.offset))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Beta(1.0, 0.5, -0.1, ("a",)).to_json()
        {'a': 1.0, 'b': 0.5, 'offset': -0.1, 'fitted_on': ['a']}
        """
        return {"a": self.a, "b": self.b, "offset": self.offset, "fitted_on": list(self.fitted_on)}

    @classmethod
    def from_json(cls, data: Any) -> Beta:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("beta calibration", data, ("a", "b", "offset", "fitted_on"))
        a, b, offset = (read_number(data, name) for name in ("a", "b", "offset"))
        return cls(a, b, offset, read_ids(data))


def fit_beta(scores: OptionLogits | Predictions) -> Beta:
    """The a, b ≥ 0 and offset with the lowest binary NLL of "the answer is right" on `scores`.

    argmin −Σ_i [t_i ln c′_i + (1 − t_i) ln(1 − c′_i)] with the targets of `fit_platt`. Kull, Silva Filho and Flach
    2017, equation 4 and section 4: logistic regression on ln c and −ln(1 − c).

    Raises `InputError` when a label is unknown or no question has two options.

    >>> cal = Predictions(tuple("abcd"), [0.9] * 4, [1, 1, 1, 0])
    >>> fit_beta(cal)(Predictions(("new",), [0.9], [1.0])).confidence.round(4).tolist()
    [0.6833]
    """
    top, rest, correct, _ = calibration_set("beta calibration", scores)
    a, b, offset = fit_monotone(np.column_stack([top, -rest]), platt_targets(correct), start=np.ones(2))
    return Beta(a, b, offset, fitted_on=scores.ids)
