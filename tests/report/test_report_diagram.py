"""The geometry of the charts, on diagrams whose places on the page can be computed by hand."""

from xml.etree import ElementTree

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.report.curves import (
    Course,
    Coverage,
    compute_coverage,
    course_range,
    describe_course,
    draw_course,
    draw_coverage,
    read_course,
)
from caltune.report.diagram import Diagram, compute_diagram, describe_diagram, draw_diagram, save_diagram
from caltune.types import Predictions


def hand_made() -> Diagram:
    """Two bins: ten answers at 0.5 of which 8 are right, where chance allows 0.2 to 0.7; none in the other."""
    nan = float("nan")
    return Diagram(
        edges=np.array([0.0, 0.6, 1.0]),
        count=np.array([10.0, 0.0]),
        confidence=np.array([0.5, nan]),
        accuracy=np.array([0.8, nan]),
        low=np.array([0.2, nan]),
        high=np.array([0.7, nan]),
        mean_confidence=0.5,
        mean_accuracy=0.8,
    )


def elements(svg: str, css: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg).iter() if one.get("class") == css]


def predictions(confidence: list[float], correct: list[float]) -> Predictions:
    return Predictions(tuple(str(i) for i in range(len(confidence))), np.array(confidence), np.array(correct))


def test_mark_gap_band_and_bar_lie_where_the_numbers_say() -> None:
    svg = draw_diagram(hand_made(), name="m", identifier="d")
    # The square is 290 wide from x = 38, y = 22: 0.5 is at 38 + 145, an accuracy of 0.8 at 22 + 0.2 * 290.
    (mark,) = elements(svg, "mark")
    assert (mark.get("cx"), mark.get("cy")) == ("183", "80")
    (gap,) = elements(svg, "gap")
    assert [gap.get(k) for k in ("x1", "y1", "x2", "y2")] == ["183", "167", "183", "80"]
    # From 0 to 0.6 is 174 wide; from 0.7 (y = 109) down to 0.2 (y = 254) is 145 high.
    (band,) = elements(svg, "band")
    assert [band.get(k) for k in ("x", "y", "width", "height")] == ["38", "109", "174", "145"]
    # The only bin is the fullest: its bar fills the histogram, 52 high above y = 372.
    (bar,) = elements(svg, "bar")
    assert (bar.get("y"), bar.get("height")) == ("320", "52")
    assert [one.get("x1") for one in elements(svg, "mean") + elements(svg, "mean right")] == ["183", "270"]


def test_a_mark_within_chance_is_hollow() -> None:
    diagram = hand_made()
    diagram.accuracy[0] = 0.7
    svg = draw_diagram(diagram, name="m", identifier="d")
    assert len(elements(svg, "mark within")) == 1
    assert not elements(svg, "mark")


def test_the_svg_has_a_text_alternative_and_each_bin_a_tooltip() -> None:
    root = ElementTree.fromstring(draw_diagram(hand_made(), name="<b>&", identifier="d"))
    assert root.get("role") == "img"
    assert (root.get("aria-labelledby"), root.get("aria-describedby")) == ("d-title", "d-desc")
    assert [(child.tag, child.get("id")) for child in root[:2]] == [("title", "d-title"), ("desc", "d-desc")]
    assert root[0].text == "Reliability diagram of <b>&"
    assert "1 of 1 filled bins the accuracy lies beyond what chance allows: 0 below, 1 above" in str(root[1].text)
    (tip,) = root.findall("g/title")
    assert "10 questions. Says 50.0\u00a0%, is right 80.0\u00a0%; chance allows 20.0\u00a0% to 70.0" in str(tip.text)


def test_compute_counts_every_answer_once_and_keeps_the_ends() -> None:
    diagram = compute_diagram(predictions([0.0, 1.0, 1.0, 0.5], [0, 1, 1, 1]))
    assert diagram.count.sum() == 4
    assert diagram.count[0] == 1
    assert diagram.count[-1] == 2
    assert not diagram.beyond_chance(0)
    assert diagram.mean_confidence == 0.625


def test_a_certain_model_that_is_wrong_is_beyond_chance() -> None:
    diagram = compute_diagram(predictions([1.0, 1.0], [0, 1]))
    assert diagram.beyond_chance(14)
    assert "1 below, 0 above" in describe_diagram(diagram)


def test_no_predictions_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one prediction, got none"):
        compute_diagram(predictions([], []))


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_save_diagram_writes_the_kind_the_suffix_names(tmp_path, suffix: str, start: bytes) -> None:
    path = save_diagram(tmp_path / f"r{suffix}", predictions([0.9, 0.6], [1, 0]), title="a $ b $ <c>")
    assert path.read_bytes().startswith(start)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_save_diagram_refuses_other_suffixes_and_missing_folders(tmp_path) -> None:
    some = predictions([0.9], [1])
    with pytest.raises(InputError, match=r"\.png or \.svg, got '\.pdf'"):
        save_diagram(tmp_path / "r.pdf", some)
    with pytest.raises(InputError, match="folder must exist"):
        save_diagram(tmp_path / "none" / "r.png", some)


