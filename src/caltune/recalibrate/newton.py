"""The minimum of a smooth convex function of a few numbers, by Newton steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caltune.types import FloatArray

# Parameters (P,) -> value, gradient (P,), Hessian (P, P).
Objective = Callable[[FloatArray], tuple[float, FloatArray, FloatArray]]


def minimise(objective: Objective, start: FloatArray) -> FloatArray:
    """The minimum of a strictly convex `objective`, from `start`, to about half of the digits of float64 or better.

    Steps of Newton, each halved until the value falls by a tenth of a thousandth of what the slope promises (Armijo).

    x² − 4x has its minimum at 2, one step from anywhere:

    >>> minimise(lambda x: (x[0] ** 2 - 4 * x[0], 2 * x - 4, np.array([[2.0]])), np.array([9.0])).tolist()
    [2.0]
    """
    point = np.asarray(start, dtype=np.float64)
    value, gradient, hessian = objective(point)
    for _ in range(200):
        step = solve(hessian, gradient)
        promised = float(gradient @ step)
        if promised <= 1e-16 * (1 + abs(value)):
            break
        size = 1.0
        while size > 1e-10:
            following = objective(point - size * step)
            if following[0] <= value - 1e-4 * size * promised:
                break
            size /= 2
        else:
            break  # rounding hides any further fall
        point = point - size * step
        value, gradient, hessian = following
    return point


def solve(hessian: FloatArray, gradient: FloatArray) -> FloatArray:
    """The step with hessian · step = gradient; the shortest of many where rounding leaves the Hessian singular.

    >>> solve(np.array([[4.0, 2.0], [2.0, 1.0]]), np.array([2.0, 1.0])).round(2).tolist()
    [0.4, 0.2]
    """
    try:
        step = np.linalg.solve(hessian, gradient)
    except np.linalg.LinAlgError:
        step = np.linalg.lstsq(hessian, gradient)[0]
    result: FloatArray = step.astype(np.float64, copy=False)
    return result


def descend(objective: Objective, start: FloatArray, tolerance: float = 1e-5) -> FloatArray:
    """A minimum of an `objective` that need not be convex, near `start`, by the steps of Levenberg and Marquardt.

    The third part of the objective is any matrix without negative eigenvalues that is like its Hessian, as of Gauss and
    Newton. A step solves (matrix + damping · 1) step = gradient; damping falls where a step helps and grows where not.
    It ends when a step gains less than `tolerance` of the value, at a damping of at most 1, or after 100 steps.

    x⁴ − 2x² has a minimum at 1, and 12x² like its second derivative:

    >>> found = descend(lambda x: (float(x[0] ** 4 - 2 * x[0] ** 2), 4 * x**3 - 4 * x, 12 * x[:, None] ** 2), [0.2])
    >>> found.round(2).tolist()
    [1.0]
    """
    point, damping = np.asarray(start, dtype=np.float64), 1.0
    value, gradient, matrix = objective(point)
    for _ in range(100):
        step = np.linalg.solve(matrix + damping * np.eye(len(point)), gradient)
        following = objective(point - step)
        if not following[0] < value:  # nan counts as no help
            damping *= 4
            if damping > 1e12:
                break
            continue
        settled = value - following[0] <= tolerance * (1 + abs(value)) and damping <= 1
        point = point - step
        value, gradient, matrix = following
        if settled:
            break
        damping = max(damping / 4, 1e-6)
    return point
