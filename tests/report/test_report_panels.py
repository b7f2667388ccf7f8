"""The panels about groups, options, before and after, and a policy: what they say, for numbers made by hand."""

import re
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest

from caltune.abstain import fit_expected_loss, fit_threshold
from caltune.errors import InputError
from caltune.formats.policy import source_of
from caltune.formats.scores import ScoreFile
from caltune.metrics import Stratum, compare, rank, summarise
from caltune.report import change, page
from caltune.report.abstention import chosen_points
from caltune.report.change import Change, describe_change, draw_change, find_changes
from caltune.report.curves import compute_coverage, draw_coverage
from caltune.report.page import Entry, render_report
from caltune.report.strata import Strata, common_range, compute_groups, compute_options, describe_strata, draw_strata
from caltune.report.table import numbers_table
from caltune.types import OptionLogits, Predictions


def simulated(n=300, seed=0, sharpen=1.0, groups=(), prefix="q"):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 4)) * 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1)[:, :3] < generator.random((n, 1))).sum(1)
    return OptionLogits(tuple(f"{prefix}{i}" for i in range(n)), logits * sharpen, labels, groups)


def sharpened(scores, factor):
    return OptionLogits(scores.ids, factor * scores.logits, scores.labels, scores.groups)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The panels do not hang on how finely the bootstrap resamples."""
    for module, name, function in (
        (page, "summarise", summarise),
        (page, "compare", compare),
        (change, "compare", compare),
    ):
        monkeypatch.setattr(module, name, partial(function, draws=40))


def plain(text):
    return text.replace("\u00a0", " ")


def section(written, heading):
    return next((part for part in written.split("<section>") if f"<h2>{heading}</h2>" in part), "")


# Groups and options


def test_groups_are_shown_worst_first_and_only_where_there_are_two():
    groups = tuple("ab"[i % 2] for i in range(40))
    right = np.array([0.0, 1.0] * 20)
    found = compute_groups(Predictions(tuple(map(str, range(40))), np.full(40, 0.6), right, groups))
    assert [(row.name, row.n, row.right) for row in found.rows] == [("a", 20, 0.0), ("b", 20, 1.0)]
    assert found.off == (1, 1)
    assert compute_groups(simulated(10).decide()) is None
    assert compute_groups(simulated(10, groups=("x",) * 10).decide()) is None
    assert compute_groups(simulated(4, groups=("x", "x", "", "")).decide()) is None  # one with a name


def test_of_many_groups_the_largest_are_shown():
    groups = tuple(f"g{i % 60}" for i in range(90))  # g0 to g29 have two questions
    found = compute_groups(simulated(90, groups=groups).decide())
    assert len(found.rows) == 40
    assert {f"g{i}" for i in range(30)} <= {row.name for row in found.rows}
    assert "the 40 largest of 60 groups" in describe_strata(found, "group")


def test_options_need_two_columns_with_logits():
    assert [row.name for row in compute_options(simulated(10)).rows] == ["A", "B", "C", "D"]
    assert compute_options(OptionLogits(("q",), [[1.0, -np.inf]], [0])) is None


def test_rows_lie_where_their_numbers_are():
    row = Stratum("x" * 50, 20, 0.8, 0.5, 0.6, 0.9)
    drawn = ElementTree.fromstring(
        draw_strata(Strata((row,), 1), kind="group", name="m", identifier="i", x_range=(0.4, 1.0))
    )
    mark = next(e for e in drawn.iter("circle") if e.get("class") == "mark")  # filled: 0.5 is below 0.6
    says = next(e for e in drawn.iter("line") if e.get("class") == "mean")
    band = next(e for e in drawn.iter("rect") if e.get("class") == "band")
    ticks = {e.text: float(e.get("x")) for e in drawn.iter("text") if e.get("class") == "tick middle"}
    width = ticks["100"] - ticks["40"]
    assert float(mark.get("cx")) == pytest.approx(ticks["40"] + width / 6, abs=0.2)
    assert float(says.get("x1")) == pytest.approx(ticks["40"] + width * 2 / 3, abs=0.2)
    assert float(band.get("width")) == pytest.approx(width / 2 + 1, abs=0.2)
    assert next(e.text for e in drawn.iter("text") if e.get("class") == "label end") == "x" * 17 + "…"
    assert "x" * 50 in next(e.text for e in drawn.find("g").iter("title"))


def test_the_scale_holds_every_row():
    rows = [Stratum("a", 5, 0.31, 0.05, 0.1, 0.5), Stratum("b", 5, 0.97, 1.0, 0.9, 1.0)]
    assert common_range([Strata((row,), 1) for row in rows]) == (0.0, 1.0)
    assert common_range([Strata((Stratum("a", 5, 1.0, 1.0, 1.0, 1.0),), 1)]) == (0.8, 1.0)
    assert common_range([Strata((Stratum("a", 5, 0.0, 0.0, 0.0, 0.0),), 1)]) == (0.0, 0.2)


def test_many_groups_are_folded_away_and_few_are_not():
    few, many = (simulated(260, groups=tuple(f"g{i % count}" for i in range(260))) for count in (3, 13))
    for scores, summary in ((few, "The groups as numbers"), (many, "Show the 13 groups")):
        part = section(render_report([Entry("m", ScoreFile(scores))]), "Where is it off?")
        assert part.count("<details>") == 1
        assert f"<summary>{summary}</summary>" in part
        assert (part.index("<details>") < part.index("<svg")) == (scores is many)
    assert not section(render_report([Entry("m", ScoreFile(simulated(60)))]), "Where is it off?")


# Before and after


def file(scores, **metadata):
    return ScoreFile(scores, metadata)


def test_a_recalibrated_file_finds_the_one_it_came_from():
    scores, other = simulated(20), simulated(20, prefix="other")
    files = [
        file(scores, model="m", seed=0),
        file(scores, model="m", seed=1),
        file(scores, model="m", seed=1, recalibrated=["temperature"], temperature=2.0),
        file(scores, model="m", seed=1, recalibrated=["temperature", "isotonic"], temperature=2.0, versions={}),
        file(other, model="m", seed=1, recalibrated=["temperature"]),
        file(scores, model="m", seed=0, temperature=1.5),
    ]
    assert find_changes(files) == [Change(1, 2, True), Change(2, 3, True), Change(0, 5, True)]


def test_without_a_recalibrated_pair_each_is_set_against_the_first():
    scores = simulated(20)
    assert find_changes(
        [file(scores), file(scores), file(simulated(20, prefix="o")), file(scores, temperature=2.0)]
    ) == [
        Change(0, 1, False),
        Change(0, 3, False),
    ]
    assert find_changes([file(scores)]) == []


def test_a_change_in_words():
    before = OptionLogits(tuple("abcd"), np.log([[0.9, 0.1], [0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), [0, 1, 0, 0])
    after = OptionLogits(tuple("dcba"), np.log([[0.6, 0.4], [0.8, 0.2], [0.9, 0.1], [0.9, 0.1]]), [0, 0, 1, 0])
    # Says (0.9 + 0.9 + 0.8 + 0.6) / 4 both times; d is right now. Of the right options 0.9 · 0.1 · 0.8 · 0.4 = 0.0288
    # and 0.9 · 0.1 · 0.8 · 0.6 = 0.0432: −ln of them / 4 is 0.887 and 0.785.
    words = plain(describe_change(before, after, compare(before, after, draws=50)))
    assert words.startswith("Says 80.0 → 80.0 %, is right 50.0 → 75.0 %. NLL 0.887 → 0.785, no clear difference [")
    assert words.endswith("]. 1 of 4 answers changed.")
    words = describe_change(before, before, compare(before, before, draws=50))
    assert words.endswith("No answer changed.")
    inf = OptionLogits(("a",), [[0.0, -np.inf]], [1])
    assert "NLL ∞ → ∞, no clear difference. No" in describe_change(inf, inf, compare(inf, inf, draws=20))


def test_both_curves_are_drawn_with_a_tenth_of_the_questions_a_mark():
    before, after = simulated(200, sharpen=3).decide(), simulated(200).decide()
    drawn = ElementTree.fromstring(draw_change(before, after, names=("a", "b"), identifier="i", text="in words"))
    curves = {e.get("class"): e for e in drawn.iter("g")}
    assert curves.keys() == {"before", "after"}
    assert all(len(list(e.iter("circle"))) == 10 for e in curves.values())
    assert [e.find("title").text for e in curves.values()] == ["a", "b"]
    assert drawn.find("desc").text == "in words"


def test_the_page_shows_recalibration_only_where_there_is_some():
    scores = simulated(100, sharpen=2)
    entries = [
        Entry("raw", file(scores, model="m")),
        Entry("other", file(sharpened(scores, 2), model="n")),
        Entry("scaled", file(sharpened(scores, 0.5), model="m", recalibrated=["temperature"])),
    ]
    part = section(render_report(entries), "Before and after")
    assert part.count("<figure") == 1
    assert "after <bdi>raw</bdi>" in part
    assert "No answer changed." in part
    assert not section(render_report(entries[:1]), "Before and after")


# The policy


def policy_and_files(limit=0.3):
    whole = simulated(800)
    metadata = {"model": "m", "answers": "letters"}
    policy = fit_threshold(whole.take(range(400)).decide(), limit)
    policy = replace(policy, source=source_of(metadata))
    return policy, file(whole.take(range(400, 800)), **metadata), file(whole.take(range(400, 800)), model="other")


def test_a_policy_is_applied_where_it_belongs():
    policy, mine, other = policy_and_files()
    found = chosen_points(policy, ["other", "mine"], [other, mine])
    assert list(found) == [1]
    decided = mine.scores.decide()
    kept = decided.confidence >= policy.threshold
    assert found[1].point == pytest.approx((kept.mean(), decided.correct[kept].mean()))
    wrong = int((1 - decided.correct[kept]).sum())
    assert plain(found[1].text).startswith(f"mine: it answers {kept.sum()} of 400 questions (")
    assert f"), {wrong} of them wrongly (" in found[1].text
    with pytest.raises(InputError, match="the policy fits none of the files; other: a policy holds for scores made"):
        chosen_points(policy, ["other"], [other])


def test_a_policy_refuses_the_questions_it_was_fitted_on_and_warns_of_drift():
    policy, mine, _ = policy_and_files()
    fitted = file(simulated(800).take(range(400)), **mine.metadata)
    with pytest.raises(InputError, match="fitted: the policy must not meet questions it was fitted on"):
        chosen_points(policy, ["fitted"], [fitted])
    drifted = file(sharpened(mine.scores, 0.2), **mine.metadata)
    assert "do not look like those the policy was fitted on" in chosen_points(policy, ["m"], [drifted])[0].text
    assert "Nothing is known of how" in chosen_points(policy, ["m"], [file(mine.scores)])[0].text


def test_a_policy_that_answers_nothing_has_no_point():
    policy, mine, _ = policy_and_files(limit=0.001)
    assert policy.threshold is None
    (found,) = chosen_points(policy, ["m"], [mine]).values()
    assert found.point is None
    assert plain(found.text).startswith("m: it answers 0 of 400 questions (0.0 %).")
    written = render_report([Entry("m", mine)], policy=policy)
    assert "not possible with these data" in written
    assert 'class="chosen"' not in written


def test_the_threshold_is_drawn_where_it_cuts():
    policy, mine, _ = policy_and_files()
    part = section(plain(render_report([Entry("m", mine)], policy=policy)), "If it may decline to answer")
    assert f"The policy: threshold {policy.threshold:.4f}: the error among the answered is below 30.0 %" in part
    assert "The ring is where the threshold cuts." in part
    assert "wanted: 70.0 %" in part
    curve = [("m", compute_coverage(mine.scores.decide()))]
    drawn = ElementTree.fromstring(draw_coverage(curve, identifier="i", chosen={0: (0.5, 0.8)}, limit=0.25))
    ring = next(e for e in drawn.iter("circle") if e.get("class") == "chosen")
    assert float(ring.get("cx")) == 38 + 310 / 2
    assert "The threshold cuts m at 50.0 % answered, 80.0 % of them right." in plain(drawn.find("desc").text)
    crc = replace(fit_expected_loss(simulated(400).decide(), 0.2), source=policy.source)
    assert "wanted" not in render_report([Entry("m", mine)], policy=crc)  # its limit is of all questions


# Places and intervals in the table


def test_the_table_has_places_and_the_interval_that_holds():
    from test_report_verdict import overconfident

    base = simulated(200)
    ranking = rank({"a": base, "b": sharpened(base, 4)})
    rows = {row.label: row for row in numbers_table(["a", "b"], [overconfident()] * 2, [0, 1], ranking).rows}
    assert [cell.value for cell in rows["Place by NLL"].cells] == ["1", "2"]
    assert rows["ECE, equal width"].cells[0].range == rows["Smooth ECE"].cells[0].range == ""
    assert plain(rows["Without chance"].cells[0].value + rows["Without chance"].cells[0].range) == "0.083[0.064, 0.103]"
    alone = numbers_table(["a"], [overconfident()], [0])
    assert "Place by NLL" not in [row.label for row in alone.rows]
    assert re.fullmatch(r"\[.+, .+\]", plain(rows["NLL"].cells[0].range))
