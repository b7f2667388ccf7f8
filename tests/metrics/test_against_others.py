"""Our metrics against other libraries': where they agree, and each place where they do not, as docs/papers.md explains.

scikit-learn is always there; torchmetrics, netcal and relplot are asked where they are installed.
"""

import math

import numpy as np
import pytest
from predicted import drawn, predictions

from caltune.metrics import auroc, ece, mce, nll, reliability_bins, smooth_ece
from caltune.types import OptionLogits

RANDOM = [drawn(size, seed=size, shift=0.1) for size in (1, 5, 50, 500)]
# Two answers in one bin of ten, the surest of them at 1 and wrong: |0.05 − 1| / 2.
AT_ONE = predictions([0.95, 1.0], [1, 0])
# 0.5 ends the first of two right-closed bins, and begins the second of two left-closed ones.
ON_AN_EDGE = predictions([0.5, 0.7], [0, 1])


def test_what_these_are_with_us():
    assert ece(AT_ONE, 10) == pytest.approx(0.475)
    assert ece(ON_AN_EDGE, 2) == pytest.approx((0.5 + 0.3) / 2)


def test_sklearn_curve_has_our_bins_on_their_edges_too():
    from sklearn.calibration import calibration_curve

    edges = predictions(np.arange(17) / 16, np.arange(17) % 3 == 0)
    for some in (*RANDOM[1:], edges):
        right, mean = calibration_curve(some.correct, some.confidence, n_bins=8)
        found = reliability_bins(some, 8)
        filled = found.count > 0
        np.testing.assert_allclose(found.accuracy[filled], right)
        np.testing.assert_allclose(found.confidence[filled], mean)


def test_sklearn_auroc_with_ties():
    from sklearn.metrics import roc_auc_score

    for some in RANDOM[2:]:
        tied = predictions(some.confidence.round(1), some.correct)
        assert auroc(tied) == pytest.approx(roc_auc_score(tied.correct, tied.confidence))


def test_sklearn_cuts_an_infinite_log_loss_off():
    from sklearn.metrics import log_loss

    ruled_out = OptionLogits(("a", "b"), [[0.0, -np.inf], [0.0, 0.0]], [1, 0])
    assert nll(ruled_out) == math.inf
    theirs = log_loss(ruled_out.labels, ruled_out.probabilities(), labels=[0, 1])
    assert theirs == pytest.approx((-math.log(np.finfo(float).eps) + math.log(2)) / 2)


def test_torchmetrics_closes_bins_on_the_left_and_gives_1_a_bin_of_its_own():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    def theirs(some, bins, norm="l1"):
        given = torch.tensor(some.confidence), torch.tensor(some.correct, dtype=torch.long)
        return float(functional.binary_calibration_error(*given, n_bins=bins, norm=norm))

    for some in RANDOM:
        assert theirs(some, 15) == pytest.approx(ece(some), abs=1e-6)
        assert theirs(some, 15, "max") == pytest.approx(mce(some), abs=1e-6)
    assert theirs(AT_ONE, 10) == pytest.approx((0.05 + 1) / 2)
    assert theirs(AT_ONE, 10, "max") == pytest.approx(1.0)
    assert theirs(ON_AN_EDGE, 2) == pytest.approx((0.5 - 0.3) / 2)


def test_netcal_closes_bins_on_the_left_but_the_last():
    metrics = pytest.importorskip("netcal.metrics")

    def theirs(some, bins, kind="ECE", **how):
        return float(getattr(metrics, kind)(bins, detection=True, **how).measure(some.confidence, some.correct))

    for some in RANDOM:
        assert theirs(some, 15) == pytest.approx(ece(some))
        assert theirs(some, 15, "MCE") == pytest.approx(mce(some))
    for some in RANDOM[2:]:  # its bins of equal mass end between answers, ours at one
        assert theirs(some, 10, equal_intervals=False) == pytest.approx(ece(some, 10, "mass"), abs=0.01)
    assert theirs(AT_ONE, 10) == pytest.approx(ece(AT_ONE, 10))
    assert theirs(ON_AN_EDGE, 2) == pytest.approx((0.5 - 0.3) / 2)
    with pytest.raises(ValueError, match="edge difference"):  # equal confidences leave it no edges
        theirs(predictions([0.6] * 10, [1] * 10), 10, equal_intervals=False)


def test_relplot_smooths_alike_but_counts_answers_at_0_and_1_half():
    metrics = pytest.importorskip("relplot.metrics")
    for some in RANDOM:
        assert metrics.smECE(some.confidence, some.correct) == pytest.approx(smooth_ece(some), abs=1e-3)
        assert metrics.binnedECE(some.confidence, some.correct, 15) == pytest.approx(ece(some))
    # No error can be below the mean residual, 0.475. Theirs halves the answer at 1: (0.5 / 2 − 0.025) / (0.5 + 0.25).
    assert smooth_ece(AT_ONE) == pytest.approx(0.475)
    assert metrics.smECE(AT_ONE.confidence, AT_ONE.correct) == pytest.approx(0.3, abs=2e-3)
    assert metrics.binnedECE(AT_ONE.confidence, AT_ONE.correct, 10) == pytest.approx((0.05 + 1) / 2)
    assert metrics.binnedECE(ON_AN_EDGE.confidence, ON_AN_EDGE.correct, 2) == pytest.approx((0.5 - 0.3) / 2)
