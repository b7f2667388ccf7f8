"""Two line charts: accuracy against coverage, and the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caltune.metrics import risk_coverage
from caltune.report.svg import Element, Frame, add, figure, line, polyline, render, spread
from caltune.report.text import number, percent
from caltune.types import FloatArray, Predictions

MOST_POINTS = 160  # more cannot be told apart on a screen and make the page heavy
FEWEST_QUESTIONS = 20  # the accuracy of fewer answers jumps about
DASHES = 4  # line styles page.css knows


@dataclass(frozen=True, slots=True)
class Coverage:
    """Accuracy among the surest answers, both (P,): `accuracy[i]` of the share `coverage[i]` of all questions."""

    coverage: FloatArray
    accuracy: FloatArray

    def at(self, share: float) -> float:
        """The accuracy when at least this share of the questions is answered.

        >>> Coverage(np.array([0.5, 1.0]), np.array([1.0, 0.5])).at(0.8)
        0.5
        """
        return float(self.accuracy[min(int(np.searchsorted(self.coverage, share - 1e-9)), len(self.coverage) - 1)])


def compute_coverage(predictions: Predictions) -> Coverage:
    """Accuracy of the surest answers, from the first twenty questions on, or the first fifth where that is less."""
    coverage, accuracy = risk_coverage(predictions)
    kept = coverage * len(predictions) >= min(FEWEST_QUESTIONS, len(predictions) / 5) - 1e-6
    return Coverage(coverage[kept], accuracy[kept])


def draw_coverage(
    curves: Sequence[tuple[str, Coverage]],
    *,
    identifier: str,
    chosen: Mapping[int, tuple[float, float]] | None = None,
    limit: float | None = None,
) -> str:
    """All models' curves in one SVG element, told apart by colour and line style.

    `chosen` are points, (coverage, accuracy) by the model's place, where a threshold cuts; `limit` is the share of
    wrong answers that it must not exceed.
    """
    chosen = chosen or {}
    lowest = min([*(float(c.accuracy.min()) for _, c in curves), *(y for _, y in chosen.values()), 1 - (limit or 0)])
    frame = Frame(left=38, top=22, width=310, height=230, y_range=(min(math.floor(lowest * 10) / 10, 0.9), 1.0))
    ends = "; ".join(
        f"{name}: {percent(c.at(0.5))} at half coverage, {percent(c.at(1.0))} at full" for name, c in curves
    )
    cuts = "".join(
        f" The threshold cuts {curves[i][0]} at {percent(x)} answered, {percent(y)} of them right."
        for i, (x, y) in chosen.items()
    )
    root = figure(
        360,
        292,
        title="Accuracy against coverage",
        description=f"Accuracy of the surest answers. {ends}.{cuts}",
        identifier=identifier,
    )
    _horizontal_grid(root, frame, [frame.y_range[0] + 0.1 * i for i in range(round((1 - frame.y_range[0]) * 10) + 1)])
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        add(root, "text", css="tick middle", text=f"{100 * tick:.0f}", x=frame.x(tick), y=frame.bottom + 16)
    add(root, "text", css="axis", text="right, %", x=frame.left - 32, y=11)
    add(root, "text", css="axis end", text="questions answered, surest first, %", x=frame.right, y=285)
    if limit is not None:
        line(root, frame.left, frame.y(1 - limit), frame.right, frame.y(1 - limit), "limit")
        add(root, "text", css="label", text=f"wanted: {percent(1 - limit)}", x=frame.left + 4, y=frame.y(1 - limit) - 5)
    for i, (name, curve) in enumerate(curves):
        rows = np.unique(np.linspace(0, len(curve.coverage) - 1, MOST_POINTS).round().astype(int))
        group = add(root, "g", css=f"{model_class(i)}")
        add(group, "title", text=name)
        points = [(frame.x(float(curve.coverage[j])), frame.y(float(curve.accuracy[j]))) for j in rows]
        polyline(group, points, f"curve {dash_class(i)}")
        add(group, "circle", css="end", cx=points[-1][0], cy=points[-1][1], r=3)
        if i in chosen:
            x, y = frame.x(chosen[i][0]), frame.y(chosen[i][1])
            line(group, x, y, x, frame.bottom, "cut")
            add(group, "circle", css="chosen", cx=x, cy=y, r=6)
    return render(root)


def model_class(i: int) -> str:
    """The class that carries the colour of model `i`; there are eight colours."""
    return f"m{i % 8}"


def dash_class(i: int) -> str:
    """The class that carries the line style of model `i`, so that colour is never the only difference."""
    return f"d{i % DASHES}" if i < 8 else f"d{(i + 1) % DASHES}"


@dataclass(frozen=True, slots=True)
class Course:
    """The course of training, one value an evaluation: epochs, accuracy and mean confidence; `ece` may be empty."""

    epochs: tuple[float, ...]
    accuracy: tuple[float, ...]
    confidence: tuple[float, ...]
    ece: tuple[float, ...]


def read_course(rows: object) -> Course | None:
    """The course of training from metadata; None where there are not two evaluations with all three numbers.

    >>> rows = [{"epoch": e, "eval_accuracy": 0.8, "eval_confidence": 0.8 + e / 8} for e in (1.0, 0.5)]
    >>> read_course(rows).confidence, read_course(rows[:1]), read_course("nothing")
    ((0.8625, 0.925), None, None)
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        return None
    kept = []
    for row in rows:
        if isinstance(row, Mapping):
            values = [_finite(row.get(key)) for key in ("epoch", "eval_accuracy", "eval_confidence", "eval_ece")]
            if not any(math.isnan(value) for value in values[:3]):
                kept.append(tuple(values))
    kept.sort(key=lambda row: row[0])  # of two at one epoch the later is of the weights that were kept
    if len(kept) < 2 or kept[0][0] == kept[-1][0]:
        return None
    epochs, accuracy, confidence, ece = zip(*kept, strict=True)
    return Course(epochs, accuracy, confidence, () if any(math.isnan(value) for value in ece) else ece)


