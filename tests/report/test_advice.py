"""What `caltune advise` says in each case, and that the numbers in it are those of the diagnosis."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from caltune.metrics import Collapse, Interval
from caltune.regime import Diagnosis, Reachable
from caltune.report.advice import Setting, advice_lines, flags, state
from caltune.types import OptionLogits

NONE = OptionLogits((), np.empty((0, 4)), [])


def around(value, half=0.02):
    return Interval(value, value - half, value + half)


def diagnosis(accuracy=0.6, confidence=0.8, reachable=None, **changes):
    """Of 500 questions with four options, overconfident by 0.2 unless told otherwise."""
    top = around(accuracy if reachable is None else reachable)
    gap = confidence - accuracy
    found = Diagnosis(
        n=500,
        chance=0.25,
        position=(0, 0.3),
        impossible=0,
        accuracy=around(accuracy),
        confidence=confidence,
        overconfidence=around(gap),
        ece=abs(gap),
        corrected=around(max(0.0, abs(gap) - 0.02)),
        collapse=Collapse(confidence, 0.5, 0.125),
        reachable=Reachable(top, accuracy, accuracy, around(0.0), around(0.1), NONE),
    )
    return replace(found, **changes)


def leaning(gain=0.1, **changes):
    """As `diagnosis`, but recalibration that changes answers would be right more often by `gain`."""
    found = diagnosis(**changes)
    return replace(found, reachable=replace(found.reachable, gain=around(gain)))


COMMANDS = ("train", "or train")
FORMULA = "temperature scaling: caltune recalibrate temperature --fit calibration.parquet --apply test.parquet"
EXAM = Setting("exam.csv", "test", "m")


def advice(*found, setting=EXAM, change=0.02):
    """The lines by their labels. The rule for all cases: at most ten, the command to copy among them, each of at most
    150 characters, with one regime."""
    if len(found) == 2:
        found = (*found, around(found[1].accuracy.value - found[0].accuracy.value, change))
    lines = advice_lines(setting, *found)
    assert len(lines) <= 10
    assert all(len(line) <= 150 for line in lines if not line.startswith(COMMANDS))
    labels = [line[:12].strip() for line in lines]
    assert labels[:9] == [
        *("questions", "accuracy", "confidence", "ECE", "collapse", "A*", "regime", "take", "because"),
    ]
    assert labels[9:] in ([], ["train"], ["or train"])
    text = "\n".join(lines)
    assert sum(text.count(word) for word in ("calibratable", "undecided")) == 1  # "non-calibratable" holds one
    return text, dict(zip(labels, (line[12:] for line in lines), strict=True))


def test_an_overconfident_model_is_told_so_with_its_numbers():
    _, rows = advice(diagnosis())
    assert rows["questions"] == "500 from exam.csv, split test; in brackets: 95 % intervals"
    # 0.6 = k + (1 − k) / 4, so k = 0.35 / 0.75
    assert rows["accuracy"].startswith(
        "0.600 [0.580, 0.620]: known share 0.467, and luck in guessing the rest (0.250 of"
    )
    assert rows["confidence"] == "0.800: so often it believes to be right; 0.200 [0.180, 0.220] too sure"
    assert rows["collapse"] == "0.12 of answers held for certain (above 0.99); doubt (entropy) 0.50 of an even guess's"
    assert rows["ECE"].startswith("0.200: mean gap of confidence and accuracy")
    assert rows["ECE"].endswith("0.180 [0.160, 0.200] beyond chance")
    assert rows["A*"].startswith("0.600 [0.580, 0.620]: best accuracy by recalibration")
    assert rows["A*"].endswith("moving confidence by 0.100 (target calibration error)")
    assert rows["regime"].startswith("calibratable, as any model on questions it was not trained on")
    assert rows["take"].startswith(
        "tempered fine-tuning; without training, temperature scaling; if no number may travel"
    )
    assert rows["take"].endswith("label-smoothing")
    assert rows["because"] == "it is too sure; tempered beat sft + temperature on world-facts, not ARC-Easy"
    assert shlex.split(rows["train"]) == [
        *("caltune", "train", "tempered", "exam.csv", "--model", "m", "--output-dir", "tuned"),
    ]


def test_a_modest_model_has_its_interval_the_other_way_round():
    assert advice(diagnosis(confidence=0.39))[1]["confidence"].endswith("0.210 [0.190, 0.230] too modest")
    told = advice(diagnosis(confidence=0.61))[1]["confidence"]
    assert told.endswith("0.010 [−0.010, 0.030] too sure, as chance may make it")


def test_after_training_the_advice_is_about_the_trained_model():
    _, rows = advice(diagnosis(), diagnosis(accuracy=0.75, confidence=0.9))
    assert rows["questions"].startswith("500 from exam.csv, split test, before → after training")
    assert rows["accuracy"].startswith("0.600 [0.580, 0.620] → 0.750 [0.730, 0.770]: known share 0.467 → 0.667")
    assert rows["confidence"].startswith("0.800 → 0.900: ")
    assert rows["confidence"].endswith("0.150 [0.130, 0.170] too sure")
    assert rows["take"].startswith(FORMULA)
    assert rows["because"].startswith("it is too sure, which one number mostly repairs; accuracy is above A* of before")
    assert "train tempered exam.csv --model m " in rows["or train"]


def test_what_was_trained_on_tells_the_regime_and_no_method():
    """On questions learned by heart accuracy may be above A*, and only there; proposition 4 bounds the ECE."""
    learned = Setting("exam.csv", "train", "m")
    bound = "if by heart and as sure of new ones, ECE here and there sum to 0.110 or more"
    for accuracy, words in (
        (0.75, f"non-calibratable: accuracy is above A* of before; {bound}"),
        (0.635, "undecided: accuracy may be above A* of before"),
        (0.61, "calibratable: accuracy is not above A* of before"),
    ):
        _, rows = advice(diagnosis(), diagnosis(accuracy=accuracy, confidence=0.9), setting=learned)
        assert rows["regime"].startswith(words)  # 0.73 − 0.62 = 0.11
        assert rows["take"].startswith("nothing yet; ask what it was not trained on")
        assert "train" not in rows
        assert "or train" not in rows
    _, rows = advice(diagnosis(), setting=replace(learned, trained=True))
    assert rows["regime"].startswith("undecided")
    assert rows["take"].startswith("nothing yet")
    assert advice(diagnosis(), setting=learned)[1]["take"].startswith("tempered")


@pytest.mark.parametrize("accuracy", [0.57, 0.635])
def test_training_that_recalibration_may_equal(accuracy):
    _, rows = advice(diagnosis(), diagnosis(accuracy=accuracy), change=0.05)
    assert rows["because"].endswith("accuracy is not clearly above A* of before: recalibrating that may do as well")


SURE = {"confidence": 0.61, "corrected": Interval(0.05, 0.0, 0.06)}  # no further off than chance explains
UNEVEN = {"confidence": 0.6, "corrected": around(0.1)}
TRAINED = Setting("exam.csv", "test", trained=True)
GUESSING = diagnosis(0.26)
TEMPERED, VECTOR = "tempered fine-tuning; without training", "vector scaling (10 more of 100 right)"
CURVE, MIXED = "a curve for its confidence alone (beta)", "it is too sure of some answers and too modest of others"


@pytest.mark.parametrize(
    ("setting", "found", "take", "because", "method"),
    [
        (EXAM, [diagnosis(n=60)], "nothing yet", "60 questions cannot tell; bring 100 or more", ""),
        (EXAM, [GUESSING], "another prompt (--answers, --template), or plain", "known share may be 0", "sft"),
        (EXAM, [leaning(accuracy=0.26)], "vector scaling (10 more of 100 right), or", "A* is higher", "sft"),
        (EXAM, [diagnosis(accuracy=0.1)], "another prompt", "less often than guessing is: look at the labels", "sft"),
        (TRAINED, [GUESSING], "another prompt (--answers, --template), or more training", "known share may be 0", ""),
        (TRAINED, [leaning(accuracy=0.1)], "another prompt", "right less often than guessing is", ""),
        (EXAM, [diagnosis(**SURE)], "it as it is; for more accuracy, tempered", "than chance explains", "tempered"),
        (TRAINED, [diagnosis(**SURE)], "it as it is", "than chance explains", ""),
        (EXAM, [diagnosis(accuracy=1.0)], "it as it is", "every answer is right", ""),
        (EXAM, [diagnosis(confidence=0.4)], "tempered fine-tuning; without", "it is too modest; ", "tempered"),
        (EXAM, [diagnosis(**UNEVEN)], f"{TEMPERED}, {CURVE}", MIXED, "tempered"),
        (TRAINED, [diagnosis(**UNEVEN)], f"{CURVE}: caltune recalibrate beta", MIXED, "tempered"),
        (TRAINED, [diagnosis()], FORMULA, "it is too sure, which one number mostly repairs", "tempered"),
        (EXAM, [leaning()], f"{TEMPERED}, vector scaling (10 more of 100", "options other than its first", "tempered"),
        (TRAINED, [leaning(**SURE)], f"{VECTOR}: caltune recalibrate vector", "options other than its", "tempered"),
        (EXAM, [diagnosis(), diagnosis(0.75, 0.6)], FORMULA, "it is too modest", "tempered"),
        (EXAM, [diagnosis(), diagnosis(0.5)], "the model before, or train", "cost 0.100 [0.080, 0.120]", "tempered"),
        (EXAM, [GUESSING, diagnosis(0.2)], "the model before, or train that anew (sft)", "cost 0.060 [0.040,", "sft"),
    ],
)  # fmt: skip
def test_the_choice_follows_the_numbers(setting, found, take, because, method):
    _, rows = advice(*found, setting=setting)
    assert rows["take"].startswith(take)
    assert because in rows["because"]
    command = rows.get("train", rows.get("or train", ""))
    assert shlex.split(command)[:3] == (["caltune", "train", method] if method else [])
    assert ("or train" in rows) == bool(method and (setting.trained or len(found) == 2))


def test_accuracy_is_lost_where_the_paired_difference_says_so():
    """The two intervals overlap in both cases; asked the same questions, a smaller loss can be seen."""
    found = diagnosis(), diagnosis(0.57)
    assert "training cost 0.030 [0.020, 0.040] of accuracy" in advice(*found, change=0.01)[1]["because"]
    assert "cost" not in advice(*found, change=0.04)[1]["because"]


def test_a_model_that_knows_little_is_not_sent_to_tempered():
    """0.32 = k + (1 − k) / 4 gives k = 0.093, below 0.1, though it is clearly above guessing; 0.33 gives 0.107."""
    _, rows = advice(diagnosis(0.32))
    assert rows["because"].startswith("it knows little; from there tempered was no better")
    assert " train sft " in rows["train"]
    assert " train tempered " in advice(diagnosis(0.33))[1]["train"]
    _, rows = advice(diagnosis(0.32), setting=TRAINED)
    assert rows["because"] == "it knows little"
    assert rows["take"].endswith("or more training")


def test_a_trifle_of_accuracy_is_no_reason_to_undo_a_training():
    """A loss of 0.009 [0.007, 0.011] is clear with many questions, and may be worth what it bought."""
    assert "cost" not in advice(diagnosis(), diagnosis(0.591), change=0.002)[1]["because"]
    assert "cost 0.011" in advice(diagnosis(), diagnosis(0.589), change=0.002)[1]["because"]


@pytest.mark.parametrize("confidence", [0.4, 0.61])
def test_smoothing_is_for_the_too_sure(confidence):
    assert "label-smoothing" not in advice(diagnosis(confidence=confidence, corrected=SURE["corrected"]))[0]


def test_ten_lines_are_enough_in_every_case():
    """Models that are few, at chance, worse, perfect, uneven, leaning, each before or after each, trained on or not."""
    kinds = [
        replace(leaning(gain, accuracy=accuracy, confidence=accuracy + gap), n=n, position=(3, place), corrected=beyond)
        for accuracy, gap, gain in product((0.1, 0.26, 0.6, 0.99, 1.0), (-0.1, 0.0, 0.1), (0.0, 0.1))
        for n, place, beyond in ((60, 0.3, SURE["corrected"]), (5000, 0.3, around(0.1)), (500, 0.95, SURE["corrected"]))
    ]
    taken = set()
    for split, trained in product(("train", "calibration", None), (False, True)):
        setting = Setting("exam.csv", split, "m", trained)
        for models in [*((one,) for one in kinds), *product(kinds[::7], kinds)]:
            taken.add(advice(*models, setting=setting)[1]["take"].split(";")[0].split(":")[0])
    first = {
        "nothing yet",
        "it as it is",
        "the model before, or train that anew (tempered)",
        "a curve for its confidence alone (beta)",
        VECTOR,
    }
    assert first < taken


def test_states():
    assert state(diagnosis()) == "overconfident"
    assert state(diagnosis(confidence=0.5)) == "underconfident"
    assert state(diagnosis(confidence=0.61, corrected=Interval(0.09, 0.01, 0.12))) == "uneven"
    assert state(diagnosis(confidence=0.61, corrected=Interval(0.09, 0.0, 0.12))) == "calibrated"


def test_answers_are_changed_only_for_a_clear_gain_that_is_no_matter_of_place():
    assert "vector" not in advice(leaning(gain=0.029))[0]  # the interval begins at 0.009
    assert "vector" in advice(leaning(gain=0.031))[0]
    assert "vector" not in advice(leaning(position=(1, 0.95)))[0]


def test_a_right_option_that_always_stands_in_one_place_is_told():
    assert "option 2 is right in 95 %: shuffle" in advice(diagnosis(position=(1, 0.95)))[0]
    assert "option 2 is right in 95 %: shuffle" in advice(diagnosis(), diagnosis(position=(1, 0.95)))[0]
    assert "shuffle" not in advice(diagnosis(position=(1, 0.85)))[0]
    assert "shuffle" not in advice(diagnosis(position=(1, 0.95), n=60))[0]


def test_the_command_has_the_flags_of_the_scores_and_survives_odd_names():
    setting = Setting.from_metadata(
        {
            "data": "my exam.csv",
            "model": "$(m)",
            "answers": "letters",
            "template": "auto",
            "reduction": None,
            "split": 3,
        }
    )
    assert setting == Setting("my exam.csv", None, "$(m)", False, ("--answers", "letters"))
    _, rows = advice(diagnosis(), setting=setting)
    words = ["caltune", "train", "tempered", "my exam.csv", "--model", "$(m)", "--answers", "letters"]
    assert shlex.split(rows["train"]) == [*words, "--output-dir", "tuned"]
    assert Setting.from_metadata({"data": "d", "model": "runs/sft", "training": []}).model == "MODEL"
    assert Setting.from_metadata({}) == Setting()
    assert Setting.from_metadata({"field": ["answer=key"], "skip_bad": True}).how == (
        *("--field", "answer=key", "--skip-bad"),
    )
    assert Setting.from_metadata({"field": "x", "skip_bad": "no"}).how == ()
    assert flags({"template": "plain"}, ["a=b"]) == ("--template", "plain", "--field", "a=b")
    assert flags({}, skip_bad=True) == ("--skip-bad",)
    spaced = advice(diagnosis(), setting=Setting("my  exam.csv"))[1]["train"]  # two spaces are another file
    assert "my  exam.csv" in shlex.split(spaced)
    evil = Setting("x\x1b[2J\ny", None, "m")
    assert all(character.isprintable() or character == "\n" for character in advice(diagnosis(), setting=evil)[0])


def test_a_right_answer_that_is_ruled_out_is_beyond_a_temperature():
    for changes in ({}, {"gain": 0.1}):
        found = replace(leaning(**changes) if changes else diagnosis(), impossible=3)
        _, rows = advice(diagnosis(), found)
        assert rows["take"].startswith("a curve for its confidence alone (beta): caltune recalibrate beta --fit")
        assert rows["because"].startswith("it is too sure, and right options are ruled out")
    calm = replace(diagnosis(confidence=0.6), corrected=Interval(0.0, 0.0, 0.02), impossible=3)
    assert advice(diagnosis(), calm)[1]["take"] == "it as it is"


def test_the_regime_says_no_more_than_is_known():
    _, rows = advice(diagnosis(), diagnosis(), setting=replace(EXAM, split=None))
    assert rows["regime"].startswith("calibratable, if it was not trained on these: ")
    _, rows = advice(diagnosis(accuracy=0.1, reachable=0.3))
    assert rows["regime"].startswith("calibratable only if answers change: ")
