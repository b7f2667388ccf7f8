"""Temperature scaling: planted truth, an independent optimiser, edges, and questions that must not meet."""

import json
import math

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.metrics import accuracy, auroc, nll
from caltune.recalibrate import Temperature, fit_temperature
from caltune.types import OptionLogits


def planted(size, temperature, options=4, seed=0):
    """Labels drawn from softmax(z / temperature): the best temperature is the planted one."""
    generator = np.random.default_rng(seed)
    logits = (3 * generator.normal(size=(size, options))).astype(np.float32)
    scaled = logits / temperature
    probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) < generator.random((size, 1))).sum(axis=1).clip(0, options - 1)
    return OptionLogits(ids=tuple(f"q{i}" for i in range(size)), logits=logits, labels=labels)


def renamed(scores, prefix="new"):
    return OptionLogits(
        ids=tuple(prefix + name for name in scores.ids),
        logits=scores.logits,
        labels=scores.labels,
        groups=scores.groups,
    )


def nll_at(scores, temperature):
    return nll(Temperature(temperature)(scores))


@pytest.mark.parametrize("truth", [0.05, 0.5, 1.0, 2.5, 20.0])
def test_planted_temperature_is_recovered(truth):
    found = fit_temperature(planted(40_000, truth, options=3, seed=3)).temperature
    # At 20 the logits say little, at 0.05 few answers are wrong: less is known there.
    assert found == pytest.approx(truth, rel=0.1 if truth in (0.05, 20.0) else 0.03)


@pytest.mark.parametrize("seed", range(5))
def test_against_scipy(seed):
    optimize = pytest.importorskip("scipy.optimize")
    special = pytest.importorskip("scipy.special")
    scores = planted(200, 1.7, seed=seed)

    def objective(log_temperature):
        scaled = scores.logits.astype(np.float64) / math.exp(log_temperature)
        return -special.log_softmax(scaled, axis=1)[np.arange(200), scores.labels].mean()

    wanted = optimize.minimize_scalar(objective, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert math.log(fit_temperature(scores).temperature) == pytest.approx(wanted.x, abs=1e-6)


def test_gradient_is_zero_at_the_optimum_and_no_neighbour_is_better():
    scores = planted(500, 3.0)
    best = fit_temperature(scores).temperature
    logits = scores.logits.astype(np.float64)
    scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / best)
    expected = (scaled / scaled.sum(axis=1, keepdims=True) * logits).sum(axis=1)
    assert (expected - logits[np.arange(500), scores.labels]).mean() == pytest.approx(0.0, abs=1e-12)
    unseen = renamed(scores)
    assert nll_at(unseen, best) <= min(nll_at(unseen, factor * best) for factor in (0.9, 0.99, 1.01, 1.1))
    assert nll_at(unseen, best) < nll(scores)


def test_two_options_in_closed_form():
    # σ(3 / T) = 0.9, so T = 3 / ln 9; ten questions, nine right.
    scores = OptionLogits(ids=tuple("abcdefghij"), logits=[[0.0, 3.0]] * 10, labels=[1] * 9 + [0])
    assert fit_temperature(scores).temperature == pytest.approx(3 / math.log(9), rel=1e-12)


def test_scaling_the_logits_scales_the_temperature():
    scores = planted(300, 1.3)
    doubled = OptionLogits(scores.ids, scores.logits * 4 + np.float32(64), scores.labels)
    assert fit_temperature(doubled).temperature == pytest.approx(4 * fit_temperature(scores).temperature, rel=1e-4)


def test_padding_and_single_options_change_nothing():
    scores = planted(200, 1.6, options=3)
    padded = np.pad(scores.logits, ((0, 1), (0, 2)), constant_values=-np.inf)
    padded[-1, 0] = 4.0  # one more question, with one option
    wider = OptionLogits((*scores.ids, "one"), padded, np.append(scores.labels, 0))
    assert fit_temperature(wider).temperature == pytest.approx(fit_temperature(scores).temperature, rel=1e-9)
    scaled = Temperature(2.0)(wider)
    assert np.isneginf(scaled.logits).tolist() == np.isneginf(padded).tolist()


