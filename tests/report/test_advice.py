"""What `caltune advise` says in each case, and that the numbers in it are those of the diagnosis."""

from __future__ import annotations

import shlex
from dataclasses import replace

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
        accuracy=around(accuracy),
        confidence=around(confidence),
        overconfidence=around(gap),
        ece=around(abs(gap)),
        corrected=around(max(0.0, abs(gap) - 0.02)),
        noise_floor=0.04,
        collapse=Collapse(confidence, 0.5, 0.125),
        reachable=Reachable(top, accuracy, accuracy, around(0.0), around(0.1), NONE),
        overclaim=max(0.0, confidence - top.high),
    )
    return replace(found, **changes)


def advice(*found, setting=None):
    lines = advice_lines(setting or Setting("exam.csv", "test", "m"), *found)
    assert len(lines) <= 14
    labels = [line.split("  ")[0] for line in lines]
    return "\n".join(lines), dict(zip(labels, lines, strict=True))


def test_an_overconfident_model_is_told_so_with_its_numbers():
    text, rows = advice(diagnosis())
    assert rows["questions"].endswith("500 from exam.csv, split test")
    assert "0.600 [0.580, 0.620]" in rows["accuracy"]
    assert "guessing gives 0.250" in rows["accuracy"]
    assert "0.800 [0.780, 0.820]: 0.200 too sure" in rows["confidence"]
    assert "0.80 of the mass on the top option; 0.12 of answers above 0.99; entropy 0.50 of even" in rows["collapse"]
    assert rows["ECE"].endswith("0.200; without what chance adds 0.180 [0.160, 0.200]")
    assert rows["regime"].endswith("at accuracies up to A* 0.600 [0.580, 0.620]")
    assert len(rows) == 11  # ten and what overclaiming costs
    assert "its ECE cannot fall below 0.180" in text  # 0.8 − 0.62
    assert "tempered fine-tuning (tempered), then temperature scaling" in rows["take"]
    assert rows["because"].split("because")[1].strip().startswith("it is overconfident")
    words = shlex.split(rows["train"])
    assert words[1:] == ["caltune", "train", "tempered", "exam.csv", "--model", "m", "--output-dir", "tuned"]


def test_after_training_the_advice_is_about_the_trained_model():
    before, after = diagnosis(), diagnosis(accuracy=0.75, confidence=0.9)
    text, rows = advice(before, after)
    assert "0.600 [0.580, 0.620] → 0.750 [0.730, 0.770]" in rows["accuracy"]
    assert "0.150 too sure" in rows["confidence"]
    assert "above the A* of before (non-calibratable there)" in text
    assert "ECE here plus ECE on new ones is 0.110 or more" in text  # 0.73 − 0.62
    assert rows["take"].split()[1:] == ["temperature", "scaling"]
    assert " train cogcalib exam.csv --model m " in rows["train"]


@pytest.mark.parametrize(
    ("accuracy", "words"), [(0.57, "not above the A* of before"), (0.635, "not clearly above the A* of before")]
)
def test_training_that_recalibration_may_equal(accuracy, words):
    text, _ = advice(diagnosis(), diagnosis(accuracy=accuracy))
    assert words in text
    assert "non-calibratable" not in text


@pytest.mark.parametrize(
    ("found", "take", "because"),
    [
        (diagnosis(n=60), "nothing yet", "60 questions cannot tell; bring 100 or more"),
        (diagnosis(accuracy=0.26), "another prompt (--answers, --template), then plain", "hardly beats guessing"),
        (
            diagnosis(confidence=0.61, corrected=Interval(0.05, 0.0, 0.06)),
            "it as it is; for more accuracy",
            "than chance explains",
        ),
        (diagnosis(confidence=0.4), "tempered fine-tuning (tempered)", "it is underconfident"),
        (diagnosis(confidence=0.6, corrected=around(0.1)), "tempered fine-tuning (tempered)", "it is uneven"),
    ],
)
def test_the_choice_follows_the_numbers(found, take, because):
    _, rows = advice(found)
    assert take in rows["take"]
    assert because in rows["because"]


