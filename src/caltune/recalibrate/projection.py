"""Fewer features a question: the leading principal components, all with one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.recalibrate.guards import read_array, read_number, read_object
from caltune.types import FloatArray


@dataclass(frozen=True, eq=False, slots=True)
class Projection:
    """φ = (x − `center`) · `directions` / `scale`: (N, d) features to (N, k) components.

    >>> Projection(np.array([1.0, 1.0]), np.array([[1.0], [0.0]]), 2.0)(np.array([[5.0, 9.0]])).tolist()
    [[2.0]]
    """

    center: FloatArray
    directions: FloatArray
    scale: float

    def __post_init__(self) -> None:
        if self.directions.ndim != 2 or len(self.directions) != len(self.center) or not self.scale > 0:
            raise InputError(
                f"a projection needs center (d,), directions (d, k) and a scale above 0, got {self.center.shape}, "
                f"{self.directions.shape} and {self.scale}"
            )

    def __call__(self, features: FloatArray, /) -> FloatArray:
        """The components of features (N, d), (N, k)."""
        result: FloatArray = (features - self.center) @ self.directions / self.scale
        return result

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {"center": self.center.tolist(), "directions": self.directions.tolist(), "scale": self.scale}

    @classmethod
    def from_json(cls, data: Any) -> Projection:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("a projection", data, ("center", "directions", "scale"))
        return cls(read_array(data, "center", 1), read_array(data, "directions", 2), read_number(data, "scale"))


def ridge_for(features: object) -> float:
    """The ridge where none is given: 1, and with features 10, since each component brings weights that may fit noise.

    It is the precision of a weight that is normal at the outset: with 10 a component moves log-odds by 0.3 nats.

    >>> ridge_for(None), ridge_for([[0.5]])
    (1.0, 10.0)
    """
    return 1.0 if features is None else 10.0


def fit_projection(features: FloatArray, components: int) -> Projection:
    """The up to `components` principal components of features (N, d), scaled so that their mean |φ| is 1.

    One scale for all: components of little variance are noise, and would count as much as the first were each given
    its own. Directions in which nothing varies are left out. Each direction's largest entry is positive.

    Raises `InputError` for less than one component, or features that are the same in every row.

    >>> fit_projection(np.array([[0.0, 5.0], [4.0, 5.0]]), 2)(np.array([[0.0, 5.0], [4.0, 5.0], [6.0, 0.0]])).tolist()
    [[-1.0], [1.0], [2.0]]
    """
    if components < 1:
        raise InputError(f"components must be at least 1, got {components}")
    center = features.mean(axis=0)
    centered = features - center
    if features.shape[1] <= len(features):  # the smaller of the two Gram matrices: features may be 4,096 wide
        variances, vectors = np.linalg.eigh(centered.T @ centered)
    else:
        variances, rows = np.linalg.eigh(centered @ centered.T)
        vectors = centered.T @ rows
    keep = np.argsort(-variances)[:components]
    keep = keep[variances[keep] > 1e-10 * max(float(variances.max()), 0.0)]
    # Rounding leaves a little variance where there is none.
    if not len(keep) or variances.max() <= 1e-24 * max(1.0, float(np.square(features).sum())):
        raise InputError(f"features must differ between questions, got the same in all {len(features)} rows")
    directions = vectors[:, keep] / np.linalg.norm(vectors[:, keep], axis=0)
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(len(keep))])
    return Projection(center, directions, float(np.abs(centered @ directions).mean()))
