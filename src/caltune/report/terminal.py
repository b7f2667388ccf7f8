"""Metrics and questions as lines of text for the terminal; whatever comes from outside is cleaned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from caltune.data import Overlap
from caltune.metrics import Comparison, Interval, Summary
from caltune.output import one_line
from caltune.prompts import Prompt
from caltune.report.text import clean
from caltune.types import Question


def metrics_lines(summaries: Mapping[str, Summary]) -> list[str]:
    """One line a metric, one column a model: value and 95 % interval; the noise floors below their ECE."""
    rows = [["", *map(one_line, summaries)], ["questions", *(str(summary.n) for summary in summaries.values())]]
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
    return [f"a: {one_line(name_a)}", f"b: {one_line(name_b)}", f"{comparison.n} questions, paired", *_aligned(rows)]


def source_lines(questions: Sequence[Question], source: str, split: str | None) -> list[str]:
    """How many questions were read, how many options they have, and the largest groups."""
    options = Counter(len(question.options) for question in questions)
    groups = Counter(question.group for question in questions if question.group)
    lines = [
        f"{len(questions)} questions from {source}" + (f", split {split}" if split else ""),
        "options: " + ", ".join(f"{size} in {count}" for size, count in sorted(options.items())),
        f"without an answer: {sum(question.answer is None and not question.accepted for question in questions)}",
    ]
    if groups:
        most = ", ".join(f"{name} ({count})" for name, count in groups.most_common(5))
        lines.append(f"groups: {len(groups)}, the largest {most}")
    return [one_line(line) for line in lines]


def overlap_lines(overlap: Sequence[Overlap], count: int = 5) -> list[str]:
    """How many questions stand in another split too, and the first of them."""
    lines = [f"also in another split: {len(overlap)}"]
    for item in overlap[:count]:
        same = f"{item.first_split} {item.first_id} = {item.second_split} {item.second_id} (same {item.kind})"
        lines.append(f"  {one_line(same)}")
    return lines


def prompt_lines(prompt: Prompt, answer: int | None) -> list[str]:
    """The prompt between two rules, and what may follow it, quoted; a star marks the right one."""
    rule = "-" * 20
    lines = ["first prompt, between the lines, and what may follow it:", rule, clean(prompt.text), rule]
    return lines + [f"{'*' if i == answer else ' '} {clean(repr(text))}" for i, text in enumerate(prompt.continuations)]


def _interval(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