def test_save_diagram_leaves_nothing_when_plotting_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("caltune.report.diagram._plot", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_diagram(tmp_path / "r.png", predictions([0.9], [1]))
    assert not list(tmp_path.iterdir())


def test_coverage_starts_at_twenty_questions_and_ends_at_the_accuracy() -> None:
    confidence = np.linspace(0.99, 0.3, 100).tolist()
    found = compute_coverage(predictions(confidence, [1.0] * 50 + [0.0] * 50))
    assert found.coverage[0] == pytest.approx(0.2)
    assert (found.at(0.5), found.at(1.0)) == (1.0, 0.5)
    assert compute_coverage(predictions([0.9, 0.8], [1, 0])).accuracy.tolist() == [1.0, 0.5]


def test_coverage_curve_lies_where_the_numbers_say() -> None:
    curve = Coverage(np.array([0.5, 1.0]), np.array([1.0, 0.75]))
    svg = draw_coverage([("m", curve)], identifier="c")
    # x: 38 + 310 * coverage; y: the scale is 0.7 to 1 over 230 from 22, so 0.75 is at 22 + 230 * 5 / 6.
    (line,) = elements(svg, "curve d0")
    assert line.get("points") == "193,22 348,213.7"


def test_ten_models_have_ten_different_looks() -> None:
    curve = Coverage(np.array([1.0]), np.array([0.5]))
    root = ElementTree.fromstring(draw_coverage([(f"m{i}", curve) for i in range(10)], identifier="c"))
    looks = [(group.get("class"), group.findall("polyline")[0].get("class")) for group in root.iter("g")]
    assert len(set(looks)) == 10


def test_many_points_are_thinned_but_keep_their_ends() -> None:
    coverage = np.arange(1, 5001) / 5000
    (line,) = elements(draw_coverage([("m", Coverage(coverage, 1 - coverage / 2))], identifier="c"), "curve d0")
    points = str(line.get("points")).split()
    assert len(points) == 160
    assert points[-1] == "348,252"


def test_course_lines_lie_where_the_numbers_say() -> None:
    rows = [
        {"epoch": 2, "eval_accuracy": 0.8, "eval_confidence": 0.95},
        {"epoch": 0, "eval_accuracy": 0.75, "eval_confidence": 0.75, "eval_ece": 0.1},
    ]
    course = read_course(rows)
    assert course is not None
    assert course.ece == ()
    svg = draw_course(course, name="m", identifier="c", y_range=course_range([course]))
    # x: 34 to 220; y: 0.7 to 1 over 140 from 22.
    (confidence,) = elements(svg, "curve d0")
    (accuracy,) = elements(svg, "curve right")
    assert confidence.get("points") == "34,138.7 220,45.3"
    assert accuracy.get("points") == "34,138.7 220,115.3"


def test_a_course_ends_with_the_last_of_two_evaluations_at_one_epoch() -> None:
    rows = [{"epoch": e, "eval_accuracy": a, "eval_confidence": 0.9} for e, a in ((0, 0.5), (3, 0.8), (3, 0.7))]
    course = read_course(rows)
    assert course is not None
    assert course.accuracy == (0.5, 0.8, 0.7)
    assert describe_course(course).endswith(" At the end it steps to the weights that were kept.")
    assert "steps" not in describe_course(Course((0, 3), (0.5, 0.8), (0.9, 0.9), ()))


@pytest.mark.parametrize(
    "rows",
    [
        None,
        7,
        "text",
        {},
        [1, None],
        [{"epoch": 1.0, "eval_accuracy": "0.5", "eval_confidence": 0.5}] * 2,
        [{"epoch": 1.0, "eval_accuracy": float("nan"), "eval_confidence": 0.5}] * 3,
        [{"epoch": 1.0, "eval_accuracy": 0.5, "eval_confidence": 0.5}] * 3,
    ],
)
def test_a_malformed_course_is_left_out(rows: object) -> None:
    assert read_course(rows) is None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_course_still_has_a_scale(value: float) -> None:
    course = read_course([{"epoch": e, "eval_accuracy": value, "eval_confidence": value} for e in (0, 1)])
    assert course is not None
    low, high = course_range([course])
    assert 0 <= low < high <= 1
    assert low <= value <= high
    draw_course(course, name="m", identifier="c", y_range=(low, high))
