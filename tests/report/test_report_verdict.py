"""The sentences, for numbers made by hand."""

import numpy as np
import pytest

from caltune.metrics import DIRECTIONS, Comparison, Difference, Interval, Summary
from caltune.report.table import differences_table, numbers_table
from caltune.report.verdict import Chance, compute_chance, describe, describe_difference, headline, leaning
from caltune.types import Predictions

NAN = float("nan")
UNLIKELY, LIKELY = Chance(gap=0.0, ece=0.0), Chance(gap=0.6, ece=0.4)


LEFT = (0.083, 0.064, 0.103)


def summary(
    n: int = 2000, floor: float = 0.023, left: tuple[float, float, float] = LEFT, **metrics: tuple[float, float, float]
) -> Summary:
    found = {name: Interval(0.5, 0.4, 0.6) for name in DIRECTIONS}
    found |= {name: Interval(*value) for name, value in metrics.items()}
    corrected = {name: Interval(*left) for name in ("ece", "ece_mass")}
    return Summary(n=n, metrics=found, noise_floor=floor, noise_floor_mass=floor, corrected=corrected)


def overconfident(**metrics: tuple[float, float, float]) -> Summary:
    base = {
        "confidence": (0.91, 0.90, 0.92),
        "accuracy": (0.83, 0.81, 0.85),
        "overconfidence": (0.08, 0.064, 0.097),
        "ece": (0.087, 0.07, 0.104),
        "auroc": (0.81, 0.78, 0.84),
    }
    return summary(**(base | metrics))


def comparison(n: int = 2000, **metrics: tuple[tuple[float, float, float], str]) -> Comparison:
    same = Difference(0.5, 0.5, Interval(0.0, 0.0, 0.0), 1.0, "no clear difference")
    found = dict.fromkeys(DIRECTIONS, same)
    for name, (interval, verdict) in metrics.items():
        found[name] = Difference(0.1, 0.1 + interval[0], Interval(*interval), 0.01, verdict)
    return Comparison(n=n, metrics=found)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_overconfident() -> None:
    first, second = map(plain, describe("sft", overconfident(), UNLIKELY))
    assert (
        first == "sft says 91.0 % on average and is right 83.0 % of the time: overconfident by 8.0 points [6.4, 9.7]."
    )
    assert second == (
        "ECE 0.087, where chance alone would give about 0.023 with 2,000 questions; "
        "without chance it is 0.083 [0.064, 0.103]. "
        "Its confidence helps to tell right from wrong (AUROC 0.810 [0.780, 0.840])."
    )


def test_few_answers_of_a_kind_make_intervals_too_narrow() -> None:
    assert describe("m", overconfident(accuracy=(1 - 19 / 2000, 0.98, 1.0)), LIKELY)[1].endswith(
        "). Fewer than 20 answers are wrong (19): intervals of all but accuracy and the ECE without chance are too "
        "narrow."
    )
    assert "too narrow" not in describe("m", overconfident(accuracy=(0.99, 0.98, 1.0)), LIKELY)[1]
    assert "answers are right (4)" in describe("m", overconfident(accuracy=(0.002, 0.0, 0.01)), UNLIKELY)[1]


def test_underconfident_counts_its_points_upwards() -> None:
    found = overconfident(overconfidence=(-0.05, -0.07, -0.03))
    assert plain(describe("m", found, UNLIKELY)[0]).endswith("underconfident by 5.0 points [3.0, 7.0].")


def test_an_ece_chance_explains_is_not_called_an_error() -> None:
    found = overconfident(overconfidence=(0.004, -0.01, 0.02), ece=(0.024, 0.02, 0.04), left=(0.0, 0.0, 0.021))
    first, second = map(plain, describe("m", found, LIKELY))
    assert first.endswith("no further apart than chance allows.")
    assert second.startswith(
        "ECE 0.024 is no more than chance gives a calibrated model, about 0.023 with 2,000 questions; "
        "without chance it is 0.000 [0.000, 0.021]. "
    )


def test_errors_that_cancel_are_still_errors() -> None:
    found = overconfident(overconfidence=(0.0, -0.01, 0.01))
    first, _ = describe("m", found, Chance(gap=0.9, ece=0.0))
    assert first.endswith("no clear lean on average, but further off within its bins than chance allows.")


