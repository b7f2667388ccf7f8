"""The whole page: nothing in it loads, runs or escapes, whatever the data say."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.formats.scores import ScoreFile
from caltune.report.evidence import most_wrong
from caltune.report.page import Entry, render_report, write_report
from caltune.types import OptionLogits

pytestmark = pytest.mark.usefixtures("few_draws")
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></svg></details><script src=//evil.example></script>",
    "{{7*7}}{% include '/etc/passwd' %}{# #}",
    "nul\x00bell\x07esc\x1b[31m del\x7f",
    "right\u202eto left\u2066isolate",
    "lone surrogate \ud800",
    "' onmouseover='alert(1)",
    "javascript:alert(1) http://evil.example/a.png url(http://evil.example)",
    "]]><!-- &lt;b&gt; &#60;",
]


class Page(HTMLParser):
    """Collects elements, attributes and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all_text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))

    def count(self, tag: str, css: str | None = None) -> int:
        return sum(name == tag and (css is None or css in (a.get("class") or "").split()) for name, a in self.elements)


def simulated(n: int, seed: int = 0, sharpen: float = 2.0, prefix: str = "q") -> OptionLogits:
    """Questions with four options; `sharpen` 1 is calibrated, more is overconfident."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 4)) * 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) < generator.random((n, 1))).sum(1)
    return OptionLogits(tuple(f"{prefix}{i}" for i in range(n)), logits * sharpen, labels)


def entry(name: str, scores: OptionLogits, **metadata: Any) -> Entry:
    return Entry(name, ScoreFile(scores, metadata))


def hostile_entry(text: str) -> Entry:
    scores = simulated(40)
    ids = tuple(f"{text} {i}" for i in range(40))
    groups = tuple(text + "ab"[i % 2] for i in range(40))
    scores = OptionLogits(ids, scores.logits, scores.labels, groups)
    examples = [{"id": i, "question": text, "options": [text + letter for letter in "ABCD"]} for i in ids]
    training = [{"epoch": e, "eval_accuracy": 0.5, "eval_confidence": 0.6, text: text} for e in (0, 1)]
    keys = ("model", "data", "split", "answers", "prompt_example", "seed", "method", text)
    fields: dict[str, Any] = dict.fromkeys(keys, text)
    return entry(
        text, scores, versions={text: text}, examples=examples, training=training, temperature=[text], **fields
    )


@pytest.fixture(scope="module")
def harmless() -> list[tuple[str, list[str]]]:
    """The elements, with the names of their attributes, of a page about harmless text."""
    page = Page(render_report([hostile_entry("plain"), hostile_entry("plain")], title="t", context="c"))
    return [(tag, list(attributes)) for tag, attributes in page.elements]


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_stays_text(text: str, tmp_path: Path, harmless: list[tuple[str, list[str]]]) -> None:
    entries = [hostile_entry(text), hostile_entry(text)]
    path = write_report(tmp_path / "r.html", entries, title=text, context=text)
    written = path.read_bytes().decode("utf-8")
    page = Page(written)
    # The same elements with the same attributes as for harmless text: nothing was opened, closed or added.
    assert [(tag, list(a)) for tag, a in page.elements] == harmless
    assert not {"script", "img", "iframe", "link", "object", "a", "form", "foreignobject"} & {
        t for t, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "xlink:href")], tag
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", written)
    seen = page.all_text()
    if text.isprintable() and "\ud800" not in text:
        assert seen.count(" ".join(text.split())) > 20  # shown as it is, in every place
    assert "url(" not in written.split("<style>")[1].split("</style>")[0]


def test_control_characters_are_shown_as_code_points() -> None:
    seen = Page(render_report([hostile_entry(HOSTILE[4]), hostile_entry(HOSTILE[5])])).all_text()
    assert "nul[U+0000]bell[U+0007]esc[U+001B][31m del[U+007F]" in seen
    assert "right[U+202E]to left[U+2066]isolate" in seen


def test_four_models_make_a_complete_light_page() -> None:
    training = [{"epoch": e, "eval_accuracy": 0.6, "eval_confidence": 0.6 + e / 20} for e in range(4)]
    entries = [entry(f"model {i}", simulated(500, sharpen=i / 2 + 0.5), training=training) for i in range(4)]
    written = render_report(entries, title="A title", context="and context")
    page = Page(written)
    assert len(written.encode()) < 300_000
    # Reliability, three against the first, options, coverage, training.
    assert page.count("figure") == page.count("svg", "chart") == 4 + 3 + 4 + 1 + 4
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers)) == 32
    details = [a for tag, a in page.elements if tag == "details" and "wrong" in str(a.get("class"))]
    assert ["open" in a for a in details] == [True, False, False, False]
    assert page.count("ol", "questions") == 4
    assert page.count("p", "asked") == 0
    assert "The text of this question is not stored." in page.all_text()
    assert "prefers-color-scheme: dark" in written
    assert "@media print" in written
    assert written.count("http") == written.count("http-equiv") == 1
    assert "model 1" in page.all_text()


def test_the_same_input_gives_the_same_page() -> None:
    entries = [entry("a", simulated(60)), entry("b", simulated(60, sharpen=1))]
    assert render_report(entries) == render_report(entries)


def test_entries_on_other_questions_are_shown_but_not_compared() -> None:
    entries = [entry("a", simulated(60)), entry("b", simulated(50, prefix="other"))]
    page = Page(render_report(entries))
    seen = page.all_text()
    assert "Other questions than a were put to b: no paired comparison is possible there." in seen
    assert "question by question" not in seen
    assert page.count("span", "tag") == 0
    assert "2 models · 50 to 60 questions" in seen


def test_entries_in_another_order_are_compared() -> None:
    scores = simulated(60)
    seen = Page(render_report([entry("a", scores), entry("b", scores.take(list(range(59, -1, -1))))])).all_text()
    assert "Difference from a, question by question" in seen
    assert "No clear difference in calibration between a and b." in seen


def test_labels_that_disagree_are_an_error() -> None:
    scores = simulated(60)
    other = OptionLogits(scores.ids, scores.logits, (scores.labels + 1) % 4)
    with pytest.raises(InputError, match="b against a: "):
        render_report([entry("a", scores), entry("b", other)])


def test_names_are_made_unique() -> None:
    page = Page(render_report([entry("sft", simulated(40)), entry("sft", simulated(40))]))
    assert "No clear difference in calibration between sft and sft (2)." in page.all_text()


def test_ten_models() -> None:
    page = Page(render_report([entry(f"m{i}", simulated(40, sharpen=1 + i / 5)) for i in range(10)]))
    assert page.count("svg", "chart") == 10 + 9 + 10 + 1
    assert "10 models · 40 questions" in page.all_text()


def test_one_question() -> None:
    scores = OptionLogits(("only",), np.array([[2.0, 0.0]]), np.array([1]))
    seen = Page(render_report([entry("m", scores)])).all_text()
    assert "1 question: too few for a verdict." in seen
    assert "AUROC is not defined, since every answer is wrong." in seen
    assert "1 wrong of 1 question" in seen


def test_all_right_leaves_no_wrong_questions_and_an_undefined_auroc() -> None:
    scores = OptionLogits(tuple(map(str, range(50))), np.tile([3.0, 0.0], (50, 1)), np.zeros(50))
    page = Page(render_report([entry("m", scores)]))
    assert "none wrong of 50 questions" in page.all_text()
    assert page.count("ol", "questions") == 0
    assert "not defined" in page.all_text()


def test_the_right_option_may_be_impossible() -> None:
    scores = simulated(40)
    logits = scores.logits.copy()
    logits[0] = [5.0, 0.0, -np.inf, -np.inf]
    labels = scores.labels.copy()
    labels[0] = 3
    seen = Page(render_report([entry("m", OptionLogits(scores.ids, logits, labels))])).all_text()
    assert "∞" in seen
    assert "nan" not in seen.lower()


@pytest.mark.parametrize(
    "examples", [None, 3, "text", {"a": 1}, [None, 5, {}, {"id": "q1"}, {"id": "q1", "options": 4}]]
)
def test_malformed_examples_fall_back_to_ids(examples: object) -> None:
    found = most_wrong(simulated(40), examples)
    assert len(found) == 10
    assert all(one.question == "" and len(one.chosen) == len(one.right) == 1 for one in found)


def test_the_most_wrong_come_surest_first() -> None:
    # Softmax of [z, 0]: the surest wrong answers are those with the largest z and label 1; z = 9 is right.
    logits = np.array([[1.0, 0.0], [3.0, 0.0], [9.0, 0.0], [0.0, 2.0]])
    found = most_wrong(OptionLogits(("a", "b", "c", "d"), logits, np.array([1, 1, 0, 0])), [])
    assert [one.id for one in found] == ["b", "d", "a"]
    assert (found[0].chosen, found[0].right) == ("A", "B")
    assert found[0].confidence.replace("\u00a0", " ") == "95.3 %"  # 1 / (1 + exp(-3))
    assert found[0].probability.replace("\u00a0", " ") == "4.7 %"


def test_how_it_was_made_tells_shared_from_own() -> None:
    shared = {"data": "ARC", "prompt_example": "Question: x\nAnswer:", "versions": {"torch": "2.6"}}
    entries = [
        entry(n, simulated(40), model=n + "-model", temperature=t, **shared) for n, t in (("a", 1.5), ("b", 2.0))
    ]
    seen = Page(render_report(entries)).all_text()
    assert seen.count("ARC") == seen.count("torch 2.6") == seen.count("Question: x Answer:") == 1
    assert "a-model" in seen
    assert "Temperature2" in seen.replace(" ", "")
    assert "as given to all models" in seen


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "at least one entry, got none"),
        ([entry("m", OptionLogits((), np.empty((0, 2)), np.empty(0)))], "m: a report needs at least one question"),
        ([entry("m", OptionLogits(("a",), np.zeros((1, 2)), np.array([-1])))], "m: 1 questions have no label"),
    ],
)
def test_bad_input(entries: list[Entry], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_report(tmp_path / "r.html", entries)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder must exist"):
        write_report(tmp_path / "none" / "r.html", [entry("m", simulated(5))])


@pytest.mark.parametrize("broken", ["caltune.report.page.headline", "caltune.report.page.os.replace"])
def test_a_failure_leaves_the_old_page_and_no_partial_file(broken: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr(broken, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(path, [entry("m", simulated(5))])
    assert [one.name for one in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text() == "old"
