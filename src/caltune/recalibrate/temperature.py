"""Temperature scaling: one number that makes all answers more or less sure, and changes none of them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.notebook import number
from caltune.recalibrate.guards import largest_at_zero, require_unseen, short
from caltune.types import FloatArray, OptionLogits

LOG_RANGE = 5.0  # temperatures are looked for between exp(-5) and exp(5)


@dataclass(frozen=True, slots=True)
class Temperature:
    """p = softmax(z / `temperature`): above 1 less sure, below 1 more sure; the chosen option stays.

    `fitted_on` are the ids it was fitted on: applying it to any of them raises, since that would flatter it.
    The result has its largest logit at 0 in every row.

    Raises `InputError` for a temperature that is not positive and finite.

    >>> halve = Temperature(2.0, fitted_on=("seen",))
    >>> halve(OptionLogits(ids=("new",), logits=[[5.0, 1.0, -np.inf]], labels=[0])).logits.tolist()
    [[0.0, -2.0, -inf]]
    >>> halve(OptionLogits(ids=("seen",), logits=[[5.0, 1.0]], labels=[0]))
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: the temperature must not meet questions it was fitted on, got 1 of them, first id 'seen'
    """

    temperature: float
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"a temperature must be positive and finite, got {self.temperature}")
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def __call__(self, scores: OptionLogits, /) -> OptionLogits:
        """The same questions with their logits divided by the temperature.

        Raises `InputError` when a question was fitted on.
        """
        require_unseen("the temperature", scores.ids, self.fitted_on)
        # Shifted first: dividing large float32 logits could round two of them together and change the answer.
        return largest_at_zero(scores, _shifted(scores) / self.temperature)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Temperature(1.5, ("a",)).to_json()
        {'temperature': 1.5, 'fitted_on': ['a']}
        """
        return {"temperature": self.temperature, "fitted_on": list(self.fitted_on)}

    def _repr_html_(self) -> str:
        """What a notebook shows: the number, and not all the ids."""
        return f"Temperature {number(self.temperature)}, fitted on {len(self.fitted_on):,} questions"

    @classmethod
    def from_json(cls, data: Any) -> Temperature:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type.

        >>> Temperature.from_json({"temperature": 1.5, "fitted_on": ["a"]})
        Temperature(temperature=1.5)
        """
        if not isinstance(data, dict) or not {"temperature", "fitted_on"} <= data.keys():
            raise InputError(f"a temperature needs the keys 'temperature' and 'fitted_on', got {short(data)}")
        value, ids = data["temperature"], data["fitted_on"]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"'temperature' must be a number, got {short(value)}")
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise InputError(f"'fitted_on' must be a list of ids, got {short(ids)}")
        if isinstance(value, int) and value > sys.float_info.max:
            raise InputError(f"a temperature must be positive and finite, got {short(value)}")
        return cls(float(value), tuple(ids))


def fit_temperature(scores: OptionLogits) -> Temperature:
    """The temperature with the lowest NLL on `scores`, which must be questions that nothing else is judged on.

    T* = argmin_T −(1/N) Σ_i log softmax(z_i / T)_y. With β = 1/T the NLL is convex and its derivative is
    (1/N) Σ_i (E_β[z_i] − z_iy), so the root is bracketed and found by Newton steps kept inside the bracket, to
    machine precision. Guo, Pleiss, Sun, Weinberger 2017, section 4.2.

    Raises `InputError` when a label is unknown, there are no questions, a right option has the logit -inf, or no T
    between exp(-5) and exp(5) is best: the answers are all right (T → 0) or no better than chance (T → ∞).

    A model that says 0.8808 (logits 2 and 0) and is right 3 times of 4 wants 0.75 = σ(2 / T), so T = 2 / ln 3.

    >>> scores = OptionLogits(ids=tuple("abcd"), logits=[[2.0, 0.0]] * 4, labels=[0, 0, 0, 1])
    >>> round(fit_temperature(scores).temperature, 4), round(2 / math.log(3), 4)
    (1.8205, 1.8205)
    """
    scores.require_labels()
    if not len(scores):
        raise InputError("fitting a temperature needs at least one question, got none")
    shifted = _shifted(scores)
    of_label = shifted[np.arange(len(scores)), scores.labels]
    absent = np.flatnonzero(np.isneginf(of_label))
    if len(absent):
        raise InputError(
            f"fitting a temperature needs a finite logit for the right option, got {len(absent)} questions without, "
            f"first id {scores.ids[absent[0]]!r}; platt, beta and isotonic can do without"
        )
    finite = np.where(np.isneginf(shifted), 0.0, shifted)
    low, high = math.exp(-LOG_RANGE), math.exp(LOG_RANGE)
    at_high, _ = _slope(shifted, finite, of_label, high)
    at_low, _ = _slope(shifted, finite, of_label, low)
    if at_low == 0 == at_high:
        raise InputError(
            f"no temperature has the lowest NLL: that of these {len(scores)} questions does not depend on T, since no "
            "question has options with different logits"
        )
    if at_high <= 0:
        raise InputError(
            f"no temperature above exp(-{LOG_RANGE:g}) has the lowest NLL: the NLL of these {len(scores)} questions "
            "falls as T goes to 0, as when every answer is right; use more questions, some of them answered wrongly"
        )
    if at_low >= 0:
        raise InputError(
            f"no temperature below exp({LOG_RANGE:g}) has the lowest NLL: the NLL of these {len(scores)} questions "
            "falls as T goes to infinity, as when the answers are no better than chance; check the labels"
        )
    return Temperature(1.0 / _root(shifted, finite, of_label, low, high), fitted_on=scores.ids)


def _root(shifted: FloatArray, finite: FloatArray, of_label: FloatArray, low: float, high: float) -> float:
    """The β in (low, high) where the slope is 0."""
    beta = 1.0
    for _ in range(200):
        slope, curvature = _slope(shifted, finite, of_label, beta)
        if slope > 0:
            high = beta
        else:
            low = beta
        step = beta - slope / curvature if curvature > 0 else math.nan
        # The geometric mean halves the bracket in log T.
        following = step if low < step < high else math.sqrt(low * high)
        if slope == 0 or abs(following - beta) <= 1e-14 * beta:
            return beta
        beta = following
    return beta


def _slope(shifted: FloatArray, finite: FloatArray, of_label: FloatArray, beta: float) -> tuple[float, float]:
    """First and second derivative of the NLL in β."""
    weights = np.exp(beta * shifted)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = (weights * finite).sum(axis=1)
    variance = (weights * np.square(finite - mean[:, None])).sum(axis=1)
    return float((mean - of_label).mean()), float(variance.mean())


def _shifted(scores: OptionLogits) -> FloatArray:
    logits = scores.logits.astype(np.float64)
    result: FloatArray = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    return result
