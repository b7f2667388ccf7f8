"""Top-label calibration: a histogram for each position that can be chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.confidence import calibration_set, chosen, log_confidence, with_confidence
from caltune.recalibrate.guards import read_ids, read_object, require_unseen, short
from caltune.recalibrate.histogram import PER_BIN, Histogram, equal_mass
from caltune.types import OptionLogits


@dataclass(frozen=True, slots=True)
class TopLabel:
    """c′ = the histogram of the chosen position k, at c: P(right | option k was chosen, about as sure).

    A calibrated model may still be too sure of B and not sure enough of D; this repairs it. Positions beyond
    `positions` take `pooled`. It keeps the answer, not the order of the confidences; how the other options share the
    rest, and that no answer gets less than 1/K, is told at `caltune.recalibrate.confidence.with_confidence`.
    `fitted_on` are the ids it was fitted on: applying it to any of them raises.

    >>> by_position = TopLabel((Histogram((), (0.6,)), Histogram((), (0.9,))), Histogram((), (0.7,)))
    >>> scores = OptionLogits(("a", "b"), [[1.0, 0.0], [0.0, 1.0]], [0, 1])
    >>> by_position(scores).decide().confidence.round(4).tolist()
    [0.6, 0.9]
    """

    positions: tuple[Histogram, ...]
    pooled: Histogram
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ("positions", "fitted_on"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, scores: OptionLogits, /) -> OptionLogits:
        """The same questions and answers with new confidences. Raises `InputError` when a question was fitted on."""
        require_unseen("top-label calibration", scores.ids, self.fitted_on)
        top, rest = log_confidence(scores)
        confidence = self.pooled.lookup(top - rest)
        choice = chosen(scores)
        for position, histogram in enumerate(self.positions):
            here = choice == position
            confidence[here] = histogram.lookup((top - rest)[here])
        return with_confidence(scores, confidence)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> sorted(TopLabel((), Histogram((), (0.7,)), ("a",)).to_json())
        ['fitted_on', 'pooled', 'positions']
        """
        return {
            "positions": [histogram.to_json() for histogram in self.positions],
            "pooled": self.pooled.to_json(),
            "fitted_on": list(self.fitted_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> TopLabel:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("top-label calibration", data, ("positions", "pooled", "fitted_on"))
        if not isinstance(data["positions"], list):
            raise InputError(f"'positions' must be a list of histograms, got {short(data['positions'])}")
        positions = tuple(Histogram.from_json(one) for one in data["positions"])
        return cls(positions, Histogram.from_json(data["pooled"]), read_ids(data))


def fit_top_label(scores: OptionLogits, per_bin: int = PER_BIN) -> TopLabel:
    """A histogram of at least `per_bin` questions a bin for each chosen position; the pooled one where it has fewer.

    Gupta and Ramdas 2022, algorithm 1 with histogram binning; the fall-back is ours.

    Raises `InputError` when a label is unknown, no question has two options, or `per_bin` is below 1.

    The first option is right in 1 of 2, the second in 2 of 2, which says 3/4. The third was never chosen and takes
    the bins of all: at log-odds 0.3 two of two are right, at 1.3 one of two.

    >>> logits = [[1, 0, 0], [2, 0, 0], [0, 1, 0], [0, 2, 0]]
    >>> fitted = fit_top_label(OptionLogits(tuple("abcd"), logits, [0, 1, 1, 1]), per_bin=2)
    >>> [histogram.confidences for histogram in fitted.positions]
    [(0.5,), (0.75,), (0.75, 0.5)]
    """
    if per_bin < 1:
        raise InputError(f"per_bin must be at least 1, got {per_bin}")
    top, rest, correct, rows = calibration_set("top-label calibration", scores)
    log_odds, choice = top - rest, chosen(scores)[rows]
    pooled = Histogram(*equal_mass(log_odds, correct, per_bin))
    positions = [
        Histogram(*equal_mass(log_odds[choice == k], correct[choice == k], per_bin))
        if np.count_nonzero(choice == k) >= per_bin
        else pooled
        for k in range(scores.logits.shape[1])
    ]
    return TopLabel(tuple(positions), pooled, fitted_on=scores.ids)
