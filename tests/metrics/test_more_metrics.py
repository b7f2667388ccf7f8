"""Debiased, maximum and signed calibration error, the Brier split and AURC: hand values, independent code, edges."""

import math
from itertools import permutations

import numpy as np
import pytest
from predicted import drawn, predictions

from caltune.errors import InputError
from caltune.metrics import (
    aurc,
    aurc_statistic,
    brier,
    brier_split,
    ece,
    mce,
    mce_statistic,
    over_and_under,
    overconfidence,
    reliability_bins,
    risk_at_coverage,
    risk_coverage,
    rms_ece,
    squared_ece,
)
from caltune.types import OptionLogits, Predictions


def option_logits(size, options=4, seed=0):
    generator = np.random.default_rng(seed)
    return OptionLogits(
        tuple(map(str, range(size))),
        2 * generator.normal(size=(size, options)),
        generator.integers(0, options, size),
    )


NONE = predictions([], [])


def test_squared_ece_by_hand():
    # Bin (0, 0.5]: 0.25 and 0.5, both right: gaps 0.75 and 0.5, mean 0.625, variance 0.03125.
    # Bin (0.5, 1]: one answer at 1, wrong: counted by the plug-in only.
    some = predictions([0.25, 0.5, 1.0], [1, 1, 0])
    assert squared_ece(some, 2, "width") == pytest.approx(0.625**2 - 0.03125 / 2)
    assert squared_ece(some, 2, "width", debiased=False) == pytest.approx(2 / 3 * 0.625**2 + 1 / 3)
    assert rms_ece(some, 2, "width") == pytest.approx(math.sqrt(0.375))


def test_debiased_is_the_mean_over_pairs_of_different_answers():
    # g² − s²/n is the mean of g_i g_j over pairs i ≠ j: an independent way to the same number.
    some = drawn(60, seed=1)
    bins = reliability_bins(some, 4)
    gap = some.correct - some.confidence
    total = weight = 0.0
    for low, high, count in zip(bins.edges[:-1], bins.edges[1:], bins.count, strict=True):
        inside = gap[(some.confidence > low) & (some.confidence <= high)]
        if count > 1:
            total += count * np.mean([a * b for a, b in permutations(inside, 2)])
            weight += count
    assert squared_ece(some, 4, "width") == pytest.approx(total / weight)


def test_debiasing_takes_off_what_chance_adds():
    debiased = [squared_ece(drawn(100, seed)) for seed in range(150)]
    plain = [squared_ece(drawn(100, seed), debiased=False) for seed in range(150)]
    error = np.std(debiased) / math.sqrt(150)
    assert abs(np.mean(debiased)) < 4 * error < 0.015
    assert np.mean(plain) > 0.02
    shifted = [squared_ece(drawn(200, seed, shift=0.2)) for seed in range(100)]
    assert np.mean(shifted) == pytest.approx(0.04, abs=0.005)


def test_one_confidence_a_bin_gives_the_estimator_of_kumar():
    # Theirs: (s − ȳ)² − ȳ (1 − ȳ) / (n − 1), here with s = 0.7, ȳ = 0.6, n = 5.
    some = predictions([0.7] * 5, [1, 1, 1, 0, 0])
    assert squared_ece(some) == pytest.approx(0.01 - 0.24 / 4)
    assert rms_ece(some) == 0.0


def test_mce_and_signs_by_hand():
    # (0.8, 1]: 0.9 against 0.5, over by 0.4; (0.2, 0.4]: 0.4 against 1, under by 0.6; the others are empty.
    some = predictions([0.85, 0.95, 0.4], [1, 0, 1])
    assert mce(some, 5) == pytest.approx(0.6)
    assert over_and_under(some, 5) == pytest.approx((2 / 3 * 0.4, 0.6 / 3))
    assert overconfidence(some) == pytest.approx((2.2 - 2) / 3)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_parts_of_the_ece_add_up(binning):
    some = drawn(150, seed=3, shift=0.1)
    over, under = over_and_under(some, 10, binning)
    assert over + under == pytest.approx(ece(some, 10, binning))
    assert over - under == pytest.approx(overconfidence(some))
    assert ece(some, 10, binning) <= mce(some, 10, binning) <= 1
    found = reliability_bins(some, 10, binning)
    assert mce(some, 10, binning) == pytest.approx(np.nanmax(np.abs(found.accuracy - found.confidence)))
    plain = squared_ece(some, 10, binning, debiased=False)
    assert ece(some, 10, binning) ** 2 <= plain <= mce(some, 10, binning) ** 2


def test_brier_split_adds_up_with_ties_and_ragged_rows():
    logits = option_logits(300).logits.round(0)
    logits[:100, 3] = -np.inf
    labels = np.random.default_rng(2).integers(0, 4, 300)  # some at -inf
    given = OptionLogits(tuple(map(str, range(300))), logits, labels)
    for bins in (1, 5, 15, 1000):
        found = brier_split(given, bins)
        assert found.brier == pytest.approx(brier(given))
        assert found.calibration + found.refinement + found.within == pytest.approx(found.brier)
        assert found.uncertainty - found.resolution == pytest.approx(found.refinement)
        assert min(found.calibration, found.refinement, found.resolution) >= 0
    assert found.within == pytest.approx(0, abs=1e-3)  # bins so thin hide nothing
    assert brier_split(given, 1).resolution == pytest.approx(0)