def test_a_model_at_chance_is_not_sent_to_a_fit_that_must_fail():
    """Tempered fine-tuning fits a scale to the untrained model, and where that only guesses there is none."""
    assert shlex.split(advice(diagnosis(accuracy=0.26))[1]["train"])[1:4] == ["caltune", "train", "sft"]
    assert shlex.split(advice(diagnosis())[1]["train"])[1:4] == ["caltune", "train", "tempered"]


def test_states():
    assert state(diagnosis()) == "overconfident"
    assert state(diagnosis(confidence=0.5)) == "underconfident"
    assert state(diagnosis(confidence=0.61, corrected=Interval(0.09, 0.01, 0.12))) == "uneven"
    assert state(diagnosis(confidence=0.61, corrected=Interval(0.09, 0.0, 0.12))) == "calibrated"


def test_what_changing_answers_would_gain_is_told():
    found = diagnosis()
    leaning = replace(found, reachable=replace(found.reachable, gain=Interval(0.05, 0.02, 0.08)))
    assert "as vector scaling, gains 0.050 accuracy" in advice(leaning)[0]
    assert "vector" not in advice(found)[0]


def test_a_right_option_that_always_stands_in_one_place_is_told():
    assert "option 2 is right in 95 % of them" in advice(diagnosis(position=(1, 0.95)))[0]
    assert "shuffle" not in advice(diagnosis(position=(1, 0.85)))[0]
    assert "shuffle" not in advice(diagnosis(position=(1, 0.95), n=60))[0]


def test_training_that_did_harm_is_not_recommended():
    text, rows = advice(diagnosis(), diagnosis(accuracy=0.5))
    assert "training cost 0.100 of accuracy: go back to the model before" in text
    assert rows["take"].endswith("the model before")
    assert " train tempered exam.csv --model m " in rows["train"]
    assert "recalibrating alone" not in text


def test_nothing_is_to_be_trained_or_fitted_where_it_cannot_help():
    for found in (diagnosis(n=60), diagnosis(accuracy=1.0, confidence=0.9)):
        _, rows = advice(found)
        assert not {"train", "then", "otherwise"} & set(rows)
    assert "every answer is right" in rows["because"]
    _, rows = advice(diagnosis(), diagnosis(accuracy=0.75, confidence=0.76, corrected=Interval(0.01, 0.0, 0.03)))
    assert rows["take"].endswith("it as it is")
    assert not {"train", "then", "otherwise"} & set(rows)
    _, rows = advice(diagnosis(accuracy=0.1), setting=Setting("exam.csv", trained=True))
    assert "right less often than guessing is: look at the labels" in rows["because"]
    assert not {"train", "then", "otherwise"} & set(rows)


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
    words = ["train", "caltune", "train", "tempered", "my exam.csv", "--model", "$(m)", "--answers", "letters"]
    assert shlex.split(rows["train"]) == [*words, "--output-dir", "tuned"]
    assert Setting.from_metadata({"data": "d", "model": "runs/sft", "training": []}).model == "MODEL"
    assert Setting.from_metadata({}) == Setting()
    assert Setting.from_metadata({"field": ["answer=key"], "skip_bad": True}).how == (
        *("--field", "answer=key", "--skip-bad"),
    )
    assert Setting.from_metadata({"field": "x", "skip_bad": "no"}).how == ()
    assert flags({"template": "plain"}, ["a=b"]) == ("--template", "plain", "--field", "a=b")
    assert flags({}, skip_bad=True) == ("--skip-bad",)
    evil = Setting("x\x1b[2J\ny", None, "m")
    assert all(character.isprintable() or character == "\n" for character in advice(diagnosis(), setting=evil)[0])
