"""What must hold for any scores: order, relabelling, monotone maps, temperature, bounds. Drawn by hypothesis."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from caltune.metrics import (
    accuracy,
    aurc,
    auroc,
    brier,
    brier_split,
    calibration_test,
    classwise_ece,
    collapse,
    corrected_ece,
    ece,
    group_calibration,
    local_calibration,
    mce,
    mean_confidence,
    nll,
    noise_floor,
    option_calibration,
    over_and_under,
    overconfidence,
    reliability_bins,
    risk_at_coverage,
    risk_coverage,
    rms_ece,
    smooth_ece,
    squared_ece,
    target_calibration_error,
)
from caltune.recalibrate import Temperature
from caltune.types import OptionLogits, Predictions

few = settings(max_examples=20, deadline=None, derandomize=True)

# Sixteenths: sums and means are exact, and ties and bin edges occur.
SIXTEENTHS = st.integers(0, 16).map(lambda i: i / 16)
LOGITS = st.one_of(st.integers(-24, 24).map(lambda i: i / 4), st.just(-math.inf))


@st.composite
def predicted(draw, least=1):
    size = draw(st.integers(least, 24))
    confidence = draw(arrays(float, size, elements=SIXTEENTHS))
    correct = draw(arrays(float, size, elements=st.sampled_from([0.0, 1.0])))
    groups = tuple(draw(st.lists(st.sampled_from("ab"), min_size=size, max_size=size)))
    return Predictions(tuple(f"q{i}" for i in range(size)), confidence, correct, groups)


@st.composite
def scored(draw, possible=False):
    """Option logits, some -inf; with `possible` no label is ruled out."""
    size, count = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    logits = draw(arrays(np.float64, (size, count), elements=LOGITS))
    logits[:, 0] = np.where(np.isfinite(logits).any(axis=1), logits[:, 0], 0.0)
    labels = draw(arrays(np.int64, size, elements=st.integers(0, count - 1)))
    if possible:
        rows = np.arange(size)
        logits[rows, labels] = np.where(np.isfinite(logits[rows, labels]), logits[rows, labels], 1.0)
    return OptionLogits(tuple(f"q{i}" for i in range(size)), logits, labels)


def doubled(predictions):
    """Every answer twice."""
    return Predictions(
        tuple(f"{copy}{name}" for copy in "xy" for name in predictions.ids),
        np.tile(predictions.confidence, 2),
        np.tile(predictions.correct, 2),
        predictions.groups * 2,
    )


def shuffled(predictions, order):
    return Predictions(
        tuple(predictions.ids[i] for i in order),
        predictions.confidence[order],
        predictions.correct[order],
        tuple(predictions.groups[i] for i in order),
    )


# Name -> metric and the bounds it never leaves.
OF_PREDICTIONS = {
    "accuracy": (accuracy, 0, 1),
    "confidence": (mean_confidence, 0, 1),
    "overconfidence": (overconfidence, -1, 1),
    "over": (lambda p: over_and_under(p)[0], 0, 1),
    "under": (lambda p: over_and_under(p)[1], 0, 1),
    "ece": (ece, 0, 1),
    "ece_mass": (lambda p: ece(p, binning="mass"), 0, 1),
    "mce": (mce, 0, 1),
    "squared_ece": (squared_ece, -1, 1),
    "squared_ece_plain": (lambda p: squared_ece(p, debiased=False), 0, 1),
    "rms_ece": (rms_ece, 0, 1),
    "smooth_ece": (smooth_ece, 0, 1),
    "auroc": (auroc, 0, 1),
    "aurc": (aurc, 0, 1),
    "risk_at_half": (lambda p: risk_at_coverage(p, 0.5), 0, 1),
}
OF_SCORES = {
    "brier": (brier, 0, 2),
    "nll": (nll, 0, math.inf),
    "classwise_ece": (classwise_ece, 0, 1),
    "refinement": (lambda s: brier_split(s).refinement, 0, 2),
    "calibration": (lambda s: brier_split(s).calibration, 0, 2),
}
# Debiasing divides by n − 1; the curve under which AURC is the area has a step for each answer.
CHANGED_BY_DOUBLING = {"squared_ece", "rms_ece", "aurc"}


def same(a, b):
    return a == pytest.approx(b, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", OF_PREDICTIONS)
@few
@given(data=st.data())
def test_bounds_order_and_doubling(name, data):
    metric, low, high = OF_PREDICTIONS[name]
    some = data.draw(predicted())
    value = metric(some)
    assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9
    assert not math.isnan(value) or name in ("auroc", "squared_ece", "rms_ece")
    order = data.draw(st.permutations(range(len(some))))
    assert same(metric(shuffled(some, list(order))), value)
    if name not in CHANGED_BY_DOUBLING and not (name == "risk_at_half" and len(some) % 2):  # half of 3 is 2, of 6 is 3
        assert same(metric(doubled(some)), value)


@pytest.mark.parametrize("name", OF_SCORES)
@few
@given(data=st.data())
def test_option_metrics_keep_bounds_and_do_not_care_for_order_or_names_of_options(name, data):
    metric, low, high = OF_SCORES[name]
    some = data.draw(scored(possible=name != "nll"))
    value = metric(some)
    assert low - 1e-9 <= value <= high + 1e-9
    rows = list(data.draw(st.permutations(range(len(some)))))
    assert same(metric(some.take(rows)), value)
    columns = np.array(data.draw(st.permutations(range(some.logits.shape[1]))))
    renamed = OptionLogits(some.ids, some.logits[:, columns], np.argsort(columns)[some.labels])
    assert same(metric(renamed), value)
    shifted = OptionLogits(some.ids, some.logits + np.float32(2.0), some.labels)
    assert metric(shifted) == pytest.approx(value, abs=1e-5)
    twice = OptionLogits(
        tuple(f"{copy}{name}" for copy in "xy" for name in some.ids),
        np.tile(some.logits, (2, 1)),
        np.tile(some.labels, 2),
    )
    assert same(metric(twice), value)


@few
@given(some=predicted())
def test_monotone_maps_of_confidence_keep_auroc_and_aurc(some):
    for change in (lambda c: c**3, lambda c: 0.2 + c / 2, np.sqrt):
        mapped = Predictions(some.ids, change(some.confidence), some.correct)
        assert same(auroc(mapped), auroc(some))
        assert same(aurc(mapped), aurc(some))
    turned = Predictions(some.ids, 1 - some.confidence, some.correct)
    assert same(auroc(turned), 1 - auroc(some))


@few
@given(some=scored(possible=True), temperature=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_temperature_keeps_answers_accuracy_and_the_order_of_two_options(some, temperature):
    scaled = Temperature(temperature, ())(some)
    top = np.sort(some.logits, axis=1)
    assume((top[:, -1] > top[:, -2]).all())  # among equals rounding decides
    np.testing.assert_array_equal(scaled.logits.argmax(axis=1), some.logits.argmax(axis=1))
    assert accuracy(scaled.decide()) == accuracy(some.decide())
    way = np.sign(temperature - 1)
    assert (way * (some.decide().confidence - scaled.decide().confidence) >= -1e-9).all()
    if some.logits.shape[1] == 2:  # with more options the order of questions may change
        assert same(auroc(scaled.decide()), auroc(some.decide()))


@few
@given(some=predicted(), bins=st.integers(1, 20))
def test_ece_lies_between_the_whole_gap_and_the_worst_bin(some, bins):
    assert abs(overconfidence(some)) - 1e-9 <= ece(some, bins) <= mce(some, bins) + 1e-9
    over, under = over_and_under(some, bins)
    assert same(over + under, ece(some, bins))
    assert same(over - under, overconfidence(some))
    assert ece(some, bins) <= ece(some, 2 * bins) + 1e-9  # finer bins hide less
    assert int(reliability_bins(some, bins).count.sum()) == len(some)


@few
@given(some=scored(possible=True))
def test_scores_of_the_same_probabilities_bound_each_other(some):
    p = some.probabilities()[np.arange(len(some)), some.labels]
    assert nll(some) >= -math.log(p.mean()) - 1e-6  # Jensen
    right = some.decide()
    assert brier(some) >= np.square(1 - p).mean() - 1e-9
    if np.isfinite(some.logits).all():  # the bound of Oh and Hwang 2024 is for full rows
        assert classwise_ece(some) <= 2 / some.logits.shape[1] * (1 - p).mean() + 1e-6
    assert accuracy(right) >= (p > 0.5).mean()


@few
@given(some=predicted())
def test_risk_and_coverage(some):
    coverage, kept_right = risk_coverage(some)
    assert all(a < b for a, b in pairwise(coverage))
    assert coverage[-1] == pytest.approx(1)
    assert kept_right[-1] == pytest.approx(accuracy(some))
    assert risk_at_coverage(some, 1.0) == pytest.approx(1 - accuracy(some))


@few
@given(some=predicted(least=2))
def test_what_is_simulated_keeps_its_bounds_and_ignores_order(some):
    order = np.random.default_rng(0).permutation(len(some))
    found = corrected_ece(some, draws=100)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found == corrected_ece(shuffled(some, order), draws=100)
    assert 0 <= noise_floor(some, draws=20) <= 1
    tested = calibration_test(some, draws=20)
    assert 1 / 21 - 1e-9 <= tested.p_value <= 1
    assert tested.ece == pytest.approx(ece(some))
    for row in group_calibration(some):
        assert 0 <= row.low <= row.high <= 1
        assert row.low - 1 / row.n <= row.says <= row.high + 1 / row.n
    assert sum(row.n for row in group_calibration(some)) == len(some)


@few
@given(some=scored())
def test_options_and_collapse(some):
    rows = option_calibration(some)
    assert sum(row.n * row.right for row in rows) == pytest.approx(len(some))  # also where it was ruled out
    assert sum(row.n * row.says for row in rows) == pytest.approx(len(some))
    found = collapse(some)
    for name in ("top_mass", "saturated"):
        assert 0 <= getattr(found, name) <= 1 + 1e-9


@few
@given(some=scored(), temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_distance_from_a_target_bounds_the_gap(some, temperature):
    target = Temperature(temperature, ())(some)
    found = target_calibration_error(some, target)
    choice = some.logits.argmax(axis=1)
    meant = target.probabilities()[np.arange(len(some)), choice].mean()
    assert abs(mean_confidence(some.decide()) - meant) - 1e-9 <= found <= 1
    assert found < 1e-6 or temperature != 1.0


@few
@given(some=predicted(least=3), seed=st.integers(0, 5))
def test_local_calibration_stays_within_bounds(some, seed):
    features = np.random.default_rng(seed).normal(size=(len(some), 3))
    found = local_calibration(some, features)
    assert 0 <= found.mean <= found.maximum <= 1
