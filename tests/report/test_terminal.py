"""Lines for the terminal, against hand-made summaries."""

from __future__ import annotations

from dataclasses import replace

from caltune.data import Overlap
from caltune.metrics import Comparison, Difference, Gap, Interval, Pair, Ranking, Summary
from caltune.prompts import Prompt
from caltune.report.terminal import (
    comparison_lines,
    metrics_lines,
    overlap_lines,
    prompt_lines,
    ranking_lines,
    source_lines,
)
from caltune.types import Question

SUMMARY = Summary(
    n=20,
    metrics={
        "accuracy": Interval(0.75, 0.5, 1.0),
        "ece": Interval(0.125, 0.0625, 0.25),
        "ece_mass": Interval(0.1, 0.05, 0.2),
        "auroc": Interval(float("nan"), float("nan"), float("nan")),
    },
    noise_floor=0.0312,
    noise_floor_mass=0.0299,
    corrected={"ece": Interval(0.1, 0.05, 0.2), "ece_mass": Interval(0.05, 0.0, 0.125)},
)


def test_one_line_a_metric_one_column_a_model_and_noise_floors_below_their_ece():
    other = replace(SUMMARY, n=1000, metrics={**SUMMARY.metrics, "accuracy": Interval(0.5, 0.25, 0.75)})
    assert metrics_lines({"a": SUMMARY, "a longer name": other}) == [
        "                    a                        a longer name",
        "questions           20                       1000",
        "accuracy            0.7500 [0.5000, 1.0000]  0.5000 [0.2500, 0.7500]",
        "ece                 0.1250                   0.1250",
        "  noise_floor       0.0312                   0.0312",
        "  corrected         0.1000 [0.0500, 0.2000]  0.1000 [0.0500, 0.2000]",
        "ece_mass            0.1000                   0.1000",
        "  noise_floor_mass  0.0299                   0.0299",
        "  corrected         0.0500 [0.0000, 0.1250]  0.0500 [0.0000, 0.1250]",
        "auroc               nan [nan, nan]           nan [nan, nan]",
        "corrected: the ECE without what chance adds to it, and the 95 % interval of that",
        "with fewer than 20 answers right or wrong, as in a (5 wrong), intervals of all but accuracy and corrected are "
        "too narrow",
    ]
    enough = replace(SUMMARY, n=80)  # 60 right, 20 wrong
    assert metrics_lines({"a": enough})[-1].startswith("corrected:")
    none = replace(SUMMARY, metrics={**SUMMARY.metrics, "accuracy": Interval(0.0, 0.0, 0.2)})
    assert "as in a (0 right), b (5 wrong), intervals" in metrics_lines({"a": none, "b": SUMMARY, "c": enough})[-1]


NAN = float("nan")
SAME = Gap(Interval(0.0, 0.0, 0.0), 1.0, clear=False)
WORSE_NLL = Gap(Interval(0.25, 0.125, 0.375), 0.002, clear=True)
MORE_RIGHT, LESS_RIGHT = (Gap(Interval(d, d - 0.01, d + 0.01), 0.01, clear=True) for d in (0.025, -0.025))


def ranked(*pairs, places=None, size=30, measure="nll", **nll):
    """The lines for files with the given NLL, in that order."""
    summaries = {
        name: replace(SUMMARY, n=size, metrics={**SUMMARY.metrics, measure: Interval(v, v, v)})
        for name, v in nll.items()
    }
    places = places or {name: (place, place) for place, name in enumerate(nll, start=1)}
    return ranking_lines(Ranking(tuple(nll), places, pairs, measure), summaries)


def test_places_are_one_number_or_a_range():
    assert ranked(Pair("a", "bb", True, SAME, SAME, 0.0312), a=0.5, bb=0.75, places={"a": (1, 2), "bb": (1, 2)}) == [
        "ranked by nll, lowest first; a range where chance leaves the place open",
        "place      nll     accuracy",
        "1-2    a   0.5000  0.7500",
        "1-2    bb  0.7500  0.7500",
        "with these questions nll differences under 0.031 are mostly not seen",
    ]
    assert ranked(Pair("a", "b", True, WORSE_NLL, LESS_RIGHT, 0.01), a=0.5, b=0.75)[2:] == [
        "1      a  0.5000  0.7500",
        "2      b  0.7500  0.7500",
    ]
    assert ranked(a=0.5) == []


def test_where_accuracy_and_nll_disagree_is_said_both_ways():
    pair = Pair("a", "b", True, WORSE_NLL, MORE_RIGHT, 0.01)
    assert ranked(pair, a=0.5, b=0.75)[4:] == [
        "b is 2.5 points [1.5, 3.5] more accurate than a, though a has the lower nll"
    ]
    pair = Pair("a", "b", True, SAME, LESS_RIGHT, 0.0)
    assert ranked(pair, a=0.5, b=0.75)[4:] == [
        "a is 2.5 points [1.5, 3.5] more accurate than b, though nll does not clearly differ"
    ]
    pair = Pair("a", "b", True, WORSE_NLL, SAME, 0.01)
    assert ranked(pair, a=0.5, b=0.75)[4:] == ["nll differs, accuracy not clearly: a and b"]


def test_many_disagreements_are_cut_short():
    some = dict.fromkeys("abcdef", 0.5)
    pairs = [Pair("a", name, True, WORSE_NLL, gap, 0.01) for gap in (MORE_RIGHT, SAME) for name in "bcdef"]
    lines = ranked(*pairs, **some)[8:]
    assert lines[3:] == [
        "and 2 more pairs where accuracy says otherwise",
        "nll differs, accuracy not clearly: a and b; a and c; a and d; and 2 more",
    ]


