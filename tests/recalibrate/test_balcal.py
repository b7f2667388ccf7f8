"""BalCAL: the simplex frame, derivatives, its two ends, a planted mixture, and what is refused."""

import json

import numpy as np
import pytest
from synthetic import drawn, random_scores, softmax, unseen

from caltune.errors import InputError
from caltune.metrics import nll
from caltune.recalibrate import BalCAL, fit_balcal
from caltune.recalibrate.balcal import _head
from caltune.types import OptionLogits

SEEN, NEW = random_scores(400), random_scores(400, seed=9, first=400)


@pytest.fixture(scope="module")
def fitted():
    return fit_balcal(SEEN)


def test_the_frame_by_hand():
    """u along direction k: √(4/3)·β·(3/4) there and −√(4/3)·β/4 elsewhere, e^(β √(4/3)) times as probable."""
    logits, _ = _head(np.eye(4), np.eye(4), 2.0)
    assert np.diag(logits) == pytest.approx(2 * np.sqrt(4 / 3) * 0.75)
    assert logits[0, 1:] == pytest.approx(-2 * np.sqrt(4 / 3) * 0.25)
    # Rows of the frame: one length, one angle between any two, cos = −1/(K − 1).
    assert (logits @ logits.T)[0, 1:] / (logits @ logits.T)[0, 0] == pytest.approx(-1 / 3)


def test_derivatives_against_differences():
    generator = np.random.default_rng(0)
    x, weights = generator.normal(size=(5, 4)), generator.normal(size=(3, 4))
    logits, slopes = _head(x, weights, 3.0)
    shift = np.linalg.pinv(x)[:, :, None]  # x @ shift moves one question's u at a time
    for j in range(3):
        moved = [_head(x, weights + sign * 1e-6 * np.outer(np.eye(3)[j], shift[:, 0, 0]), 3.0)[0] for sign in (1, -1)]
        along = x @ shift[:, 0, 0]
        np.testing.assert_allclose((moved[0] - moved[1]) / 2e-6, slopes[:, :, j] * along[:, None], atol=1e-6)
    assert logits.sum(axis=1) == pytest.approx(np.zeros(5), abs=1e-12)


def test_no_share_changes_nothing_and_all_of_it_is_the_head_alone():
    same = BalCAL(0.0, np.eye(4, 5), 5.0, 1.0)(NEW)
    np.testing.assert_allclose(same.probabilities(), NEW.probabilities(), atol=1e-6)
    alone = BalCAL(1.0, np.eye(4, 5), 2.0, 1.0)(NEW)
    # The bound of the sharpness: K directions, e^(β √(K/(K − 1))) to 1 at most.
    most = np.exp(2 * np.sqrt(4 / 3))
    assert alone.decide().confidence.max() <= most / (most + 3) + 1e-6
    half = BalCAL(0.5, np.eye(4, 5), 2.0, 1.0)(NEW)
    np.testing.assert_allclose(half.probabilities(), (same.probabilities() + alone.probabilities()) / 2, atol=1e-6)


def test_mean_confidence_is_held_out_accuracy(fitted):
    before, after = NEW.decide(), fitted(NEW).decide()
    assert before.confidence.mean() - before.correct.mean() > 0.1
    assert after.confidence.mean() == pytest.approx(after.correct.mean(), abs=0.05)
    assert nll(fitted(NEW)) < nll(NEW) - 0.05
    assert 0 < fitted.share <= 1


def test_features_that_know_the_answer_are_used():
    generator = np.random.default_rng(3)
    logits, hint = generator.normal(size=(300, 3)), 2.0 * generator.normal(size=(300, 3))
    scores = drawn(3 * logits, softmax(logits + hint), seed=4)
    seen, new = scores.take(range(200)), scores.take(range(200, 300))
    with_hint = fit_balcal(seen, hint[:200])(new, hint[200:])
    assert with_hint.decide().correct.mean() > new.decide().correct.mean() + 0.1
    assert nll(with_hint) < nll(fit_balcal(seen)(new)) - 0.1


def test_ruled_out_options_stay_so_and_rows_may_be_short(fitted):
    logits = np.array([[1.0, -np.inf, 0.5], [1.0, 0.0, -np.inf]])
    found = fitted(OptionLogits(("x", "y"), logits, [0, 1]))
    assert np.isneginf(found.logits).tolist() == np.isneginf(logits).tolist()
    assert np.exp(found.log_probabilities()).sum(axis=1) == pytest.approx(1.0)


def test_json_round_trip(fitted):
    again = BalCAL.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(again(NEW).logits, fitted(NEW).logits)
    assert again.fitted_on == SEEN.ids


def test_what_is_refused(fitted):
    with pytest.raises(InputError, match="must not meet questions it was fitted on, got 400"):
        fitted(SEEN)
    with pytest.raises(InputError, match="fitted without features, got questions with"):
        fitted(NEW, np.eye(400))
    with pytest.raises(InputError, match="up to 4 options, got 5"):
        fitted(random_scores(5, options=5, first=1000))
    with pytest.raises(InputError, match="at least 10 questions"):
        fit_balcal(random_scores(9))
    few = random_scores(12)
    with pytest.raises(InputError, match="fitted with features, got questions without"):
        fit_balcal(few, np.eye(12))(unseen(few))
    with pytest.raises(InputError, match=r"a share in \[0, 1\]"):
        BalCAL(1.5, np.eye(2, 3), 1.0, 1.0)
    with pytest.raises(InputError, match=r"weights \(K, K \+ 1\)"):
        BalCAL(0.5, np.eye(2), 1.0, 1.0)
