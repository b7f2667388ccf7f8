"""The reliability diagram: what it shows is computed first and drawn afterwards, as SVG for the page or as a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caltune.errors import InputError
from caltune.metrics import chance_band, reliability_bins
from caltune.notebook import picture
from caltune.report.svg import Element, Frame, add, figure, line, render
from caltune.report.text import percent, questions
from caltune.types import FloatArray, Predictions

BINS = 15
WIDTH, HEIGHT = 340.0, 412.0
SQUARE = Frame(left=38, top=22, width=290, height=290)
HISTOGRAM = Frame(left=38, top=320, width=290, height=52)
MARK_RADIUS = 4.5
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Diagram:
    """What a reliability diagram shows, all arrays of shape (bins,); `accuracy` and the rest are nan in an empty bin.

    `low` to `high` is where the accuracy of a bin lies in 95 of 100 test sets of a perfectly calibrated model with
    these confidences.
    """

    edges: FloatArray
    count: FloatArray
    confidence: FloatArray
    accuracy: FloatArray
    low: FloatArray
    high: FloatArray
    mean_confidence: float
    mean_accuracy: float

    @property
    def filled(self) -> list[int]:
        """The bins that hold a question."""
        return [i for i in range(len(self.count)) if self.count[i] > 0]

    def beyond_chance(self, i: int) -> bool:
        """Whether the accuracy of bin `i` lies outside what chance allows."""
        return not self.low[i] - 1e-9 <= self.accuracy[i] <= self.high[i] + 1e-9

    def _repr_html_(self) -> str:
        """The picture that a notebook shows."""
        css = Path(__file__).with_name("chart.css").read_text(encoding="utf-8")
        alone = "svg { --model: var(--m0); background: var(--paper); font-family: system-ui, sans-serif }"
        return picture(draw_diagram(self, name="the model", identifier="d"), css + alone, describe_diagram(self))


def compute_diagram(predictions: Predictions, bins: int = BINS) -> Diagram:
    """The bins of a reliability diagram with the band of what chance allows.

    Raises `InputError` for no predictions.
    """
    if not len(predictions):
        raise InputError("a reliability diagram needs at least one prediction, got none")
    table = reliability_bins(predictions, bins=bins)
    low, high = chance_band(predictions, bins=bins)
    return Diagram(
        edges=table.edges,
        count=table.count.astype(float),
        confidence=table.confidence,
        accuracy=table.accuracy,
        low=low,
        high=high,
        mean_confidence=float(predictions.confidence.mean()),
        mean_accuracy=float(predictions.correct.mean()),
    )


def describe_bin(diagram: Diagram, i: int) -> str:
    """One bin in words."""
    edges = f"{percent(diagram.edges[i], 0)} to {percent(diagram.edges[i + 1], 0)}"
    return (
        f"Confidence {edges}: {questions(int(diagram.count[i]))}. Says {percent(diagram.confidence[i])}, is right "
        f"{percent(diagram.accuracy[i])}; chance allows {percent(diagram.low[i])} to {percent(diagram.high[i])}."
    )


def describe_diagram(diagram: Diagram) -> str:
    """The diagram in words, for those who cannot see it.

    >>> predictions = Predictions(ids=("a", "b"), confidence=[0.9, 0.9], correct=[1.0, 1.0])
    >>> describe_diagram(compute_diagram(predictions)).split(". ")[1]
    'In 0 of 1 filled bins the accuracy lies beyond what chance allows: 0 below, 0 above'
    """
    beyond = [i for i in diagram.filled if diagram.beyond_chance(i)]
    below = sum(bool(diagram.accuracy[i] < diagram.low[i]) for i in beyond)
    return (
        f"Accuracy against confidence in {len(diagram.count)} bins of equal width. In {len(beyond)} of "
        f"{len(diagram.filled)} filled bins the accuracy lies beyond what chance allows: {below} below, "
        f"{len(beyond) - below} above. Mean confidence {percent(diagram.mean_confidence)}, "
        f"accuracy {percent(diagram.mean_accuracy)}."
    )


def draw_diagram(diagram: Diagram, *, name: str, identifier: str) -> str:
    """The diagram as an SVG element: marks over the chance band, and a histogram of the confidences below.

    A filled mark lies beyond what chance allows, a hollow one within it.
    """
    root = figure(
        WIDTH,
        HEIGHT,
        title=f"Reliability diagram of {name}",
        description=describe_diagram(diagram),
        identifier=identifier,
    )
    draw_axes(root, SQUARE, below=HISTOGRAM.bottom)
    line(root, HISTOGRAM.left, HISTOGRAM.bottom, HISTOGRAM.right, HISTOGRAM.bottom, "base")
    tallest = max(diagram.count.max(), 1.0)
    for i in diagram.filled:
        left, right = SQUARE.x(diagram.edges[i]), SQUARE.x(diagram.edges[i + 1])
        low, high = SQUARE.y(diagram.low[i]), SQUARE.y(diagram.high[i])
        add(root, "rect", css="band", x=left, y=high, width=right - left, height=max(low - high, 1.0))
    line(root, SQUARE.left, SQUARE.bottom, SQUARE.right, SQUARE.top, "diagonal")
    for i in diagram.filled:
        left, right = SQUARE.x(diagram.edges[i]), SQUARE.x(diagram.edges[i + 1])
        group = add(root, "g", css="bin")
        add(group, "title", text=describe_bin(diagram, i))
        # An invisible column makes the whole bin answer to the pointer, not only its mark.
        add(group, "rect", css="hit", x=left, y=SQUARE.top, width=right - left, height=HISTOGRAM.bottom - SQUARE.top)
        bar = HISTOGRAM.height * diagram.count[i] / tallest
        add(group, "rect", css="bar", x=left + 1, y=HISTOGRAM.bottom - bar, width=right - left - 2, height=bar)
        x, y = SQUARE.x(diagram.confidence[i]), SQUARE.y(diagram.accuracy[i])
        line(group, x, SQUARE.y(diagram.confidence[i]), x, y, "gap")
        css = "mark" if diagram.beyond_chance(i) else "mark within"
        add(group, "circle", css=css, cx=x, cy=y, r=MARK_RADIUS)
    for value, css in ((diagram.mean_accuracy, "mean right"), (diagram.mean_confidence, "mean")):
        x = HISTOGRAM.x(value)
        line(root, x, HISTOGRAM.top - 2, x, HISTOGRAM.bottom, css)
    return render(root)


def draw_axes(root: Element, square: Frame, *, below: float) -> None:
    """Accuracy from bottom to top and confidence from left to right, whose numbers stand under the height `below`."""
    for tick in _TICKS:
        label = f"{100 * tick:.0f}"
        line(root, square.left, square.y(tick), square.right, square.y(tick), "grid")
        line(root, square.x(tick), square.top, square.x(tick), square.bottom, "grid")
        add(root, "text", css="tick end", text=label, x=square.left - 6, y=square.y(tick) + 4)
        add(root, "text", css="tick middle", text=label, x=square.x(tick), y=below + 16)
    add(root, "text", css="axis", text="right, %", x=square.left - 32, y=11)
    add(root, "text", css="axis end", text="confidence, %", x=square.right, y=below + 33)


def save_diagram(
    path: str | os.PathLike[str],
    predictions: Predictions | Mapping[str, Predictions],
    *,
    title: str = "",
    bins: int = BINS,
) -> Path:
    """Write a reliability diagram as a picture, PNG or SVG by the suffix; return its path.

    A mapping of titles to predictions gives one panel each, side by side.

    Raises `InputError` for another suffix, a folder that is not there, or no predictions.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{path}: a diagram is written as .png or .svg, got {path.suffix!r}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder must exist, got {str(path.parent)!r}")
    panels = {title: predictions} if isinstance(predictions, Predictions) else predictions
    if not panels:
        raise InputError("a reliability diagram needs at least one panel, got none")
    diagrams = {name: compute_diagram(item, bins) for name, item in panels.items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix.lower())
    os.close(handle)
    try:
        _plot(diagrams, temporary)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _plot(diagrams: Mapping[str, Diagram], path: str) -> None:
    # The object interface, without pyplot: no global state, no window, and the Agg canvas for PNG by itself.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "caltune", "font.size": 10, "text.parse_math": False}):
        inches = 4.4 * len(diagrams)
        drawing = Figure(figsize=(inches, 5.3))
        # Margins by hand: letting matplotlib find them takes twice as long, at each checkpoint.
        drawing.subplots_adjust(left=0.75 / inches, right=1 - 0.12 / inches, bottom=0.09, top=0.94, hspace=0.06)
        axes = drawing.subplots(2, len(diagrams), sharex=True, height_ratios=(5, 1), squeeze=False)
        for column, (title, diagram) in enumerate(diagrams.items()):
            _plot_panel(diagram, title, axes[0, column], axes[1, column])
            if column == 0:
                axes[0, 0].set_ylabel("accuracy")
                axes[1, 0].set_ylabel("questions")
                axes[1, 0].legend(loc="upper left", fontsize=8, frameon=False)
        metadata = {"Date": None} if path.endswith(".svg") else None
        drawing.savefig(path, dpi=160, metadata=metadata)


