"""Bootstrap, summary and paired comparison."""

import json
import math
import sys

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.metrics import (
    DIRECTIONS,
    Interval,
    accuracy,
    accuracy_interval,
    auroc,
    auroc_statistic,
    basic_interval,
    bootstrap,
    brier,
    classwise_ece,
    classwise_ece_statistic,
    compare,
    compare_answers,
    corrected_ece,
    ece,
    ece_statistic,
    mean_confidence,
    mean_statistic,
    nll,
    noise_floor,
    percentile_interval,
    smooth_ece,
    smooth_ece_statistic,
    summarise,
    summarise_answers,
)
from caltune.metrics.bootstrap import default_draws
from caltune.metrics.paired import compare_statistics
from caltune.metrics.proper import nll_per_question
from caltune.types import OptionLogits, Predictions


def calibrated(size, options=4, seed=0, temperature=1.0):
    """Labels drawn from softmax(z), logits z / temperature: calibrated at 1, overconfident below."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(size, options))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) < generator.random((size, 1))).sum(axis=1).clip(0, options - 1)
    return OptionLogits(ids=tuple(f"q{i}" for i in range(size)), logits=logits / temperature, labels=labels)


def repeated(scores, counts):
    rows = np.repeat(np.arange(len(scores)), counts.astype(int))
    return OptionLogits(
        ids=tuple(str(i) for i in range(len(rows))), logits=scores.logits[rows], labels=scores.labels[rows]
    )


@pytest.mark.parametrize(
    ("statistic", "metric"),
    [
        (lambda s: ece_statistic(s.decide()), lambda s: ece(s.decide())),
        (lambda s: ece_statistic(s.decide(), 5, "mass"), lambda s: ece(s.decide(), 5, "mass")),
        (lambda s: auroc_statistic(s.decide()), lambda s: auroc(s.decide())),
        (classwise_ece_statistic, classwise_ece),
        (lambda s: smooth_ece_statistic(s.decide()), lambda s: smooth_ece(s.decide())),
    ],
)
def test_a_resample_scores_what_the_repeated_questions_score(statistic, metric):
    logits = np.array(calibrated(60, options=3).logits).round(0)  # rounded: many ties
    logits[:20, 2] = -np.inf
    labels = np.random.default_rng(1).integers(0, 2, 60)
    scores = OptionLogits(ids=tuple(str(i) for i in range(60)), logits=logits, labels=labels)
    counts = np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60), size=25).astype(float)
    found = statistic(scores)(counts)
    np.testing.assert_allclose(found, [metric(repeated(scores, row)) for row in counts], atol=1e-9)


def test_bootstrap_of_a_mean_has_the_known_spread():
    values = np.random.default_rng(0).normal(size=400)
    replicates = bootstrap(mean_statistic(values), 400, draws=4000)
    assert replicates.shape == (4000,)
    assert replicates.mean() == pytest.approx(values.mean(), abs=0.005)
    assert replicates.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_bootstrap_follows_the_seed_and_not_the_chunks(monkeypatch):
    statistic = mean_statistic(np.arange(30.0))
    first = bootstrap(statistic, 30, draws=50, seed=1)
    np.testing.assert_array_equal(first, bootstrap(statistic, 30, draws=50, seed=1))
    assert (first != bootstrap(statistic, 30, draws=50, seed=2)).any()
    module = sys.modules["caltune.metrics.bootstrap"]  # the package attribute is the function of that name
    monkeypatch.setattr(module, "_CHUNK", 70)  # two draws at a time
    np.testing.assert_array_equal(first, bootstrap(statistic, 30, draws=50, seed=1))


def test_bootstrap_needs_questions_and_draws():
    statistic = mean_statistic(np.ones(1))
    with pytest.raises(InputError, match="at least one question, got 0"):
        bootstrap(statistic, 0)
    with pytest.raises(InputError, match="draws must be at least 1, got 0"):
        bootstrap(statistic, 1, draws=0)


def test_accuracy_interval_covers_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        correct = (generator.random(100) < 0.7).astype(float)
        interval = percentile_interval(correct.mean(), bootstrap(mean_statistic(correct), 100, draws=400, seed=seed))
        hits += interval.low <= 0.7 <= interval.high
    assert 0.90 < hits / 300 < 0.985


def given_right(right, size):
    return Predictions(tuple(map(str, range(size))), np.full(size, 0.5), np.arange(size) < right)


def test_interval_of_accuracy_by_hand():
    # None of 10 right: up to p with (1 − p)^10 = 0.025; one of 10: from p with 1 − (1 − p)^10 = 0.025.
    none, one, all_of = (accuracy_interval(given_right(right, 10)) for right in (0, 1, 10))
    assert vars_of(none) == pytest.approx((0, 0, 1 - 0.025**0.1))
    assert vars_of(all_of) == pytest.approx((1, 0.025**0.1, 1))
    assert one.low == pytest.approx(1 - 0.975**0.1)
    assert all(map(math.isnan, vars_of(accuracy_interval(given_right(0, 0)))))
    with pytest.raises(InputError, match="level must lie between 0 and 1, got 1"):
        accuracy_interval(given_right(1, 2), level=1)


@pytest.mark.parametrize("size", [1, 30, 200])
def test_interval_of_accuracy_holds_as_often_as_it_says_even_near_1(size):
    found = [accuracy_interval(given_right(right, size)) for right in range(size + 1)]
    for rate in (0.5, 0.7, 0.97, 0.99, 0.999, 0.9999):
        chances = [math.comb(size, k) * rate**k * (1 - rate) ** (size - k) for k in range(size + 1)]
        held = sum(chance for chance, each in zip(chances, found, strict=True) if each.low <= rate <= each.high)
        assert 0.95 <= held <= 1 + 1e-9


def test_intervals_keep_nan_and_infinity():
    assert all(map(math.isnan, vars_of(percentile_interval(math.nan, np.array([1.0, 2.0])))))
    assert all(map(math.isnan, vars_of(basic_interval(math.nan, np.array([1.0, 2.0])))))
    empty = percentile_interval(1.0, np.array([math.nan]))
    assert empty.value == 1.0
    assert math.isnan(empty.low)
    endless = percentile_interval(math.inf, np.array([1.0, math.inf, math.inf]))
    assert endless == Interval(math.inf, 1.0, math.inf)


def vars_of(interval):
    return interval.value, interval.low, interval.high


def test_basic_interval_by_hand():
    # Quartiles of 0, 1, 2, 3, 4 are 1 and 3; around 2.5: 5 − 3 and 5 − 1. Around 1: −1 is cut to 0, and 1 stays.
    replicates = np.arange(5.0)
    assert basic_interval(2.5, replicates, level=0.5) == Interval(2.5, 2.0, 4.0)
    assert basic_interval(1.0, replicates, level=0.5) == Interval(1.0, 0.0, 1.0)
    assert basic_interval(0.5, replicates, level=0.5) == Interval(0.5, 0.0, 0.5)


def test_ece_interval_finds_a_planted_error():
    # Confidence 0.8 with accuracy 0.7 everywhere: true ECE 0.1. Percentile intervals manage this too; those of a nearly
    # calibrated model (true ECE 0.02) they miss.
    generator = np.random.default_rng(0)
    for truth, least in ((0.1, 0.85), (0.02, 0.75)):
        hits = 0
        for seed in range(100):
            confidence = 0.5 + 0.45 * generator.random(1000)
            correct = (generator.random(1000) < confidence - truth).astype(float)
            given = Predictions(tuple(map(str, range(1000))), confidence, correct)
            replicates = bootstrap(ece_statistic(given), 1000, draws=200, seed=seed)
            interval = basic_interval(ece(given), replicates)
            hits += interval.low <= truth <= interval.high
        assert hits / 100 > least


def test_summary_holds_each_metric_and_its_interval():
    scores = calibrated(300, temperature=0.5)
    found = summarise(scores, draws=200)
    decided = scores.decide()
    wanted = {
        "accuracy": accuracy(decided),
        "confidence": mean_confidence(decided),
        "overconfidence": mean_confidence(decided) - accuracy(decided),
        "ece": ece(decided),
        "ece_mass": ece(decided, binning="mass"),
        "classwise_ece": classwise_ece(scores),
        "smooth_ece": smooth_ece(decided),
        "brier": brier(scores),
        "nll": nll(scores),
        "auroc": auroc(decided),
    }
    assert list(found.metrics) == list(DIRECTIONS)
    assert {name: interval.value for name, interval in found.metrics.items()} == pytest.approx(wanted)
    assert all(interval.low <= interval.value <= interval.high for interval in found.metrics.values())
    assert found.metrics["overconfidence"].low > 0
    assert found.metrics["accuracy"] == accuracy_interval(decided)
    assert found.noise_floor == noise_floor(decided, draws=200)
    assert found.noise_floor_mass == noise_floor(decided, binning="mass", draws=200)
    assert found.corrected == {
        "ece": corrected_ece(decided),
        "ece_mass": corrected_ece(decided, binning="mass"),
    }
    assert found.to_json()["corrected"]["ece"]["low"] == found.corrected["ece"].low > 0
    assert found == summarise(scores, draws=200)


def test_summary_of_all_right_has_null_auroc_in_json():
    found = summarise(OptionLogits(ids=("a",), logits=[[3.0, 1.0]], labels=[0]), draws=20)
    assert found.n == 1
    assert found.metrics["accuracy"] == Interval(1.0, pytest.approx(0.025), 1.0)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert data["metrics"]["ece"]["value"] == pytest.approx(1 - 1 / (1 + math.exp(-2)))


def test_summary_needs_questions_and_labels():
    with pytest.raises(InputError, match="at least one question"):
        summarise(OptionLogits(ids=(), logits=np.zeros((0, 2)), labels=[]))
    with pytest.raises(InputError, match="no label"):
        summarise(OptionLogits(ids=("a",), logits=[[0.0, 1.0]], labels=[-1]))


def test_comparison_says_which_is_better():
    a = calibrated(1500)
    b = OptionLogits(ids=a.ids, logits=3 * a.logits, labels=a.labels)
    found = compare(a, b, draws=200)
    assert found.n == 1500
    for name in ("ece", "ece_mass", "classwise_ece", "smooth_ece", "brier", "nll"):
        assert found.metrics[name].verdict == "worse"
        assert found.metrics[name].p_value == pytest.approx(2 / 201)
        assert found.metrics[name].difference.low > 0
        back = compare(b, a, draws=200).metrics[name]
        assert back.verdict == "better"
        assert back.difference.value == pytest.approx(-found.metrics[name].difference.value)
    assert found.metrics["confidence"].verdict == "higher"
    assert found.metrics["accuracy"].verdict == "no clear difference"
    assert found.metrics["accuracy"].difference == Interval(0.0, 0.0, 0.0)
    assert found.metrics["nll"].value_b == pytest.approx(nll(b))
    worse = OptionLogits(ids=a.ids, logits=-a.logits, labels=a.labels)
    assert compare(a, worse, draws=100).metrics["accuracy"].verdict == "worse"
    assert compare(worse, a, draws=100).metrics["auroc"].verdict == "better"


def test_pairing_is_by_id_and_narrows_the_interval():
    a = calibrated(400)
    b = OptionLogits(ids=a.ids, logits=a.logits * np.float32(1.2), labels=a.labels)
    order = np.random.default_rng(0).permutation(400)
    plain, mixed = compare(a, b, draws=100), compare(a, b.take(order), draws=100)
    assert plain == mixed
    difference = plain.metrics["nll"].difference
    alone = summarise(a, draws=100).metrics["nll"]
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def nll_column(scores):
    return lambda counts: mean_statistic(nll_per_question(scores))(counts)[:, None]


def test_comparison_of_equals_seldom_finds_a_difference():
    # Two noisy copies of one truth: equal on average, so p < 0.05 in about 5 % of trials.
    found = 0
    for seed in range(100):
        generator = np.random.default_rng(seed + 1000)
        truth = calibrated(200, seed=seed)
        noisy = (truth.logits + generator.normal(size=truth.logits.shape) for _ in range(2))
        a, b = (nll_column(OptionLogits(truth.ids, each, truth.labels)) for each in noisy)
        compared = compare_statistics(a, b, {"nll": DIRECTIONS["nll"]}, 200, {"nll": 200}, draws=100, seed=seed)
        found += compared.metrics["nll"].verdict != "no clear difference"
    assert found <= 12


def test_rounding_is_no_difference():
    a = calibrated(100)
    surer = np.nextafter(a.logits, 2 * a.logits)  # every logit a last place larger: NLL moves steadily, by 1e-7
    found = compare(a, OptionLogits(a.ids, surer, a.labels), draws=50).metrics
    assert found["nll"].value_a != found["nll"].value_b
    assert found["nll"].p_value == 1.0
    assert {each.verdict for each in found.values()} == {"no clear difference"}


def test_comparison_with_infinite_nll_is_undefined_and_json():
    a = OptionLogits(tuple(map(str, range(30))), logits=[[0.0, -np.inf], [0.0, 1.0]] * 15, labels=[1, 1] * 15)
    found = compare(a, a, draws=20)
    assert math.isnan(found.metrics["nll"].p_value)
    assert found.metrics["nll"].verdict == "no clear difference"
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["metrics"]["nll"]["value_a"] is None
    assert data["metrics"]["brier"]["p_value"] == 1.0


def test_a_model_that_rules_right_options_out_is_worse_beyond_doubt():
    a = calibrated(60)
    logits = a.logits.copy()
    logits[np.arange(0, 60, 2), a.labels[::2]] = -np.inf
    found = compare(a, OptionLogits(a.ids, logits, a.labels), draws=100).metrics["nll"]
    assert found.difference.value == found.difference.low == math.inf  # every resample draws one of 30
    assert (found.verdict, found.p_value) == ("worse", pytest.approx(2 / 101))
    assert compare(OptionLogits(a.ids, logits, a.labels), a, draws=100).metrics["nll"].verdict == "better"


def test_more_than_a_hundred_thousand_questions_get_fewer_resamples(monkeypatch):
    sizes = (1, 100_000, 200_000, 500_000, 10**7)
    assert [default_draws(size) for size in sizes] == [1000, 1000, 500, 200, 200]
    scores = calibrated(60)
    assert summarise(scores) == summarise(scores, draws=1000)
    monkeypatch.setattr(sys.modules["caltune.metrics.bootstrap"], "_MOST_WORK", 60 * 300)
    assert summarise(scores) == summarise(scores, draws=300)
    other = calibrated(60, temperature=0.5)
    assert compare(scores, other) == compare(scores, other, draws=300)
    answers = scores.decide()
    assert summarise_answers(answers) == summarise_answers(answers, draws=300)
    assert compare_answers(answers, other.decide()) == compare_answers(answers, other.decide(), draws=300)


def test_comparison_refuses_other_questions_and_labels():
    a = calibrated(5)
    with pytest.raises(InputError, match="2 only in the first and 0 only in the second; id 'q0' is only in the first"):
        compare(a, a.take([2, 3, 4]))
    with pytest.raises(InputError, match="0 only in the first and 1 only in the second; id 'q3' is only in the second"):
        compare(a.take([0, 1, 2, 4]), a)
    labels = a.labels.copy()
    labels[1] = (labels[1] + 1) % 4
    with pytest.raises(InputError, match=f"1 that differ, first id 'q1': {a.labels[1]} and {labels[1]}"):
        compare(a, OptionLogits(a.ids, a.logits, labels))
