"""Selective scaling: known and guessed answers, one temperature as its limit, answers that stay."""

import json

import numpy as np
import pytest
from planted import draw_labels, planted_scores, renamed, softmax

from caltune.errors import InputError
from caltune.metrics import auroc, nll
from caltune.recalibrate.selective import SelectiveScaling, fit_selective
from caltune.recalibrate.temperature import Temperature, fit_temperature
from caltune.types import OptionLogits


def known_and_guessed(size, seed, prefix):
    """Half the questions have two close favourites and are guessed among all; the others are known."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(size, 4))
    guessed = np.arange(size) % 2 == 0
    top = np.where(guessed, 3.0, 6.0)
    rows = np.arange(size)
    logits[rows, 0] += top
    logits[rows, 1] += np.where(guessed, 3.0, 0.0)
    truth = softmax(logits / np.where(guessed, 20.0, 1.0)[:, None])
    return OptionLogits(tuple(f"{prefix}{i}" for i in range(size)), logits, draw_labels(truth, generator)), guessed


def test_guessed_answers_are_found_and_get_a_large_temperature():
    scores, _ = known_and_guessed(2000, 0, "q")
    fitted = fit_selective(scores)
    assert fitted.wrong > 5
    # 1 was planted; the guessed ones that pass for known make it a little more.
    assert 0.9 < fitted.right < 1.6
    new, guessed = known_and_guessed(1000, 1, "n")
    assert ((fitted.probability_right(new) < 0.5) == guessed).mean() > 0.9
    assert nll(fitted(new)) < nll(Temperature(fit_temperature(scores).temperature)(new)) - 0.01
    assert auroc(fitted.selector_predictions(new)) > auroc(new.decide()) - 0.02


def test_equal_temperatures_are_temperature_scaling():
    scores = planted_scores(100, 1.0)
    fitted = SelectiveScaling(np.array([1.0, 0.0, 0.0, 0.0, 0.5]), 2.0, 2.0)
    np.testing.assert_allclose(fitted(scores).logits, Temperature(2.0)(scores).logits, rtol=1e-6)


def test_selector_by_hand():
    # Sorted log-probabilities are ln 0.8 and ln 0.2; with the coefficients 1 and 0: σ(ln 0.8) = 0.8 / 1.8 < 1/2.
    fitted = SelectiveScaling(np.array([1.0, 0.0, 0.0]), 1.0, 2.0)
    scores = OptionLogits(("a",), np.log([[0.2, 0.8]]), [0])
    assert fitted.probability_right(scores)[0] == pytest.approx(0.8 / 1.8, abs=1e-6)
    assert fitted(scores).probabilities()[0, 1] == pytest.approx(2 / 3, abs=1e-6)  # √0.8 : √0.2 = 2 : 1
    assert fitted.selector_predictions(scores).confidence[0] == pytest.approx(0.8 / 1.8, abs=1e-6)


def test_relabelled_options_and_padding_change_nothing():
    scores, _ = known_and_guessed(300, 0, "q")
    fitted = fit_selective(scores)
    new, _ = known_and_guessed(50, 1, "n")
    turned = OptionLogits(new.ids, new.logits[:, ::-1], 3 - new.labels)
    np.testing.assert_allclose(fitted(turned).logits[:, ::-1], fitted(new).logits)
    padded = OptionLogits(new.ids, np.pad(new.logits, ((0, 0), (0, 3)), constant_values=-np.inf), new.labels)
    np.testing.assert_allclose(fitted(padded).logits[:, :4], fitted(new).logits)


def test_answers_and_the_order_of_options_stay():
    scores = planted_scores(400, 2.0, seed=1)
    new = renamed(scores)
    found = fit_selective(scores)(new)
    assert (found.logits.argsort(axis=1) == new.logits.argsort(axis=1)).all()


def test_the_papers_variant_leaves_the_right_ones():
    scores, _ = known_and_guessed(600, 0, "q")
    fitted = fit_selective(scores, right=1.0)
    new, _ = known_and_guessed(100, 1, "n")
    held_right = fitted.probability_right(new) >= 0.5
    np.testing.assert_allclose(fitted(new).probabilities()[held_right], new.probabilities()[held_right], atol=1e-6)


def test_what_is_refused():
    scores = planted_scores(100, 2.0)
    right = np.flatnonzero(scores.decide().correct)
    with pytest.raises(InputError, match=r"needs right and wrong answers, got \d+ right and 0 wrong"):
        fit_selective(scores.take(right))
    with pytest.raises(InputError, match="the selector must not meet questions it was fitted on"):
        fit_selective(scores)(scores)
    with pytest.raises(InputError, match="a temperature must be positive"):
        SelectiveScaling(np.zeros(3), 1.0, 0.0)
    with pytest.raises(InputError, match="coefficients and an intercept"):
        SelectiveScaling(np.zeros(1), 1.0, 1.0)


def test_json_round_trip():
    fitted, new = fit_selective(planted_scores(100, 2.0)), planted_scores(20, 2.0, seed=2, prefix="n")
    again = SelectiveScaling.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(again(new).logits, fitted(new).logits)
    assert again.fitted_on == fitted.fitted_on
