"""Brier, NLL, AUROC, coverage, classwise and smooth ECE against hand values and independent implementations."""

import math

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.metrics import (
    accuracy,
    auroc,
    brier,
    brier_per_question,
    classwise_ece,
    classwise_ece_statistic,
    ece,
    mean_confidence,
    nll,
    nll_per_question,
    risk_coverage,
    smooth_ece,
)
from caltune.types import OptionLogits, Predictions


def predictions(confidence, correct):
    return Predictions(
        ids=tuple(str(i) for i in range(len(confidence))), confidence=np.array(confidence), correct=np.array(correct)
    )


def option_logits(logits, labels):
    return OptionLogits(ids=tuple(str(i) for i in range(len(labels))), logits=np.array(logits), labels=np.array(labels))


def random_scores(size, options=4, seed=0):
    generator = np.random.default_rng(seed)
    return option_logits(2 * generator.normal(size=(size, options)), generator.integers(0, options, size))


def test_brier_and_nll_by_hand():
    # p = (0.5, 0.25, 0.25) and, with two options, (0.8, 0.2).
    given = option_logits([[math.log(2), 0, 0], [math.log(4), 0, -np.inf]], [0, 1])
    np.testing.assert_allclose(brier_per_question(given), [0.25 + 2 / 16, 0.64 + 0.64], atol=1e-6)
    np.testing.assert_allclose(nll_per_question(given), [math.log(2), math.log(5)], atol=1e-6)
    assert brier(given) == pytest.approx((0.375 + 1.28) / 2)
    assert nll(given) == pytest.approx((math.log(2) + math.log(5)) / 2)


def test_worst_and_best():
    assert brier(option_logits([[1000.0, 0.0]], [1])) == 2.0
    assert nll(option_logits([[1000.0, 0.0]], [1])) == 1000.0
    assert brier(option_logits([[1000.0, 0.0]], [0])) == 0.0
    certain = nll_per_question(option_logits([[1000.0, 0.0]], [0]))[0]
    assert certain == 0.0
    assert math.copysign(1, certain) == 1.0  # not -0.0
    assert nll(option_logits([[1.0, -np.inf]], [1])) == math.inf


def test_against_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    given = random_scores(300)
    assert nll(given) == pytest.approx(metrics.log_loss(given.labels, given.probabilities(), labels=range(4)))
    two = random_scores(300, options=2, seed=1)
    # sklearn scores one of the two options; ours is the sum over both.
    assert brier(two) == pytest.approx(2 * metrics.brier_score_loss(two.labels, two.probabilities()[:, 1]))


def test_nothing_is_nan_not_zero():
    none = OptionLogits(ids=(), logits=np.zeros((0, 4)), labels=np.zeros(0))
    for value in (brier(none), nll(none), classwise_ece(none), accuracy(none.decide()), mean_confidence(none.decide())):
        assert math.isnan(value)
    assert math.isnan(auroc(none.decide()))
    assert math.isnan(smooth_ece(none.decide()))
    assert [len(part) for part in risk_coverage(none.decide())] == [0, 0]


@pytest.mark.parametrize("metric", [brier, nll, classwise_ece])
def test_unknown_labels_raise(metric):
    with pytest.raises(InputError, match="1 questions have no label, the first is id '1'"):
        metric(option_logits([[0.0, 1.0], [0.0, 1.0]], [0, -1]))


def test_auroc_by_hand_and_special_cases():
    # Right 0.9, 0.5; wrong 0.5, 0.2: pairs 1, 1, ½, 1.
    assert auroc(predictions([0.9, 0.5, 0.5, 0.2], [1, 1, 0, 0])) == 3.5 / 4
    assert auroc(predictions([0.9, 0.1], [1, 0])) == 1.0
    assert auroc(predictions([0.9, 0.1], [0, 1])) == 0.0
    assert auroc(predictions([0.5] * 4, [1, 0, 0, 1])) == 0.5
    assert math.isnan(auroc(predictions([0.9, 0.1], [1, 1])))
    assert math.isnan(auroc(predictions([0.9, 0.1], [0, 0])))
    assert math.isnan(auroc(predictions([0.9], [1])))


@pytest.mark.parametrize("decimals", [1, 2, 12])  # few decimals: many ties
def test_auroc_against_sklearn(decimals):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(decimals)
    confidence = generator.random(400).round(decimals)
    correct = (generator.random(400) < confidence).astype(float)
    assert auroc(predictions(confidence, correct)) == pytest.approx(metrics.roc_auc_score(correct, confidence))
    assert auroc(predictions(confidence**3, correct)) == auroc(predictions(confidence, correct))


