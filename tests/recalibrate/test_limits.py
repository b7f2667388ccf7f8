"""What every map must bear: the lowest logits that float32 has, answers sure beyond rounding, and many questions."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from synthetic import random_scores, unseen

from caltune import recalibrate as r
from caltune.types import OptionLogits, Predictions

LOWEST = float(np.finfo(np.float32).min)  # what masks put where there is no option
MAPS: dict[str, Callable[[OptionLogits], OptionLogits]] = {
    "temperature": r.Temperature(0.5),
    "vector": r.Vector((2.0,) * 4, (0.0,) * 4),
    "matrix": r.Matrix(tuple(map(tuple, (2.0 * np.eye(4)).tolist())), (0.0,) * 4),
    "ace": r.AdaptiveEnsemble(0.5, 0.5, 1.0),
    "selective": r.SelectiveScaling(np.zeros(5), 0.5, 0.5),
    "balcal": r.BalCAL(0.0, 2.0 * np.eye(4, 5), 5.0, 1.0),
    "platt": r.Platt(2.0, 0.0),
}


@pytest.mark.parametrize("name", MAPS)
def test_an_option_masked_with_the_lowest_number_stays_one(name):
    scores = OptionLogits(("a",), [[1.0, 0.0, 0.5, LOWEST]], [0])
    with np.errstate(all="raise", under="ignore"):
        found = MAPS[name](scores)
    assert np.isfinite(found.logits).all()
    assert found.probabilities()[0, 3] == 0.0
    assert found.decide().correct.tolist() == [1.0]


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


@pytest.mark.parametrize("fit", [r.fit_platt, r.fit_beta])
@pytest.mark.parametrize(("label", "wanted"), [(0, 2 / 3), (1, 1 / 3)])  # Platt's targets of one question
def test_a_fit_bears_a_question_whose_rival_has_the_lowest_number(fit, label, wanted):
    after = fit(OptionLogits(("a",), [[0.0, LOWEST]], [label]))(OptionLogits(("b",), [[0.0, LOWEST]], [0]))
    assert after.decide().confidence[0] == pytest.approx(max(wanted, 1 / 2), abs=1e-5)
