"""BCa and grouped bootstrap, corrected ECE, the test of calibration, planning, Holm and local calibration."""

import math
import sys

import numpy as np
import pytest
from predicted import drawn, predictions

from caltune.errors import InputError
from caltune.metrics import (
    Interval,
    aurc_statistic,
    auroc_statistic,
    bca_interval,
    bootstrap,
    calibration_test,
    corrected_ece,
    detectable_difference,
    discordance_variance,
    ece,
    ece_statistic,
    holm,
    jackknife,
    local_calibration,
    mce,
    mean_statistic,
    noise_floor,
    percentile_interval,
    questions_needed,
)

NONE = predictions([], [])


@pytest.mark.parametrize("statistic", [ece_statistic, auroc_statistic, aurc_statistic])
def test_jackknife_leaves_one_out(statistic, monkeypatch):
    some = drawn(30, seed=1)
    monkeypatch.setattr(sys.modules["caltune.metrics.bootstrap"], "_CHUNK", 70)  # two rows at a time
    found = jackknife(statistic(some), 30)
    for row in (0, 13, 29):
        rest = np.delete(np.arange(30), row)
        alone = statistic(predictions(some.confidence[rest], some.correct[rest]))(np.ones((1, 29)))[0]
        # AURC reads weights that are not whole between two whole ones.
        assert found[row] == pytest.approx(alone, abs=0.02 if statistic is aurc_statistic else 1e-12)


def test_bca_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).exponential(size=40)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=2000, random_state=np.random.default_rng(1), axis=-1
    ).confidence_interval
    statistic = mean_statistic(values)
    replicates = bootstrap(statistic, 40, draws=2000)
    ours = bca_interval(values.mean(), replicates, jackknife(statistic, 40))
    assert ours.low == pytest.approx(theirs.low, abs=0.025)
    assert ours.high == pytest.approx(theirs.high, abs=0.04)
    plain = percentile_interval(values.mean(), replicates)
    assert ours.low > plain.low
    assert ours.high > plain.high + 0.02  # skewed to the right


def test_bca_at_the_edges():
    flat = bca_interval(1.0, np.ones(5), np.ones(3))
    assert flat == Interval(1.0, 1.0, 1.0)
    # All replicates above the value: z₀ is held at half a draw of 4, Φ⁻¹(1/8) = −1.15, and the low end is the first.
    leaning = bca_interval(0.0, np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(3))
    assert leaning.low == pytest.approx(1.0, abs=0.01)
    assert leaning.high < 3
    for found in (
        bca_interval(math.nan, np.ones(3), np.ones(3)),
        bca_interval(1.0, np.full(3, math.nan), np.ones(3)),
        bca_interval(1.0, np.ones(3), np.array([1.0, math.nan])),
    ):
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    with pytest.raises(InputError, match="at least two questions, got 1"):
        jackknife(mean_statistic(np.ones(1)), 1)


def test_groups_that_go_wrong_together_widen_the_interval():
    # 40 groups of 10 equal answers: as 40 questions, √10 times as wide.
    correct = np.repeat(np.random.default_rng(0).random(40) < 0.6, 10).astype(float)
    groups = [f"g{i // 10:02}" for i in range(400)]
    alone = bootstrap(mean_statistic(correct), 400, draws=500)
    together = bootstrap(mean_statistic(correct), 400, draws=500, groups=groups)
    forty = bootstrap(mean_statistic(correct[::10]), 40, draws=500)
    np.testing.assert_allclose(together, forty, atol=1e-12)
    assert together.std() / alone.std() == pytest.approx(math.sqrt(10), rel=0.15)


