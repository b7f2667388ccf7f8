"""Metrics as aligned lines of text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caltune.metrics import Comparison, Interval, Summary
from caltune.report.text import clean


def metrics_lines(summaries: Mapping[str, Summary]) -> list[str]:
    """One line a metric, one column a model: value and 95 % interval; the noise floors below their ECE."""
    rows = [["", *map(clean, summaries)], ["questions", *(str(summary.n) for summary in summaries.values())]]
    for name in next(iter(summaries.values())).metrics:
        rows.append([name, *(_interval(summary.metrics[name]) for summary in summaries.values())])
        if name in ("ece", "ece_mass"):
            floor = "noise_floor" if name == "ece" else "noise_floor_mass"
            rows.append([f"  {floor}", *(f"{getattr(summary, floor):.4f}" for summary in summaries.values())])
    return _aligned(rows)


def comparison_lines(comparison: Comparison, name_a: str, name_b: str) -> list[str]:
    """One line a metric: both values, the paired difference with its interval, p-value and what it means for b."""
    rows = [["", "a", "b", "b − a", "p", "b is"]]
    for name, found in comparison.metrics.items():
        cells = [f"{found.value_a:.4f}", f"{found.value_b:.4f}", _interval(found.difference, sign="+")]
        rows.append([name, *cells, f"{found.p_value:.3f}", found.verdict])
    return [f"a: {clean(name_a)}", f"b: {clean(name_b)}", f"{comparison.n} questions, paired", *_aligned(rows)]


def _interval(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
