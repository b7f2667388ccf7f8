"""Vector and matrix scaling: planted truths, scipy, the limits of the ridge, invariances, edges, JSON."""

import json

import numpy as np
import pytest
from synthetic import drawn, random_scores, softmax, unseen

from caltune.errors import InputError
from caltune.metrics import accuracy, nll
from caltune.recalibrate import Matrix, Vector, fit_matrix, fit_temperature, fit_vector
from caltune.types import OptionLogits

FITS = {fit_vector: Vector, fit_matrix: Matrix}


def log_softmax(size, options, seed=0):
    return np.log(softmax(np.random.default_rng(seed).normal(scale=2, size=(size, options))))


def test_planted_vector_is_recovered():
    x = log_softmax(20_000, 3)
    slopes, biases = np.array([0.5, 0.8, 1.2]), np.array([0.6, 0.0, -0.6])
    found = fit_vector(drawn(x, softmax(x * slopes + biases)))
    assert found.slopes == pytest.approx(slopes, abs=0.06)
    assert found.biases == pytest.approx(biases, abs=0.06)


def test_planted_matrix_is_recovered():
    x = log_softmax(20_000, 3)
    weights, biases = np.array([[0.8, 0.3, 0.0], [0.0, 0.6, -0.3], [0.1, 0.0, 1.0]]), np.array([0.5, -0.2, -0.3])
    cal = drawn(x, softmax(x @ weights.T + biases))
    found = fit_matrix(cal)
    # Adding the same row to all rows of W changes nothing: compare the probabilities, and W up to that.
    assert np.abs(found(unseen(cal)).probabilities() - softmax(x @ weights.T + biases)).mean() < 0.01
    centred = np.array(found.weights) - np.mean(found.weights, axis=0)
    np.testing.assert_allclose(centred, weights - weights.mean(axis=0), atol=0.07)


def test_a_favoured_position_is_mended_which_temperature_cannot():
    truth = softmax(np.random.default_rng(0).normal(scale=1.5, size=(1500, 4)))
    logits = 2 * np.log(truth) + [2.0, 0.0, 0.0, 0.0]  # twice too sure, and in love with A
    cal, test = drawn(logits, truth), drawn(logits, truth, seed=7, first=1500)
    by_temperature = fit_temperature(cal)(test)
    for fit in FITS:
        after = fit(cal)(test)
        assert nll(after) < nll(by_temperature) - 0.03
        assert accuracy(after.decide()) > accuracy(test.decide())  # answers may change, here for the better
        assert np.abs(after.probabilities() - truth).mean() < 0.03


@pytest.mark.parametrize("ridge", [0.1, 5.0])
def test_against_scipy(ridge):
    optimize = pytest.importorskip("scipy.optimize")
    cal = random_scores(80, options=3, seed=3)
    x = cal.log_probabilities()
    s2 = np.square(x).mean()

    def summed_nll(logits):
        return -np.log(softmax(logits))[np.arange(80), cal.labels].sum()

    def vector(theta):
        a, b = theta[:3], theta[3:]
        spread = s2 * np.square(a - a.mean()).sum()
        return summed_nll(x * a + b) + ridge / 2 * (b @ b + spread) + 0.005 * 3 * s2 * a.mean() ** 2

    def matrix(theta):
        w, b = theta[:9].reshape(3, 3), theta[9:]
        off = np.square(w - np.diag(np.diag(w))).sum()
        return summed_nll(x @ w.T + b) + ridge / 2 * (b @ b + s2 * off) + 0.005 * s2 * np.square(np.diag(w)).sum()

    ours = fit_vector(cal, ridge)
    wanted = optimize.minimize(vector, np.ones(6), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose([*ours.slopes, *ours.biases], wanted.x, atol=1e-4)
    ours = fit_matrix(cal, ridge)
    wanted = optimize.minimize(matrix, np.ones(12), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose([*np.ravel(ours.weights), *ours.biases], wanted.x, atol=1e-4)


def test_a_large_ridge_is_temperature_scaling():
    cal, test = random_scores(400, seed=1), random_scores(50, seed=2, first=400)
    found = fit_vector(cal, ridge=1e9)
    np.testing.assert_allclose(found(test).probabilities(), fit_temperature(cal)(test).probabilities(), atol=1e-3)
    ridge = fit_matrix(cal, ridge=1e9)
    assert np.abs(np.array(ridge.weights) - np.diag(np.diag(ridge.weights))).max() < 1e-5
    assert np.abs(ridge.biases).max() < 1e-5


@pytest.mark.parametrize("fit", FITS)
def test_order_of_options_and_of_questions_and_a_shift_do_not_matter(fit):
    cal, test = random_scores(200, seed=1), random_scores(50, seed=2, first=200)
    wanted = fit(cal)(test).probabilities()
    turned = [2, 0, 3, 1]
    place = np.argsort(turned)

    def relabelled(scores):
        return OptionLogits(scores.ids, scores.logits[:, turned] + np.float32(8), place[scores.labels])

    shuffled = relabelled(cal).take(np.random.default_rng(0).permutation(200))
    np.testing.assert_allclose(fit(shuffled)(relabelled(test)).probabilities(), wanted[:, turned], atol=1e-5)


def test_ragged_rows():
    # Every third question has two options. Vector scaling leaves out what is not there; matrix scaling refuses.
    truth = softmax(np.random.default_rng(0).normal(scale=1.5, size=(3000, 3)))
    truth[::3, 2] = 0
    truth /= truth.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        logits = 2 * np.log(truth) + [1.0, 0.0, -1.0]
    cal = drawn(logits, truth)
    found = fit_vector(cal)
    assert found.slopes == pytest.approx([0.5] * 3, abs=0.07)
    after = found(unseen(cal))
    assert np.isneginf(after.logits).tolist() == np.isneginf(cal.logits).tolist()
    assert np.abs(after.probabilities() - truth).mean() < 0.03
    narrow = OptionLogits(("n",), [[1.0, 0.0]], [0])
    assert found(narrow).probabilities().sum() == pytest.approx(1.0)
    with pytest.raises(InputError, match="needs 3 options in every question, got 2 for id 'q0'; try vector scaling"):
        fit_matrix(cal)
    fitted = fit_matrix(random_scores(30, options=3))
    with pytest.raises(InputError, match="needs 3 options in every question, got 2 for id 'n'"):
        fitted(narrow)
    with pytest.raises(InputError, match="fitted on up to 3 options, got 4"):
        found(random_scores(5, first=9000))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2e3])