def test_groups_of_unequal_size_weigh_by_size():
    values, groups = np.array([0.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "b"]
    found = bootstrap(mean_statistic(values), 4, draws=200, groups=groups)
    assert set(found.round(6)) == {0.0, 0.25, 1.0}
    each = bootstrap(mean_statistic(values), 4, draws=50, groups=["d", "b", "c", "a"])
    assert set((each * 4).round(6)) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_groups_must_fit():
    with pytest.raises(InputError, match="at least two, got 1"):
        bootstrap(mean_statistic(np.ones(3)), 3, groups=["a"] * 3)
    with pytest.raises(InputError, match="got 2 for 3 questions"):
        bootstrap(mean_statistic(np.ones(3)), 3, groups=["a", "b"])


def test_corrected_ece_in_one_bin_is_the_gap_with_a_normal_interval():
    # One confidence 0.8, 700 of 1000 right: gap 0.1, standard error √(0.7 · 0.3 / 1000) = 0.0145.
    found = corrected_ece(predictions([0.8] * 1000, [1] * 700 + [0] * 300))
    assert found.value == pytest.approx(0.1, abs=0.001)
    assert found.low == pytest.approx(0.1 - 1.96 * 0.0145, abs=0.002)
    assert found.high == pytest.approx(0.1 + 1.96 * 0.0145, abs=0.002)


def test_corrected_ece_covers_calibrated_and_planted_errors():
    mean = {}
    for truth in (0.0, 0.05):
        found = [corrected_ece(drawn(500, seed, truth), draws=100) for seed in range(40)]
        assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.85
        mean[truth] = np.mean([each.value for each in found])
        assert mean[truth] == pytest.approx(truth, abs=0.025)
    plain = np.mean([ece(drawn(500, seed)) for seed in range(40)])
    assert plain > 0.04  # what the correction takes off
    assert mean[0.0] < plain / 2


@pytest.mark.parametrize(
    ("confidence", "accuracy", "size"),
    [(0.97, 0.97, 50), (0.995, 0.995, 200), (1.0, 0.999, 1000), (0.9999, 0.998, 500)],
)
def test_corrected_ece_covers_where_few_are_wrong(confidence, accuracy, size):
    # With the accuracy that was seen as its own variance it held 58 to 84 % of these.
    generator = np.random.default_rng(size)
    found = [
        corrected_ece(predictions([confidence] * size, generator.random(size) < accuracy), draws=200) for _ in range(60)
    ]
    assert np.mean([each.low <= abs(confidence - accuracy) <= each.high for each in found]) >= 0.93


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_corrected_ece_covers_many_sure_bins(scale):
    # Nearly always right, calibrated or as sure as of the squared odds; the truth of 200,000 answers.
    def drawn_with(size, generator):
        logits = 2 * generator.normal(size=size) + 4
        return 1 / (1 + np.exp(-scale * np.abs(logits))), 1 / (1 + np.exp(-np.abs(logits)))

    said, rate = drawn_with(200_000, np.random.default_rng(1))
    truth = np.abs(np.bincount(np.ceil(15 * said).astype(int), said - rate)).sum() / len(said)
    held = []
    for seed in range(40):
        generator = np.random.default_rng([seed, 2])
        said, rate = drawn_with(200, generator)
        found = corrected_ece(predictions(said, generator.random(200) < rate), draws=200)
        held.append(found.low <= truth <= found.high)
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize(("confidence", "right", "size"), [(0.97, 44, 50), (1.0, 29, 30), (0.9, 40, 40), (0.6, 12, 30)])
def test_corrected_ece_in_one_bin_inverts_the_exact_test(confidence, right, size):
    # Nothing is drawn here: the tails of |X / N − c| are sums of binomial probabilities, and ends are found on a grid.
    sign = 1 if right > confidence * size else -1
    gap = np.abs(np.arange(size + 1) / size - confidence)
    low, high = 0.0, 0.0
    for theta in np.arange(0, 1, 0.001):
        rate = confidence + sign * theta
        if 0 < rate < 1:
            chances = np.array([math.comb(size, k) * rate**k * (1 - rate) ** (size - k) for k in range(size + 1)])
            low = theta if chances[gap >= gap[right] - 1e-9].sum() <= 0.025 else low
            high = theta if chances[gap <= gap[right] + 1e-9].sum() >= 0.025 else high
    found = corrected_ece(predictions([confidence] * size, [1] * right + [0] * (size - right)), draws=4000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.008)
    assert found.low <= found.value <= found.high


def test_corrected_ece_says_no_more_than_was_seen():
    # 50 of 50 at 0.97 happen in 22 of 100 cases: nothing is shown, and 0.025^(1/50) = 0.929 is as far as it may be off.
    lucky = corrected_ece(predictions([0.97] * 50, [1] * 50))
    assert lucky.low == 0
    assert lucky.value <= lucky.high == pytest.approx(0.97 - 0.025**0.02, abs=0.005)
    # 10 of 40 at 0.25: none of the gaps that chance mostly gives is there, which does not show that there is none.
    even = corrected_ece(predictions([0.25] * 40, [1] * 10 + [0] * 30))
    assert (even.value, even.low) == (0.0, 0.0)
    assert 0.1 < even.high < 0.25


def test_corrected_ece_at_the_edges():
    wrong = corrected_ece(predictions([1.0] * 500, [0] * 500))
    assert wrong.low > 0.99
    assert wrong.high == 1.0
    right = corrected_ece(predictions([1.0] * 500, [1] * 500))
    assert right == Interval(0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 500), abs=4e-4))
    one = corrected_ece(predictions([0.5], [1]))
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert math.isnan(corrected_ece(NONE).low)
    with pytest.raises(InputError, match="level must lie between 0 and 1, got 1"):
        corrected_ece(NONE, level=1)
    with pytest.raises(InputError, match="draws must be at least 1, got 0"):
        corrected_ece(NONE, draws=0)


