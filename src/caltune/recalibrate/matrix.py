"""Matrix scaling: every option's logit may depend on every option's probability."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.guards import largest_at_zero, read_array, read_ids, read_object, require_unseen
from caltune.recalibrate.newton import minimise
from caltune.recalibrate.vector import LEVEL_PRIOR, design, softmax_nll
from caltune.types import FloatArray, OptionLogits


@dataclass(frozen=True, slots=True)
class Matrix:
    """p′ = softmax(`weights` · ln p + `biases`), weights (K, K), biases (K,): Dirichlet calibration.

    It keeps neither the answer nor any order. All questions must have K options, none ruled out (-inf), since ln 0
    would settle all others. `fitted_on` are the ids it was fitted on: applying it to any of them raises.

    Raises `InputError` unless the weights are square, the biases as many, and all are finite.

    Weights that swap two options:

    >>> swap = Matrix(((0.0, 1.0), (1.0, 0.0)), (0.0, 0.0))
    >>> swap(OptionLogits(("a",), np.log([[0.9, 0.1]]), [0])).probabilities().round(4).tolist()
    [[0.1, 0.9]]
    """

    weights: tuple[tuple[float, ...], ...]
    biases: tuple[float, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        width = len(self.biases)
        square = width > 0 and [len(row) for row in self.weights] == [width] * width
        if not (square and np.isfinite([*self.weights, self.biases]).all()):
            raise InputError(
                "matrix scaling needs K rows of K finite weights and K finite biases, got rows of "
                f"{[len(row) for row in self.weights]} and {width}"
            )
        object.__setattr__(self, "weights", tuple(map(tuple, self.weights)))
        for name in ("biases", "fitted_on"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, scores: OptionLogits, /) -> OptionLogits:
        """The same questions with new logits, the largest at 0.

        Raises `InputError` when a question was fitted on, has another number of options, or rules one out.
        """
        require_unseen("matrix scaling", scores.ids, self.fitted_on)
        require_all_options(scores, len(self.biases))
        mapped = scores.log_probabilities() @ np.array(self.weights).T + self.biases
        return largest_at_zero(scores, mapped)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON.

        >>> Matrix(((2.0,),), (0.0,), ("a",)).to_json()
        {'weights': [[2.0]], 'biases': [0.0], 'fitted_on': ['a']}
        """
        return {
            "weights": [list(row) for row in self.weights],
            "biases": list(self.biases),
            "fitted_on": list(self.fitted_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> Matrix:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("matrix scaling", data, ("weights", "biases", "fitted_on"))
        weights = tuple(map(tuple, read_array(data, "weights", 2).tolist()))
        return cls(weights, tuple(read_array(data, "biases", 1).tolist()), read_ids(data))


def fit_matrix(scores: OptionLogits, ridge: float = 1.0) -> Matrix:
    """The weights W and biases b with the lowest penalised NLL on `scores`.

        argmin −Σ_i ln softmax(W ln p_i + b)_y + ridge/2 · [Σ_k b_k² + s² Σ_{k≠j} W_kj²] + 0.005 s² Σ_k W_kk²

    Off the diagonal and in the biases there is a ridge (ODIR), on the diagonal next to none, so that a large ridge
    leaves a slope for each position. s is the root mean square of ln p. Kull et al. 2019, section 4, whose penalty is
    per question where ours is for all together, so that it fades as questions are added.

    Raises `InputError` when a label is unknown, there are no questions, they differ in K or rule an option out, or the
    ridge is not positive.

    A model that says 0.9 for the option that is wrong 9 times of 10 is to be turned round:

    >>> cal = OptionLogits(tuple(map(str, range(10))), np.log([[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5), [1] * 5 + [0] * 5)
    >>> new = OptionLogits(("new",), np.log([[0.9, 0.1]]), [1])
    >>> bool(fit_matrix(cal)(new).probabilities()[0, 1] > 0.9)
    True
    """
    require_all_options(scores, scores.logits.shape[1])
    x, scale = design("matrix scaling", scores, ridge)
    width = x.shape[1]
    observed = np.eye(width)[scores.labels]
    inputs = np.column_stack([x, np.ones(len(x))])
    # theta is (K, K + 1), the biases last.
    penalty = np.full((width, width + 1), float(ridge))
    np.fill_diagonal(penalty, LEVEL_PRIOR)

    def objective(theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        matrix = theta.reshape(width, width + 1)
        p, value = softmax_nll(inputs @ matrix.T, scores)
        gradient = (p - observed).T @ inputs + penalty * matrix
        hessian = np.empty((width, width + 1, width, width + 1))
        for k in range(width):
            for j in range(k, width):
                weight = p[:, k] * ((k == j) - p[:, j])
                hessian[k, :, j, :] = hessian[j, :, k, :] = (inputs * weight[:, None]).T @ inputs
        total = value + 0.5 * float((penalty * np.square(matrix)).sum())
        size = matrix.size
        return total, gradient.ravel(), hessian.reshape(size, size) + np.diag(penalty.ravel())

    start = np.column_stack([np.eye(width), np.zeros(width)])
    found = minimise(objective, start.ravel()).reshape(width, width + 1)
    weights = found[:, :width] / scale
    return Matrix(tuple(map(tuple, weights.tolist())), tuple(found[:, width].tolist()), fitted_on=scores.ids)


def require_all_options(scores: OptionLogits, width: int) -> None:
    """Raise `InputError` unless every question has `width` options, none ruled out.

    >>> require_all_options(OptionLogits(("a", "b"), [[1.0, 0.0, 0.0], [1.0, 0.0, -np.inf]], [0, 0]), 3)
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: matrix scaling needs 3 options in every question, got 2 for id 'b'; try vector scaling
    """
    count = np.isfinite(scores.logits).sum(axis=1)
    other = np.flatnonzero(count != width)
    if scores.logits.shape[1] != width and len(scores):
        other = other if len(other) else np.arange(1)
    if len(other):
        raise InputError(
            f"matrix scaling needs {width} options in every question, got {count[other[0]]} for id "
            f"{scores.ids[other[0]]!r}; try vector scaling"
        )
