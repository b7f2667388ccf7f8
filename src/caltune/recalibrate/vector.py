"""Vector scaling: a slope and a bias for each option position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.guards import largest_at_zero, read_array, read_ids, read_object, require_fit, require_unseen
from caltune.recalibrate.newton import minimise
from caltune.types import FloatArray, OptionLogits

LEVEL_PRIOR = 0.01  # in questions: keeps the common slope finite when every answer is right


@dataclass(frozen=True, slots=True)
class Vector:
    """p′ = softmax(`slopes`_k · ln p_k + `biases`_k): mends a model that favours a position, such as A.

    It keeps neither the answer nor any order. An option that is ruled out (-inf) stays so, and a question with fewer
    options uses the first slopes. `fitted_on` are the ids it was fitted on: applying it to any of them raises.

    Raises `InputError` unless slopes and biases are finite and of one length.

    >>> Vector((1.0, 1.0), (0.0, float(np.log(3))))(OptionLogits(("a",), [[0.0, 0.0]], [0])).probabilities().round(4)
    array([[0.25, 0.75]])
    """

    slopes: tuple[float, ...]
    biases: tuple[float, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        both = np.asarray([*self.slopes, *self.biases], dtype=np.float64)
        if not (0 < len(self.slopes) == len(self.biases) and np.isfinite(both).all()):
            raise InputError(
                "vector scaling needs as many finite slopes as finite biases, got "
                f"{len(self.slopes)} and {len(self.biases)}"
            )
        for name in ("slopes", "biases", "fitted_on"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, scores: OptionLogits, /) -> OptionLogits:
        """The same questions with new logits, the largest at 0.

        Raises `InputError` when a question was fitted on or has more options than there are slopes.
        """
        require_unseen("vector scaling", scores.ids, self.fitted_on)
        width = scores.logits.shape[1]
        if width > len(self.slopes):
            raise InputError(f"vector scaling was fitted on up to {len(self.slopes)} options, got {width}")
        logs = scores.log_probabilities()
        there = np.isfinite(logs)
        mapped = np.where(there, logs, 0.0) * self.slopes[:width] + self.biases[:width]
        return largest_at_zero(scores, np.where(there, mapped, -np.inf))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Vector((1.0, 2.0), (0.5, -0.5), ("a",)).to_json()
        {'slopes': [1.0, 2.0], 'biases': [0.5, -0.5], 'fitted_on': ['a']}
        """
        return {name: list(getattr(self, name)) for name in ("slopes", "biases", "fitted_on")}

    @classmethod
    def from_json(cls, data: Any) -> Vector:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("vector scaling", data, ("slopes", "biases", "fitted_on"))
        slopes, biases = (tuple(read_array(data, name, 1).tolist()) for name in ("slopes", "biases"))
        return cls(slopes, biases, read_ids(data))


def fit_vector(scores: OptionLogits, ridge: float = 1.0) -> Vector:
    """The slopes a and biases b with the lowest penalised NLL on `scores`.

        argmin −Σ_i ln softmax(a · ln p_i + b)_y + ridge/2 · [Σ_k b_k² + s² Σ_k (a_k − ā)²] + 0.005 K s² ā²

    s is the root mean square of ln p, so the scale of the logits does not change how strong the ridge is. It draws the
    slopes to one another, not to 1: a large ridge is temperature scaling. The last term only keeps the slopes finite
    when every answer is right. Guo, Pleiss, Sun and Weinberger 2017, section 4.2, who have no ridge; on ln p as in Kull
    et al. 2019, since logits have no zero point.

    Raises `InputError` when a label is unknown, there are no questions, a right option is ruled out, or the ridge is
    not positive.

    A model that knows nothing, and the second option right 3 times of 4:

    >>> fitted = fit_vector(OptionLogits(tuple("abcd"), [[0.0, 0.0]] * 4, [0, 1, 1, 1]), ridge=1e-6)
    >>> fitted(OptionLogits(("new",), [[0.0, 0.0]], [1])).probabilities().round(4).tolist()
    [[0.25, 0.75]]
    """
    x, scale = design("vector scaling", scores, ridge)
    width = x.shape[1]
    there = np.isfinite(scores.logits)
    observed = np.eye(width)[scores.labels]
    both = np.hstack([x, np.ones_like(x)])
    average = np.full((width, width), 1 / width)
    penalty = ridge * np.eye(2 * width)
    penalty[:width, :width] = ridge * (np.eye(width) - average) + LEVEL_PRIOR * average

    def objective(theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        p, value = softmax_nll(np.where(there, x * theta[:width] + theta[width:], -np.inf), scores)
        residual = np.hstack([p - observed] * 2) * both
        weighted = np.hstack([p, p]) * both
        hessian = -weighted.T @ weighted
        at = np.arange(width)
        for i in (0, width):
            for j in (0, width):
                hessian[at + i, at + j] += (weighted[:, at + i] * both[:, at + j]).sum(axis=0)
        total = value + 0.5 * float(theta @ penalty @ theta)
        return total, residual.sum(axis=0) + penalty @ theta, hessian + penalty

    theta = minimise(objective, np.append(np.ones(width), np.zeros(width)))
    return Vector(tuple((theta[:width] / scale).tolist()), tuple(theta[width:].tolist()), fitted_on=scores.ids)


def design(what: str, scores: OptionLogits, ridge: float) -> tuple[FloatArray, float]:
    """ln p / s (N, K), 0 where there is no option, and s, the root mean square of ln p over what is there.

    >>> x, scale = design("a fit", OptionLogits(("a",), [[0.0, 0.0, -np.inf]], [0]), 1.0)
    >>> x.tolist(), round(scale, 4)
    ([[-1.0, -1.0, 0.0]], 0.6931)
    """
    require_fit(what, scores)
    if not ridge > 0:
        raise InputError(f"the ridge must be positive, got {ridge}")
    logs = scores.log_probabilities()
    there = np.isfinite(logs)
    absent = np.flatnonzero(~there[np.arange(len(scores)), scores.labels])
    if len(absent):
        raise InputError(
            f"fitting {what} needs a right option that is not ruled out, got {len(absent)} questions with one at -inf, "
            f"first id {scores.ids[absent[0]]!r}; platt, beta and isotonic can do without"
        )
    x = np.where(there, logs, 0.0)
    scale = float(np.sqrt(np.square(x).sum() / there.sum())) or 1.0
    result: FloatArray = x / scale
    return result, scale


def softmax_nll(logits: FloatArray, scores: OptionLogits) -> tuple[FloatArray, float]:
    """Softmax (N, K) and the summed NLL of the labels.

    >>> p, nll = softmax_nll(np.zeros((1, 2)), OptionLogits(("a",), [[0.0, 0.0]], [0]))
    >>> p.tolist(), round(nll, 4)
    ([[0.5, 0.5]], 0.6931)
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1)
    of_label = shifted[np.arange(len(scores)), scores.labels]
    return p / total[:, None], float((np.log(total) - of_label).sum())