def test_calibration_test_has_its_level_and_its_power():
    rejected = [calibration_test(drawn(100, seed), draws=39).p_value <= 0.05 for seed in range(60)]
    assert np.mean(rejected) < 0.15
    gap = calibration_test(drawn(200), draws=500).detectable_gap
    assert 0.08 < gap < 0.2
    seen = [calibration_test(drawn(200, seed, gap), draws=39).p_value <= 0.05 for seed in range(50)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.2)
    assert calibration_test(drawn(1000), draws=60).detectable_gap < gap / 1.5


def test_calibration_test_by_hand():
    # Two at 1.0: any wrong answer shows. 1 − (1 − g)² = 0.8 at g = 1 − √0.2 = 0.5528.
    found = calibration_test(predictions([1.0, 1.0], [1, 1]), draws=4000)
    assert (found.ece, found.critical, found.p_value) == (0.0, 0.0, 1.0)
    assert found.detectable_gap == pytest.approx(0.5528, abs=0.02)
    # One at 0.5 is off by 0.5 either way: nothing could be seen.
    one = calibration_test(predictions([0.5], [1]), draws=50)
    assert (one.p_value, one.critical) == (1.0, 0.5)
    assert math.isnan(one.detectable_gap)
    never = calibration_test(predictions([0.0] * 3, [0, 0, 1]), draws=99)
    assert never.p_value == pytest.approx(0.01)
    assert math.isnan(never.detectable_gap)
    assert math.isnan(calibration_test(NONE).p_value)
    with pytest.raises(InputError, match="power must lie between 0 and 1, got 1"):
        calibration_test(NONE, power=1.0)
    with pytest.raises(InputError, match="draws must be at least 1, got 0"):
        calibration_test(NONE, draws=0)


def test_critical_value_lies_above_the_noise_floor():
    some = drawn(300)
    assert noise_floor(some) < calibration_test(some, draws=300).critical < 2 * noise_floor(some)


def test_planned_number_shows_the_difference_as_often_as_promised():
    needed = questions_needed(0.05, discordance_variance(0.1, 0.05))
    # (1.95996 + 0.84162)² · 0.0975 / 0.0025 = 306.1
    assert needed == 307
    draws = np.random.default_rng(0).choice([1.0, 0.0, -1.0], p=[0.075, 0.9, 0.025], size=(2000, needed))
    ratio = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(needed))
    assert np.mean(np.abs(ratio) > 1.96) == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(needed, 0.0975) == pytest.approx(0.05, abs=1e-4)
    assert questions_needed(-0.05, 0.0975) == needed
    assert questions_needed(0.5, 0.0) == 2


