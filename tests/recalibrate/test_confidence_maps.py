"""Platt, beta, isotonic, histogram, top-label: what they keep, planted truths, other implementations, edges, JSON."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic import drawn, random_scores, softmax, unseen

from caltune.errors import InputError
from caltune.metrics import auroc
from caltune.recalibrate import (
    Beta,
    Histogram,
    Isotonic,
    Platt,
    TopLabel,
    fit_beta,
    fit_histogram,
    fit_isotonic,
    fit_platt,
    fit_top_label,
)
from caltune.recalibrate.confidence import log_confidence, with_confidence
from caltune.recalibrate.isotonic import pool_adjacent
from caltune.types import OptionLogits, Predictions

FITS = {fit_platt: Platt, fit_beta: Beta, fit_isotonic: Isotonic, fit_histogram: Histogram, fit_top_label: TopLabel}
MONOTONE = [fit_platt, fit_beta, fit_isotonic]
few = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@st.composite
def scores_and_confidence(draw):
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 5)))
    logits = draw(arrays(np.float32, shape, elements=st.floats(-60, 60, width=32) | st.just(-np.inf)))
    logits[:, 0] = np.where(np.isneginf(logits[:, 0]), 1.0, logits[:, 0])
    confidence = draw(arrays(np.float64, shape[0], elements=st.floats(0, 1)))
    labels = draw(arrays(np.int32, shape[0], elements=st.integers(-1, shape[1] - 1)))
    return OptionLogits(tuple(map(str, range(shape[0]))), logits, labels), confidence


@few
@given(scores_and_confidence())
def test_a_confidence_is_written_and_the_answer_and_the_order_of_the_others_stay(drawn_scores):
    scores, confidence = drawn_scores
    after = with_confidence(scores, confidence)
    before_p, p = scores.probabilities(), after.probabilities()
    choice = before_p.argmax(axis=1)
    assert p.argmax(axis=1).tolist() == choice.tolist()
    assert (after.ids, after.groups, after.labels.tolist()) == (scores.ids, scores.groups, scores.labels.tolist())
    assert np.isneginf(after.logits).tolist() == np.isneginf(scores.logits).tolist()
    options = np.isfinite(scores.logits).sum(axis=1)
    wanted = np.where(options == 1, 1.0, np.maximum(confidence, 1 / options))
    np.testing.assert_allclose(p.max(axis=1), wanted, atol=2e-6)
    for row in range(len(scores)):
        order = np.argsort(before_p[row], kind="stable")
        order = order[order != choice[row]]
        assert (np.diff(after.logits[row, order][np.isfinite(after.logits[row, order])]) >= 0).all()


def test_the_others_keep_their_proportions_or_are_cut():
    # 0.4 is shared 30 : 20 : 10. At c = 0.4 the first would get 0.6·30/60 = 0.3, which is below c.
    # At c = 0.25 all are alike. At c = 0.28: 0.72/2 = 0.36 is cut to 0.28; 0.44·20/30 = 0.2933 too; 0.16 is left.
    scores = OptionLogits(tuple("abcd"), np.log([[0.4, 0.3, 0.2, 0.1]] * 4), [0] * 4)
    after = with_confidence(scores, np.array([0.4, 0.28, 0.25, 0.1])).probabilities()
    wanted = [[0.4, 0.3, 0.2, 0.1], [0.28, 0.28, 0.28, 0.16], [0.25] * 4, [0.25] * 4]
    np.testing.assert_allclose(after, wanted, atol=1e-6)


def test_confidences_from_logits_are_exact_where_floats_end():
    scores = OptionLogits(("a", "b"), [[200.0, 0.0, 0.0], [3.0, -np.inf, -np.inf]], [0, 0])
    top, rest = log_confidence(scores)
    assert rest[0] == pytest.approx(np.log(2) - 200)
    assert top.tolist() == [0.0, 0.0]
    assert rest[1] == 0.0
    for fitted in (Platt(0.01, 0.0), Beta(0.01, 0.01, 0.0)):
        after = fitted(scores).probabilities()
        assert after[0, 0] == pytest.approx(1 / (1 + np.exp(-0.01 * (200 - np.log(2)))), abs=1e-6)
        assert after[1].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("fit", FITS)
def test_answers_stay_and_ids_must_not_meet(fit):
    cal, test = random_scores(400, seed=1), random_scores(200, seed=5, first=400)
    fitted = fit(cal)
    after = fitted(test)
    assert fitted.fitted_on == cal.ids
    assert after.decide().correct.tolist() == test.decide().correct.tolist()
    np.testing.assert_array_equal(after.logits.argmax(axis=1), test.logits.argmax(axis=1))
    with pytest.raises(InputError, match="must not meet questions it was fitted on, got 1 of them, first id 'q3'"):
        fitted(cal.take([3]))
    assert len(fitted(OptionLogits((), np.zeros((0, 3)), []))) == 0
    unlabelled = OptionLogits(test.ids, test.logits, [-1] * len(test))
    np.testing.assert_array_equal(fitted(unlabelled).logits, after.logits)


@few
@given(st.sampled_from(MONOTONE), st.integers(0, 10_000), st.integers(5, 60), st.floats(0.1, 20))
def test_monotone_maps_keep_the_order_of_confidences(fit, seed, size, sharpness):
    fitted = fit(random_scores(size, seed=seed, sharpness=sharpness))
    c = np.sort(np.random.default_rng(seed).random(50))
    after = fitted(Predictions(tuple(f"p{i}" for i in range(50)), c, np.zeros(50))).confidence
    assert (np.diff(after) >= 0).all()


def test_order_stays_among_questions_of_equally_many_options_only():
    # σ(½ ln(c / (1 − c)) − 1) of 0.55, 0.6, 0.7 and 0.9 is 0.289, 0.311, 0.360 and 0.525; two options lift to 1/2.
    p = np.array([[0.55, 0.45, 0, 0], [0.6, 0.2, 0.1, 0.1], [0.7, 0.3, 0, 0], [0.9, 0.1, 0, 0]])
    logits = np.log(p, out=np.full_like(p, -np.inf), where=p > 0)
    after = Platt(0.5, -1.0)(OptionLogits(tuple("abcd"), logits, [0] * 4)).decide().confidence
    assert after == pytest.approx([0.5, 0.311, 0.5, 0.525], abs=5e-4)


@pytest.mark.parametrize("fit", [fit_platt, fit_beta])
def test_smooth_maps_keep_auroc(fit):
    test = random_scores(300, options=2, seed=5, first=400)
    after = fit(random_scores(300, options=2, seed=1))(test)
    assert auroc(after.decide()) == pytest.approx(auroc(test.decide()), abs=1e-3)


@pytest.mark.parametrize("fit", FITS)
def test_an_overconfident_model_is_mended(fit):
    after = fit(random_scores(4000, seed=1, sharpness=5.0))(random_scores(4000, seed=5, sharpness=5.0, first=4000))
    before = random_scores(4000, seed=5, sharpness=5.0).decide()
    assert before.confidence.mean() - before.correct.mean() > 0.15
    decided = after.decide()
    assert decided.confidence.mean() == pytest.approx(decided.correct.mean(), abs=0.025)  # two standard errors of 0.01
    for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0)):
        here = (decided.confidence > low) & (decided.confidence <= high)
        assert decided.confidence[here].mean() == pytest.approx(decided.correct[here].mean(), abs=0.06)


def right_with(probability, confidence, seed=0):
    correct = np.random.default_rng([7, seed]).random(len(confidence)) < probability
    return Predictions(tuple(map(str, range(len(confidence)))), confidence, correct.astype(float))


def test_planted_platt_and_beta_are_recovered():
    c = np.random.default_rng(0).uniform(0.02, 0.98, 20_000)
    logit = np.log(c / (1 - c))
    found = fit_platt(right_with(1 / (1 + np.exp(-(0.6 * logit - 0.4))), c))
    assert (found.slope, found.offset) == pytest.approx((0.6, -0.4), abs=0.04)
    z = 0.3 * np.log(c) - 0.9 * np.log(1 - c) + 0.2
    found = fit_beta(right_with(1 / (1 + np.exp(-z)), c))
    assert (found.a, found.b, found.offset) == pytest.approx((0.3, 0.9, 0.2), abs=0.08)


def test_planted_step_is_found_by_isotonic_and_histogram():
    c = np.random.default_rng(0).uniform(0.3, 1.0, 10_000)
    cal = right_with(np.where(c < 0.6, 0.35, 0.8), c)
    new = Predictions(("a", "b"), [0.5, 0.9], [1, 1])
    for fit in (fit_isotonic, lambda data: fit_histogram(data, per_bin=1000)):
        assert fit(cal)(new).confidence == pytest.approx([0.35, 0.8], abs=0.04)


def test_top_label_tells_positions_apart_and_pools_where_few():
    # Equally sure; the first position is right in 0.9, the second in 0.5; the third is chosen in 20 questions only.
    logits = np.zeros((2020, 3))
    position = np.array([0] * 1000 + [1] * 1000 + [2] * 20)
    logits[np.arange(2020), position] = 1.0
    right = np.array([0.9] * 1000 + [0.5] * 1000 + [0.0] * 20)
    truth = np.repeat(((1 - right) / 2)[:, None], 3, axis=1)
    truth[np.arange(2020), position] = right
    cal = drawn(logits, truth)
    after = fit_top_label(cal)(unseen(cal.take([0, 1000, 2000]))).decide().confidence
    share = cal.decide().correct
    wanted = [share[:1000].mean(), share[1000:2000].mean(), share.mean()]
    assert after == pytest.approx(wanted, abs=1e-6)
    assert wanted == pytest.approx([0.9, 0.5, 0.7], abs=0.06)
    wider = OptionLogits(("w",), [[0.0, 0.0, 0.0, 1.0]], [0])  # a position that was not there when it was fitted
    assert fit_top_label(cal)(wider).decide().confidence == pytest.approx([share.mean()], abs=1e-6)


# Other implementations


@pytest.mark.parametrize("seed", range(4))
def test_isotonic_against_sklearn(seed):
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(seed)
    c = np.round(rng.uniform(0.05, 0.95, 150), 2)  # with ties
    cal = right_with(0.2 + 0.6 * c, c, seed)
    grid = rng.uniform(0.01, 0.99, 200)
    logit = np.log(c) - np.log(1 - c)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip", y_min=1 / 152, y_max=151 / 152).fit(logit, cal.correct)
    ours = fit_isotonic(cal)(Predictions(tuple(f"g{i}" for i in range(200)), grid, np.zeros(200))).confidence
    np.testing.assert_allclose(ours, theirs.predict(np.log(grid) - np.log(1 - grid)), atol=1e-7)


@few
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_pool_adjacent_is_the_max_min_formula(seed, size):
    # m_i = max_{s ≤ i} min_{t ≥ i} of the mean of s..t (Robertson, Wright and Dykstra 1988, theorem 1.4.4).
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 4, size).astype(float), rng.integers(1, 4, size).astype(float)
    mean = lambda s, t: (values[s : t + 1] @ weights[s : t + 1]) / weights[s : t + 1].sum()  # noqa: E731
    wanted = [max(min(mean(s, t) for t in range(i, size)) for s in range(i + 1)) for i in range(size)]
    level, last = pool_adjacent(values, weights)
    np.testing.assert_allclose(np.repeat(level, np.diff(np.append(-1, last))), wanted, atol=1e-12)
    assert (np.diff(level) > 0).all()


@pytest.mark.parametrize("shape", ["rising", "falling"])
def test_platt_and_beta_against_scipy(shape):
    optimize = pytest.importorskip("scipy.optimize")
    c = np.random.default_rng(2).uniform(0.1, 0.95, 300)
    cal = right_with(c**2 if shape == "rising" else 1 - c**2, c)
    right = cal.correct.sum()
    t = np.where(cal.correct == 1, (right + 1) / (right + 2), 1 / (300 - right + 2))

    def best(features):
        def nll(w):
            z = features @ w
            return (np.logaddexp(0, z) - t * z).sum()

        bounds = [(0, None)] * (features.shape[1] - 1) + [(None, None)]
        options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}
        return optimize.minimize(nll, np.zeros(features.shape[1]), bounds=bounds, method="L-BFGS-B", options=options).x

    ones = np.ones(300)
    platt, beta = fit_platt(cal), fit_beta(cal)
    wanted = best(np.column_stack([np.log(c) - np.log(1 - c), ones]))
    np.testing.assert_allclose([platt.slope, platt.offset], wanted, atol=2e-4)
    wanted = best(np.column_stack([np.log(c), -np.log(1 - c), ones]))
    np.testing.assert_allclose([beta.a, beta.b, beta.offset], wanted, atol=2e-3)
    if shape == "falling":
        assert platt.slope == beta.a == beta.b == 0.0


def test_histogram_against_numpy_quantile_bins():
    c = np.random.default_rng(3).uniform(0.3, 0.9, 200)
    cal = right_with(c, c)
    bins = np.array_split(np.argsort(c), 4)
    wanted = [cal.correct[rows].mean() for rows in bins]
    assert fit_histogram(cal).confidences == pytest.approx(wanted)
    inside = Predictions(tuple("abcd"), [np.median(c[rows]) for rows in bins], np.zeros(4))
    assert fit_histogram(cal)(inside).confidence == pytest.approx(wanted)


# Edges


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 60])
def test_all_right_or_all_wrong_stays_inside(fit, right, size):
    logits = np.column_stack([np.linspace(1, 30, size), np.zeros(size)])
    cal = OptionLogits(tuple(map(str, range(size))), logits, [1 - right] * size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = fit(cal)(unseen(cal)).decide().confidence
    assert ((after < 1) & (after >= 0.5)).all()
    # No map of two options may fall below 1/2; where all are right it is (N + 1)/(N + 2) or near.
    assert after.mean() == pytest.approx((size + 1) / (size + 2) if right else 0.5, abs=0.02)


@pytest.mark.parametrize("fit", FITS)
def test_equal_confidences_become_the_accuracy(fit):
    cal = OptionLogits(tuple(map(str, range(1000))), [[4.0, 0.0, 0.0]] * 1000, [0] * 700 + [1] * 300)
    assert fit(cal)(unseen(cal.take([0]))).decide().confidence == pytest.approx([0.7], abs=1e-3)


@pytest.mark.parametrize("fit", FITS)
def test_what_cannot_be_fitted(fit):
    with pytest.raises(InputError, match="needs at least 1 questions, got 0"):
        fit(OptionLogits((), np.zeros((0, 2)), []))
    with pytest.raises(InputError, match="1 questions have no label"):
        fit(OptionLogits(("a",), [[1.0, 0.0]], [-1]))
    with pytest.raises(InputError, match="needs a question with two options, got 1 with one"):
        fit(OptionLogits(("a",), [[1.0, -np.inf]], [0]))


@pytest.mark.parametrize("fit", FITS)
def test_questions_with_one_option_and_padding_do_not_count(fit):
    cal, test = random_scores(300, seed=1), random_scores(50, seed=2, first=300)
    wider = np.pad(cal.logits, ((0, 1), (0, 1)), constant_values=-np.inf)
    wider[-1, 0] = 1.0
    padded = OptionLogits((*cal.ids, "one"), wider, [*cal.labels, 0])
    np.testing.assert_allclose(fit(padded)(test).logits, fit(cal)(test).logits, atol=1e-5)


@pytest.mark.parametrize("fit", [fit_platt, fit_beta, fit_isotonic, fit_histogram])
def test_predictions_become_predictions(fit):
    cal, test = random_scores(300, seed=1), random_scores(300, seed=2, first=300)
    from_logits = fit(cal)(test).decide()
    from_confidences = fit(cal.decide())(test.decide())
    assert isinstance(from_confidences, Predictions)
    # Only what lies below 1/4 cannot be said in logits.
    np.testing.assert_allclose(from_logits.confidence, np.maximum(from_confidences.confidence, 0.25), atol=1e-5)
    sure = Predictions(("x", "y"), [0.0, 1.0], [0, 1])
    assert np.isfinite(fit(cal.decide())(sure).confidence).all()


@pytest.mark.parametrize("fit", [fit_histogram, fit_top_label])
def test_per_bin_must_be_positive(fit):
    with pytest.raises(InputError, match="per_bin must be at least 1, got 0"):
        fit(random_scores(5), per_bin=0)


# JSON


@pytest.mark.parametrize(("fit", "kind"), FITS.items())
def test_json_round_trip(fit, kind):
    fitted = fit(random_scores(300))
    assert kind.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False))) == fitted
    assert hash(fitted) == hash(fit(random_scores(300)))
    with pytest.raises(InputError, match="needs the keys"):
        kind.from_json({"fitted_on": []})


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Platt, {"slope": -1, "offset": 0}, "slope of at least 0"),
        (Platt, {"slope": True, "offset": 0}, "'slope' must be a finite number, got True"),
        (Beta, {"a": 1, "b": -1, "offset": 0}, "a and b of at least 0"),
        (Isotonic, {"log_odds": [0, 1], "confidences": [0.6, 0.5]}, "never fall"),
        (Isotonic, {"log_odds": [], "confidences": []}, "never fall"),
        (Isotonic, {"log_odds": [0], "confidences": [1.5]}, "never fall"),
        (Isotonic, {"log_odds": [0], "confidences": ["a"]}, "'confidences' must be lists of numbers"),
        (Histogram, {"edges": [0], "confidences": [0.5]}, "one more confidence"),
        (Histogram, {"edges": [1, 1], "confidences": [0.5, 0.6, 0.7]}, "rising edges"),
        (Histogram, {"edges": [], "confidences": [-0.1]}, r"in \[0, 1\]"),
        (TopLabel, {"positions": 3, "pooled": {}}, "'positions' must be a list"),
    ],
)
def test_bad_json(kind, data, message):
    with pytest.raises(InputError, match=message):
        kind.from_json({**data, "fitted_on": []})
    with pytest.raises(InputError, match="needs the keys"):
        kind.from_json([])


def test_softmax_of_the_tests():
    np.testing.assert_allclose(softmax([[0.0, np.log(3)]]), [[0.25, 0.75]])
