"""Groups and options: the exact distribution of right answers, hand values, and how often calibrated models alarm."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.metrics import classwise_ece, group_calibration, option_calibration, poisson_binomial
from caltune.types import OptionLogits, Predictions


def test_poisson_binomial_is_the_sum_over_all_outcomes():
    probabilities = np.array([0.9, 0.5, 0.2, 0.7, 1.0])
    expected = np.zeros(6)
    for outcome in product((0, 1), repeat=5):
        chance = np.prod(np.where(np.array(outcome) == 1, probabilities, 1 - probabilities))
        expected[sum(outcome)] += chance
    np.testing.assert_allclose(poisson_binomial(probabilities), expected, atol=1e-15)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 200])
def test_equal_probabilities_are_binomial(size):
    expected = [math.comb(size, k) * Fraction(3, 10) ** k * Fraction(7, 10) ** (size - k) for k in range(size + 1)]
    np.testing.assert_allclose(poisson_binomial(np.full(size, 0.3)), np.array(expected, dtype=float), atol=1e-14)


def test_many_probabilities_are_joined_as_one_by_one():
    probabilities = np.random.default_rng(0).random(700) ** 3
    probabilities[:2] = 0.0, 1.0
    expected = np.ones(1)
    for p in probabilities:
        expected = np.convolve(expected, [1 - p, p])
    np.testing.assert_allclose(poisson_binomial(probabilities), expected, atol=1e-14)
    assert (poisson_binomial(np.full(5000, 1e-9)) >= 0).all()


def test_work_grows_with_the_questions_and_not_their_square(monkeypatch):
    # 2^14 questions join in 14 rounds: after the first six, whose rows have at most 33 numbers, by transforms of both
    # sides and one back, each of about as many numbers as there are questions.
    count = 2**14
    work = []
    for name in ("rfft", "irfft"):
        plain = getattr(np.fft, name)

        def counted(rows, length, axis, plain=plain):
            work.append(len(rows) * length)
            return plain(rows, length, axis=axis)

        monkeypatch.setattr(np.fft, name, counted)
    confidence = np.random.default_rng(0).random(count)
    (whole,) = group_calibration(Predictions(tuple(map(str, range(count))), confidence, np.ones(count)))
    assert len(work) == 3 * (14 - 6)
    assert max(work) < 1.1 * count
    # 1.96 standard deviations: √(N E[c (1 − c)]) = √(N / 6).
    assert (whole.high - whole.low) * count == pytest.approx(2 * 1.96 * math.sqrt(count / 6), rel=0.01)


def test_groups_in_any_order_are_those_of_plain_loops():
    generator = np.random.default_rng(3)
    confidence, right = generator.random(300), generator.integers(0, 2, 300).astype(float)
    groups = tuple(f"g{i}" for i in generator.integers(0, 90, 300))
    found = group_calibration(Predictions(tuple(map(str, range(300))), confidence, right, groups))
    assert [one.name for one in found] == sorted(set(groups))
    for one in found:
        rows = [i for i in range(300) if groups[i] == one.name]
        assert (one.n, one.says, one.right) == (
            len(rows),
            pytest.approx(confidence[rows].mean()),
            pytest.approx(right[rows].mean()),
        )


def test_quantiles_of_one_group_by_hand():
    # Three at 0.5: P(0) = 0.125, so at level 0.7 (tails 0.15) 0 right lies outside and 1 to 2 inside.
    some = Predictions(("a", "b", "c"), [0.5] * 3, [0, 0, 0])
    (found,) = group_calibration(some, level=0.7)
    assert (found.low, found.high, found.beyond_chance) == (pytest.approx(1 / 3), pytest.approx(2 / 3), True)
    (found,) = group_calibration(some, level=0.76)  # tails 0.12
    assert (found.low, found.high, found.beyond_chance) == (0.0, 1.0, False)


def test_calibrated_models_have_a_group_outside_in_at_most_one_of_twenty():
    generator = np.random.default_rng(0)
    groups = tuple(f"g{i % 8}" for i in range(160))
    ids = tuple(map(str, range(160)))
    alarms = 0
    for _ in range(200):
        confidence = generator.uniform(0.3, 1.0, 160)
        right = (generator.random(160) < confidence).astype(float)
        alarms += any(one.beyond_chance for one in group_calibration(Predictions(ids, confidence, right, groups)))
    assert alarms <= 18  # 5 % of 200 is 10, and 18 lies 2.6 standard errors above


def test_a_planted_group_is_found_and_no_other():
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.5, 1.0, 600)
    groups = tuple("abc"[i % 3] for i in range(600))
    fault = np.array([0.3 if group == "b" else 0.0 for group in groups])
    right = (generator.random(600) < confidence - fault).astype(float)
    found = group_calibration(Predictions(tuple(map(str, range(600))), confidence, right, groups))
    assert [(one.name, one.beyond_chance) for one in found] == [("a", False), ("b", True), ("c", False)]
    assert found[1].says - found[1].right == pytest.approx(0.3, abs=0.08)
    assert sum(one.n for one in found) == 600


def test_options_over_the_questions_that_have_them():
    # A: 1 and 2 and 3, says (0.5 + 1/3 + 0.5) / 3; C: only the second question.
    logits = [[0.0, 0.0, -np.inf], [0.0, 0.0, 0.0], [0.0, 0.0, -np.inf]]
    found = option_calibration(OptionLogits(("1", "2", "3"), logits, [0, 2, 1]))
    assert [(one.name, one.n) for one in found] == [("A", 3), ("B", 3), ("C", 1)]
    assert [one.says for one in found] == pytest.approx([4 / 9, 4 / 9, 1 / 3])
    assert [one.right for one in found] == pytest.approx([1 / 3, 1 / 3, 1.0])


def test_a_right_option_that_is_ruled_out_counts_as_said_never():
    # B: says 0.5 and is wrong, says 0 and is right; A: says 0.5 and is right, says 1 and is wrong.
    scores = OptionLogits(("1", "2"), [[0.0, 0.0], [0.0, -np.inf]], [0, 1])
    found = option_calibration(scores)
    assert [(one.name, one.n, one.says, one.right) for one in found] == [("A", 2, 0.75, 0.5), ("B", 2, 0.25, 0.5)]
    assert classwise_ece(scores) == 0.75  # (0.5 + 1) / 2 for each


def test_a_favoured_position_is_found():
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(1000, 4))
    labels = generator.integers(0, 4, 1000)
    logits[np.arange(1000), labels] += 2
    logits[:, 0] += 1.5
    found = option_calibration(OptionLogits(tuple(map(str, range(1000))), logits, labels))
    assert found[0].right < found[0].low < found[0].says
    assert all(one.right > one.high > one.says for one in found[1:])
    assert all(one.beyond_chance for one in found)


def test_sure_and_impossible_leave_chance_no_room():
    logits = [[0.0, -1e30], [0.0, -1e30]]
    found = option_calibration(OptionLogits(("1", "2"), logits, [0, 1]))
    assert [(one.low, one.high, one.beyond_chance) for one in found] == [(1.0, 1.0, True), (0.0, 0.0, True)]


def test_levels_and_labels():
    some = Predictions(("a",), [0.5], [1])
    for level in (0.0, 1.0):
        with pytest.raises(InputError, match="level must lie between 0 and 1"):
            group_calibration(some, level)
    with pytest.raises(InputError, match="no label"):
        option_calibration(OptionLogits(("q",), [[0.0, 1.0]], [-1]))
    assert group_calibration(Predictions((), [], [])) == []
