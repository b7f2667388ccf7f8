"""Before and after: which files belong together, and what changed between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caltune.formats.scores import ScoreFile
from caltune.metrics import Comparison, compare, reliability_bins
from caltune.metrics.paired import align
from caltune.report.diagram import SQUARE, draw_axes
from caltune.report.svg import Element, add, figure, line, polyline, render
from caltune.report.text import interval, number, percent
from caltune.types import OptionLogits, Predictions

# What recalibration changes in a file's metadata, or what says nothing of which scores were recalibrated.
_MAY_DIFFER = ("recalibrated", "temperature", "examples", "training", "prompt_example", "versions")
_BINS = 10


@dataclass(frozen=True, slots=True)
class Change:
    """The places of two entries on the same questions, and whether the second is the first recalibrated."""

    before: int
    after: int
    recalibrated: bool


def find_changes(files: Sequence[ScoreFile]) -> list[Change]:
    """Each recalibrated file with the file it came from; without any such pair, each with the first.

    A file came from another on the same questions whose metadata is the same but for what recalibration writes, and
    that had less done to it: the one with the most, where there are several.
    """
    questions = [frozenset(file.scores.ids) for file in files]
    found = []
    for i, file in enumerate(files):
        sources = [
            j
            for j, other in enumerate(files)
            if j != i
            and questions[j] == questions[i]
            and _steps(other) < _steps(file)
            and _source(other) == _source(file)
            and _source(file)
        ]
        if sources:
            found.append(Change(max(sources, key=lambda j: (_steps(files[j]), -j)), i, recalibrated=True))
    if found:
        return found
    return [Change(0, i, recalibrated=False) for i in range(1, len(files)) if questions[i] == questions[0]]


def _steps(file: ScoreFile) -> int:
    """How many recalibrations the metadata tells of; a temperature alone is one."""
    done = file.metadata.get("recalibrated")
    return len(done) if isinstance(done, list) else int("temperature" in file.metadata)


def _source(file: ScoreFile) -> dict[str, Any]:
    return {key: value for key, value in file.metadata.items() if key not in _MAY_DIFFER}


def describe_change(before: OptionLogits, after: OptionLogits, found: Comparison) -> str:
    """What it says, how often it is right, NLL, and how many answers changed, from before to after."""
    after = align(before, after)
    changed = int((before.probabilities().argmax(axis=1) != after.probabilities().argmax(axis=1)).sum())
    says, right, nll = (found.metrics[name] for name in ("confidence", "accuracy", "nll"))
    verdict = {"better": "clearly lower", "worse": "clearly higher"}.get(nll.verdict, "no clear difference")
    span = interval(nll.difference.low, nll.difference.high)
    answers = "No answer changed" if not changed else f"{changed:,} of {len(before):,} answers changed"
    return (
        f"Says {_arrow(says.value_a, says.value_b)}, is right {_arrow(right.value_a, right.value_b)}. "
        f"NLL {number(nll.value_a)} → {number(nll.value_b)}, {verdict}{f' {span}' if span else ''}. {answers}."
    )


def _arrow(a: float, b: float) -> str:
    return f"{number(100 * a, 1)} → {percent(b)}"


def draw_change(before: Predictions, after: Predictions, *, names: tuple[str, str], identifier: str, text: str) -> str:
    """Two reliability curves in one square, as an SVG element; each mark holds about a tenth of the questions."""
    root = figure(
        340,
        358,
        title=f"Reliability of {names[1]} and of {names[0]}",
        description=text,
        identifier=identifier,
    )
    draw_axes(root, SQUARE, below=SQUARE.bottom)
    line(root, SQUARE.left, SQUARE.bottom, SQUARE.right, SQUARE.top, "diagonal")
    for predictions, name, css in ((before, names[0], "before"), (after, names[1], "after")):
        _curve(root, predictions, name, css)
    return render(root)


def _curve(root: Element, predictions: Predictions, name: str, css: str) -> None:
    bins = reliability_bins(predictions, _BINS, "mass")
    group = add(root, "g", css=css)
    add(group, "title", text=name)
    points = [
        (SQUARE.x(float(bins.confidence[i])), SQUARE.y(float(bins.accuracy[i]))) for i in np.flatnonzero(bins.count)
    ]
    polyline(group, points, "track")
    for x, y in points:
        add(group, "circle", css="weight", cx=x, cy=y, r=4.5)


def panels(
    names: Sequence[str],
    files: Sequence[ScoreFile],
    predictions: Sequence[Predictions],
    comparisons: Mapping[int, Comparison],
) -> list[dict[str, Any]]:
    """What the page shows of each change; `comparisons` are those with the first file, by the other's place."""
    found = []
    for one in find_changes(files):
        a, b = one.before, one.after
        before, after = files[a].scores, files[b].scores
        compared = comparisons[b] if a == 0 and b in comparisons else compare(before, after)
        text = describe_change(before, after, compared)
        chart = draw_change(
            predictions[a], predictions[b], names=(names[a], names[b]), identifier=f"change-{b}", text=text
        )
        found.append({"before": a, "after": b, "text": text, "chart": chart})
    return found