def test_the_ridge_makes_every_fit_well_posed(fit, scale):
    # All right, one question, alike or huge logits: finite, and no surer than the data can say.
    for size in (1, 20):
        logits = scale * np.column_stack([np.linspace(1, 2, size), np.zeros(size), np.full(size, 0.5)])
        cal = OptionLogits(tuple(map(str, range(size))), logits, [0] * size)
        after = fit(cal)(unseen(cal)).probabilities()
        assert np.isfinite(after).all()
        assert (after.argmax(axis=1) == 0).all()
    mixed = OptionLogits(tuple("abcd"), scale * np.array([[1.0, 0.0]] * 4), [0, 1, 0, 0])
    assert fit(mixed, ridge=1e-4)(unseen(mixed)).probabilities()[0, 0] == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("fit", FITS)
def test_what_cannot_be_fitted_or_applied(fit):
    with pytest.raises(InputError, match="needs at least 1 questions, got 0"):
        fit(OptionLogits((), np.zeros((0, 2)), []))
    with pytest.raises(InputError, match="1 questions have no label"):
        fit(OptionLogits(("a",), [[1.0, 0.0]], [-1]))
    with pytest.raises(InputError, match="the ridge must be positive, got 0"):
        fit(random_scores(5), ridge=0)
    fitted = fit(random_scores(5))
    with pytest.raises(InputError, match="must not meet questions it was fitted on, got 5 of them, first id 'q0'"):
        fitted(random_scores(5))


def test_a_right_option_ruled_out_cannot_be_fitted():
    scores = OptionLogits(("a", "b"), [[1.0, -np.inf], [1.0, 0.0]], [1, 0])
    with pytest.raises(InputError, match=r"a right option that is not ruled out, got 1 questions .* first id 'a'"):
        fit_vector(scores)


@pytest.mark.parametrize(("fit", "kind"), FITS.items())
def test_json_round_trip(fit, kind):
    fitted = fit(random_scores(30))
    assert kind.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False))) == fitted
    assert hash(fitted) == hash(fit(random_scores(30)))
    with pytest.raises(InputError, match="needs the keys"):
        kind.from_json({"biases": [1.0]})


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Vector, {"slopes": [1.0], "biases": []}, "as many finite slopes as finite biases"),
        (Vector, {"slopes": [], "biases": []}, "as many finite slopes as finite biases"),
        (Vector, {"slopes": [[1.0]], "biases": [0.0]}, "in 1 dimensions"),
        (Matrix, {"weights": [[1.0, 0.0]], "biases": [0.0, 0.0]}, "K rows of K finite weights"),
        (Matrix, {"weights": [[1.0, 0.0], [1.0]], "biases": [0.0, 0.0]}, "'weights' must be lists of numbers"),
    ],
)
def test_bad_json(kind, data, message):
    with pytest.raises(InputError, match=message):
        kind.from_json({**data, "fitted_on": []})
