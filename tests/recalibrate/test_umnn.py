"""The monotone network: quadrature, derivatives, a planted curve, context, its limits, and what stays."""

import json

import numpy as np
import pytest
from planted import planted_predictions
from synthetic import random_scores, unseen

from caltune.errors import InputError
from caltune.metrics import auroc, nll
from caltune.recalibrate import MonotoneNetwork, fit_platt, fit_umnn
from caltune.recalibrate.projection import Projection
from caltune.recalibrate.umnn import _forward, clenshaw_curtis
from caltune.types import Predictions


def step_truth(confidence):
    """Right in 3 of 10 below 0.6, in 9 of 10 above, with a steep climb between: no sigmoid of the log-odds."""
    return 0.3 + 0.6 / (1 + np.exp(-40 * (confidence - 0.6)))


CONFIDENCE = np.random.default_rng(5).uniform(0.3, 1.0, 600)
SEEN = planted_predictions(CONFIDENCE, step_truth(CONFIDENCE))
GRID = np.linspace(0.32, 0.98, 40)
NEW = planted_predictions(GRID, step_truth(GRID), prefix="n")


@pytest.fixture(scope="module")
def fitted():
    return fit_umnn(SEEN)


def test_quadrature_against_closed_forms():
    nodes, weights = clenshaw_curtis(50)
    assert weights.sum() == pytest.approx(1.0)
    for power in (1, 7, 40):
        assert nodes**power @ weights == pytest.approx(1 / (power + 1), rel=1e-12)
    assert np.exp(3 * nodes) @ weights == pytest.approx((np.exp(3) - 1) / 3, rel=1e-12)


def test_derivatives_against_differences():
    generator = np.random.default_rng(1)
    level, x = 3 * generator.normal(size=6), generator.normal(size=(6, 2))
    point = generator.normal(size=3 * 4 + 4 + 3)

    def mapped(theta):
        return _forward(level, x, theta[:12].reshape(3, 4), theta[12:16], theta[16:], 2.0)

    steps = 1e-6 * np.eye(len(point))
    numeric = np.stack([(mapped(point + h)[0] - mapped(point - h)[0]) / 2e-6 for h in steps], axis=1)
    np.testing.assert_allclose(mapped(point)[1], numeric, atol=1e-7)


def test_integral_against_a_fine_sum():
    """One hidden unit, by the trapezoidal rule with 200,001 points."""
    hidden, output = np.array([[1.5, -0.5]]), np.array([2.0, -1.0])
    t = np.linspace(0, 4.0, 200_001)
    raw = 2 * np.tanh(1.5 * t / 2 - 0.5) - 1
    g = np.where(raw > 0, raw, np.expm1(raw)) + 1
    wanted = np.trapezoid(g, t) + 0.25
    found = _forward(np.array([4.0]), np.zeros((1, 0)), hidden, output, np.array([0.25]), 2.0)[0]
    assert found[0] == pytest.approx(wanted, abs=2e-3)  # ELU has a kink in its second derivative


def test_planted_curve_is_found_where_a_sigmoid_cannot_follow(fitted):
    error = np.abs(fitted(NEW).confidence - step_truth(GRID)).mean()
    assert error < 0.06
    assert error < 0.6 * np.abs(fit_platt(SEEN)(NEW).confidence - step_truth(GRID)).mean()


def test_a_large_ridge_is_platt_scaling():
    found, platt = fit_umnn(SEEN, ridge=1e8)(NEW), fit_platt(SEEN)(NEW)
    np.testing.assert_allclose(found.confidence, platt.confidence, atol=0.003)


def test_without_weights_it_is_the_identity():
    same = MonotoneNetwork(np.ones((1, 2)), np.zeros(2), np.zeros(1), 1.0)
    np.testing.assert_allclose(same(NEW).confidence, NEW.confidence, rtol=1e-12)


def test_order_and_answers_stay(fitted):
    new = planted_predictions(np.random.default_rng(3).random(500), np.full(500, 0.5), prefix="n")
    found = fitted(new)
    assert (np.argsort(found.confidence) == np.argsort(new.confidence)).all()
    assert auroc(found) == auroc(new)
    assert (found.ids, found.correct.tolist()) == (new.ids, new.correct.tolist())
    ends = fitted(Predictions(("a", "b", "c"), [0.0, 0.5, 1.0], [0.0, 1.0, 1.0])).confidence
    assert 0 <= ends[0] < ends[1] < ends[2] <= 1