def test_other_questions_and_infinite_nll_are_told():
    apart = Gap(Interval(0.25, NAN, NAN), NAN, clear=False)
    lines = ranked(Pair("a", "b", False, apart, apart, NAN), a=0.5, b=float("inf"), places={"a": (1, 2), "b": (1, 2)})
    assert lines[2:] == [
        "1-2    a  0.5000  0.7500",
        "1-2    b  inf     0.7500",
        "files on other questions differ where their intervals do not meet: it may be the questions",
        "nll is infinite where the right option was ruled out, in b",
    ]


def test_few_questions_are_said_to_be_too_few():
    words = "too few: below 30 no difference is called clear, and intervals are too narrow"
    gap = Gap(Interval(0.25, 0.125, 0.375), NAN, clear=False)
    for size, subject in ((1, "one question is"), (29, "29 questions are")):
        found = Comparison(size, {"nll": Difference(0.5, 0.75, gap.difference, NAN, "no clear difference")})
        assert comparison_lines(found, "a", "b")[-1] == f"{subject} {words}"
        places = {"a": (1, 2), "b": (1, 2)}
        pair = Pair("a", "b", True, gap, gap, NAN)
        assert ranked(pair, a=0.5, b=0.75, size=size, places=places)[4:] == [f"{subject} {words}"]
    assert "too few" in Comparison(29, {})._repr_html_()
    assert "too few" not in Comparison(30, {})._repr_html_()


def test_answers_are_ranked_by_a_score_that_is_named():
    places = {"a": (1, 2), "b": (1, 2)}
    lines = ranked(Pair("a", "b", True, SAME, SAME, 0.01), a=0.5, b=0.75, measure="answer_brier", places=places)
    assert lines == [
        "ranked by answer_brier, lowest first; a range where chance leaves the place open",
        "place     answer_brier  accuracy",
        "1-2    a  0.5000        0.7500",
        "1-2    b  0.7500        0.7500",
        "with these questions answer_brier differences under 0.01 are mostly not seen",
        "answer_brier tells how good the confidences are; how good the answers are, accuracy tells",
    ]
    lines = ranked(Pair("a", "b", True, WORSE_NLL, SAME, 0.01), a=0.5, b=0.75, measure="answer_brier")
    assert lines[4] == "answer_brier differs, accuracy not clearly: a and b"


def test_a_comparison_names_both_sides_and_signs_the_difference():
    found = Comparison(
        n=30,
        metrics={
            "accuracy": Difference(0.75, 0.5, Interval(-0.25, -0.5, 0.125), 0.25, "no clear difference"),
            "brier": Difference(0.5, 0.75, Interval(0.25, 0.125, 0.5), 0.002, "worse"),
        },
    )
    assert comparison_lines(found, "one.parquet", "two\n.parquet") == [
        "a: one.parquet",
        "b: two .parquet",
        "30 questions, paired",
        "          a       b       b − a                       p      b is",
        "accuracy  0.7500  0.5000  -0.2500 [-0.5000, +0.1250]  0.250  no clear difference",
        "brier     0.5000  0.7500  +0.2500 [+0.1250, +0.5000]  0.002  worse",
    ]


def test_a_source_is_described_with_its_five_largest_groups():
    sizes = {"a": 1, "b": 3, "c": 2, "d": 4, "e": 5, "f": 6, "": 2}
    questions = [
        Question(f"{group}{i}", "Who?", ("x", "y"), None if group == "a" else 0, group=group)
        for group, size in sizes.items()
        for i in range(size)
    ]
    questions.append(Question("open", "Who?", (), None, accepted=("me",)))
    assert source_lines(questions, "file", "test") == [
        "24 questions from file, split test",
        "options: 0 in 1, 2 in 23",
        "without an answer: 1",
        "groups: 6, the largest f (6), e (5), d (4), b (3), c (2)",
    ]
    assert source_lines(questions[-1:], "file", None) == [
        "1 questions from file",
        "options: 0 in 1",
        "without an answer: 0",
    ]


def test_only_the_first_overlaps_are_shown():
    overlap = [Overlap("id", "test", f"q{i}", "train", f"q{i}") for i in range(7)]
    lines = overlap_lines(overlap, 2)
    assert lines == ["also in another split: 7", "  test q0 = train q0 (same id)", "  test q1 = train q1 (same id)"]
    assert overlap_lines([]) == ["also in another split: 0"]


def test_a_prompt_keeps_its_lines_and_a_star_marks_the_answer():
    prompt = Prompt("Question: Who?\nAnswer:", (" me\n", " you\x1b"))
    assert prompt_lines(prompt, 1)[2:] == [
        "Question: Who?\nAnswer:",
        "--------------------",
        "  ' me\\n'",
        "* ' you\\x1b'",
    ]
    assert not [line for line in prompt_lines(prompt, None) if line.startswith("*")]


def test_no_line_carries_control_characters_from_outside():
    evil = "x\x1b[2J\u202ey"
    question = Question(evil, evil, (evil, "b"), 0, group=evil)
    lines = [
        *metrics_lines({evil: SUMMARY}),
        *ranked(Pair(evil, evil, True, WORSE_NLL, MORE_RIGHT, 0.1), **{evil: 0.5, "b": 0.75}),
        *comparison_lines(Comparison(1, {}), evil, evil),
        *source_lines([question], evil, evil),
        *overlap_lines([Overlap("id", evil, evil, evil, evil)]),
        *prompt_lines(Prompt(evil, (evil,)), 0),
    ]
    assert "x[U+001B][2J[U+202E]y" in lines[0]
    assert not any("\x1b" in line or "\u202e" in line for line in lines)