def _finite(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def describe_course(course: Course) -> str:
    """What changed between the first and the last evaluation.

    >>> describe_course(Course((1, 2), (0.8, 0.805), (0.85, 0.95), (0.05, 0.15))).replace(chr(0xA0), " ")
    'Accuracy 80.0 → 80.5 %, confidence 85.0 → 95.0 %, ECE 0.050 → 0.150.'
    """
    words = (
        f"Accuracy {_from_to(course.accuracy, 100, 1)}\u00a0%, confidence {_from_to(course.confidence, 100, 1)}\u00a0%"
    )
    words += f", ECE {_from_to(course.ece, 1, 3)}." if course.ece else "."
    return words + (
        " At the end it steps to the weights that were kept." if course.epochs[-2] == course.epochs[-1] else ""
    )


def _from_to(values: tuple[float, ...], factor: float, digits: int) -> str:
    return f"{number(factor * values[0], digits)} → {number(factor * values[-1], digits)}".replace(" ", "\u00a0")


def course_range(courses: Sequence[Course]) -> tuple[float, float]:
    """One accuracy scale for all courses, in whole tenths."""
    values = [value for course in courses for value in (*course.accuracy, *course.confidence)]
    low = max(0.0, math.floor(min(values) * 10 - 1e-9) / 10)
    high = min(1.0, math.ceil(max(values) * 10 + 1e-9) / 10)
    return (low, high) if high > low else (max(0.0, high - 0.1), max(high, 0.1))


def draw_course(course: Course, *, name: str, identifier: str, y_range: tuple[float, float]) -> str:
    """Accuracy and mean confidence over the epochs, as an SVG element."""
    frame = Frame(34, 22, 186, 140, (course.epochs[0], course.epochs[-1]), y_range)
    root = figure(
        300, 202, title=f"Course of training of {name}", description=describe_course(course), identifier=identifier
    )
    low, high = y_range
    step = 0.1 if high - low < 0.55 else 0.2
    _horizontal_grid(root, frame, [low + step * i for i in range(int((high - low) / step + 1e-6) + 1)])
    for epoch in _epoch_ticks(course.epochs):
        add(root, "text", css="tick middle", text=f"{epoch:g}", x=frame.x(epoch), y=frame.bottom + 16)
    add(root, "text", css="axis", text="%", x=frame.left - 32, y=11)
    add(root, "text", css="axis end", text="epoch", x=frame.right, y=196)
    lines = ((course.confidence, "curve d0", "confidence"), (course.accuracy, "curve right", "accuracy"))
    labels = spread([frame.y(values[-1]) for values, _, _ in lines], gap=15, low=frame.top, high=frame.bottom)
    left = [(frame.x(e), frame.y(a)) for e, a in zip(course.epochs, course.accuracy, strict=True)]
    right = [(frame.x(e), frame.y(c)) for e, c in zip(course.epochs, course.confidence, strict=True)]
    polyline(root, left + right[::-1], "between")
    for (values, css, label), label_y in zip(lines, labels, strict=True):
        points = [(frame.x(e), frame.y(v)) for e, v in zip(course.epochs, values, strict=True)]
        polyline(root, points, css)
        if len(points) <= 12:
            for x, y in points:
                add(root, "circle", css="end", cx=x, cy=y, r=2.5)
        add(root, "text", css="label", text=label, x=frame.right + 8, y=label_y + 4)
    return render(root)


def _epoch_ticks(epochs: tuple[float, ...]) -> list[float]:
    """Whole epochs, at most about six; the two ends where there are no two whole ones."""
    whole = [float(e) for e in range(math.ceil(epochs[0]), math.floor(epochs[-1]) + 1)] if epochs[-1] < 1e6 else []
    if len(whole) < 2:
        return [epochs[0], epochs[-1]]
    return whole[:: max(1, math.ceil(len(whole) / 6))]


def _horizontal_grid(root: Element, frame: Frame, ticks: Sequence[float]) -> None:
    if ticks and len(ticks) > 7:
        ticks = ticks[::-1][::2]
    for tick in ticks:
        line(root, frame.left, frame.y(tick), frame.right, frame.y(tick), "grid")
        add(root, "text", css="tick end", text=f"{100 * tick:.0f}", x=frame.left - 6, y=frame.y(tick) + 4)
    line(root, frame.left, frame.bottom, frame.right, frame.bottom, "base")
