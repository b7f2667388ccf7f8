"""Does the model already know an answer? The NLL detector of CogCalib (Wang et al. 2025, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
from caltune.types import FloatArray


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
    nan. Raises `InputError` without questions, for shapes that differ, or NLLs that are not finite.

    >>> fit_detector(np.array([0.1, 0.4, 0.6, 2.0]), np.array([True, True, False, False]))
    Detector(threshold=0.5, true_positive_rate=1.0, true_negative_rate=1.0)
    """
    answer_nll = np.asarray(answer_nll, dtype=np.float64)
    known = np.asarray(known, dtype=bool)
    if answer_nll.ndim != 1 or answer_nll.shape != known.shape or not len(known):
        raise InputError(
            f"a detector needs NLLs and known flags of one length above 0, got {answer_nll.shape} and {known.shape}"
        )
    if not np.isfinite(answer_nll).all():
        raise InputError(f"an answer's NLL must be finite, got {answer_nll[~np.isfinite(answer_nll)][0]}")
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
        threshold=float((values[cut[best]] + upper) / 2),
        true_positive_rate=float(true_positive[best] / positives),
        true_negative_rate=float(true_negative[best] / negatives),
    )
