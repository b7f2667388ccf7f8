"""Histogram binning: the accuracy of the calibration questions that were about as sure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.confidence import calibration_set, log_confidence, with_confidence
from caltune.recalibrate.guards import read_array, read_ids, read_object, require_unseen
from caltune.types import FloatArray, OptionLogits, Predictions, Scores

PER_BIN = 50  # as in Gupta and Ramdas 2022: the accuracy of 50 questions is known to within 0.07 or so


@dataclass(frozen=True, slots=True)
class Histogram:
    """c′ = `confidences`[m], m the bin of ln(c / (1 − c)); `edges` are the upper ends of all bins but the last.

    It keeps the answer, not the order of the confidences: a surer bin may be right less often. How the other options
    share the rest, and that no answer gets less than 1/K, is told at `caltune.recalibrate.confidence.with_confidence`.
    `fitted_on` are the ids it was fitted on: applying it to any of them raises.

    Raises `InputError` unless the finite edges rise and there is one confidence in [0, 1] more than there are edges.

    >>> bins = Histogram(edges=(0.0,), confidences=(0.3, 0.8))
    >>> bins(Predictions(("a", "b"), [0.5, 0.9], [1, 1])).confidence.tolist()
    [0.3, 0.8]
    """

    edges: tuple[float, ...]
    confidences: tuple[float, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        edges, levels = np.asarray(self.edges, dtype=np.float64), np.asarray(self.confidences, dtype=np.float64)
        fits = levels.shape == (len(edges) + 1,) and ((levels >= 0) & (levels <= 1)).all()
        if not (fits and np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
            raise InputError(
                "a histogram needs rising edges and one more confidence in [0, 1] than edges, got "
                f"{edges.shape} and {levels.shape}"
            )
        for name in ("edges", "confidences", "fitted_on"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, scores: Scores, /) -> Scores:
        """The same questions and answers with new confidences. Raises `InputError` when a question was fitted on."""
        require_unseen("the histogram", scores.ids, self.fitted_on)
        top, rest = log_confidence(scores)
        return with_confidence(scores, self.lookup(top - rest))

    def lookup(self, log_odds: FloatArray) -> FloatArray:
        """The confidence of each one's bin; a value on an edge belongs to the bin below it.

        >>> Histogram((0.0,), (0.3, 0.8)).lookup(np.array([-1.0, 0.0, 0.1])).tolist()
        [0.3, 0.3, 0.8]
        """
        result: FloatArray = np.asarray(self.confidences)[np.searchsorted(self.edges, log_odds, side="left")]
        return result

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Histogram((0.0,), (0.3, 0.8), ("a",)).to_json()
        {'edges': [0.0], 'confidences': [0.3, 0.8], 'fitted_on': ['a']}
        """
        return {name: list(getattr(self, name)) for name in ("edges", "confidences", "fitted_on")}

    @classmethod
    def from_json(cls, data: Any) -> Histogram:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("a histogram", data, ("edges", "confidences", "fitted_on"))
        edges, levels = (tuple(read_array(data, name, 1).tolist()) for name in ("edges", "confidences"))
        return cls(edges, levels, read_ids(data))


def fit_histogram(scores: OptionLogits | Predictions, per_bin: int = PER_BIN) -> Histogram:
    """Bins of equal mass, at least `per_bin` questions each where there are so many, and the accuracy in each.

    There are max(1, ⌊N / per_bin⌋) bins. Equal confidences are not cut, and a bin that they leave with fewer joins its
    neighbour. A bin of n questions that are all right or all wrong says (n + 1)/(n + 2) or 1/(n + 2). Zadrozny and
    Elkan 2001; equal mass as in Gupta and Ramdas 2021, algorithm 1.

    Raises `InputError` when a label is unknown, no question has two options, or `per_bin` is below 1.

    >>> cal = Predictions(tuple("abcd"), [0.6, 0.7, 0.8, 0.9], [0, 1, 1, 1])
    >>> fit_histogram(cal, per_bin=2).confidences
    (0.5, 0.75)
    """
    if per_bin < 1:
        raise InputError(f"per_bin must be at least 1, got {per_bin}")
    top, rest, correct, _ = calibration_set("a histogram", scores)
    edges, levels = equal_mass(top - rest, correct, per_bin)
    return Histogram(edges, levels, fitted_on=scores.ids)


def equal_mass(log_odds: FloatArray, correct: FloatArray, per_bin: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and confidences of `fit_histogram`.

    >>> equal_mass(np.array([0.0, 1.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 0.0]), 2)
    ((), (0.5,))
    """
    count = len(log_odds)
    bins = max(1, count // per_bin)
    ordered = np.sort(log_odds)
    last = np.ceil(np.arange(1, bins) * count / bins).astype(np.intp) - 1
    edges = np.unique(ordered[last])
    up_to = np.searchsorted(ordered, edges, side="right")
    kept: list[int] = []  # a bin that equal confidences leave with too few joins the next, the last the one before
    for i in np.flatnonzero(up_to <= count - per_bin):
        if up_to[i] - (up_to[kept[-1]] if kept else 0) >= per_bin:
            kept.append(int(i))
    edges = edges[kept]
    place = np.searchsorted(edges, log_odds, side="left")
    size = np.bincount(place, minlength=len(edges) + 1)
    right = np.bincount(place, correct, minlength=len(edges) + 1)
    levels = np.clip(right / size, 1 / (size + 2), (size + 1) / (size + 2))
    return tuple(edges.tolist()), tuple(levels.tolist())