def test_option_logits_keep_their_answers_and_get_better():
    seen, new = random_scores(300), random_scores(300, seed=9, first=300)
    found = fit_umnn(seen)(new)
    assert (found.logits.argmax(axis=1) == new.logits.argmax(axis=1)).all()
    assert nll(found) < nll(new) - 0.05


def test_context_tells_apart_what_confidence_cannot():
    kind = np.random.default_rng(4).integers(0, 2, 200)
    noise = np.random.default_rng(6).normal(size=(200, 3))
    seen = planted_predictions(np.full(200, 0.8), np.where(kind == 1, 0.95, 0.3), seed=8)
    new = Predictions(("x", "y"), [0.8, 0.8], [1.0, 0.0])
    fitted = fit_umnn(seen, np.column_stack([10.0 * kind, noise]))
    assert fitted(new, [[10.0, 0, 0, 0], [0.0, 0, 0, 0]]).confidence == pytest.approx([0.95, 0.3], abs=0.08)
    # Where two questions have the same context, the order of confidence stays.
    both = Predictions(("x", "y"), [0.8, 0.81], [1.0, 0.0])
    assert np.diff(fitted(both, [[3.0, 1, 1, 1]] * 2).confidence)[0] > 0


def test_the_seed_makes_it_the_same_again():
    seen = planted_predictions(CONFIDENCE[:50], step_truth(CONFIDENCE[:50]))
    assert fit_umnn(seen).to_json() == fit_umnn(seen).to_json() != fit_umnn(seen, seed=1).to_json()


def test_answers_all_right_stay_below_certainty():
    right = Predictions(tuple("abcdef"), [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], [1.0] * 6)
    found = fit_umnn(right)(NEW).confidence
    assert np.isfinite(found).all()
    assert 0.5 < found.min() <= found.max() < 1


def test_wrong_order_ends_flat_and_not_in_an_error():
    """The surer the more often wrong: a curve that never falls can only be nearly constant."""
    seen = planted_predictions(CONFIDENCE[:200], 1 - CONFIDENCE[:200], seed=2)
    found = fit_umnn(seen)(NEW).confidence
    assert np.ptp(found) < 0.1
    assert found.mean() == pytest.approx(seen.correct.mean(), abs=0.05)


def test_json_round_trip(fitted):
    again = MonotoneNetwork.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(again(NEW).confidence, fitted(NEW).confidence)
    assert again.fitted_on == SEEN.ids
    projection = Projection(np.zeros(2), np.ones((2, 1)), 1.0)
    with_context = MonotoneNetwork(np.ones((1, 3)), np.ones(2), np.ones(2), 1.0, projection)
    again = MonotoneNetwork.from_json(json.loads(json.dumps(with_context.to_json())))
    at = np.ones((len(NEW), 2))
    np.testing.assert_array_equal(again(NEW, at).confidence, with_context(NEW, at).confidence)


def test_what_is_refused(fitted):
    new = Predictions(("a",), [0.5], [1.0])
    with pytest.raises(InputError, match="must not meet questions it was fitted on, got 600"):
        fitted(SEEN)
    with pytest.raises(InputError, match="fitted without features, got questions with"):
        fitted(new, [[1.0]])
    scores = random_scores(5)
    with pytest.raises(InputError, match="fitted with features, got questions without"):
        fit_umnn(scores, np.eye(5))(unseen(scores))
    with pytest.raises(InputError, match="at least 1 hidden unit and a positive ridge, got 8, 0"):
        fit_umnn(SEEN, ridge=0)
    with pytest.raises(InputError, match="needs a scale above 0"):
        MonotoneNetwork(np.zeros((1, 2)), np.zeros(2), np.zeros(1), 0.0)
    with pytest.raises(InputError, match=r"needs hidden \(H, 2\)"):
        MonotoneNetwork(np.zeros((1, 2)), np.zeros(3), np.zeros(1), 1.0)