def test_a_bootstrap_interval_alone_does_not_make_a_lean() -> None:
    # Ten answers at 0.95, all right: the interval of the gap is [-0.05, -0.05], yet 0.95 ** 10 = 0.60.
    found = summary(n=40, overconfidence=(-0.05, -0.05, -0.05))
    assert leaning(found, Chance(gap=0.6, ece=0.6)) == ""


@pytest.mark.parametrize(("n", "words"), [(1, "one question is no verdict."), (7, "7 questions are too few for a ver")])
def test_few_questions_give_no_verdict(n: int, words: str) -> None:
    found = summary(n=n, overconfidence=(0.9, 0.9, 0.9))
    assert leaning(found, UNLIKELY) == ""
    assert words in describe("m", found, UNLIKELY)[0]
    assert "too few to compare m with b" in describe_difference(
        "m", "b", comparison(n, ece=((-0.5, -0.5, -0.5), "better"))
    )
    assert "too few for a verdict" in headline(["b", "m"], [found] * 2, [UNLIKELY] * 2, {1: comparison(n)})


@pytest.mark.parametrize(
    ("auroc", "accuracy", "words"),
    [
        ((NAN, NAN, NAN), 1.0, "AUROC is not defined, since every answer is right."),
        ((NAN, NAN, NAN), 0.0, "AUROC is not defined, since every answer is wrong."),
        (
            (0.52, 0.48, 0.56),
            0.5,
            "Its confidence does not clearly tell right from wrong (AUROC 0.520 [0.480, 0.560]).",
        ),
        ((0.42, 0.38, 0.46), 0.5, "It is surer of its wrong answers than of its right ones"),
    ],
)
def test_what_the_confidence_is_worth(auroc, accuracy: float, words: str) -> None:
    found = overconfident(auroc=auroc, accuracy=(accuracy, accuracy, accuracy))
    assert words in plain(describe("m", found, UNLIKELY)[1])


def test_better_with_no_clear_change_in_accuracy() -> None:
    found = comparison(ece=((-0.05, -0.07, -0.03), "better"), accuracy=((-0.003, -0.012, 0.007), "no clear difference"))
    assert plain(describe_difference("cogcalib", "sft", found)) == (
        "cogcalib lowers ECE by 0.050 [0.030, 0.070] against sft, "
        "with no clear change in accuracy (−0.3 points [−1.2, 0.7])."
    )


def test_worse_and_at_the_same_accuracy() -> None:
    found = comparison(ece=((0.05, 0.03, 0.07), "worse"))
    assert plain(describe_difference("m", "sft", found)) == (
        "m raises ECE by 0.050 [0.030, 0.070] against sft, at the same accuracy."
    )


def test_no_clear_difference_and_less_accurate_and_ranks_worse() -> None:
    found = comparison(
        ece=((0.002, -0.01, 0.014), "no clear difference"),
        accuracy=((-0.02, -0.03, -0.01), "worse"),
        auroc=((-0.04, -0.06, -0.02), "worse"),
    )
    assert plain(describe_difference("m", "sft", found)) == (
        "m and sft do not clearly differ in ECE (+0.002 [−0.010, 0.014]), "
        "and m is 2.0 points less accurate [1.0, 3.0]. "
        "It tells right from wrong less well: AUROC −0.040 [−0.060, −0.020]."
    )


def test_headlines() -> None:
    names = ["sft", "a", "b"]
    summaries = [overconfident(), overconfident(ece=(0.03, 0.02, 0.04)), overconfident(ece=(0.05, 0.04, 0.06))]
    better = comparison(ece=((-0.05, -0.07, -0.03), "better"))
    costly = comparison(ece=((-0.05, -0.07, -0.03), "better"), accuracy=((-0.02, -0.03, -0.01), "worse"))
    worse, same = comparison(ece=((0.05, 0.03, 0.07), "worse")), comparison()

    def say(*found: Comparison) -> str:
        count = len(found) + 1
        chosen = dict(enumerate(found, start=1))
        return plain(headline(names[:count], summaries[:count], [UNLIKELY] * count, chosen))

    assert say(better, better) == "a is better calibrated than sft: ECE 0.030 against 0.087."
    assert say(same, better) == "b is better calibrated than sft: ECE 0.050 against 0.087."
    assert say(costly) == "a is better calibrated than sft: ECE 0.030 against 0.087, but 2.0 points less accurate."
    assert say(worse, worse) == "a and b are worse calibrated than sft."
    assert say(same) == "No clear difference in calibration between sft and a."
    assert say(same, worse) == "No model is clearly better calibrated than sft; b is clearly worse."
    assert say(same, same) == "No model is clearly better calibrated than sft."
    assert say() == "sft is overconfident by 8.0 points."


