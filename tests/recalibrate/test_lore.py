"""LoRe: hand values, its two limits, a planted truth, and answers that stay."""

import json

import numpy as np
import pytest
from planted import planted_predictions
from synthetic import random_scores

from caltune.errors import InputError
from caltune.metrics.answers import answer_nll_per_question
from caltune.recalibrate.lore import LoRe, fit_lore
from caltune.types import OptionLogits, Predictions


def mixed(size, seed, prefix):
    """All say 0.85; where the first feature is positive 0.95 of them are right, elsewhere 0.4."""
    features = np.random.default_rng(seed).normal(size=(size, 4)) * [5.0, 1.0, 1.0, 1.0]
    truth = np.where(features[:, 0] > 0, 0.95, 0.4)
    return planted_predictions(np.full(size, 0.85), truth, seed=seed + 100, prefix=prefix), features, truth


def test_planted_regions_are_found():
    seen, seen_features, _ = mixed(800, 0, "q")
    new, features, truth = mixed(200, 1, "n")
    found = fit_lore(seen, seen_features)(new, features)
    pooled = seen.correct.mean()
    assert np.abs(found.confidence - truth).mean() < 0.4 * np.abs(pooled - truth).mean()


def test_option_logits_get_the_confidence_of_predictions_and_keep_their_answers():
    scores, new = random_scores(60), random_scores(40, seed=5, first=60)
    features = np.random.default_rng(2).normal(size=(100, 3))
    fitted = fit_lore(scores, features[:60])
    assert fitted.to_json() == fit_lore(scores.decide(), features[:60]).to_json()
    found, wanted = fitted(new, features[60:]), fitted(new.decide(), features[60:]).confidence
    np.testing.assert_allclose(found.decide().confidence, np.maximum(wanted, 0.25), atol=2e-6)  # 1/K at least
    assert (found.logits.argmax(axis=1) == new.logits.argmax(axis=1)).all()
    unlabelled = OptionLogits(new.ids, new.logits, [-1] * 40)
    np.testing.assert_array_equal(fitted(unlabelled, features[60:]).logits, found.logits)


def test_kernel_by_hand():
    # Components of 0, 2 and 4 are -1.5, 0 and 1.5 (mean |φ| = 1): at 2 the kernel of γ = 1.5 is e⁻¹, 1, e⁻¹.
    seen = Predictions(("a", "b", "c"), [0.5] * 3, [1.0, 0.0, 1.0])
    fitted = fit_lore(seen, [[0.0], [2.0], [4.0]], width=1.5)
    new = Predictions(("n",), [0.5], [1.0])
    e = np.exp(-1)
    assert fitted(new, [[2.0]]).confidence[0] == pytest.approx(2 * e / (1 + 2 * e))
    # Alone, "a" and "c" are right 1 time of 1: Laplace's rule says 2/3. All three at 2 rest on (1 + 2/e)² / (1 + 2/e²).
    of_one = fit_lore(seen, [[0.0], [2.0], [4.0]], width=1e-9)
    three = Predictions(("n", "o", "p"), [0.5] * 3, [1.0] * 3)
    assert of_one(three, [[0.0], [2.0], [4.0]]).confidence == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    assert fitted.effective_size(new, [[2.0]])[0] == pytest.approx((1 + 2 * e) ** 2 / (1 + 2 * e**2))


def test_limits_are_histogram_binning_and_the_nearest_question():
    generator = np.random.default_rng(3)
    confidence, features = generator.random(60), generator.normal(size=(60, 3))
    seen = planted_predictions(confidence, confidence)
    new = Predictions(("x", "y", "z"), [0.55, 0.75, 0.95], [1.0, 0.0, 1.0])
    at = generator.normal(size=(3, 3))
    wide = fit_lore(seen, features, width=1e9, bins=5)(new, at).confidence
    bins = np.ceil(confidence * 5)
    means = [seen.correct[bins == number].mean() for number in (3, 4)]
    assert wide == pytest.approx([*means, 11 / 12])  # all 10 of the last bin are right
    narrow = fit_lore(seen, features, width=1e-9, bins=5)
    again = Predictions(tuple(f"n{i}" for i in range(60)), confidence, seen.correct)
    np.testing.assert_allclose(narrow(again, features).confidence, (seen.correct + 1) / 3)  # one answer each
    np.testing.assert_allclose(narrow.effective_size(again, features), 1.0)