@pytest.mark.parametrize("temperature", [0.01, 0.7, 3.0, 140.0])
def test_answers_labels_ids_and_groups_stay(temperature):
    generator = np.random.default_rng(0)
    # Best and second best are neighbours in float32: dividing as they are would round many pairs together.
    best = (100 * generator.random(500)).astype(np.float32)
    logits = np.stack([np.nextafter(best, np.float32(0)), best, best - 50], axis=1)
    scores = OptionLogits(tuple(map(str, range(500))), logits, [1] * 500, groups=tuple("ab" * 250))
    scaled = Temperature(temperature)(scores)
    assert scaled.logits.argmax(axis=1).tolist() == [1] * 500
    assert (scaled.ids, scaled.groups, scaled.labels.tolist()) == (scores.ids, scores.groups, scores.labels.tolist())
    assert accuracy(scaled.decide()) == 1.0


def test_probabilities_are_those_of_divided_logits():
    scores = planted(100, 1.0)
    logits = scores.logits.astype(np.float64) / 2.5
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(Temperature(2.5)(scores).probabilities(), wanted, atol=1e-6)
    two = planted(200, 1.0, options=2)
    assert auroc(Temperature(2.5)(two).decide()) == pytest.approx(auroc(two.decide()), abs=1e-4)


def test_questions_fitted_on_raise():
    scores = planted(50, 2.0)
    fitted = fit_temperature(scores)
    assert fitted.fitted_on == scores.ids
    fitted(renamed(scores))
    mixed = OptionLogits(("x", "q7", "q3"), scores.logits[:3], scores.labels[:3])
    with pytest.raises(InputError, match="got 2 of them, first id 'q7'"):
        fitted(mixed)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[2.0, 0.0], [1.0, 0.0]], [0, 0], "of these 2 questions falls as T goes to 0"),
        ([[2.0, 0.0], [1.0, 0.0]], [1, 1], "of these 2 questions falls as T goes to infinity"),
        ([[2.0, 0.0], [2.0, 0.0]], [0, 1], "of these 2 questions falls as T goes to infinity"),  # no better than chance
        ([[1.0, -np.inf]], [1], "a finite logit for the right option, got 1 questions without, first id '0'"),
        ([[1.0, 0.0]], [-1], "1 questions have no label"),
        (np.zeros((0, 2)), [], "at least one question, got none"),
    ],
)
def test_no_best_temperature(logits, labels, message):
    with pytest.raises(InputError, match=message):
        fit_temperature(OptionLogits(tuple(map(str, range(len(labels)))), logits, labels))


def test_equal_logits_have_no_best_temperature():
    scores = OptionLogits(("a", "b"), [[1.0, 1.0], [0.0, 0.0]], [0, 1])
    with pytest.raises(InputError, match="does not depend on T"):
        fit_temperature(scores)


def test_huge_logits_stay_finite():
    scores = OptionLogits(tuple("abcd"), [[6e3, 0.0]] * 4, [0, 0, 0, 1])
    with pytest.raises(InputError, match="T goes to infinity"):
        fit_temperature(scores)  # T = 6e3 / ln 3 lies beyond exp(5)
    assert fit_temperature(OptionLogits(tuple("abcd"), [[150.0, 0.0]] * 4, [0, 0, 0, 1])).temperature == pytest.approx(
        150 / math.log(3)
    )


def test_json_round_trip():
    fitted = fit_temperature(planted(30, 2.0))
    assert Temperature.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "needs the keys 'temperature' and 'fitted_on'"),
        ({"temperature": 1.0}, "needs the keys 'temperature' and 'fitted_on'"),
        ({"temperature": "1", "fitted_on": []}, "'temperature' must be a number, got '1'"),
        ({"temperature": True, "fitted_on": []}, "'temperature' must be a number, got True"),
        ({"temperature": 1.0, "fitted_on": "abc"}, "'fitted_on' must be a list of ids, got 'abc'"),
        ({"temperature": 1.0, "fitted_on": [1]}, "'fitted_on' must be a list of ids"),
        ({"temperature": 0.0, "fitted_on": []}, "must be positive and finite, got 0.0"),
        ({"temperature": math.nan, "fitted_on": []}, "must be positive and finite, got nan"),
        ({"temperature": 10**400, "fitted_on": []}, "must be positive and finite, got 1000"),
    ],
)
def test_bad_json(data, message):
    with pytest.raises(InputError, match=message):
        Temperature.from_json(data)
