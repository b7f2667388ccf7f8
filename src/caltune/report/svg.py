"""The few pieces of SVG the charts are made of; `xml.etree` escapes every text and attribute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from caltune.report.text import clean

Element = ElementTree.Element


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle in SVG units and the data range it shows; y grows upwards in data and downwards in SVG.

    >>> frame = Frame(left=40, top=10, width=200, height=100)
    >>> frame.x(0.5), frame.y(0.5)
    (140.0, 60.0)
    """

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)

    def x(self, value: float) -> float:
        """Where a value lies from left to right."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Where a value lies from top to bottom."""
        low, high = self.y_range
        return self.top + self.height * (high - value) / (high - low)

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.height


def figure(width: float, height: float, *, title: str, description: str, identifier: str, css: str = "") -> Element:
    """An svg element that says what it shows to those who cannot see it."""
    names = {"role": "img", "viewBox": f"0 0 {width:g} {height:g}", "class": f"chart {css}".strip()}
    spoken = {"aria-labelledby": f"{identifier}-title", "aria-describedby": f"{identifier}-desc"}
    root = Element("svg", {**names, **spoken})
    add(root, "title", text=title, id=f"{identifier}-title")
    add(root, "desc", text=description, id=f"{identifier}-desc")
    return root


def add(parent: Element, tag: str, *, text: str | None = None, css: str = "", **attributes: float | str) -> Element:
    """Append an element; numbers are rounded to a tenth, underscores in names become hyphens."""
    written = {"class": css} if css else {}
    for name, value in attributes.items():
        written[name.replace("_", "-")] = clean(value) if isinstance(value, str) else _short(value)
    child = ElementTree.SubElement(parent, tag, written)
    if text is not None:
        child.text = clean(text)
    return child


def line(parent: Element, x1: float, y1: float, x2: float, y2: float, css: str) -> Element:
    """Append a straight line."""
    return add(parent, "line", css=css, x1=x1, y1=y1, x2=x2, y2=y2)


def polyline(parent: Element, points: Iterable[tuple[float, float]], css: str) -> Element:
    """Append a line through the points."""
    return add(parent, "polyline", css=css, points=" ".join(f"{_short(x)},{_short(y)}" for x, y in points))


def render(root: Element) -> str:
    """The element as text to put in a page."""
    return ElementTree.tostring(root, encoding="unicode")


def spread(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least `gap`, in their order, within [low, high] as far as they fit.

    >>> spread([10.0, 11.0, 50.0], gap=8, low=0.0, high=60.0)
    [10.0, 18.0, 50.0]
    >>> spread([58.0, 59.0], gap=8, low=0.0, high=60.0)
    [52.0, 60.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = [max(low, positions[i]) for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    result = [0.0] * len(positions)
    for place, i in enumerate(order):
        result[i] = moved[place]
    return result


def _short(value: float) -> str:
    return f"{round(float(value), 1):g}"
