"""The report in a real browser: what it asks for, how it fits, how it reads, and that text stays text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Chromium, find_chromium

from caltune.abstain import fit_threshold
from caltune.formats.scores import ScoreFile
from caltune.recalibrate import Temperature
from caltune.report.page import Entry, write_report
from caltune.types import OptionLogits

pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
]
HOSTILE = "<script>ran=1</script><img src=x onerror=ran=1>"
PHONE = 360

# Contrast by WCAG 2.2, 1.4.3, of each piece of text that is shown: [ratio, text], the worst first.
CONTRAST = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = channels(color).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((channels(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const unseen = !node.checkVisibility() || ["title", "desc"].includes(node.tagName);
    if (unseen || !walker.currentNode.data.trim()) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(node.closest("svg") ? style.fill : style.color), light(ground(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim()]);
  }
  return found.sort((one, other) => one[0] - other[0]);
})()"""

# What reaches out of the window, but for what scrolls by itself.
WIDE = """[...document.querySelectorAll("body *")]
  .filter((node) => node.checkVisibility() && !node.closest(".scroll, pre, svg"))
  .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map((node) => node.tagName + "." + node.className + ": " + node.textContent.slice(0, 60))"""

FOCUSED = """(() => {
  const node = document.activeElement, style = getComputedStyle(node), box = node.getBoundingClientRect();
  const all = [...document.querySelectorAll("summary, [tabindex], a[href], button, input, select")];
  return {place: all.indexOf(node), outline: style.outlineStyle, shown: box.bottom > 0 && box.top < innerHeight};
})()"""


