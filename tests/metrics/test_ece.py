"""ECE: hand values, bin edges, noise floor and chance band."""

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.metrics import ReliabilityBins, auroc, chance_band, ece, noise_floor, reliability_bins
from caltune.metrics.ece import width_index
from caltune.types import Predictions


def predictions(confidence, correct):
    return Predictions(
        ids=tuple(str(i) for i in range(len(confidence))), confidence=np.array(confidence), correct=np.array(correct)
    )


def calibrated(size, seed=0, low=0.0):
    generator = np.random.default_rng(seed)
    confidence = low + (1 - low) * generator.random(size)
    return predictions(confidence, (generator.random(size) < confidence).astype(float))


def slow_bins(confidence, bins):
    """Right-closed bins by comparing with every edge."""
    return [next(m for m in range(bins) if c <= (m + 1) / bins) for c in confidence]


def slow_ece(given, index):
    total = 0.0
    for m in set(index):
        rows = [i for i, found in enumerate(index) if found == m]
        total += len(rows) * abs(np.mean(given.correct[rows]) - np.mean(given.confidence[rows]))
    return total / len(given)


@pytest.mark.parametrize(
    ("value", "bins", "bin_of"),
    [
        (0.0, 10, 0),
        (5e-324, 10, 0),
        (1.0, 10, 9),
        (1.0, 15, 14),
        (0.2, 10, 1),  # (0.1, 0.2]
        (0.2, 15, 2),  # 0.2 = 3/15 closes bin 2
        (0.3, 10, 2),
        (0.1 + 0.2, 10, 3),  # 0.30000000000000004 lies above 0.3
        (0.7, 10, 6),  # 0.7 * 10 is 7.000000000000001
        (0.6, 15, 8),  # 0.6 = 9/15
        (np.nextafter(0.6, 1), 15, 9),
        (0.5, 1, 0),
    ],
)
def test_edges_belong_to_the_bin_they_close(value, bins, bin_of):
    assert width_index(np.array([value]), bins).tolist() == [bin_of]
    if bins > 1:
        count = reliability_bins(predictions([value], [1.0]), bins).count
        assert count.sum() == 1
        assert count[bin_of] == 1


def test_every_edge_and_its_neighbours_for_many_bin_counts():
    for bins in range(1, 101):
        edges = np.arange(1, bins + 1) / bins
        assert width_index(edges, bins).tolist() == list(range(bins))
        assert width_index(np.nextafter(edges[:-1], 2), bins).tolist() == list(range(1, bins))


def test_index_agrees_with_slow_search():
    confidence = np.random.default_rng(3).random(500)
    assert width_index(confidence, 15).tolist() == slow_bins(confidence, 15)


def test_bins_by_hand():
    # (0, 0.5]: 0.5 right. (0.5, 1]: 0.6 wrong, 0.9 right, 1.0 wrong.
    found = reliability_bins(predictions([0.5, 0.6, 0.9, 1.0], [1, 0, 1, 0]), bins=2)
    assert isinstance(found, ReliabilityBins)
    assert found.edges.tolist() == [0.0, 0.5, 1.0]
    assert found.count.tolist() == [1, 3]
    np.testing.assert_allclose(found.confidence, [0.5, 2.5 / 3])
    np.testing.assert_allclose(found.accuracy, [1.0, 1 / 3])


def test_empty_bins_are_nan():
    found = reliability_bins(predictions([0.9], [1]), bins=3)
    assert np.isnan(found.confidence[:2]).all()
    assert np.isnan(found.accuracy[:2]).all()
    assert found.accuracy[2] == 1.0


def test_ece_by_hand():
    # (0, 0.5]: |1 − 0.5| · 1/4; (0.5, 1]: |1/3 − 2.5/3| · 3/4 = 0.125 + 0.375
    assert ece(predictions([0.5, 0.6, 0.9, 1.0], [1, 0, 1, 0]), bins=2) == pytest.approx(0.5)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_special_models(binning):
    always_wrong = predictions([0.97] * 8, [0.0] * 8)
    assert ece(always_wrong, binning=binning) == pytest.approx(0.97)
    constant = predictions([0.75] * 8, [1, 1, 1, 0] * 2)
    assert ece(constant, binning=binning) == pytest.approx(0.0, abs=1e-15)
    assert auroc(constant) == 0.5
    assert ece(predictions([1.0, 0.0], [1, 0]), binning=binning) == 0.0
    assert ece(predictions([0.3], [1]), binning=binning) == pytest.approx(0.7)
    assert np.isnan(ece(predictions([], []), binning=binning))
    assert np.isnan(noise_floor(predictions([], []), binning=binning))


@pytest.mark.parametrize("bins", [1, 2, 7, 15])
def test_width_against_slow_implementation(bins):
    given = calibrated(200, seed=1)
    assert ece(given, bins) == pytest.approx(slow_ece(given, slow_bins(given.confidence, bins)))


