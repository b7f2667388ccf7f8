"""What is reachable from a model's logits: cross-fitting, A*, its bounds, the regime."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from caltune.cross_fitting import _features, _fit, cross_fitted, options_there
from caltune.errors import InputError
from caltune.metrics import Interval, corrected_ece, ece, mean_confidence, summarise, target_calibration_error
from caltune.regime import (
    calibration_error_bound,
    diagnose,
    guessing_accuracy,
    known_share,
    reachable_accuracy,
    regime,
)
from caltune.types import OptionLogits


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def drawn(logits, truth, seed=0):
    """Scores with these logits whose answers are drawn from `truth` (N, K)."""
    uniform = np.random.default_rng(seed).random((len(truth), 1))
    labels = (uniform > truth.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return OptionLogits(tuple(f"q{i:04}" for i in range(len(labels))), logits.astype(np.float32), labels)


@pytest.fixture(scope="module")
def world():
    """Log-odds of 1,500 questions with four options: softmax of them is the truth."""
    return 1.5 * np.random.default_rng(3).normal(size=(1500, 4))


# Cross-fitting


def test_a_question_is_recalibrated_without_its_own_answer(world):
    scores = drawn(3 * world[:60], softmax(world[:60]))
    labels = scores.labels.copy()
    labels[7] = (labels[7] + 1) % 4
    changed = OptionLogits(scores.ids, scores.logits, labels)
    before, after = cross_fitted(scores).probabilities(), cross_fitted(changed).probabilities()
    assert before[7].tolist() == after[7].tolist()
    moved = np.abs(before - after).max(axis=1) > 1e-6
    assert 40 < moved.sum() < 60  # the four other folds, not its own


def test_order_row_constants_and_temperature_do_not_matter_and_the_seed_does(world):
    scores = drawn(3 * world[:100], softmax(world[:100]))
    expected = cross_fitted(scores).probabilities()
    for temperature in (0.01, 20):
        scaled = OptionLogits(scores.ids, scores.logits / temperature, scores.labels)
        assert cross_fitted(scaled).probabilities() == pytest.approx(expected, abs=1e-4)
    order = np.random.default_rng(1).permutation(100)
    assert cross_fitted(scores.take(order)).probabilities() == pytest.approx(expected[order], abs=1e-6)
    shifted = OptionLogits(scores.ids, scores.logits + 8, scores.labels)
    assert cross_fitted(shifted).probabilities() == pytest.approx(expected, abs=1e-4)
    assert np.abs(cross_fitted(scores, seed=1).probabilities() - expected).max() > 1e-3


def test_planted_temperature_and_position_are_undone(world):
    truth = softmax(world)
    for logits in (world, 3 * world, 0.3 * world, 2 * world + [2.0, 0, 0, 0]):
        found = cross_fitted(drawn(logits, truth)).probabilities()
        assert np.abs(found - truth).mean() < 0.03
    assert np.abs(softmax(3 * world) - truth).mean() > 0.1


def test_the_fit_is_that_of_a_general_optimiser(world):
    from scipy.optimize import minimize

    scores = drawn(3 * world[:80] + [0, 1, 0, 0], softmax(world[:80]))
    features, present = _features(scores)
    centred = scores.logits.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    logs = np.log(softmax(centred / np.sqrt(np.square(centred).mean())))

    def objective(weights):
        beta, u, v, w, *bias = weights
        top = logs == logs.max(axis=1, keepdims=True)
        logits = beta * logs - u * np.log(1 - logs) + v * np.exp(logs) + w * top + np.array(bias)
        right = np.log(softmax(logits))[np.arange(80), scores.labels]
        shape, bias = u**2 + v**2 + w**2, np.square(bias).sum()
        return -right.sum() + 0.005 * (beta - 1) ** 2 + 0.5 * shape + 10 * bias

    expected = minimize(objective, [1.0, *[0.0] * 7], method="BFGS")
    found = _fit(features, present, scores.labels)
    assert objective(found) == pytest.approx(expected.fun, abs=1e-6)
    assert found == pytest.approx(expected.x, abs=1e-3)


def test_missing_options_stay_missing(world):
    logits = 3 * world[:90].astype(np.float32)
    logits[::3, 3] = -np.inf
    logits[1::3, 2:] = -np.inf
    truth = softmax(np.where(np.isfinite(logits), world[:90], -np.inf))
    found = cross_fitted(drawn(logits, truth))
    assert (np.isfinite(found.logits) == np.isfinite(logits)).all()
    assert diagnose(drawn(logits, truth), draws=10).chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_answers_all_right_or_all_ruled_out_are_no_obstacle(scale):
    logits = scale * np.random.default_rng(0).normal(size=(40, 3))
    ids = tuple(f"{i}" for i in range(40))
    right = reachable_accuracy(OptionLogits(ids, logits, logits.argmax(axis=1)), draws=50)
    assert right.recalibrated_accuracy == 1
    assert 0.9 < right.recalibrated_confidence < 1
    assert right.accuracy.low == pytest.approx(1 / (1 + 1.96**2 / 40), abs=1e-4)  # Wilson's, of 40 right out of 40
    assert right.accuracy.high == 1
    ruled_out = OptionLogits(ids, np.where(np.eye(3)[np.zeros(40, int)] == 1, -np.inf, logits), np.zeros(40, int))
    assert ruled_out.decide().correct.mean() == 0
    assert reachable_accuracy(ruled_out, draws=50).recalibrated_accuracy == 1  # it is always the first


def test_options_that_are_ruled_out_are_still_options(world):
    """As where a program wrote probabilities with few digits: 0.0004 became 0, which is read as -inf."""
    truth = softmax(world[:600])
    scores = drawn((9 * world[:600]).astype(np.float32), truth)
    with np.errstate(divide="ignore"):
        rounded = OptionLogits(scores.ids, np.log(scores.probabilities().round(3)), scores.labels)
    assert np.isneginf(rounded.logits[:, -1]).mean() > 0.3  # as if many had three options only
    assert options_there(rounded).all()
    before, after = diagnose(scores, draws=200), diagnose(rounded, draws=200)
    assert after.chance == before.chance == 0.25
    assert after.impossible > 0 == before.impossible
    assert after.reachable.accuracy.value == pytest.approx(before.reachable.accuracy.value, abs=0.03)
    # Only the options of two-choice questions that a program has rounded to 0: no question has a single option.
    binary = OptionLogits(("a", "b"), [[0.0, -np.inf], [0.0, 1.0]], [0, 1])
    assert guessing_accuracy(binary) == 0.5
    # One such option does not make questions of two options into questions of five.
    mixed = np.where(np.arange(5) < np.where(np.arange(100) % 2, 2, 5)[:, None], 1.0, -np.inf)
    mixed[0, 2] = -np.inf
    assert guessing_accuracy(OptionLogits(tuple(map(str, range(100))), mixed, [0] * 100)) == pytest.approx(0.35)
    only_one = np.where(scores.logits == scores.logits.max(axis=1, keepdims=True), 0.0, -np.inf)
    certain = reachable_accuracy(OptionLogits(scores.ids, only_one, scores.labels), draws=200)
    right = scores.decide().correct.mean()
    assert certain.accuracy.value == pytest.approx(right, abs=0.02)
    assert certain.accuracy.low < right < certain.accuracy.high < right + 0.07


def test_a_ruled_out_option_is_as_far_off_at_any_temperature(world):
    logits = world[:200].astype(np.float32)
    logits[::3, 1] = -np.inf
    scores = drawn(logits, softmax(world[:200]))
    wider = OptionLogits(scores.ids, 10 * logits, scores.labels)
    np.testing.assert_allclose(cross_fitted(wider).probabilities(), cross_fitted(scores).probabilities(), atol=1e-5)


def test_the_accuracy_of_guessing_is_uncertain_where_options_differ_in_number():
    """A* of guessing is E 1/K over all questions, which these few only estimate."""
    generator = np.random.default_rng(0)
    held = 0
    for run in range(40):
        logits = generator.normal(size=(60, 6))
        count = generator.integers(2, 7, 60)
        logits[np.arange(6) >= count[:, None]] = -np.inf
        scores = OptionLogits(tuple(map(str, range(60))), logits, generator.integers(count))
        found = reachable_accuracy(scores, draws=200, seed=run).accuracy
        held += found.low <= np.mean(1 / np.arange(2, 7)) <= found.high
    assert held >= 35


def test_unusable_scores_are_refused(world):
    scores = drawn(world[:9], softmax(world[:9]))
    with pytest.raises(InputError, match="at least 2 folds and 2 questions a fold, got 5 folds, 9 questions"):
        cross_fitted(scores)
    with pytest.raises(InputError, match="got 1 folds, 9 questions"):
        cross_fitted(scores, folds=1)
    with pytest.raises(InputError, match="have no label"):
        reachable_accuracy(OptionLogits(scores.ids, scores.logits, [-1] * 9))


# What is reachable


@pytest.mark.parametrize("distort", [1.0, 3.0, 0.4], ids=["calibrated", "overconfident", "underconfident"])
def test_the_interval_holds_what_is_reachable_however_sure_the_model_is(world, distort):
    truth = softmax(world)
    reachable = truth.max(axis=1).mean()
    found = reachable_accuracy(drawn(distort * world, truth), draws=200)
    assert found.accuracy.low < reachable < found.accuracy.high
    assert found.accuracy.value == pytest.approx(reachable, abs=0.03)
    as_is = drawn(distort * world, truth).decide().correct.mean()
    assert found.accuracy.value == max(as_is, (found.recalibrated_accuracy + found.recalibrated_confidence) / 2)
    c = softmax(distort * world)
    error = np.abs(c.max(axis=1) - np.take_along_axis(truth, c.argmax(axis=1)[:, None], 1)[:, 0]).mean()
    assert found.target_error.value == pytest.approx(error, abs=0.03)


def test_guessing_reaches_chance_and_a_position_bias_shows_as_gain(world):
    even = np.full((1500, 4), 0.25)
    guessing = reachable_accuracy(drawn(2 * world, even), draws=200)
    assert guessing.accuracy.low == 0.25 <= guessing.accuracy.value < guessing.accuracy.high < 0.3
    truth = softmax(world)
    plain = reachable_accuracy(drawn(world, truth), draws=200)
    biased = reachable_accuracy(drawn(world + np.array([2.5, 0, 0, 0]), truth), draws=200)
    assert plain.gain.low <= 0 <= plain.gain.high
    assert biased.gain.low > 0.03
    assert biased.accuracy.value == pytest.approx(plain.accuracy.value, abs=0.02)


def test_reachable_is_not_below_the_answers_as_they_are_nor_below_guessing(world):
    """Proposition 1: doing nothing is a recalibration too; and the largest of K shares is at least 1/K."""
    truth, above = softmax(world), 0
    for seed in range(20):
        scores = drawn(3 * world[:200], truth[:200], seed=seed)
        found = reachable_accuracy(scores, draws=10)
        estimate = (found.recalibrated_accuracy + found.recalibrated_confidence) / 2
        assert found.accuracy.value >= scores.decide().correct.mean()
        above += found.accuracy.value > estimate
        wrong = reachable_accuracy(drawn(world[:60], np.full((60, 4), 0.25), seed=seed), draws=10).accuracy
        assert 0.25 <= wrong.low <= wrong.value <= wrong.high
    assert 0 < above < 20


def test_the_interval_narrows_with_the_square_root_of_the_questions(world):
    truth = softmax(world)
    wide = reachable_accuracy(drawn(world[:300], truth[:300]), draws=400).accuracy
    narrow = reachable_accuracy(drawn(world[:1200], truth[:1200]), draws=400).accuracy
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, abs=0.5)


def test_diagnosis_agrees_with_the_summary(world):
    scores = drawn(3 * world[:200], softmax(world[:200]))
    found, summary = diagnose(scores, draws=300), summarise(scores, draws=300)
    assert found.accuracy == summary.metrics["accuracy"]
    gap = summary.metrics["overconfidence"]
    assert astuple(found.overconfidence) == pytest.approx(astuple(gap))
    assert found.confidence == pytest.approx(summary.metrics["confidence"].value)
    assert found.ece == summary.metrics["ece"].value
    assert found.corrected == corrected_ece(scores.decide(), draws=300)
    share = np.bincount(scores.labels, minlength=4) / 200
    assert found.position == (share.argmax(), share.max())


def test_known_share_is_what_guessing_leaves():
    assert known_share(0.625, 0.25) == 0.5  # half known, a quarter of the other half guessed: 0.5 + 0.125
    assert known_share(0.75, 0.5) == 0.5  # of 100: 50 known, 25 of 50 guessed
    assert known_share(1.0, 0.25) == 1
    assert known_share(0.25, 0.25) == known_share(0.1, 0.25) == 0
    assert np.isnan(known_share(1.0, 1.0))  # of single options nothing is to be known
    # the correction for guessing: 70 right and 30 wrong of 100 with 4 options
    assert known_share(0.7, 0.25) == pytest.approx((70 - 30 / 3) / 100)


def test_a_planted_known_share_is_found():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4))
    logits[::2, 3] = -np.inf
    labels = generator.integers(np.where(np.isfinite(logits), 1, 0).sum(axis=1))
    known = generator.random(20_000) < 0.4
    logits[known, labels[known]] = 9
    scores = OptionLogits(tuple(map(str, range(20_000))), logits, labels)
    guessing = guessing_accuracy(scores)
    assert guessing == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert known_share(scores.decide().correct.mean(), guessing) == pytest.approx(0.4, abs=0.015)


# The propositions of docs/papers.md, on a population that is finite and therefore exact


@pytest.fixture(scope="module")
def population():
    """η in tenths for 40 logits: each stands ten times, with answers in just those shares."""
    generator = np.random.default_rng(5)
    tenths = generator.multinomial(7, [1 / 3] * 3, size=40) + 1
    labels = np.concatenate([np.repeat([0, 1, 2], row) for row in tenths])
    rows = np.repeat(np.arange(40), 10)
    return tenths / 10, rows, labels


def scores_of(probabilities, rows, labels):
    return OptionLogits(tuple(map(str, range(len(rows)))), np.log(probabilities[rows]), labels)


def test_no_rule_is_right_more_often_than_reachable_and_eta_is_calibrated_there(population):
    truth, rows, labels = population
    reachable = truth.max(axis=1).mean()
    ideal = scores_of(truth, rows, labels).decide()
    assert ideal.correct.mean() == pytest.approx(reachable)
    assert mean_confidence(ideal) == pytest.approx(reachable)
    assert ece(ideal, bins=10) == pytest.approx(0, abs=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(50):
        rule = generator.dirichlet([1, 1, 1], size=40)
        assert scores_of(rule, rows, labels).decide().correct.mean() <= reachable + 1e-12


def test_bounds_of_the_calibration_error(population):
    truth, rows, labels = population
    reachable = truth.max(axis=1).mean()
    target = scores_of(truth, rows, labels)
    generator = np.random.default_rng(0)
    tight = 0
    for sharpness in (0.3, 1, 3, 10, 30):
        for _ in range(10):
            scores = scores_of(softmax(sharpness * generator.normal(size=(40, 3))), rows, labels)
            given = scores.decide()
            error, distance = ece(given), target_calibration_error(scores, target)
            gap = abs(mean_confidence(given) - given.correct.mean())
            assert calibration_error_bound(mean_confidence(given), reachable) <= gap + 1e-7 <= error + 2e-7
            assert error <= distance + 1e-7
            tight += error - calibration_error_bound(mean_confidence(given), reachable) < 0.3
    assert tight > 10


def test_right_beyond_reachable_on_learned_questions_costs_calibration_there_or_on_new_ones(population):
    truth, _, labels = population
    reachable = truth.max(axis=1).mean()
    for sure in (0.4, 0.6, 0.8, 0.99):
        # It knows each of these answers by heart, and is as sure of them as of new ones.
        learned = np.full((400, 3), (1 - sure) / 2)
        learned[np.arange(400), labels] = sure
        there = scores_of(learned, np.arange(400), labels).decide()
        new = scores_of(learned, np.arange(400), np.roll(labels.reshape(40, 10), 3, axis=1).ravel()).decide()
        assert there.correct.mean() == 1
        assert new.correct.mean() <= reachable
        assert ece(there) + ece(new) >= calibration_error_bound(1.0, reachable) - 1e-7 > 0.3


@pytest.mark.parametrize(
    ("accuracy", "wanted"),
    [
        (Interval(0.9, 0.88, 0.92), "non-calibratable"),
        (Interval(0.65, 0.6301, 0.67), "non-calibratable"),
        (Interval(0.65, 0.63, 0.67), "undecided"),
        (Interval(0.63, 0.61, 0.65), "calibratable"),
        (Interval(0.3, 0.28, 0.32), "calibratable"),
    ],
)
def test_regime_by_hand(accuracy, wanted):
    assert regime(accuracy, Interval(0.6, 0.57, 0.63)) == wanted
