"""What so many questions cannot show: sentences against arithmetic by hand and against exact tests."""

import numpy as np
import pytest

from caltune.metrics import calibration_test, compare
from caltune.metrics.strata import poisson_binomial
from caltune.report.power import detectable_overconfidence, power_lines
from caltune.types import OptionLogits


def plain(text):
    return text.replace("\u00a0", " ")


def answers_at(confidence, size, options=2, labels=0):
    rest = (1 - confidence) / (options - 1)
    with np.errstate(divide="ignore"):
        row = np.log([confidence] + [rest] * (options - 1))
    return OptionLogits(tuple(map(str, range(size))), np.tile(row, (size, 1)), np.full(size, labels))


def test_power_in_sentences():
    # 100 answers at 0.5: g = 0.1434 gives p = 0.3566, Σ p (1 − p) = 22.94; 1.960 · 5 + 0.842 · 4.790 + 0.5 = 14.33.
    ids = tuple(map(str, range(100)))
    even = OptionLogits(ids, np.zeros((100, 2)), [0, 1] * 50)
    assert [plain(line) for line in power_lines(["m"], [even], [])] == [
        "With 100 questions an overconfidence under 14.3 points is mostly not seen."
    ]
    # Against always sure of A: the same answers, so accuracy cannot differ; Brier −0.5 or 1.5, NLL −0.693 or large.
    sure = OptionLogits(ids, np.tile([50.0, 0.0], (100, 1)), [0, 1] * 50)
    last = plain(power_lines(["m", "sure"], [even, sure], [1])[-1])
    assert last.startswith("Of differences from m, those under 0.282 of the Brier score or ")
    impossible = OptionLogits(ids, np.tile([0.0, -np.inf], (100, 1)), [0, 1] * 50)
    last = power_lines(["m", "impossible"], [even, impossible], [1])[-1]
    assert last == "Of differences from m, those under 0.282 of the Brier score are mostly not seen."


def test_below_thirty_questions_nothing_is_said_of_power():
    few, enough = (answers_at(0.7, size) for size in (29, 30))
    assert power_lines(["m", "n"], [few, few], [1]) == []
    assert len(power_lines(["m"], [enough], [])) == 1


@pytest.mark.parametrize(
    ("confidence", "size"), [(0.97, 50), (0.99, 200), (1.0, 50), (0.3, 60), (0.5, 400), (0.9, 30), (0.9999, 1000)]
)
def test_an_overconfidence_is_seen_by_an_exact_test_from_about_where_the_sentence_says(confidence, size):
    # The two-sided test that the page makes, without simulating: how far the number right is from what was expected.
    found = detectable_overconfidence(np.full(size, confidence))
    counts = np.arange(size + 1)
    off = np.abs(counts - size * confidence)
    likely = poisson_binomial(np.full(size, confidence))
    p_value = np.array([likely[off >= one - 1e-9].sum() for one in off])
    seen = (p_value < 0.05) & (counts < size * confidence)

    def power(gap):
        return poisson_binomial(np.full(size, confidence - gap))[seen].sum()

    assert power(0.75 * found) < 0.8 < power(1.2 * found)


def test_answers_that_are_all_right_do_not_make_a_small_overconfidence_visible():
    # Of 50 answers at 0.97 nothing is wrong in every fifth file: what can be seen is 10 points and not 0. At g = 0.0968
    # p = 0.8732, Σ p (1 − p) = 5.536; 1.960 · √1.455 + 0.842 · 2.353 + 0.5 = 4.84 = 50 · 0.0968.
    text = plain(power_lines(["m"], [answers_at(0.97, 50, 4)], [])[0])
    assert text == "With 50 questions an overconfidence under 9.7 points is mostly not seen."
    exact = calibration_test(answers_at(0.97, 50, 4).decide(), draws=300).detectable_gap
    assert detectable_overconfidence(np.full(50, 0.97)) == pytest.approx(exact, abs=0.01)


def test_what_shows_of_nll_and_brier_holds_where_nothing_is_wrong_yet():
    # Right at 0.96, another at 0.98, 0.97 on average. NLL differs by −0.0206 where right, by ln 2 where wrong: variance
    # 0.97 · 0.03 · (0.0206 + 0.6931)² = 0.01482, and 2.802 · √(0.01482 / 100) = 0.0341.
    # Brier is 2 (1 − c)² or 2 c²: it differs by −0.0024 or 0.0776, and 2.802 · √(0.97 · 0.03) · 0.08 / 10 = 0.0038.
    a, b = answers_at(0.96, 100), answers_at(0.98, 100)
    (own, other) = map(plain, power_lines(["a", "b"], [a, b], [1]))
    assert other == "Of differences from a, those under 0.004 of the Brier score or 0.034 of NLL are mostly not seen."
    assert own == "With 100 questions an overconfidence under 5.5 to 7.0 points is mostly not seen."
    closer = answers_at(0.9601, 100)  # by too little to print
    assert len(power_lines(["a", "b"], [a, closer], [1])) == 1
    wrong = [1] * 3 + [0] * 97  # as many wrong as the chances say: the differences seen vary as much
    a, b = (OptionLogits(one.ids, one.logits, wrong) for one in (a, b))
    assert plain(power_lines(["a", "b"], [a, b], [1])[1]) == other


def test_one_answer_that_differs_does_not_make_a_small_accuracy_visible():
    # One of 200 differs: its variance alone gives 1.4 points. But six that differ are the fewest with p < 0.05, which
    # takes eight expected: 2.802 · √(8 / 200 / 200) = 0.0396.
    a = answers_at(0.9, 200)
    logits = a.logits.copy()
    logits[0] = logits[0, ::-1]
    b = OptionLogits(a.ids, logits, a.labels)
    assert "under 4.0\u00a0points of accuracy" in power_lines(["a", "b"], [a, b], [1])[1]
    assert compare(a, b, draws=50).metrics["accuracy"].p_value == 1.0