def test_an_empty_bin_borrows_the_nearest():
    seen = Predictions(("a", "b"), [0.3, 0.9], [0.0, 1.0])
    fitted = fit_lore(seen, [[0.0], [1.0]], bins=10)
    new = Predictions(("x", "y", "z"), [0.0, 0.65, 1.0], [1.0, 1.0, 1.0])
    assert fitted(new, [[0.0]] * 3).confidence == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_a_few_neighbours_that_are_all_right_do_not_make_it_sure():
    generator = np.random.default_rng(0)
    confidence, features = generator.uniform(0.6, 0.98, 1050), generator.normal(size=(1050, 3))  # without meaning
    seen = planted_predictions(confidence[:50], confidence[:50], seed=1)
    new = planted_predictions(confidence[50:], confidence[50:], seed=2, prefix="n")
    after = fit_lore(seen, features[:50])(new, features[50:])
    assert answer_nll_per_question(after).mean() < answer_nll_per_question(new).mean() + 0.08


def test_features_without_meaning_take_a_wide_kernel_and_answers_stay():
    generator = np.random.default_rng(5)
    seen = planted_predictions(np.full(400, 0.9), np.full(400, 0.6))
    fitted = fit_lore(seen, generator.normal(size=(400, 5)))
    assert fitted.width >= 1.6
    new = planted_predictions(np.full(50, 0.9), np.full(50, 0.6), seed=1, prefix="n")
    found = fitted(new, generator.normal(size=(50, 5)))
    assert (found.ids, found.correct.tolist()) == (new.ids, new.correct.tolist())


def test_order_shift_and_rotation_of_features_do_not_matter():
    seen, features, _ = mixed(100, 0, "q")
    new, at, _ = mixed(20, 1, "n")
    fitted = fit_lore(seen, features, width=0.5)
    order = np.random.default_rng(0).permutation(100)
    shuffled = Predictions(tuple(seen.ids[i] for i in order), seen.confidence[order], seen.correct[order])
    other = fit_lore(shuffled, 3 * features[order][:, ::-1] + 7, width=0.5)
    np.testing.assert_allclose(other(new, 3 * at[:, ::-1] + 7).confidence, fitted(new, at).confidence, atol=1e-9)


def test_what_is_refused():
    seen, features, _ = mixed(20, 0, "q")
    fitted = fit_lore(seen, features)
    with pytest.raises(InputError, match="LoRe must not meet questions it was fitted on, got 20"):
        fitted(seen, features)
    new, at, _ = mixed(5, 1, "n")
    with pytest.raises(InputError, match=r"must have the shape \(5, 4\), one row a question, got \(5, 3\)"):
        fitted(new, at[:, :3])
    with pytest.raises(InputError, match="features must be finite"):
        fitted(new, np.full((5, 4), np.nan))
    with pytest.raises(InputError, match="at least 2 questions, got 1"):
        fit_lore(Predictions(("a",), [0.5], [1.0]), [[1.0]])
    with pytest.raises(InputError, match="a width above 0"):
        fit_lore(seen, features, width=0.0)


def test_json_round_trip():
    seen, features, _ = mixed(30, 0, "q")
    fitted = fit_lore(seen, features)
    again = LoRe.from_json(json.loads(json.dumps(fitted.to_json())))
    new, at, _ = mixed(5, 1, "n")
    np.testing.assert_array_equal(again(new, at).confidence, fitted(new, at).confidence)
    assert again.fitted_on == fitted.fitted_on
    with pytest.raises(InputError, match=r"points \(M, 4\), as the projection makes, got \(30, 3\)"):
        LoRe.from_json({**fitted.to_json(), "points": fitted.points[:, :3].tolist()})
    with pytest.raises(InputError, match="LoRe needs the keys"):
        LoRe.from_json({"width": 1.0})
