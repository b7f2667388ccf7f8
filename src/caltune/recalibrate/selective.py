"""Selective scaling: a classifier says which answers are probably wrong, and those get a temperature of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.guards import (
    largest_at_zero,
    read_array,
    read_ids,
    read_number,
    read_object,
    require_fit,
    require_unseen,
)
from caltune.recalibrate.logistic import fit_logistic, sigmoid
from caltune.recalibrate.temperature import LOG_RANGE, Temperature, fit_temperature
from caltune.types import FloatArray, OptionLogits, Predictions

FLOOR = -30.0  # log-probabilities below it, and options that a question does not have, count as it


@dataclass(frozen=True, eq=False, slots=True)
class SelectiveScaling:
    """p = softmax(z / `wrong`) where the selector holds an answer for wrong, else softmax(z / `right`).

    The selector is σ(`coefficients` · (sorted log-probabilities, 1)), the probability that the answer is right; below ½
    it is held for wrong. Answer and order of options stay; the order of confidence between questions does not.
    Questions fitted on are refused. Raises `InputError` for a temperature that is not positive.
    """

    coefficients: FloatArray
    right: float
    wrong: float
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        Temperature(self.right)
        Temperature(self.wrong)
        if self.coefficients.ndim != 1 or len(self.coefficients) < 2:
            raise InputError(f"a selector needs coefficients and an intercept, got {self.coefficients.shape}")

    def probability_right(self, scores: OptionLogits) -> FloatArray:
        """The selector's probability that each answer is right, (N,).

        Raises `InputError` when a question was fitted on.
        """
        require_unseen("the selector", scores.ids, self.fitted_on)
        return sigmoid(_features(scores, len(self.coefficients) - 1) @ self.coefficients[:-1] + self.coefficients[-1])

    def selector_predictions(self, scores: OptionLogits) -> Predictions:
        """The same answers with the selector's probability itself as confidence: the simpler rival of the scaling."""
        confidence = self.probability_right(scores)
        decided = scores.decide()
        return Predictions(decided.ids, confidence, decided.correct, decided.groups)

    def __call__(self, scores: OptionLogits, /) -> OptionLogits:
        """The same questions, each with its temperature. Raises `InputError` when one was fitted on."""
        chosen = np.where(self.probability_right(scores) < 0.5, self.wrong, self.right)
        logits = scores.logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
        return largest_at_zero(scores, shifted / chosen[:, None])

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {
            "coefficients": self.coefficients.tolist(),
            "right": self.right,
            "wrong": self.wrong,
            "fitted_on": list(self.fitted_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> SelectiveScaling:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("selective scaling", data, cls.__slots__)
        return cls(
            read_array(data, "coefficients", 1), read_number(data, "right"), read_number(data, "wrong"), read_ids(data)
        )


def fit_selective(scores: OptionLogits, *, ridge: float = 1.0, right: float | None = None) -> SelectiveScaling:
    """Fit the selector, then a temperature on each of its two groups.

    Wang, Gong, Chen, Chen, Bai, Guo 2023 (On calibrating semantic segmentation models). There what is held for right
    keeps its logits (`right=1.0`) and the rest gets a large temperature. Ours fits both by NLL, since a fine-tuned
    model is too sure also of what it knows. Where a group has no best temperature, the one held for right takes that of
    all questions, and the one held for wrong exp(5), at which every option is about as probable.

    Raises `InputError` when all answers are right or all wrong, and as `fit_temperature` does for all questions.
    """
    require_fit("selective scaling", scores, least=2)
    correct = scores.decide().correct
    if correct.min() == correct.max():
        raise InputError(
            f"selective scaling needs right and wrong answers, got {correct.sum():.0f} right and "
            f"{len(correct) - correct.sum():.0f} wrong"
        )
    width = scores.logits.shape[1]
    coefficients = fit_logistic(_features(scores, width), correct, ridge)
    overall = fit_temperature(scores).temperature
    doubtful = _features(scores, width) @ coefficients[:-1] + coefficients[-1] < 0
    right = _group_temperature(scores, ~doubtful, overall) if right is None else right
    return SelectiveScaling(
        coefficients, right, _group_temperature(scores, doubtful, math.exp(LOG_RANGE)), fitted_on=scores.ids
    )


def _group_temperature(scores: OptionLogits, chosen: np.ndarray[Any, np.dtype[np.bool_]], otherwise: float) -> float:
    try:
        return fit_temperature(scores.take(np.flatnonzero(chosen))).temperature
    except InputError:
        return otherwise


def _features(scores: OptionLogits, width: int) -> FloatArray:
    """The `width` highest log-probabilities of each row, falling."""
    logs = np.maximum(-np.sort(-scores.log_probabilities(), axis=1)[:, :width], FLOOR)
    result: FloatArray = np.pad(logs, ((0, 0), (0, width - logs.shape[1])), constant_values=FLOOR)
    return result
