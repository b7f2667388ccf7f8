"""BalCAL: the model's own head mixed with a fixed simplex head, as much as makes the mean confidence the accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.recalibrate.guards import (
    as_features,
    largest_at_zero,
    read_array,
    read_ids,
    read_number,
    read_object,
    require_unseen,
)
from caltune.recalibrate.newton import descend
from caltune.recalibrate.projection import Projection, fit_projection, ridge_for
from caltune.recalibrate.vector import design, softmax_nll
from caltune.types import FloatArray, OptionLogits

SHARPNESS = 5.0  # where its fit starts: a confidence of 0.996 at most with 4 options
FOLDS = 5


@dataclass(frozen=True, eq=False, slots=True)
class BalCAL:
    """p = (1 − λ)·softmax(z) + λ·softmax(β Mᵀ u/‖u‖), u = `weights` (ln p / `scale`, x, 1), λ `share`, β `sharpness`.

    M = √(K/(K − 1)) (I − 11ᵀ/K) is a simplex equiangular tight frame: K directions, one an option position, as far
    apart as K directions can be. Since u/‖u‖ has length 1, no confidence of this head passes a bound that β sets.
    `weights` (K, K + d + 1); `projection` makes x (N, d) from features, None where it was fitted without.

    It keeps neither the answer nor any order, but an option that is ruled out stays so, and λ = 0 changes
    nothing. Questions fitted on are refused. Raises `InputError` for a share outside [0, 1], or a sharpness or scale
    that is not positive, or shapes that disagree.

    λ = 1, u = ln p = −ln 2·(1, 1): the simplex head knows no difference, whatever β.

    >>> head = BalCAL(1.0, np.eye(2, 3), 9.0, 1.0)
    >>> head(OptionLogits(("a",), [[0.0, 0.0]], [0])).probabilities().round(6).tolist()
    [[0.5, 0.5]]
    """

    share: float
    weights: FloatArray
    sharpness: float
    scale: float
    projection: Projection | None = None
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and self.sharpness > 0 and self.scale > 0):
            raise InputError(
                "BalCAL needs a share in [0, 1], a sharpness and a scale above 0, got "
                f"{self.share}, {self.sharpness} and {self.scale}"
            )
        context = 0 if self.projection is None else self.projection.directions.shape[1]
        if self.weights.ndim != 2 or len(self.weights) < 2 or self.weights.shape[1] != len(self.weights) + context + 1:
            raise InputError(
                f"BalCAL needs weights (K, K + {context + 1}) for 2 options or more, got {self.weights.shape}"
            )

    def __call__(self, scores: OptionLogits, features: ArrayLike | None = None, /) -> OptionLogits:
        """The same questions with the mixed probabilities; `features` (N, D) where it was fitted with any.

        Raises `InputError` for a question that was fitted on, more options than it was fitted on, or features where
        none were fitted or the reverse.
        """
        require_unseen("BalCAL", scores.ids, self.fitted_on)
        if (features is None) != (self.projection is None):
            given, wanted = ("without", "with") if features is None else ("with", "without")
            raise InputError(f"this BalCAL was fitted {wanted} features, got questions {given}")
        size, width = len(self.weights), scores.logits.shape[1]
        if width > size:
            raise InputError(f"BalCAL was fitted on up to {size} options, got {width}")
        logs = np.pad(scores.log_probabilities(), ((0, 0), (0, size - width)), constant_values=-np.inf)
        inputs = [np.where(np.isfinite(logs), logs, 0.0) / self.scale, np.ones((len(scores), 1))]
        if features is not None and self.projection is not None:
            inputs.insert(1, self.projection(as_features(features, len(scores), width=len(self.projection.center))))
        simplex = _head(np.hstack(inputs), self.weights, self.sharpness)[0]
        simplex = np.where(np.isfinite(logs), simplex, -np.inf)[:, :width]
        return largest_at_zero(scores, _mixed(scores.log_probabilities(), _log_softmax(simplex), self.share))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {
            **{name: getattr(self, name) for name in ("share", "sharpness", "scale")},
            "weights": self.weights.tolist(),
            "projection": None if self.projection is None else self.projection.to_json(),
            "fitted_on": list(self.fitted_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> BalCAL:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("BalCAL", data, cls.__slots__)
        return cls(
            read_number(data, "share"),
            read_array(data, "weights", 2),
            read_number(data, "sharpness"),
            read_number(data, "scale"),
            None if data["projection"] is None else Projection.from_json(data["projection"]),
            read_ids(data),
        )


def fit_balcal(
    scores: OptionLogits,
    features: ArrayLike | None = None,
    *,
    ridge: float | None = None,
    components: int = 8,
    seed: int = 0,
) -> BalCAL:
    """Fit the simplex head by NLL, then the share λ at which held-out mean confidence is held-out accuracy.

        argmin −Σ_i ln softmax(β Mᵀ u_i/‖u_i‖)_y + `ridge`/2 · [‖weights − (I, 0)‖² + (ln β/5)²]

    λ is the best of 0, 0.01, …, 1 for questions whose simplex head was fitted on four other fifths; among equals the
    one of the lower NLL. Ni, Zhao, Gao, Guo, Zha 2025 (Balancing two classifiers via a simplex ETF structure for model
    calibration). There both heads are trained with the network and λ follows the training questions. Ours comes after
    training: the linear head is the model's own, what stands in for the last features are its log-probabilities and
    the first `components` principal components of `features`, and β is fitted too. `ridge=None` is 1, and 10 with
    features.

    Position is the class, so this suits options under letters. Raises `InputError` for fewer than 10 questions, an
    unknown label, or a right option that is ruled out.
    """
    if len(scores) < 2 * FOLDS or scores.logits.shape[1] < 2:
        raise InputError(
            f"fitting BalCAL needs at least {2 * FOLDS} questions of 2 options or more, got {scores.logits.shape}"
        )
    ridge = ridge_for(features) if ridge is None else ridge
    x, scale = design("BalCAL", scores, ridge)
    projection = None
    inputs = [x, np.ones((len(x), 1))]
    if features is not None:
        found = as_features(features, len(scores))
        projection = fit_projection(found, components)
        inputs.insert(1, projection(found))
    x = np.hstack(inputs)
    fold = np.random.default_rng(seed).permutation(len(scores)) % FOLDS
    simplex = np.empty(scores.logits.shape)
    for number in range(FOLDS):
        seen, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        simplex[held_out] = _head(x[held_out], *_fit_head(x[seen], scores.take(seen), ridge))[0]
    simplex = _log_softmax(np.where(np.isfinite(scores.logits), simplex, -np.inf))
    share = min(np.linspace(0, 1, 101), key=lambda share: _badness(scores, simplex, share))
    weights, sharpness = _fit_head(x, scores, ridge)
    return BalCAL(float(share), weights, sharpness, scale, projection, scores.ids)


def _badness(scores: OptionLogits, simplex: FloatArray, share: float) -> tuple[float, float]:
    """|mean confidence − accuracy|, to a question in a million, and the NLL."""
    logs = _mixed(scores.log_probabilities(), simplex, share)
    p = np.exp(logs)
    gap = p.max(axis=1).mean() - (p.argmax(axis=1) == scores.labels).mean()
    return round(abs(float(gap)), 6), -float(logs[np.arange(len(p)), scores.labels].sum())


def _fit_head(x: FloatArray, scores: OptionLogits, ridge: float) -> tuple[FloatArray, float]:
    """The weights (K, K + d + 1) and the sharpness of the simplex head."""
    size = scores.logits.shape[1]
    start = np.append(np.eye(size, x.shape[1]).ravel(), math.log(SHARPNESS))
    there = np.isfinite(scores.logits)
    observed = np.eye(size)[scores.labels]
    squares = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)

    def objective(theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        logits, slopes = _head(x, theta[:-1].reshape(size, -1), math.exp(theta[-1]))
        p, value = softmax_nll(np.where(there, logits, -np.inf), scores)
        curvature = p[:, :, None] * (np.eye(size) - p[:, None, :])
        # Derivatives of the logits: `slopes` in u, and in ln β the logits themselves.
        of_u = np.einsum("nkj,nk->nj", slopes, p - observed)
        weighted = curvature @ slopes
        blocks = slopes.transpose(0, 2, 1) @ weighted
        matrix = (blocks.reshape(len(x), -1).T @ squares).reshape(size, size, *[x.shape[1]] * 2).transpose(0, 2, 1, 3)
        matrix = matrix.reshape(len(start) - 1, -1)
        across = (np.einsum("nkj,nk->nj", weighted, logits).T @ x).ravel()
        corner = float(np.einsum("nk,nkj,nj->", logits, curvature, logits))
        full = np.block([[matrix, across[:, None]], [across[None], np.array([[corner]])]]) + ridge * np.eye(len(start))
        gradient = np.append((of_u.T @ x).ravel(), ((p - observed) * logits).sum())
        away = theta - start
        return value + 0.5 * ridge * float(away @ away), gradient + ridge * away, full

    found = descend(objective, start)
    return found[:-1].reshape(size, -1), math.exp(found[-1])


def _head(x: FloatArray, weights: FloatArray, sharpness: float) -> tuple[FloatArray, FloatArray]:
    """β Mᵀ u/‖u‖ (N, K) and its derivatives (N, K, K) in u."""
    size = len(weights)
    frame = sharpness * math.sqrt(size / (size - 1)) * (np.eye(size) - 1 / size)
    u = x @ weights.T
    length = np.sqrt(np.square(u).sum(axis=1, keepdims=True) + 1e-12)
    unit = u / length
    slopes = frame @ ((np.eye(size) - unit[:, :, None] * unit[:, None, :]) / length[:, :, None])
    return unit @ frame, slopes


def _log_softmax(logits: FloatArray) -> FloatArray:
    result: FloatArray = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return result


def _mixed(own: FloatArray, simplex: FloatArray, share: float) -> FloatArray:
    """The log of (1 − λ)·exp(own) + λ·exp(simplex)."""
    with np.errstate(divide="ignore"):
        result: FloatArray = np.logaddexp(np.log1p(-share) + own, np.log(share) + simplex)
    return result
