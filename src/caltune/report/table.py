"""The numbers of several models side by side, each with its interval, and their differences from the first."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from caltune.metrics import DIRECTIONS, Comparison, Interval, Ranking, Summary
from caltune.report.text import interval, number


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as text, its interval as text, and whether it is the best of its row."""

    value: str
    range: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: what it is called, what it means, one cell a model."""

    label: str
    hint: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Models as columns; `places` are their places among all models, which carry their colours."""

    label: str
    corner: str
    names: tuple[str, ...]
    places: tuple[int, ...]
    rows: tuple[Row, ...]
    note: str = ""
    css: str = ""


_METRICS = {  # name: label, hint, factor, digits, unit
    "accuracy": ("Accuracy", "share right", 100, 1, " %"),
    "confidence": ("Mean confidence", "should equal accuracy", 100, 1, " %"),
    "ece": ("ECE, equal width", "15 bins", 1, 3, ""),
    "ece_mass": ("ECE, equal mass", "15 bins", 1, 3, ""),
    "classwise_ece": ("Classwise ECE", "every option", 1, 3, ""),
    "smooth_ece": ("Smooth ECE", "without bins", 1, 3, ""),
    "brier": ("Brier score", "squared error", 1, 3, ""),
    "nll": ("NLL", "log loss, nats", 1, 3, ""),
    "auroc": ("AUROC", "right against wrong", 1, 3, ""),
}


_WITHOUT_INTERVAL = ("ece", "ece_mass", "classwise_ece", "smooth_ece")  # none that holds: see docs/papers.md


def numbers_table(
    names: Sequence[str], summaries: Sequence[Summary], comparable: Collection[int], ranking: Ranking | None = None
) -> Table:
    """Every metric of every model; the best value among `comparable` models is marked where it differs from another.

    Under an ECE stands its noise floor, and what is left without chance, with the interval that holds that.
    """
    rows = []
    for metric, (label, hint, factor, digits, unit) in _METRICS.items():
        found = [summary.metrics[metric] for summary in summaries]
        cells = [
            Cell(
                _number(one.value, factor, digits, unit),
                "" if metric in _WITHOUT_INTERVAL else _range(one, factor, digits),
            )
            for one in found
        ]
        best = _best([one.value for one in found], DIRECTIONS[metric], comparable, round(factor * 10**digits))
        rows.append(Row(label, _hint(hint, metric), tuple(replace(c, best=i in best) for i, c in enumerate(cells))))
        if metric in ("ece", "ece_mass"):
            key = "noise_floor" if metric == "ece" else "noise_floor_mass"
            floors = tuple(Cell(number(getattr(summary, key))) for summary in summaries)
            rows.append(Row("Noise floor", "the ECE above by chance alone", floors))
            left = [summary.corrected[metric] for summary in summaries]
            rows.append(
                Row(
                    "Without chance",
                    "the ECE above as it would be without noise",
                    tuple(Cell(number(one.value), _range(one, 1, 3)) for one in left),
                )
            )
        if metric == "nll" and ranking is not None:
            rows.append(
                Row(
                    "Place by NLL",
                    "a range where chance leaves it open",
                    tuple(Cell(place(ranking, name)) for name in names),
                )
            )
    note = "“best” marks the best value as printed; whether the lead is clear, the differences below tell."
    return Table(
        "All numbers",
        "Metric",
        tuple(names),
        tuple(range(len(names))),
        tuple(rows),
        note if len(comparable) > 1 else "",
    )


def place(ranking: Ranking, name: str) -> str:
    """One place, or the first and the last that chance leaves open.

    >>> place(Ranking(("a", "b"), {"a": (1, 2), "b": (2, 2)}, ()), "a")
    '1–2'
    """
    first, last = ranking.places[name]
    return str(first) if first == last else f"{first}–{last}"


def differences_table(names: Sequence[str], comparisons: Mapping[int, Comparison]) -> Table:
    """Each metric of the compared models minus that of the first."""
    rows = []
    for metric, (label, hint, factor, digits, unit) in _METRICS.items():
        cells = []
        for comparison in comparisons.values():
            found = comparison.metrics[metric]
            clear = f"{found.verdict}" if found.verdict != "no clear difference" else ""
            value = found.difference.value
            sign = "+" if value > 0 and round(value * factor, digits) > 0 else ""
            text = sign + _number(value, factor, digits, "")
            cells.append(Cell(text, " ".join([_range(found.difference, factor, digits), clear]).strip()))
        rows.append(Row(label, _hint(f"{hint}; points" if unit else hint, metric), tuple(cells)))
    return Table(
        "Differences", "Metric", tuple(names[i] for i in comparisons), tuple(comparisons), tuple(rows), css="changes"
    )


def _number(value: float, factor: float, digits: int, unit: str) -> str:
    return number(factor * value, digits) + ("" if math.isnan(value) else unit.replace(" ", "\u00a0"))


def _range(found: Interval, factor: float, digits: int) -> str:
    return interval(found.low, found.high, digits, factor=factor)


def _hint(hint: str, metric: str) -> str:
    way = DIRECTIONS[metric]
    return hint if way == "neither" else f"{hint}; {way} is better"


def _best(values: Sequence[float], direction: str, comparable: Collection[int], scale: int) -> set[int]:
    """The places of the best values as printed; none where nothing is best."""
    printed = {i: round(values[i] * scale) for i in comparable if math.isfinite(values[i])}
    if direction == "neither" or len(set(printed.values())) < 2:
        return set()
    top = max(printed.values()) if direction == "higher" else min(printed.values())
    return {i for i, value in printed.items() if value == top}
