"""Groups and options in rows: what the model says, how often it is right, and what chance allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caltune.metrics import Stratum, group_calibration, option_calibration
from caltune.report.curves import model_class
from caltune.report.svg import Frame, add, figure, line, render
from caltune.report.text import clean, number, percent, questions
from caltune.types import OptionLogits, Predictions

MOST_ROWS = 40
OPEN_ROWS = 12  # more are folded away
_ROW = 22.0
_LONGEST_LABEL = 18


@dataclass(frozen=True, slots=True)
class Strata:
    """The rows of one model's panel, and how many parts there are in all."""

    rows: tuple[Stratum, ...]
    total: int

    @property
    def off(self) -> tuple[int, int]:
        """How many rows say more than is right beyond chance, and how many less."""
        beyond = [row for row in self.rows if row.beyond_chance]
        over = sum(row.says > row.right for row in beyond)
        return over, len(beyond) - over


def compute_groups(predictions: Predictions) -> Strata | None:
    """The largest groups, the one that says most too much first; None where there are not two groups with a name."""
    found = group_calibration(predictions)
    if len({row.name for row in found} - {""}) < 2:
        return None
    largest = sorted(found, key=lambda row: (-row.n, row.name))[:MOST_ROWS]
    return Strata(tuple(sorted(largest, key=lambda row: (row.right - row.says, row.name))), len(found))


def compute_options(scores: OptionLogits) -> Strata | None:
    """Every option in its order; None where there is only one."""
    found = option_calibration(scores)
    return Strata(tuple(found), len(found)) if len(found) > 1 else None


def common_range(panels: Sequence[Strata]) -> tuple[float, float]:
    """One scale for all panels, in whole tenths, at least a fifth wide.

    >>> row = Stratum("A", 10, 0.31, 0.24, 0.2, 0.38)
    >>> [round(end, 1) for end in common_range([Strata((row,), 1)])]
    [0.2, 0.4]
    """
    values = [value for panel in panels for row in panel.rows for value in (row.says, row.right, row.low, row.high)]
    low, high = math.floor(min(values) * 10 + 1e-9) / 10, math.ceil(max(values) * 10 - 1e-9) / 10
    if high - low < 0.2:
        low, high = (low, low + 0.2) if low <= 0.8 else (high - 0.2, high)
    return max(0.0, low), min(1.0, high)


def describe_row(row: Stratum, kind: str) -> str:
    """One row in words.

    >>> describe_row(Stratum("A", 10, 0.5, 0.2, 0.1, 0.9), "option").replace(chr(0xA0), " ")
    'A: 10 questions. Says 50.0 %, is right 20.0 %; chance allows 10.0 % to 90.0 %.'
    """
    name = row.name or f"no {kind}"
    return (
        f"{name}: {questions(row.n)}. Says {percent(row.says)}, is right {percent(row.right)}; chance allows "
        f"{percent(row.low)} to {percent(row.high)}."
    )


def describe_strata(panel: Strata, kind: str) -> str:
    """How many rows lie beyond chance, and which way.

    >>> rows = (Stratum("A", 10, 0.5, 0.2, 0.3, 0.7), Stratum("B", 10, 0.5, 0.5, 0.3, 0.7))
    >>> describe_strata(Strata(rows, 2), "option")
    'Of 2 options 1 says more than is right, 0 less, beyond chance.'
    """
    over, under = panel.off
    shown = f"the {len(panel.rows)} largest of {panel.total:,}" if len(panel.rows) < panel.total else f"{panel.total:,}"
    if over == under == 0:
        return f"None of {shown} {kind}s lies beyond chance."
    return (
        f"Of {shown} {kind}s {over} {'says' if over == 1 else 'say'} more than is right, {under} less, beyond chance."
    )


def draw_strata(panel: Strata, *, kind: str, name: str, identifier: str, x_range: tuple[float, float]) -> str:
    """The rows as an SVG element: a band for chance, an upright line for what it says, a mark for what is right."""
    longest = max(len(_label(row, kind)) for row in panel.rows)
    left = 22.0 + 6.2 * longest
    frame = Frame(left=left, top=8, width=332 - left, height=_ROW * len(panel.rows), x_range=x_range)
    root = figure(
        340,
        frame.bottom + 38,
        title=f"What {name} says of each {kind}, and how often it is right",
        description=describe_strata(panel, kind),
        identifier=identifier,
    )
    for tick in _ticks(x_range):
        line(root, frame.x(tick), frame.top, frame.x(tick), frame.bottom, "grid")
        add(root, "text", css="tick middle", text=f"{100 * tick:.0f}", x=frame.x(tick), y=frame.bottom + 16)
    add(root, "text", css="axis end", text="right, %", x=frame.right, y=frame.bottom + 33)
    for i, row in enumerate(panel.rows):
        middle = frame.top + _ROW * (i + 0.5)
        group = add(root, "g", css="bin")
        add(group, "title", text=describe_row(row, kind))
        add(group, "rect", css="hit", x=0, y=middle - _ROW / 2, width=340, height=_ROW)
        add(group, "text", css="label end", text=_label(row, kind), x=frame.left - 10, y=middle + 4)
        low, high = frame.x(row.low), frame.x(row.high)
        add(group, "rect", css="band", x=low - 0.5, y=middle - 6, width=high - low + 1, height=12)
        line(group, frame.x(row.says), middle, frame.x(row.right), middle, "gap")
        line(group, frame.x(row.says), middle - 8, frame.x(row.says), middle + 8, "mean")
        css = "mark" if row.beyond_chance else "mark within"
        add(group, "circle", css=css, cx=frame.x(row.right), cy=middle, r=4.5)
    return render(root)


def table_rows(panel: Strata, kind: str) -> list[dict[str, str]]:
    """The same as text, for the table below the chart."""
    return [
        {
            "name": row.name or f"no {kind}",
            "count": f"{row.n:,}",
            "says": percent(row.says),
            "right": percent(row.right),
            "chance": f"{number(100 * row.low, 0)}–{percent(row.high, 0)}",
        }
        for row in panel.rows
    ]


def panels(names: Sequence[str], found: Sequence[Strata | None], kind: str) -> list[dict[str, Any]]:
    """What the page shows: a panel for each model that has more than one group or option, all on one scale."""
    kept = {i: panel for i, panel in enumerate(found) if panel}
    if not kept:
        return []
    scale = common_range(list(kept.values()))
    return [
        {
            "index": i,
            "name": names[i],
            "css": model_class(i),
            "caption": describe_strata(panel, kind),
            "chart": draw_strata(panel, kind=kind, name=names[i], identifier=f"{kind}-{i}", x_range=scale),
            "rows": table_rows(panel, kind),
            "many": len(panel.rows) > OPEN_ROWS,
        }
        for i, panel in kept.items()
    ]


def _label(row: Stratum, kind: str) -> str:
    text = " ".join(clean(row.name).split()) or f"(no {kind})"
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def _ticks(x_range: tuple[float, float]) -> list[float]:
    low, high = x_range
    step = 0.1 if high - low < 0.45 else 0.2
    return [low + step * i for i in range(int((high - low) / step + 1e-6) + 1)]
