"""Thresholds with a guarantee: by hand, against an independent implementation, and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from caltune.abstain import Decisions, Policy, apply_policy, drift, fit_expected_loss, fit_threshold
from caltune.binomial import allowed_errors, binomial_cdf, fewest, upper_bound
from caltune.errors import InputError
from caltune.types import OptionLogits, Predictions


def predictions(confidence, correct) -> Predictions:
    return Predictions(tuple(f"c{i}" for i in range(len(confidence))), confidence, correct)


def scores(confidence, correct=None, name="t") -> OptionLogits:
    """Two options; the first has the given confidence, at least 0.5, and is right or wrong or unlabelled."""
    confidence = np.asarray(confidence)
    labels = np.full(len(confidence), -1) if correct is None else 1 - np.asarray(correct, dtype=int)
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)
    return OptionLogits(tuple(f"{name}{i}" for i in range(len(confidence))), logits, labels)


# The binomial tail


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 7, 59, 400])
def test_the_binomial_tail_is_the_sum_of_its_terms(count, rate):
    terms = [math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(count + 1)]
    found = [binomial_cdf(errors, count, rate) for errors in range(count + 1)]
    np.testing.assert_allclose(found, np.cumsum(terms), rtol=1e-9, atol=1e-14)


def test_allowed_errors_are_the_most_that_pass():
    allowed = allowed_errors(1500, 0.05, 0.05)
    for count in (1, 58, 59, 92, 93, 400, 1500):
        most = int(allowed[count])
        assert most == -1 or binomial_cdf(most, count, 0.05) <= 0.05
        assert binomial_cdf(most + 1, count, 0.05) > 0.05
    assert allowed[[0, 58, 59, 92, 93]].tolist() == [-1, -1, 0, 0, 1]
    assert set(np.diff(allowed)) == {0, 1}


def test_clopper_pearson_solves_its_equation():
    # One of 20, 95 %: the tabled one-sided upper end is 0.216; (1 − p)^20 + 20 p (1 − p)^19 = 0.05 there.
    p = upper_bound(1, 20, 0.95)
    assert p == pytest.approx(0.2161, abs=1e-4)
    assert (1 - p) ** 20 + 20 * p * (1 - p) ** 19 == pytest.approx(0.05, abs=1e-10)
    assert upper_bound(3, 3, 0.95) == upper_bound(0, 0, 0.95) == 1.0


# The threshold


def by_enumeration(confidence, correct, limit, level) -> float | None:
    """The threshold by plain loops and exact sums, returned as the lowest confidence answered."""
    count = len(confidence)
    lowest, held = None, 0.0
    starts = [(0.1, 0.5 * level), (0.3, 0.25 * level), (1.0, 0.25 * level)]
    for value in sorted(set(confidence), reverse=True):
        kept = [i for i in range(count) if confidence[i] >= value]
        while starts and len(kept) >= min(
            count, max(starts[0][0] * count, math.log(starts[0][1]) / math.log(1 - limit))
        ):
            held += starts.pop(0)[1]
        wrong = sum(1 - int(correct[i]) for i in kept)
        tail = sum(math.comb(len(kept), k) * limit**k * (1 - limit) ** (len(kept) - k) for k in range(wrong + 1))
        if tail > held:
            held = 0.0
        elif held:
            lowest = value
    return lowest


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_threshold_is_that_of_plain_loops(seed, digits):
    rng = np.random.default_rng(seed)
    confidence = (0.5 + 0.5 * rng.random(150)).round(digits)
    correct = (rng.random(150) < confidence**0.3).astype(float)
    correct[confidence > 0.95] = rng.random((confidence > 0.95).sum()) < [0.6, 0.95][seed % 2]
    found = fit_threshold(predictions(confidence, correct), 0.15, 0.9)
    wanted = by_enumeration(confidence, correct, 0.15, 0.1)
    assert (found.threshold is None) == (wanted is None)
    if wanted is not None:
        kept = confidence >= wanted
        assert found.answers(confidence).tolist() == kept.tolist()
        assert (found.answered, found.wrong) == (kept.sum(), (kept & (correct == 0)).sum())
        assert found.bound <= 0.15 + 1e-12


def test_all_right_answers_everything_and_all_wrong_nothing():
    sure = np.linspace(0.5, 1.0, 100)
    everything = fit_threshold(predictions(sure, np.ones(100)), 0.05)
    assert (everything.threshold, everything.answered) == (0.0, 100)
    assert everything.bound == pytest.approx(1 - 0.05**0.01)
    nothing = fit_threshold(predictions(sure, np.zeros(100)), 0.05)
    assert (nothing.threshold, nothing.answered, nothing.bound) == (None, 0, 1.0)
    assert not nothing.answers(np.array([1.0])).any()


def test_equal_confidences_are_answered_together():
    # 80 at 0.9 all right, 80 at 0.7 with 9 wrong: 0.7 or nothing in between, and 9 of 160 is no proof of 0.05.
    confidence = np.repeat([0.9, 0.7], 80)
    correct = np.ones(160)
    correct[80:89] = 0
    found = fit_threshold(predictions(confidence, correct), 0.05)
    assert (found.threshold, found.answered) == (pytest.approx(0.8), 80)
    assert found.answers(np.array([0.7, 0.9])).tolist() == [False, True]


def test_neighbouring_floats_are_told_apart():
    high = 0.9
    low = float(np.nextafter(high, 0))
    correct = np.r_[np.ones(80), np.zeros(80)]
    found = fit_threshold(predictions(np.repeat([high, low], 80), correct), 0.05)
    assert found.answers(np.array([low, high])).tolist() == [False, True]


def answered_with(wrong, count) -> int:
    correct = np.ones(count)
    correct[wrong] = 0
    return fit_threshold(predictions(np.linspace(1.0, 0.5, count), correct), 0.05).answered


def test_a_level_is_handed_on_and_lost():
    # With 1 wrong of 100, P(X ≤ 1) = 0.0059 + 0.0312 = 0.037: enough for the whole level, not for a quarter of it.
    # The first start is at 72 answers (0.95^72 = 0.0249), the second at 86 (0.0121), the third at 100.
    assert answered_with([99], 100) == 100
    assert answered_with([0], 100) == 0
    # With the second half wrong, an error may come once the start has passed; 0.95^71 = 0.0262 is above half the level.
    assert [answered_with([m, *range(100, 200)], 200) for m in (71, 72, 85)] == [0, 72, 85]


def test_a_wrong_surest_tenth_does_not_end_the_search():
    # 24 of 200 fail, and so do 24 of 600 (P = 0.15 against 0.0125); 24 of 2,000 pass, and everything is answered.
    assert answered_with(np.arange(0, 192, 8), 2000) == 2000
    # 12 of 200 fail, 12 of 600 pass (P = 0.0001). With everything wrong behind 1,000, the quarter that was added there
    # lasts to 1,023: P(X ≤ 35) = 0.0094 for Binomial(1023, 0.05), P(X ≤ 36) = 0.0141 for 1,024.
    assert answered_with([*range(12), *range(1000, 2000)], 2000) == 1023


def test_one_error_rate_for_all_is_seen_to_be_below_the_limit():
    """2 % wrong whatever the confidence: nearly always everything can be answered."""
    rng = np.random.default_rng(0)
    answered = [answered_with(rng.random(1000) < 0.02, 1000) for _ in range(30)]
    assert np.mean(np.array(answered) == 1000) > 0.9


def test_order_does_not_matter():
    rng = np.random.default_rng(1)
    confidence = (0.5 + 0.5 * rng.random(300)).round(2)
    correct = (rng.random(300) < confidence**0.2).astype(float)
    order = rng.permutation(300)
    a = fit_threshold(predictions(confidence, correct), 0.1)
    b = fit_threshold(predictions(confidence[order], correct[order]), 0.1)
    assert (a.threshold, a.answered, a.wrong) == (b.threshold, b.answered, b.wrong)
    assert a.threshold is not None


def test_the_guarantee_holds_and_is_used_up():
    # c uniform on [0.5, 1], right with probability c: R(t) = (1 − t) / 2, at most 0.1 from t = 0.8 on.
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        confidence = 0.5 + 0.5 * rng.random(300)
        correct = (rng.random(300) < confidence).astype(float)
        found.append(fit_threshold(predictions(confidence, correct), 0.1).threshold)
    too_low = np.mean([threshold is not None and threshold < 0.8 for threshold in found])
    assert 0.01 <= too_low <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_guarantee_holds_where_every_threshold_is_too_low():
    """All three starts may pass wrongly here, and do; together no more often than is allowed."""
    rng = np.random.default_rng(0)
    passed, all_answered = 0, 0
    for _ in range(1000):
        correct = (rng.random(300) >= 0.3001).astype(float)
        answered = fit_threshold(predictions(rng.random(300), correct), 0.3).answered
        passed, all_answered = passed + (answered > 0), all_answered + (answered == 300)
    assert 0 < all_answered < passed <= 1000 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000))


# Expected loss


def test_the_expected_loss_is_the_largest_count_that_fits():
    # N = 99, limit 0.1: Σ + 1 ≤ 10, so nine wrong answers.
    confidence = np.linspace(1.0, 0.5, 99)
    found = fit_expected_loss(predictions(confidence, np.zeros(99)), 0.1)
    assert (found.answered, found.wrong, found.bound) == (9, 9.0, pytest.approx(0.1))
    half = fit_expected_loss(predictions(confidence, np.ones(99)), 0.1, losses=np.full(99, 0.5))
    assert half.answered == 18
    assert fit_expected_loss(predictions(confidence[:8], np.ones(8)), 0.1).threshold is None  # (0 + 1) / 9 > 0.1


def test_the_expected_loss_is_met_on_average():
    # Share answered wrongly above t: ∫_t^1 (1 − c) 2 dc = (1 − t)², so 0.04 at t = 0.8.
    rng = np.random.default_rng(0)
    lost = []
    for _ in range(400):
        confidence = 0.5 + 0.5 * rng.random(100)
        correct = (rng.random(100) < confidence).astype(float)
        threshold = fit_expected_loss(predictions(confidence, correct), 0.04).threshold
        lost.append(0.0 if threshold is None else (1 - max(threshold, 0.5)) ** 2)
    assert 0.025 < np.mean(lost) <= 0.04 + 3 * np.std(lost) / math.sqrt(400)


# Applying


def policy(confidence=0.9, count=200) -> Policy:
    return fit_threshold(predictions(np.linspace(1.0, 0.5, count), np.ones(count)), 0.05, confidence)


def test_a_policy_refuses_the_questions_it_was_fitted_on():
    with pytest.raises(InputError, match="fitted on, got 1 of them, first id 'c7'"):
        apply_policy(policy(), scores([0.9] * 8, name="c").take([7]))


def test_choices_are_the_most_probable_option_or_none():
    some = replace(policy(), threshold=0.8)
    found = apply_policy(some, scores([0.9, 0.6, 0.8001]))
    assert found.choice.tolist() == [0, -1, 0]
    assert found.answered.tolist() == [True, False, True]
    np.testing.assert_allclose(found.confidence, [0.9, 0.6, 0.8001], atol=1e-6)
    assert apply_policy(replace(some, threshold=None), scores([0.99])).choice.tolist() == [-1]


def test_drift_counts_by_hand():
    # Confidences 0.5 … 1.0 against all 0.9: the distribution functions are furthest apart just below 0.9, at 0.8.
    fitted = replace(policy(), threshold=0.8)
    new = scores([0.9] * 50, [1.0] * 44 + [0.0] * 6)
    found = drift(fitted, apply_policy(fitted, new), new.labels)
    assert found.distance == pytest.approx(0.8, abs=0.005)
    assert found.confidence_p < 1e-9
    assert (found.answered, found.wrong) == (50, 6)
    tail = sum(math.comb(50, k) * 0.05**k * 0.95 ** (50 - k) for k in range(6, 51))
    assert found.error_p == pytest.approx(tail, rel=1e-9)


def test_drift_without_labels_or_change_is_silent():
    fitted = policy()
    new = scores(np.linspace(0.999, 0.501, 100))
    found = drift(fitted, apply_policy(fitted, new), new.labels)
    assert found.confidence_p > 0.99
    assert (found.answered, found.wrong) == (0, 0)
    assert math.isnan(found.error_p)


def test_the_drift_test_is_kolmogorovs_and_keeps_its_level():
    from scipy.special import kolmogorov

    rng = np.random.default_rng(0)
    p_values = []
    fitted, labels = policy(), np.full(150, -1)
    for _ in range(200):
        old, new = np.sort(rng.random(200)), rng.random(150)
        later = Decisions(tuple(map(str, range(150))), np.zeros(150, np.int32), new)
        p_values.append(drift(replace(fitted, confidences=tuple(old)), later, labels))
    for found in p_values:
        assert found.confidence_p == pytest.approx(kolmogorov(math.sqrt(200 * 150 / 350) * found.distance), abs=1e-9)
    assert 0.01 < np.mean([found.confidence_p < 0.05 for found in p_values]) < 0.09


def test_drift_needs_questions():
    none = Decisions((), np.zeros(0, np.int32), np.zeros(0))
    with pytest.raises(InputError, match="drift needs at least one question, got none"):
        drift(policy(), none, np.zeros(0, int))


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, float("nan")])
def test_limits_outside_are_refused(limit):
    some = predictions([0.9], [1.0])
    for fit in (fit_threshold, fit_expected_loss):
        with pytest.raises(InputError, match="limit must lie between 0 and 1, got"):
            fit(some, limit)


def test_bad_arguments_are_refused():
    some = predictions([0.9, 0.8], [1.0, 0.0])
    with pytest.raises(InputError, match="confidence must lie between 0 and 1, got 1"):
        fit_threshold(some, 0.05, 1.0)
    with pytest.raises(InputError, match="losses must be one number from 0 to 1 a question"):
        fit_expected_loss(some, 0.1, np.array([0.5, 1.5]))
    with pytest.raises(InputError, match="at least one question, got none"):
        fit_threshold(predictions([], []), 0.05)
    assert fewest(0.1, 0.1) == 22  # 0.9^21 = 0.109, 0.9^22 = 0.098


@pytest.mark.parametrize("limit", [5e-324, 1e-300, 1 - 2**-53])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 2**-53])
def test_the_farthest_limits_and_confidences_are_no_accident(limit, confidence):
    found = fit_threshold(predictions(np.linspace(1, 0.5, 90), np.ones(90)), limit, confidence)
    # Without an error it takes ln(1 − confidence) / ln(1 − limit) answers: one near a limit of 1, too many near 0.
    assert found.answered == (90 if limit > 0.5 else 0)
