"""What a notebook shows: tables and pictures with the numbers in them, and texts that stay text."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from caltune import notebook
from caltune.metrics import Interval, Summary, compare, rank, summarise
from caltune.recalibrate import Temperature
from caltune.report.diagram import compute_diagram, describe_diagram
from caltune.types import OptionLogits, Predictions

HOSTILE = "<script>alert(1)</script>'\"&\x00\ud800"


class Cells(HTMLParser):
    """The rows of a table as lists of cells, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def scores(factor=1.0, prefix="q"):
    logits = np.array([[2.0, 0.0, -np.inf], [0.0, 1.0, 0.5]] * 20)
    return OptionLogits(tuple(f"{prefix}{i}" for i in range(40)), factor * logits, [0, 2] * 20)


def test_a_table_holds_its_cells_and_no_other_markup():
    found = Cells(notebook.table(HOSTILE, ["", HOSTILE], [[HOSTILE, HOSTILE], ["b", "2"]], HOSTILE))
    assert set(found.elements) == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    shown = "<script>alert(1)</script>'\"&[U+0000][U+D800]"
    assert [row[:2] for row in found.rows] == [["", shown], [shown, shown], ["b", "2" + shown]]


def test_scores_show_their_first_rows_without_what_is_no_option():
    first, second, *_ = (rows := Cells(scores()._repr_html_()).rows[1:])
    assert len(rows) == 5
    assert first == ["q0", "0", "0.88, 0.12"]  # σ(2)
    assert second == ["q1", "2", "0.19, 0.51, 0.31"]  # 1, e and √e in all 5.367
    unknown = OptionLogits(("a",), [[-np.inf, 0.0]], [-1])
    assert Cells(unknown._repr_html_()).rows[1] == ["a", "unknown", "0.00, 1.00"]


def test_predictions_show_their_first_rows():
    rows = Cells(Predictions(("a", "b"), [0.25, 1.0], [1.0, 0.0])._repr_html_()).rows
    assert rows == [["id", "confidence", "right"], ["a", "0.250", "yes"], ["b", "1.000", "no"]]


def test_a_summary_shows_every_number_and_an_interval_only_where_it_holds():
    found = summarise(scores(), draws=20)
    rows = {row[0]: row[1:] for row in Cells(found._repr_html_()).rows}
    assert rows["accuracy"] == ["0.500", notebook.interval(*interval_of(found, "accuracy")), "higher is better"]
    assert rows["ece"][1] == ""  # none that holds
    assert rows["ece without chance"][1] == notebook.interval(found.corrected["ece"].low, found.corrected["ece"].high)
    assert rows["ece by chance alone"][0] == notebook.number(found.noise_floor)
    assert set(found.metrics) < set(rows)
    nan = Interval(float("nan"), float("nan"), float("nan"))
    assert Cells(Summary(1, {"auroc": nan}, 0.0, 0.0, {})._repr_html_()).rows[1][:3] == ["auroc", "not defined", ""]


def interval_of(found, name):
    return found.metrics[name].low, found.metrics[name].high


def test_a_comparison_and_a_ranking_name_who_is_better():
    found = compare(scores(3.0), scores(), draws=100)
    rows = {row[0]: row[1:] for row in Cells(found._repr_html_()).rows}
    one = found.metrics["nll"]
    assert rows["nll"][:3] == [notebook.number(x) for x in (one.value_a, one.value_b, one.difference.value)]
    assert rows["nll"][-1] == one.verdict == "better"
    places = Cells(rank({HOSTILE: scores(3.0), "b": scores()})._repr_html_()).rows
    assert places[1:] == [["b", "1"], ["<script>alert(1)</script>'\"&[U+0000][U+D800]", "2" + places[2][1][1:]]]


def test_a_temperature_does_not_list_its_ids():
    assert Temperature(1.5, tuple("abc"))._repr_html_() == "Temperature 1.500, fitted on 3 questions"


def test_a_diagram_is_an_image_that_loads_nothing():
    diagram = compute_diagram(scores().decide())
    shown = diagram._repr_html_()
    pattern = r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)" style="[^"]+">'
    address, alt = re.fullmatch(pattern, shown).groups()
    assert alt == describe_diagram(diagram)
    drawn = base64.b64decode(address).decode()
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//*[@class='mark within']")) + len(root.findall(".//*[@class='mark']")) == 2  # two bins
    assert "url(" not in drawn
    assert "@import" not in drawn


@pytest.mark.parametrize("name", ["number", "interval"])
def test_what_is_not_defined_says_so(name):
    shown = {"number": notebook.number(float("nan")), "interval": notebook.interval(0.1, float("nan"))}
    assert shown[name] == {"number": "not defined", "interval": ""}[name]