def test_headline_without_comparisons() -> None:
    calm = overconfident(overconfidence=(0.0, -0.01, 0.01))
    assert headline(["m"], [calm], [LIKELY], {}) == "m is as right as it is sure, as far as 2,000 questions can show."
    assert headline(["m"], [calm], [Chance(0.9, 0.0)], {}) == "m is miscalibrated, though not to one side."
    assert headline(["a", "b", "c"], [overconfident(), calm, overconfident()], [UNLIKELY, LIKELY, UNLIKELY], {}) == (
        "a and c are overconfident; b is calibrated as far as chance lets one see."
    )


def test_chance_of_a_calibrated_and_of_an_overconfident_model() -> None:
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.3, 1.0, 4000)
    ids = tuple(str(i) for i in range(4000))
    right = (generator.random(4000) < confidence).astype(float)
    too_low = (generator.random(4000) < confidence - 0.05).astype(float)
    calibrated = compute_chance(Predictions(ids, confidence, right))
    assert calibrated.gap > 0.05
    assert calibrated.ece > 0.05
    assert compute_chance(Predictions(ids, confidence, too_low)) == Chance(0.0, 0.0)


def test_chance_of_one_answer_is_its_probability() -> None:
    # At 0.9, being wrong is off by 0.9; only a wrong answer is as bad: probability 0.1. Being right is always as good.
    assert compute_chance(Predictions(("a",), np.array([0.9]), np.array([0.0])), draws=4000).gap == pytest.approx(
        0.1, abs=0.02
    )
    assert compute_chance(Predictions(("a",), np.array([0.9]), np.array([1.0]))).gap == 1.0


def test_best_is_marked_by_the_printed_value_and_its_direction() -> None:
    first = overconfident(accuracy=(0.83001, 0.8, 0.86), nll=(0.5, 0.4, 0.6))
    second = overconfident(accuracy=(0.83002, 0.8, 0.86), nll=(0.4, 0.3, 0.5), auroc=(0.9, 0.8, 0.95))
    outside = overconfident(nll=(0.1, 0.0, 0.2))
    rows = {row.label: row for row in numbers_table(["a", "b", "c"], [first, second, outside], [0, 1]).rows}
    assert [cell.best for cell in rows["Accuracy"].cells] == [False, False, False]  # the same as printed
    assert [cell.best for cell in rows["NLL"].cells] == [False, True, False]  # c answered other questions
    assert [cell.best for cell in rows["AUROC"].cells] == [False, True, False]
    assert [cell.best for cell in rows["Mean confidence"].cells] == [False] * 3
    assert plain(rows["Accuracy"].cells[0].value + rows["Accuracy"].cells[0].range) == "83.0 %[80.0, 86.0]"
    assert rows["Noise floor"].cells[0].value == "0.023"


def test_a_tie_marks_both_and_an_undefined_or_infinite_value_neither() -> None:
    values = [(0.4, 0.3, 0.5), (0.4, 0.3, 0.5), (float("inf"), 1.0, float("inf")), (NAN, NAN, NAN), (0.6, 0.5, 0.7)]
    table = numbers_table(list("abcde"), [overconfident(nll=value) for value in values], range(5))
    (row,) = [row for row in table.rows if row.label == "NLL"]
    assert [cell.best for cell in row.cells] == [True, True, False, False, False]
    assert [cell.value for cell in row.cells] == ["0.400", "0.400", "∞", "not defined", "0.600"]


def test_differences_have_signs_points_and_a_verdict() -> None:
    found = comparison(accuracy=((0.02, 0.01, 0.03), "better"), ece=((-0.05, -0.07, -0.03), "better"))
    table = differences_table(["a", "b", "c"], {2: found})
    assert (table.names, table.places) == (("c",), (2,))
    rows = {row.label: row for row in table.rows}
    assert plain(rows["Accuracy"].cells[0].value + " " + rows["Accuracy"].cells[0].range) == "+2.0 [1.0, 3.0] better"
    assert rows["Accuracy"].hint == "share right; points; higher is better"
    assert rows["ECE, equal width"].cells[0].value == "−0.050"
    assert plain(rows["NLL"].cells[0].range) == "[0.000, 0.000]"