def test_risk_coverage_cuts_only_between_distinct_confidences():
    given = predictions([0.5, 0.9, 0.5, 0.5, 0.2], [1, 1, 0, 0, 1])
    coverage, kept_accuracy = risk_coverage(given)
    np.testing.assert_allclose(coverage, [0.2, 0.8, 1.0])
    np.testing.assert_allclose(kept_accuracy, [1.0, 0.5, 0.6])
    slow = [given.correct[given.confidence >= c].mean() for c in sorted(set(given.confidence), reverse=True)]
    np.testing.assert_allclose(kept_accuracy, slow)


def test_classwise_by_hand():
    # Option 0 at p = 0.8, 0.8 and right once: |0.5 − 0.8| = 0.3; option 1 at 0.2, 0.2: 0.3 as well.
    log_odds = math.log(4)
    given = option_logits([[log_odds, 0.0], [log_odds, 0.0]], [0, 1])
    assert classwise_ece(given) == pytest.approx(0.3)


def test_classwise_counts_an_option_over_the_rows_that_have_it():
    # Options 0 and 1: row a at 1/3 each, label 2; row b at ½ each, label 0. Option 2 only in row a.
    given = option_logits([[0.0, 0.0, 0.0], [0.0, 0.0, -np.inf]], [2, 0])
    # option 0, bins apart: (|0 − 1/3| + |1 − 1/2|) / 2; option 1: (1/3 + 1/2) / 2; option 2: |1 − 1/3| over one row
    wanted = ((1 / 3 + 1 / 2) / 2 + (1 / 3 + 1 / 2) / 2 + 2 / 3) / 3
    assert classwise_ece(given) == pytest.approx(wanted)
    wider = option_logits(np.pad(given.logits, ((0, 0), (0, 2)), constant_values=-np.inf), given.labels)
    assert classwise_ece(wider) == pytest.approx(wanted)


def test_classwise_resample_without_an_option_leaves_it_out():
    # The second row alone: options 0 and 1 at ½, both off by ½; option 2 does not occur.
    given = option_logits([[0.0, 0.0, 0.0], [0.0, 0.0, -np.inf]], [2, 0])
    assert classwise_ece_statistic(given)(np.array([[0.0, 2.0]])).tolist() == [0.5]


def test_classwise_is_the_mean_of_one_against_the_rest():
    given = random_scores(300, seed=5)
    one_against_rest = [
        ece(predictions(given.probabilities()[:, k], (given.labels == k).astype(float))) for k in range(4)
    ]
    assert classwise_ece(given) == pytest.approx(np.mean(one_against_rest))


def test_classwise_bound():
    # methods.md: classwise ECE ≤ (2/K) · E[1 − p_y]
    for seed in range(20):
        given = random_scores(30, seed=seed)
        of_label = given.probabilities()[np.arange(30), given.labels]
        assert classwise_ece(given) <= 2 / 4 * (1 - of_label).mean() + 1e-12


def direct_smooth_ece(confidence, correct):
    """The formula on a fine grid: every answer, every reflection, bisection on the width."""
    grid = (np.arange(4000) + 0.5) / 4000

    def error(width):
        smoothed = np.zeros(len(grid))
        for c, a in zip(confidence, correct, strict=True):
            for k in range(-3, 4):
                for distance in (grid - c + 2 * k, grid + c + 2 * k):
                    smoothed += (c - a) * np.exp(-0.5 * (distance / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return np.abs(smoothed / len(confidence)).mean()

    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return error(high)


@pytest.mark.parametrize(("size", "power"), [(1, 1.0), (6, 1.0), (25, 0.5), (25, 3.0)])
def test_smooth_ece_against_the_formula(size, power):
    generator = np.random.default_rng(size)
    confidence = generator.random(size)
    correct = (generator.random(size) < confidence**power).astype(float)
    given = predictions(confidence, correct)
    assert smooth_ece(given) == pytest.approx(direct_smooth_ece(confidence, correct), abs=3e-4)


def test_smooth_ece_special_models():
    assert smooth_ece(predictions([0.97] * 5, [0] * 5)) == pytest.approx(0.97)
    assert smooth_ece(predictions([1.0, 1.0], [0, 0])) == pytest.approx(1.0)
    assert smooth_ece(predictions([0.0, 0.0], [1, 1])) == pytest.approx(1.0)
    assert smooth_ece(predictions([0.75] * 4, [1, 1, 1, 0])) == pytest.approx(0.0, abs=1e-9)
    assert smooth_ece(predictions([1.0, 0.0], [1, 0])) == 0.0


def test_smooth_ece_does_not_jump_at_a_bin_edge():
    # Four answers that move across 0.6: ECE jumps, smooth ECE hardly moves.
    def around(shift):
        return predictions([0.6 - 1e-6, 0.6 - 1e-6, 0.6 + shift, 0.6 + shift], [1, 1, 0, 0])

    assert ece(around(-1e-6)) == pytest.approx(0.1, abs=1e-4)
    assert ece(around(1e-6)) == pytest.approx(0.5, abs=1e-4)
    assert smooth_ece(around(-1e-6)) == pytest.approx(smooth_ece(around(1e-6)), abs=1e-4)