def report(folder: Path) -> Path:
    """A page with all it can hold: four models, recalibration, groups, options, a policy, training, hostile texts."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(240, 4)) * 1.5
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (chances.cumsum(1)[:, :3] < generator.random((240, 1))).sum(1)
    groups = tuple(f"{HOSTILE} {i % 3}" if i % 3 else "geography" for i in range(240))
    sure = OptionLogits(tuple(f"q{i}" for i in range(240)), 2 * logits, labels, groups)
    noisy = OptionLogits(sure.ids, 2 * logits + generator.normal(size=logits.shape), labels, groups)
    wrong = np.flatnonzero(~sure.decide().correct.astype(bool))[:20]
    question, options = f"{HOSTILE} {'x' * 300}", [f"{HOSTILE} {k}" for k in "abcd"]
    examples = [{"id": sure.ids[i], "question": question, "options": options} for i in wrong]
    course = [
        {"epoch": i, "eval_accuracy": 0.5 + i / 20, "eval_confidence": 0.6 + i / 10, "eval_ece": 0.1} for i in range(4)
    ]
    about: dict[str, Any] = {"model": "a/b", "answers": "letters", "examples": examples, "training": course}
    about |= {"prompt_example": f"{HOSTILE}\n{'word ' * 80}\n{'y' * 300}"}
    scaled = {
        **about,
        "temperature": 2.0,
        "recalibrated": [{"name": "temperature", "questions": 100, "temperature": 2.0}],
    }
    entries = [
        Entry("sft", ScoreFile(sure, about)),
        Entry("sft + temperature", ScoreFile(Temperature(2.0)(sure), scaled)),
        Entry(f"{HOSTILE}.parquet", ScoreFile(noisy, {"model": HOSTILE})),
        Entry("a-name-that-is-as-long-as-a-file-name-can-reasonably-be.parquet", ScoreFile(noisy, about)),
    ]
    other = OptionLogits(tuple(f"p{i}" for i in range(240)), sure.logits, labels)
    policy = fit_threshold(other.decide(), 0.4)
    return write_report(folder / "report.html", entries, title=HOSTILE, context=HOSTILE, policy=policy)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, few_draws: None) -> str:
    return report(tmp_path_factory.mktemp("browser")).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium(find_chromium() or "") as one:
        yield one


def open_all(browser: Chromium) -> None:
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")


def test_nothing_is_loaded_said_or_run(browser: Chromium, address: str) -> None:
    browser.open(address)
    open_all(browser)
    browser.run("new Promise((done) => setTimeout(done, 100))")
    asked = [given["request"]["url"] for method, given in browser.events if method == "Network.requestWillBeSent"]
    assert asked == [address]
    said = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
    assert [event for event in browser.events if event[0] in said] == []
    assert browser.run("typeof window.ran") == "undefined"
    assert browser.run("document.querySelectorAll('script, img, iframe, link, object, embed').length") == 0
    assert browser.run("document.compatMode") == "CSS1Compat"
    shown = browser.run("document.body.innerText")
    assert shown.count(HOSTILE) > 20  # title, context, groups, options, questions, prompt


def test_the_checks_above_can_fail(browser: Chromium, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    head = "<!doctype html><meta name='viewport' content='width=device-width'>"
    body = "<img src='missing.png'><script>console.error('no'); ran = 1</script>"
    bad.write_text(f"{head}{body}<p style='width: 500px; color: #999'>wide and pale", encoding="utf-8")
    browser.open(bad.as_uri(), width=PHONE)
    methods = [method for method, _ in browser.events]
    assert methods.count("Network.requestWillBeSent") == 2
    assert {"Runtime.consoleAPICalled", "Log.entryAdded"} <= set(methods)
    assert browser.run("window.ran") == 1
    assert len(browser.run(WIDE)) == 1
    assert browser.run(CONTRAST)[0][0] == pytest.approx(2.85, abs=0.01)  # (1.05) / (0.3185 + 0.05)


@pytest.mark.parametrize("width", [320, PHONE, 768, 1280])
def test_nothing_reaches_out_of_the_window(browser: Chromium, address: str, width: int) -> None:
    browser.open(address, width=width, height=740)
    for _ in range(2):
        assert browser.run(WIDE) == []
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        open_all(browser)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_contrast(browser: Chromium, address: str, dark: bool) -> None:
    browser.open(address, dark=dark)
    open_all(browser)
    ground = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(ground) < 64 if dark else min(ground) > 192
    found = browser.run(CONTRAST)
    assert len(found) > 300
    assert found[0][0] >= 4.5, found[:5]


def read_aloud(browser: Chromium) -> list[dict[str, Any]]:
    """What a screen reader meets, in its order: role, name, description and properties of each node."""
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}

    def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not node.get("ignored"):
            found = {key: node.get(key, {}).get("value", "") for key in ("role", "name", "description")}
            inside = [by_id[child] for child in node.get("childIds", []) if child in by_id]
            properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
            yield {**found, "properties": properties, "node": node, "inside": inside}
        for child in node.get("childIds", []):
            if child in by_id:
                yield from walk(by_id[child])

    return list(walk(nodes[0]))


def test_it_reads_in_order_aloud(browser: Chromium, address: str) -> None:
    browser.open(address)
    open_all(browser)
    nodes = read_aloud(browser)
    assert nodes[0]["name"].startswith("<script>")  # the page's title, as text
    roles = [node["role"] for node in nodes]
    for landmark in ("banner", "main", "contentinfo"):
        assert roles.count(landmark) == 1

    levels = [node["properties"]["level"] for node in nodes if node["role"] == "heading"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert all(node["name"].strip() for node in nodes if node["role"] == "heading")

    charts = [node for node in nodes if node["role"] in ("image", "img", "graphics-document")]
    assert len(charts) == browser.run("document.querySelectorAll('svg:not([aria-hidden=true])').length") >= 12
    for chart in charts:
        assert chart["name"].strip(), chart
        assert len(chart["description"]) > 20, chart  # what is to be seen, in words
        assert chart["description"] not in chart["name"]  # and not twice
    assert all(node["name"].strip() for node in nodes if node["role"] in ("region", "DisclosureTriangle"))


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_tables_have_headers(browser: Chromium, address: str, width: int) -> None:
    browser.open(address, width=width)
    open_all(browser)
    cells = "[...row.cells].filter((cell) => cell.checkVisibility())"
    cells += ".map((cell) => [cell.tagName, cell.scope, cell.innerText.trim()])"
    tables = browser.run(f"[...document.querySelectorAll('table')].map((one) => [...one.rows].map((row) => {cells}))")
    assert len(tables) > 10
    for header, *body in tables:
        assert [cell[:2] for cell in header] == [["TH", "col"]] * len(header)
        assert all(text for _, _, text in header)
        assert body
        for row in body:
            assert row[0][:2] == ["TH", "row"], row
            assert len(row) == len(header)
    roles = [node["role"] for node in read_aloud(browser)]
    assert roles.count("columnheader") == sum(len(header) for header, *_ in tables)
    assert roles.count("rowheader") == sum(len(body) for _, *body in tables)


def test_the_keyboard_reaches_everything_in_order(browser: Chromium, address: str) -> None:
    browser.open(address)
    count = browser.run("document.querySelectorAll('summary, [tabindex]').length")
    assert count > 10
    shown = browser.run(
        "[...document.querySelectorAll('summary, [tabindex]')].filter((one) => one.checkVisibility()).length"
    )
    reached = []
    for _ in range(shown):
        browser.press("Tab", 9)
        reached.append(browser.run(FOCUSED))
    places = [one["place"] for one in reached]
    assert places == sorted(set(places))
    assert len(places) == shown
    assert all(one["shown"] and one["outline"] not in ("none", "hidden") for one in reached), reached
    browser.run("document.querySelector('details summary').focus()")
    before = browser.run("document.activeElement.parentElement.open")
    browser.press("Enter", 13, "\r")
    assert browser.run("document.activeElement.parentElement.open") is not before