def test_brier_split_finds_a_planted_error():
    generator = np.random.default_rng(0)
    truth = generator.dirichlet([1, 1, 1], 20_000)
    labels = (truth.cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    ids = tuple(map(str, range(20_000)))
    right = brier_split(OptionLogits(ids, np.log(truth), labels))
    sharp = OptionLogits(ids, 3 * np.log(truth), labels)
    wrong = brier_split(sharp)
    planted = np.square(sharp.probabilities() - truth).sum(axis=1).mean()
    assert right.calibration < 0.003
    assert wrong.calibration == pytest.approx(planted, rel=0.1)


def test_brier_split_keeps_its_parts_when_options_trade_places():
    given = option_logits(80, options=3)
    order = np.array([2, 0, 1])
    mixed = OptionLogits(given.ids, given.logits[:, order], np.argsort(order)[given.labels])
    a, b = brier_split(given), brier_split(mixed)
    assert (a.calibration, a.resolution, a.within) == pytest.approx((b.calibration, b.resolution, b.within))


def test_aurc_is_the_mean_over_all_orders_of_ties():
    confidence, correct = [0.9, 0.5, 0.5, 0.5, 0.2], [0, 1, 0, 1, 0]
    each, half = [], []
    for middle in permutations([1, 0, 1]):
        wrong = 1 - np.array([0, *middle, 0])
        each.append(np.mean(np.cumsum(wrong) / np.arange(1, 6)))
        half.append(np.cumsum(wrong)[2] / 3)
    assert aurc(predictions(confidence, correct)) == pytest.approx(np.mean(each))
    assert risk_at_coverage(predictions(confidence, correct), 0.6) == pytest.approx(np.mean(half))


def test_aurc_of_distinct_confidences_is_the_mean_of_the_curve():
    some = drawn(100, seed=4)
    coverage, kept = risk_coverage(some)
    assert aurc(some) == pytest.approx((1 - kept).mean())
    assert risk_at_coverage(some, 0.37) == pytest.approx(1 - kept[36])
    assert risk_at_coverage(some, 0.07) == pytest.approx(1 - kept[6])  # 0.07 * 100 > 7 in floating point
    assert risk_at_coverage(some, 1e-12) == pytest.approx(1 - kept[0])
    assert coverage[36] == pytest.approx(0.37)
    monotone = Predictions(some.ids, some.confidence**3, some.correct)
    assert aurc(monotone) == pytest.approx(aurc(some))


@pytest.mark.parametrize("statistic", [(aurc_statistic, aurc), (mce_statistic, mce)])
def test_a_resample_scores_what_the_repeated_questions_score(statistic):
    resampled, metric = statistic
    some = drawn(40, seed=5)
    some = predictions(some.confidence.round(1), some.correct)
    counts = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40), size=10).astype(float)
    rows = [np.repeat(np.arange(40), row.astype(int)) for row in counts]
    wanted = [metric(predictions(some.confidence[r], some.correct[r])) for r in rows]
    np.testing.assert_allclose(resampled(some)(counts), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [  # mce, over, under, aurc, plug-in squared error
        (predictions([1.0], [1]), (0, 0, 0, 0, 0)),
        (predictions([1.0], [0]), (1, 1, 0, 1, 1)),
        (predictions([0.0], [1]), (1, 0, 1, 0, 1)),
        (predictions([0.5] * 4, [1] * 4), (0.5, 0, 0.5, 0, 0.25)),
        (predictions([0.5] * 4, [0] * 4), (0.5, 0.5, 0, 1, 0.25)),
    ],
)
def test_edges(given, wanted):
    mce_, over, under, area, squared = wanted
    assert mce(given) == mce_
    assert over_and_under(given) == (over, under)
    assert overconfidence(given) == over - under
    assert aurc(given) == area
    assert risk_at_coverage(given, 0.5) == area
    assert squared_ece(given, debiased=False) == squared
    # One answer has no variance; four equal ones vary by nothing.
    assert math.isnan(squared_ece(given)) if len(given) == 1 else squared_ece(given) == squared
    assert math.isnan(rms_ece(given)) == (len(given) == 1)


def test_nothing_is_nan_and_bad_arguments_raise():
    assert all(map(math.isnan, (mce(NONE), *over_and_under(NONE), overconfidence(NONE), aurc(NONE), rms_ece(NONE))))
    assert math.isnan(risk_at_coverage(NONE, 0.5))
    assert math.isnan(brier_split(OptionLogits((), np.zeros((0, 2)), [])).within)
    for coverage in (0.0, 1.1, math.nan):
        with pytest.raises(InputError, match=f"coverage must be above 0 and at most 1, got {coverage}"):
            risk_at_coverage(NONE, coverage)
    with pytest.raises(InputError, match="bins must be at least 1, got 0"):
        brier_split(option_logits(2), 0)
    with pytest.raises(InputError, match="no label"):
        brier_split(OptionLogits(("a",), [[0.0, 1.0]], [-1]))


def test_brier_split_of_certainties():
    # Sure and wrong: both options off by one. Sure and right: nothing.
    wrong = brier_split(OptionLogits(("a",), [[0.0, -np.inf]], [1]))
    assert (wrong.brier, wrong.calibration, wrong.refinement, wrong.within) == (2, 2, 0, 0)
    right = brier_split(OptionLogits(("a",), [[0.0, -np.inf]], [0]))
    assert (right.brier, right.calibration, right.uncertainty) == (0, 0, 0)
