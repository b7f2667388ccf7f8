"""What every map must bear: the lowest logits that float32 has, answers sure beyond rounding, and many questions."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from synthetic import random_scores, unseen

from caltune import recalibrate as r
from caltune.errors import InputError
from caltune.types import OptionLogits, Predictions

LOWEST = float(np.finfo(np.float32).min)


def test_an_answer_sure_beyond_rounding_and_wrong_does_not_stop_balcal():
    seen = random_scores(60)
    logits = seen.logits.copy()
    logits[0] = 0.0
    logits[0, (seen.labels[0] + 1) % 4] = 2000.0  # p of the right option is exp(-2000), 0 in float64
    fitted = r.fit_balcal(OptionLogits(seen.ids, logits, seen.labels))
    assert 0 <= fitted.share <= 1


def peak(call: Callable[[], object]) -> float:
    """The most that a call holds at once, in MB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_applying_needs_little_memory_for_many_questions():
    seen, new = random_scores(1000), random_scores(8000, seed=3, first=1000)
    features = np.random.default_rng(0).normal(size=(9000, 2))
    lore, network = r.fit_lore(seen, features[:1000], width=0.4), r.fit_umnn(seen)
    # 8,000 × 1,000 weights would be 64 MB, and 8,000 × 51 × 8 units 26 MB in each of several arrays.
    assert peak(partial(lore, new, features[1000:])) < 40
    assert peak(partial(lore.effective_size, new, features[1000:])) < 40
    assert peak(partial(network, new)) < 60


def test_company_does_not_matter():
    seen, new = random_scores(200), random_scores(5000, seed=3, first=200)
    features = np.random.default_rng(0).normal(size=(5200, 2))
    lore, network = r.fit_lore(seen, features[:200], width=0.4), r.fit_umnn(seen)
    rows = np.array([4999, 17, 2048, 2047])
    alone = lore(new.take(rows), features[200:][rows]).logits
    np.testing.assert_allclose(lore(new, features[200:]).logits[rows], alone, rtol=1e-5)
    np.testing.assert_allclose(network(new).logits[rows], network(new.take(rows)).logits, rtol=1e-5)
    assert unseen(new.take([])).ids == ()
    assert len(network(new.take([]))) == len(lore(new.take([]), np.empty((0, 2)))) == 0


@pytest.mark.parametrize("seed", range(8))
def test_bins_hold_as_many_as_promised_where_confidences_are_equal(seed):
    generator = np.random.default_rng(seed)
    # A hundred answers of which many are as sure as one another, as with shares of repeated answers.
    confidence = generator.choice([0.2, 0.5, 0.8, 0.9], 100, p=[0.4, 0.1, 0.45, 0.05])
    confidence[:30] = generator.random(30)
    seen = Predictions(tuple(map(str, range(100))), confidence, generator.integers(0, 2, 100).astype(float))
    fitted = r.fit_histogram(seen, per_bin=25)
    log_odds = np.log(confidence) - np.log1p(-confidence)
    counts = np.bincount(np.searchsorted(fitted.edges, log_odds), minlength=len(fitted.edges) + 1)
    assert counts.min() >= 25
    assert counts.sum() == 100


FITS = [
    *(r.fit_platt, r.fit_beta, r.fit_isotonic, r.fit_histogram, r.fit_umnn, r.fit_vector, r.fit_balcal),
    *(r.fit_selective, r.fit_adaptive_ensemble, r.fit_temperature),
]


def ragged(padding: float, masked: int = 0) -> OptionLogits:
    """300 questions of 4 options, every third of 2, padded; the first `masked` have one that is not padding."""
    scores = random_scores(300)
    logits = scores.logits.copy()
    logits[::3, 2:] = padding
    logits[:masked, 1:] = padding
    labels = np.where(np.arange(300) % 3 == 0, scores.labels % 2, scores.labels)
    labels[:masked] = 0
    return OptionLogits(scores.ids, logits, labels)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("masked", [0, 3])
def test_a_mask_is_no_option(fit, masked):
    wanted = fit(ragged(-np.inf, masked))(unseen(ragged(-np.inf, masked)))
    for padding in (-1e4, LOWEST):
        after = fit(ragged(padding, masked))(unseen(ragged(padding, masked)))
        np.testing.assert_array_equal(after.logits, wanted.logits)


def test_matrix_scaling_refuses_a_mask():
    identity = r.Matrix(tuple(map(tuple, np.eye(4).tolist())), (0.0,) * 4)
    with pytest.raises(InputError, match="needs 4 options in every question, got 3 for id 'a'"):
        identity(OptionLogits(("a",), [[1.0, 0.0, 0.5, LOWEST]], [0]))


@pytest.mark.parametrize("fit", [r.fit_platt, r.fit_vector, r.fit_balcal, r.fit_umnn])
def test_a_masked_question_among_many_changes_little(fit):
    seen, new = random_scores(300), random_scores(300, seed=3, first=300)
    logits = seen.logits.copy()
    logits[0, np.arange(4) != seen.labels[0]] = LOWEST
    after = fit(OptionLogits(seen.ids, logits, seen.labels))(new).probabilities()
    assert np.abs(after - fit(seen)(new).probabilities()).max() < 0.05


@pytest.mark.parametrize("fit", [r.fit_platt, r.fit_beta])
@pytest.mark.parametrize(("label", "wanted"), [(0, 2 / 3), (1, 1 / 2)])  # Platt's 2/3 and 1/3, lifted to 1/K
def test_one_question_that_is_sure_beyond_rounding_can_be_fitted(fit, label, wanted):
    after = fit(OptionLogits(("a",), [[0.0, -8000.0]], [label]))(OptionLogits(("b",), [[0.0, -8000.0]], [0]))
    assert after.decide().confidence[0] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("fit", [r.fit_platt, r.fit_beta, r.fit_isotonic])
def test_what_the_error_names_can_be_fitted_where_a_right_option_is_ruled_out(fit):
    scores = random_scores(200)
    logits = scores.logits.copy()
    logits[0, scores.labels[0]] = -np.inf
    scores = OptionLogits(scores.ids, logits, scores.labels)
    for refusing in (r.fit_temperature, r.fit_vector):
        with pytest.raises(InputError, match="platt, beta and isotonic can do without"):
            refusing(scores)
    assert np.isfinite(fit(scores)(unseen(scores)).decide().confidence).all()
