"""A monotone network on the log-odds of the confidence, with or without context: any curve that never falls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.recalibrate.confidence import calibration_set, log_confidence, with_confidence
from caltune.recalibrate.guards import as_features, read_array, read_ids, read_number, read_object, require_unseen
from caltune.recalibrate.logistic import sigmoid
from caltune.recalibrate.newton import descend
from caltune.recalibrate.platt import platt_targets
from caltune.recalibrate.projection import Projection, fit_projection, ridge_for
from caltune.recalibrate.vector import LEVEL_PRIOR
from caltune.types import FloatArray, OptionLogits, Predictions, Scores

STEPS = 50  # of the quadrature
PIECE = 2048  # questions mapped at once: memory is 51 × H numbers for each
PRIOR = 1e-6  # in questions: keeps the offset finite and changes nothing else


@dataclass(frozen=True, eq=False, slots=True)
class MonotoneNetwork:
    """c′ = σ(l′), l′ = ∫₀^l g(t, x) dt + b(x), l = ln(c / (1 − c)), g = ELU(v·tanh(W (t / `scale`, x) + w) + v₀) + 1.

    g > 0, so a higher confidence stays higher: without context x the order of confidences stays among questions of
    equally many options, with context among those of the same x too. Answers stay in any case; how the other options
    share the rest is told at `caltune.recalibrate.confidence.with_confidence`.

    `hidden` is W with w as its last column, (H, d + 2); `output` v with v₀ last, (H + 1,); `offset` b's weights with
    its constant last, (d + 1,). `projection` makes x (N, d) from features; None where it was fitted without. Questions
    fitted on are refused. Raises `InputError` for shapes that disagree or a scale that is not positive.

    v = 0, v₀ = −ln 2: g = ½ everywhere, so c = 0.9 with its log-odds ln 9 becomes σ(½ ln 9) = 3/4.

    >>> half = MonotoneNetwork(np.zeros((1, 2)), np.array([0.0, -np.log(2)]), np.array([0.0]), 1.0)
    >>> half(Predictions(("a",), [0.9], [1.0])).confidence.round(6).tolist()
    [0.75]
    """

    hidden: FloatArray
    output: FloatArray
    offset: FloatArray
    scale: float
    projection: Projection | None = None
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        context = 0 if self.projection is None else self.projection.directions.shape[1]
        size = len(self.output) - 1
        if not (size > 0 and self.hidden.shape == (size, context + 2) and self.offset.shape == (context + 1,)):
            raise InputError(
                f"a monotone network with {context} numbers of context needs hidden (H, {context + 2}), output "
                f"(H + 1,) and offset ({context + 1},), got {self.hidden.shape}, {self.output.shape} and "
                f"{self.offset.shape}"
            )
        if not self.scale > 0:
            raise InputError(f"a monotone network needs a scale above 0, got {self.scale}")

    def __call__(self, scores: Scores, features: ArrayLike | None = None, /) -> Scores:
        """The same questions and answers with the network's confidence; `features` (N, D) where it was fitted with any.

        Raises `InputError` for a question that was fitted on, or features where none were fitted or the reverse.
        """
        require_unseen("the monotone network", scores.ids, self.fitted_on)
        if (features is None) != (self.projection is None):
            given, wanted = ("without", "with") if features is None else ("with", "without")
            raise InputError(f"this network was fitted {wanted} features, got questions {given}")
        x = np.zeros((len(scores), 0))
        if features is not None and self.projection is not None:
            x = self.projection(as_features(features, len(scores), width=len(self.projection.center)))
        top, rest = log_confidence(scores)
        mapped = np.empty(len(scores))
        for start in range(0, len(scores), PIECE):
            rows = slice(start, start + PIECE)
            mapped[rows] = _forward((top - rest)[rows], x[rows], self.hidden, self.output, self.offset, self.scale)[0]
        return with_confidence(scores, sigmoid(mapped))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {
            **{name: getattr(self, name).tolist() for name in ("hidden", "output", "offset")},
            "scale": self.scale,
            "projection": None if self.projection is None else self.projection.to_json(),
            "fitted_on": list(self.fitted_on),
        }

    @classmethod
    def from_json(cls, data: Any) -> MonotoneNetwork:
        """What `to_json` wrote. Raises `InputError` when a key is missing or has the wrong type."""
        data = read_object("a monotone network", data, cls.__slots__)
        return cls(
            read_array(data, "hidden", 2),
            read_array(data, "output", 1),
            read_array(data, "offset", 1),
            read_number(data, "scale"),
            None if data["projection"] is None else Projection.from_json(data["projection"]),
            read_ids(data),
        )


def fit_umnn(
    scores: OptionLogits | Predictions,
    features: ArrayLike | None = None,
    *,
    hidden: int = 8,
    components: int = 8,
    ridge: float | None = None,
    seed: int = 0,
) -> MonotoneNetwork:
    """Fit the network by the binary NLL of "the answer is right", from the identity.

        argmin −Σ_i [t_i ln c′_i + (1 − t_i) ln(1 − c′_i)] + `ridge`/2 · (‖v‖² + ‖(W, w) − start‖² + ‖b's weights‖²)

    with the targets of `fit_platt` and 0.005 v₀² besides. A large ridge holds v at 0, so g is one number: Platt
    scaling in log-odds. Wehenkel, Louppe 2019 (Unconstrained monotonic neural networks), equation 1, with
    Clenshaw–Curtis quadrature in 50 steps; with context as a calibrator Bai et al. 2025. Ours: one hidden layer of
    `hidden` units that starts at random numbers of `seed` and is held near them, b linear, Levenberg–Marquardt steps,
    and as context the first `components` principal components of `features` (N, D). `ridge=None` is 1, and 10 with
    features.

    Raises `InputError` when a label is unknown, no question has two options, or `hidden` or `ridge` is not positive.

    >>> seen = Predictions(tuple("abcd"), [0.9] * 4, [1, 1, 1, 0])
    >>> fit_umnn(seen)(Predictions(("new",), [0.9], [1.0])).confidence.round(3).tolist()
    [0.683]
    """
    if ridge is None:
        ridge = ridge_for(features)
    if hidden < 1 or not ridge > 0:
        raise InputError(f"a monotone network needs at least 1 hidden unit and a positive ridge, got {hidden}, {ridge}")
    top, rest, correct, rows = calibration_set("a monotone network", scores)
    projection, x = None, np.zeros((len(rows), 0))
    if features is not None:
        found = as_features(features, len(scores))[rows]
        projection = fit_projection(found, components)
        x = projection(found)
    level, targets = top - rest, platt_targets(correct)
    scale = float(np.sqrt(np.square(np.clip(level, -40, 40)).mean())) or 1.0  # beyond 40 a σ is 0 or 1
    width = x.shape[1]
    inner = np.random.default_rng(seed).normal(size=(hidden, width + 2))
    inner[:, 1:-1] /= np.sqrt(max(width, 1))
    start = np.concatenate([inner.ravel(), np.zeros(hidden + 1 + width + 1)])
    penalty = np.full(len(start), ridge)
    penalty[inner.size + hidden] = LEVEL_PRIOR
    penalty[-1] = PRIOR

    def objective(theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        parts = np.split(theta, [inner.size, inner.size + hidden + 1])
        mapped, jacobian = _forward(level, x, parts[0].reshape(inner.shape), parts[1], parts[2], scale)
        p, away = sigmoid(mapped), theta - start
        value = float((np.logaddexp(0, mapped) - targets * mapped).sum() + 0.5 * (penalty * away**2).sum())
        weighted = jacobian * (p * (1 - p))[:, None]
        return value, jacobian.T @ (p - targets) + penalty * away, weighted.T @ jacobian + np.diag(penalty)

    best = np.split(descend(objective, start), [inner.size, inner.size + hidden + 1])
    return MonotoneNetwork(best[0].reshape(inner.shape), best[1], best[2], scale, projection, scores.ids)


def clenshaw_curtis(steps: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights (steps + 1,) of the quadrature on [0, 1]; exact for polynomials up to degree `steps` (even).

    >>> nodes, weights = clenshaw_curtis(2)  # Simpson's rule
    >>> nodes.round(6).tolist(), weights.round(6).tolist()
    ([1.0, 0.5, 0.0], [0.166667, 0.666667, 0.166667])
    """
    angles = np.pi * np.arange(steps + 1) / steps
    orders = np.arange(0, steps + 1, 2)
    # The integral of cos(k·angle), k even, over [-1, 1] is 2 / (1 − k²); first and last term and node count half.
    factors = 2 / (1 - orders.astype(np.float64) ** 2)
    factors[[0, -1]] /= 2
    weights = 2 / steps * (np.cos(np.outer(angles, orders)) @ factors)
    weights[[0, -1]] /= 2
    return (np.cos(angles) + 1) / 2, weights / 2


def _forward(
    level: FloatArray, x: FloatArray, hidden: FloatArray, output: FloatArray, offset: FloatArray, scale: float
) -> tuple[FloatArray, FloatArray]:
    """l′ (N,) and its derivatives (N, P) in `hidden`, `output` and `offset`, in that order."""
    nodes, weights = clenshaw_curtis(STEPS)
    shift = x @ hidden[:, 1:-1].T + hidden[:, -1]
    unit = np.tanh((level[:, None] * nodes / scale)[:, :, None] * hidden[:, 0] + shift[:, None, :])
    raw = unit @ output[:-1] + output[-1]
    falling = np.exp(np.minimum(raw, 0.0))  # ELU(raw) + 1 below 0, and its derivative everywhere
    mapped = level * ((np.maximum(raw, 0.0) + falling) @ weights) + x @ offset[:-1] + offset[-1]
    # Row by row (N, 1, steps + 1) @ (N, steps + 1, H): sums over the nodes.
    each = (level[:, None] * falling * weights)[:, None, :]
    of_output = (each @ unit)[:, 0]
    inside = 1 - np.square(unit)
    of_shift = (each @ inside)[:, 0] * output[:-1]
    of_level = ((each * nodes) @ inside)[:, 0] * output[:-1] * (level / scale)[:, None]
    of_hidden = np.concatenate([of_level[:, :, None], of_shift[:, :, None] * _with_one(x)[:, None, :]], axis=2)
    parts = [of_hidden.reshape(len(level), -1), of_output, each.sum(axis=2), _with_one(x)]
    return mapped, np.concatenate(parts, axis=1)


def _with_one(x: FloatArray) -> FloatArray:
    return np.column_stack([x, np.ones(len(x))])