def _plot_panel(diagram: Diagram, title: str, square: Any, histogram: Any) -> None:
    left, width = diagram.edges[:-1], diagram.edges[1:] - diagram.edges[:-1]
    square.bar(
        left, diagram.high - diagram.low, width, bottom=diagram.low, align="edge", color="#d9d9d9", label="chance"
    )
    square.plot([0, 1], [0, 1], color="#777777", linewidth=1)
    filled = list(diagram.filled)
    says = diagram.confidence[filled]
    square.vlines(says, says, diagram.accuracy[filled], color="#0072b2", linewidth=1)
    for beyond, face in ((False, "white"), (True, "#0072b2")):
        rows = [i for i in filled if diagram.beyond_chance(i) == beyond]
        x, y = diagram.confidence[rows], diagram.accuracy[rows]
        square.plot(x, y, "o", markersize=6, markeredgecolor="#0072b2", markerfacecolor=face, clip_on=False)
    square.set(xlim=(0, 1), ylim=(0, 1), title=title)
    histogram.bar(left, diagram.count, width * 0.9, align="edge", color="#9fc6de")
    histogram.axvline(diagram.mean_confidence, color="#222222", linewidth=1.2, label="mean confidence")
    histogram.axvline(diagram.mean_accuracy, color="#222222", linewidth=1.2, linestyle=":", label="accuracy")
    histogram.set(xlabel="confidence")
    for axes in (square, histogram):
        axes.spines[["top", "right"]].set_visible(False)
