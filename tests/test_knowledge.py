"""Categories of knowledge, and the NLL detector: against brute force, ties, a planted threshold, order only."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from caltune import knowledge
from caltune.errors import InputError
from caltune.knowledge import (
    CATEGORIES,
    Detector,
    Knowledge,
    categorise,
    detector_accuracy,
    drawn_at_least_once,
    fit_detector,
)


def brute_force(nll: np.ndarray, known: np.ndarray) -> tuple[Fraction, float]:
    """Exact best TPR + TNR over every threshold that is an NLL, and the lowest such NLL."""
    best, where = Fraction(-1), math.nan
    for threshold in sorted(set(nll.tolist())):
        true_positive = sum(1 for x, k in zip(nll, known, strict=True) if k and x <= threshold)
        true_negative = sum(1 for x, k in zip(nll, known, strict=True) if not k and x > threshold)
        value = Fraction(true_positive, int(known.sum())) + Fraction(true_negative, int((~known).sum()))
        if value > best:
            best, where = value, threshold
    return best, where


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("size", [2, 7, 40])
def test_against_brute_force(seed: int, size: int) -> None:
    draw = np.random.default_rng([seed, size])
    nll = draw.integers(0, 12, size) / 4 if seed % 2 else draw.exponential(size=size)  # half of them with many ties
    known = draw.random(size) < np.exp(-nll)
    known[0], known[-1] = True, False
    found = fit_detector(nll, known)
    best, where = brute_force(nll, known)
    # The same questions are known as with the lowest best threshold: exact even where rates tie.
    assert ((nll <= found.threshold) == (nll <= where)).all()
    assert found.true_positive_rate + found.true_negative_rate == pytest.approx(float(best), abs=1e-12)
    assert found.true_positive_rate == pytest.approx((nll[known] <= found.threshold).mean())
    assert found.true_negative_rate == pytest.approx((nll[~known] > found.threshold).mean())


def test_by_hand() -> None:
    # Cut after 0.2: TPR 2/3, TNR 2/2, sum 5/3. After 1.0 (known again): TPR 1, TNR 1/2. Half-way from 0.2 to 0.6.
    nll = np.array([1.0, 0.2, 0.6, 0.1, 3.0])
    known = np.array([True, True, False, True, False])
    found = fit_detector(nll, known)
    assert found.threshold == pytest.approx(0.4)
    assert found.true_positive_rate == pytest.approx(2 / 3)
    assert found.true_negative_rate == 1


def test_equal_nlls_fall_on_one_side() -> None:
    # Three questions at 0.5 cannot be told apart: TPR 1 and TNR 1/2 with them, 0 and 1 without. Half-way to 2.
    found = fit_detector(np.array([0.5, 0.5, 0.5, 2.0]), np.array([True, True, False, False]))
    assert found == Detector(1.25, 1.0, 0.5)


def test_among_equals_the_lowest() -> None:
    # known, unknown, known, unknown: TPR + TNR is 1/2 + 1 after the first, 1 + 1/2 after the third.
    found = fit_detector(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False]))
    assert found == Detector(1.5, 0.5, 1.0)
    # 1/3 + 1 and 1 + 1/3 are equal, though not as sums of rounded rates.
    known = np.array([True, False, False, True, True, False])
    assert fit_detector(np.arange(6.0), known).threshold == 0.5


def test_where_nothing_beats_chance_all_are_known() -> None:
    found = fit_detector(np.array([1.0, 2.0]), np.array([False, True]))
    assert found == Detector(2.0, 1.0, 0.0)


def test_one_kind_only() -> None:
    everything = fit_detector(np.array([0.1, 9.0]), np.array([True, True]))
    assert (everything.threshold, everything.true_positive_rate) == (math.inf, 1.0)
    assert math.isnan(everything.true_negative_rate)
    nothing = fit_detector(np.array([0.1]), np.array([False]))
    assert (nothing.threshold, nothing.true_negative_rate) == (-math.inf, 1.0)
    assert math.isnan(nothing.true_positive_rate)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_an_nll_must_be_finite(bad: float) -> None:
    with pytest.raises(InputError, match=f"an answer's NLL must be finite or inf, got {bad}"):
        fit_detector(np.array([0.1, bad]), np.array([True, False]))


def test_an_answer_that_is_ruled_out_is_unknown():
    nll = np.array([0.1, 0.4, np.inf, np.inf])
    found = fit_detector(nll, np.array([True, True, False, False]))
    assert (nll <= found.threshold).tolist() == [True, True, False, False]
    assert np.isfinite(found.threshold)


def test_an_answer_that_is_ruled_out_and_known_is_counted_as_it_is_judged():
    nll = np.array([0.1, np.inf])
    found = fit_detector(nll, np.array([False, True]))
    assert (nll <= found.threshold).tolist() == [True, True]
    assert (found.true_positive_rate, found.true_negative_rate) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("nll", "known"),
    [([], []), ([0.1, 0.2], [True]), ([[0.1]], [[True]]), (0.1, True)],
)
def test_shapes_must_agree(nll: object, known: object) -> None:
    with pytest.raises(InputError, match="a detector needs NLLs and known flags of one length above 0, got"):
        fit_detector(np.array(nll), np.array(known, dtype=bool))


def test_a_planted_threshold_is_found() -> None:
    draw = np.random.default_rng(0)
    nll = draw.exponential(size=4000)
    known = (nll <= 0.7) ^ (draw.random(4000) < 0.05)  # five in a hundred flags are wrong
    found = fit_detector(nll, known)
    assert found.threshold == pytest.approx(0.7, abs=0.02)
    assert found.true_positive_rate > 0.9
    assert found.true_negative_rate > 0.9


@pytest.mark.parametrize("change", [np.exp, lambda x: 5 * x - 3, np.sqrt, lambda x: -1 / (1 + x)])
def test_only_the_order_matters(change: Callable[[np.ndarray], np.ndarray]) -> None:
    draw = np.random.default_rng(1)
    nll = draw.exponential(size=200)
    known = draw.random(200) < np.exp(-nll)
    before, after = fit_detector(nll, known), fit_detector(change(nll), known)
    assert ((nll <= before.threshold) == (change(nll) <= after.threshold)).all()
    assert before.true_positive_rate == after.true_positive_rate


def test_the_order_of_the_questions_does_not_matter() -> None:
    draw = np.random.default_rng(2)
    nll, known = draw.integers(0, 9, 60) / 2, draw.random(60) < 0.5
    order = draw.permutation(60)
    assert fit_detector(nll[order], known[order]) == fit_detector(nll, known)


def test_categories_by_their_definition() -> None:
    # P(T = 0) and whether sampling finds the answer; the greedy share alone decides where it is above 0.
    cases = {(1.0, True): 0, (1.0, False): 0, (0.999, True): 1, (1e-9, False): 1, (0.0, True): 2, (0.0, False): 3}
    greedy, drawn = zip(*cases, strict=True)
    assert categorise(greedy, drawn) == tuple(CATEGORIES[i] for i in cases.values())


@pytest.mark.parametrize("samples", [1, 4, 16, 100])
def test_drawn_is_the_half_of_a_simulation(samples: int) -> None:
    edge = 1 - 0.5 ** (1 / samples)  # 1 − (1 − p)ⁿ = 1/2
    assert drawn_at_least_once([0.0, edge * 0.99, edge * 1.01, 1.0], samples).tolist() == [False, False, True, True]
    draw = np.random.default_rng(0)
    hit = (draw.random((20_000, samples)) < edge).any(axis=1).mean()
    assert hit == pytest.approx(0.5, abs=0.02)
    with pytest.raises(InputError, match="samples must be at least 1, got 0"):
        drawn_at_least_once([0.5], 0)


def some_knowledge(**changes: object) -> Knowledge:
    columns = {
        "ids": ("a", "b", "c", "d"),
        "categories": CATEGORIES,
        "greedy_right": [1.0, 0.5, 0.0, 0.0],
        "sampled_right": [0.9, 0.5, 0.1, 0.0],
    }
    return Knowledge(**{**columns, **changes})


def test_known_is_highly_or_maybe_known() -> None:
    found = some_knowledge()
    assert found.known.tolist() == [True, True, False, False]
    assert found.counts() == dict.fromkeys(CATEGORIES, 1)
    assert found.known_of(["d", "b", "b"]).tolist() == [False, True, True]
    with pytest.raises(InputError, match=r"2 of 3 questions have no category, the first is id 'x'"):
        found.known_of(["a", "x", "y"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ("a", "b", "c")}, r"one length, got 3, 4, \(4,\) and \(4,\)"),
        ({"sampled_right": [0.5]}, r"one length, got 4, 4, \(4,\) and \(1,\)"),
        ({"ids": ("a", "b", "c", "b")}, "ids must be unique, got 'b' more than once"),
        ({"categories": ("Known", *CATEGORIES[1:])}, "a category must be one of .*got 'Known' for id 'a'"),
        ({"greedy_right": [1.0, 1.5, 0.0, 0.0]}, r"greedy_right must lie in \[0, 1\], got 1.5 for id 'b'"),
        ({"sampled_right": [0.9, math.nan, 0.0, 0.0]}, r"sampled_right must lie in \[0, 1\], got nan for id 'b'"),
        ({"greedy_right": [0.9, 0.5, 0.0, 0.0]}, "0.9 must go with its category, got HighlyKnown for id 'a'"),
        ({"greedy_right": [1.0, 1.0, 0.0, 0.0]}, "1.0 must go with its category, got MaybeKnown for id 'b'"),
        ({"greedy_right": [1.0, 0.5, 0.0, 0.1]}, "0.1 must go with its category, got Unknown for id 'd'"),
    ],
)
def test_knowledge_that_contradicts_itself(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        some_knowledge(**changes)


def test_all_rows_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(knowledge, "categorise", lambda *columns: calls.append(columns) or categorise(*columns))
    ids = tuple(map(str, range(1000)))
    assert Knowledge(ids, CATEGORIES * 250, [1.0, 0.5, 0.0, 0.0] * 250, np.zeros(1000)).counts()["Unknown"] == 250
    assert len(calls) == 1


def test_the_detector_is_judged_on_the_other_half() -> None:
    # SHA-256 of a, b, c, d begins with ca, 3e, 2e, 18: the halves are d, b and c, a.
    nll, known = np.array([0.1, 0.2, 3.0, 4.0]), np.array([False, True, True, False])  # of a, b, c, d
    # Fitted on b (known, 0.2) and d (4.0): 2.1, wrong for a and c. On a (0.1) and c (known, 3.0): 3.0, right for b, d.
    assert detector_accuracy(["a", "b", "c", "d"], nll, known) == 0.5
    assert math.isnan(detector_accuracy(["a"], nll[:1], known[:1]))


def test_accuracy_without_signal_is_no_better_than_chance() -> None:
    draw = np.random.default_rng(0)
    ids = [f"q{i}" for i in range(30)]
    own, other = [], []
    for _ in range(300):
        nll, known = draw.exponential(size=30), draw.random(30) < 0.5
        own.append(((nll <= fit_detector(nll, known).threshold) == known).mean())
        other.append(detector_accuracy(ids, nll, known))
    assert np.mean(own) > 0.58  # on the very questions it was fitted on a detector looks better than it is
    assert np.mean(other) == pytest.approx(0.5, abs=0.03)


def test_accuracy_finds_a_planted_share_of_wrong_flags() -> None:
    draw = np.random.default_rng(3)
    nll = draw.exponential(size=2000)
    known = (nll <= 0.7) ^ (draw.random(2000) < 0.1)
    ids = [str(i) for i in range(2000)]
    assert detector_accuracy(ids, nll, known) == pytest.approx(0.9, abs=0.03)
    order = draw.permutation(2000)
    assert detector_accuracy([ids[i] for i in order], nll[order], known[order]) == detector_accuracy(ids, nll, known)