@pytest.mark.parametrize("size", [2**14, 2**14 + 1, 40_000])
def test_pieces_add_up(size):
    given = calibrated(size)
    found = reliability_bins(given)  # not in pieces
    whole = float(np.sum(found.count * np.abs(found.accuracy - found.confidence)) / size)
    assert ece(given) == pytest.approx(whole, rel=1e-12)


def test_mass_counts_are_equal_and_ties_stay_together():
    assert reliability_bins(calibrated(10), 5, "mass").count.tolist() == [2] * 5
    assert reliability_bins(calibrated(7), 3, "mass").count.tolist() == [3, 2, 2]
    # Five of eight answers at 0.9: upper edges are the 2nd, 4th, 6th smallest: 0.2, 0.9, 0.9.
    tied = predictions([0.1, 0.2, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9], [0] * 8)
    found = reliability_bins(tied, 4, "mass")
    assert found.edges.tolist() == [0.0, 0.2, 0.9, 0.9, 1.0]
    assert found.count.tolist() == [2, 6, 0, 0]
    zeros = reliability_bins(predictions([0.0, 0.0, 0.0, 1.0], [0, 0, 0, 1]), 2, "mass")
    assert zeros.count.tolist() == [3, 1]


def test_mass_against_chunks_of_the_sorted_answers():
    given = calibrated(300, seed=2)
    chunks = np.array_split(np.argsort(given.confidence), 15)
    wanted = sum(abs(np.sum(given.correct[c] - given.confidence[c])) for c in chunks) / 300
    assert ece(given, 15, "mass") == pytest.approx(wanted)


def test_order_does_not_matter_and_doubling_changes_nothing():
    given = calibrated(101, seed=4)
    order = np.random.default_rng(0).permutation(101)
    mixed = predictions(given.confidence[order], given.correct[order])
    twice = predictions(np.tile(given.confidence, 2), np.tile(given.correct, 2))
    for binning in ("width", "mass"):
        assert ece(mixed, binning=binning) == pytest.approx(ece(given, binning=binning))
        assert ece(twice, binning=binning) == pytest.approx(ece(given, binning=binning))


@pytest.mark.parametrize(("size", "known"), [(100, 0.099), (500, 0.045), (2000, 0.023)])
def test_noise_floor_of_even_confidences_is_the_known_one(size, known):
    even = 0.4 + 0.6 * (np.arange(size) + 0.5) / size
    assert noise_floor(predictions(even, np.ones(size))) == pytest.approx(known, rel=0.05)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_noise_floor_is_the_mean_ece_of_calibrated_models(binning):
    even = (np.arange(200) + 0.5) / 200
    generator = np.random.default_rng(7)
    scored = [ece(predictions(even, (generator.random(200) < even).astype(float)), binning=binning) for _ in range(500)]
    assert noise_floor(predictions(even, np.ones(200)), binning=binning) == pytest.approx(np.mean(scored), rel=0.03)


def test_noise_floor_against_theory_in_one_bin():
    # One bin of 10,000 answers at 0.5: E|mean − 0.5| = sqrt(2/π) · 0.5 / 100 = 0.00399.
    given = predictions([0.5] * 10_000, [1] * 10_000)
    assert noise_floor(given, bins=1, draws=2000) == pytest.approx(0.00399, rel=0.05)


def test_noise_floor_ignores_the_truth_and_follows_the_seed():
    given = calibrated(50)
    assert noise_floor(given) == noise_floor(predictions(given.confidence, 1 - given.correct))
    assert noise_floor(given, seed=1) != noise_floor(given, seed=2)
    assert noise_floor(predictions([0.0, 1.0, 1.0], [1, 0, 0])) == 0.0


def test_chance_band_against_binomial_quantiles():
    stats = pytest.importorskip("scipy.stats")
    low, high = chance_band(predictions([0.9] * 50, [1] * 50), bins=10, draws=20_000, seed=1)
    assert np.isnan(low[:8]).all()
    assert np.isnan(low[9])
    assert low[8] * 50 == pytest.approx(stats.binom.ppf(0.025, 50, 0.9))
    assert high[8] * 50 == pytest.approx(stats.binom.ppf(0.975, 50, 0.9))


def test_chance_band_holds_a_calibrated_model():
    inside = total = 0
    for seed in range(40):
        given = calibrated(500, seed)
        low, high = chance_band(given, draws=400, seed=seed + 1000)
        found = reliability_bins(given).accuracy
        inside += np.count_nonzero((low <= found) & (found <= high))
        total += len(found)
    assert 0.93 < inside / total < 0.995


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 0}, "bins must be at least 1, got 0"),
        ({"binning": "odd"}, "binning must be 'width' or 'mass', got 'odd'"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        noise_floor(calibrated(5), **arguments)
    with pytest.raises(InputError, match="level must lie between 0 and 1, got 2"):
        chance_band(calibrated(5), level=2)