def test_planning_refuses_what_has_no_answer():
    for difference in (0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="difference must be"):
            questions_needed(difference, 0.1)
    with pytest.raises(InputError, match=r"variance must be .*, got -1"):
        questions_needed(0.1, -1)
    with pytest.raises(InputError, match="power must lie between 0 and 1, got 0"):
        detectable_difference(10, 0.1, power=0)
    with pytest.raises(InputError, match="size must be at least 2, got 1"):
        detectable_difference(1, 0.1)
    with pytest.raises(InputError, match=r"got 0\.05"):
        discordance_variance(0.05, -0.1)


def test_holm_by_hand_and_its_error_rate():
    np.testing.assert_allclose(holm([0.01, math.nan, 0.5, 0.02]), [0.03, math.nan, 0.5, 0.04])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert holm([]).tolist() == []
    nulls = np.random.default_rng(0).random((2000, 6))
    assert np.mean([holm(row).min() < 0.05 for row in nulls]) == pytest.approx(0.05, abs=0.015)
    order = [2, 0, 1]
    given = np.array([0.01, 0.02, 0.03])
    np.testing.assert_array_equal(holm(given[order]), holm(given)[order])
    with pytest.raises(InputError, match=r"got 1\.5"):
        holm([0.1, 1.5])


def test_local_calibration_against_loops():
    some = drawn(40, seed=2)
    features = np.random.default_rng(3).normal(size=(40, 3))
    found = local_calibration(some, features, width=0.4, bins=4)
    for i in (0, 7, 39):
        top = bottom = squares = 0.0
        for j in range(40):
            if math.ceil(some.confidence[i] * 4) == math.ceil(some.confidence[j] * 4):
                weight = math.exp(-np.abs(features[i] - features[j]).sum() / (3 * 0.4))
                top += weight * (some.confidence[j] - some.correct[j])
                bottom += weight
                squares += weight**2
        assert found.errors[i] == pytest.approx(top / bottom)
        assert found.effective_size[i] == pytest.approx(bottom**2 / squares)
    assert found.mean == pytest.approx(np.abs(found.errors).mean())


def test_local_calibration_between_ece_and_residuals():
    some = drawn(200, seed=4)
    features = np.random.default_rng(5).normal(size=(200, 2))
    wide = local_calibration(some, features, width=1e9)
    assert wide.mean == pytest.approx(ece(some))
    assert wide.maximum == pytest.approx(mce(some))
    narrow = local_calibration(some, features, width=1e-9)
    np.testing.assert_allclose(narrow.errors, some.confidence - some.correct)
    np.testing.assert_allclose(narrow.effective_size, 1.0)


def test_local_calibration_finds_what_ece_cannot():
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 2, 1000)
    some = predictions(np.full(1000, 0.7), generator.random(1000) < 0.7 + 0.2 * (2 * kind - 1))
    features = kind[:, None] + 0.01 * generator.normal(size=(1000, 1))
    found = local_calibration(some, features)
    assert ece(some) < 0.05
    assert found.mean == pytest.approx(0.2, abs=0.03)
    assert found.mean > 5 * found.noise_floor
    assert np.sign(found.errors[kind == 0]).min() > 0  # overconfident on that kind


def test_local_calibration_refuses_bad_input():
    some = drawn(3)
    with pytest.raises(InputError, match=r"shape \(3, d\).*got \(2, 1\)"):
        local_calibration(some, np.zeros((2, 1)))
    with pytest.raises(InputError, match="must be finite, got nan"):
        local_calibration(some, np.full((3, 1), math.nan))
    with pytest.raises(InputError, match="width must be a finite number above 0, got 0"):
        local_calibration(some, np.zeros((3, 1)), width=0)
    with pytest.raises(InputError, match="draws must be at least 1, got 0"):
        local_calibration(some, np.zeros((3, 1)), draws=0)
    assert math.isnan(local_calibration(NONE, np.zeros((0, 1))).mean)
    one = local_calibration(predictions([1.0], [0]), np.zeros((1, 1)))
    assert (one.mean, one.maximum, one.noise_floor) == (1.0, 1.0, 0.0)
