"""Metrics and questions as lines of text for the terminal; whatever comes from outside is cleaned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from caltune.data import Overlap
from caltune.metrics import Comparison, Interval, Pair, Ranking, Summary
from caltune.metrics.paired import too_few
from caltune.metrics.summary import ENOUGH
from caltune.output import one_line
from caltune.prompts import Prompt
from caltune.report.text import clean
from caltune.types import Question

_NO_INTERVAL = ("ece", "ece_mass", "classwise_ece", "smooth_ece")  # none that holds: see docs/papers.md
_MOST_PAIRS = 3


def metrics_lines(summaries: Mapping[str, Summary]) -> list[str]:
    """One line a metric, one column a model: value and 95 % interval; under an ECE its noise floor and what is left."""
    rows = [["", *map(one_line, summaries)], ["questions", *(str(summary.n) for summary in summaries.values())]]
    for name in next(iter(summaries.values())).metrics:
        found = [summary.metrics[name] for summary in summaries.values()]
        rows.append([name, *(f"{one.value:.4f}" if name in _NO_INTERVAL else _interval(one) for one in found)])
        if name in ("ece", "ece_mass"):
            floor = "noise_floor" if name == "ece" else "noise_floor_mass"
            rows.append([f"  {floor}", *(f"{getattr(summary, floor):.4f}" for summary in summaries.values())])
            rows.append(["  corrected", *(_interval(summary.corrected[name]) for summary in summaries.values())])
    lines = ["corrected: the ECE without what chance adds to it, and the 95 % interval of that"]
    few = [
        f"{one_line(name)} ({one.rarer[0]} {one.rarer[1]})" for name, one in summaries.items() if one.rarer[0] < ENOUGH
    ]
    if few:
        where = f"with fewer than {ENOUGH} answers right or wrong, as in {', '.join(few)}"
        lines.append(f"{where}, intervals of all but accuracy and corrected are too narrow")
    return [*_aligned(rows), *lines]


def ranking_lines(ranking: Ranking, summaries: Mapping[str, Summary]) -> list[str]:
    """The places by NLL or answer Brier score, where accuracy says otherwise, and what these questions cannot show.

    Nothing for one file.
    """
    if len(ranking.order) < 2:
        return []
    measure = ranking.measure
    rows = [["place", "", measure, "accuracy"]]
    for name in ranking.order:
        found = summaries[name].metrics
        first, last = ranking.places[name]
        place = f"{first}" if first == last else f"{first}-{last}"
        rows.append([place, one_line(name), f"{found[measure].value:.4f}", f"{found['accuracy'].value:.4f}"])
    lines = [too_few(summaries[name].n for name in ranking.order), *_disagreements(ranking.pairs, measure)]
    unclear = [pair.detectable for pair in ranking.pairs if not pair.score.clear and pair.detectable > 0]
    if unclear:
        lines.append(f"with these questions {measure} differences under {max(unclear):.2g} are mostly not seen")
    if not all(pair.same_questions for pair in ranking.pairs):
        lines.append("files on other questions differ where their intervals do not meet: it may be the questions")
    infinite = [name for name in ranking.order if summaries[name].metrics[measure].value == math.inf]
    if infinite:
        lines.append(f"nll is infinite where the right option was ruled out, in {', '.join(infinite)}")
    heading = f"ranked by {measure}, lowest first; a range where chance leaves the place open"
    if measure == "answer_brier":
        lines.append("answer_brier tells how good the confidences are; how good the answers are, accuracy tells")
    return [heading, *_aligned(rows), *map(one_line, filter(None, lines))]


def _disagreements(pairs: Sequence[Pair], measure: str) -> list[str]:
    """Where the score and accuracy do not tell the same of two files."""
    by_accuracy = sorted(
        (one for one in pairs if one.accuracy.clear and not (one.score.clear and one.accuracy.difference.value < 0)),
        key=lambda pair: -abs(pair.accuracy.difference.value),
    )
    lines = []
    for pair in by_accuracy[:_MOST_PAIRS]:
        better, other = (pair.b, pair.a) if pair.accuracy.difference.value > 0 else (pair.a, pair.b)
        words = f"{other} has the lower {measure}" if pair.score.clear else f"{measure} does not clearly differ"
        lines.append(f"{better} is {_points(pair)} more accurate than {other}, though {words}")
    if by_accuracy[_MOST_PAIRS:]:
        lines.append(f"and {len(by_accuracy) - _MOST_PAIRS} more pairs where accuracy says otherwise")
    only_score = [f"{pair.a} and {pair.b}" for pair in pairs if pair.score.clear and not pair.accuracy.clear]
    if only_score:
        more = f"; and {len(only_score) - _MOST_PAIRS} more" if only_score[_MOST_PAIRS:] else ""
        lines.append(f"{measure} differs, accuracy not clearly: {'; '.join(only_score[:_MOST_PAIRS])}{more}")
    return lines


def _points(pair: Pair) -> str:
    found = pair.accuracy.difference
    low, high = sorted(100 * side * math.copysign(1, found.value) for side in (found.low, found.high))
    return f"{100 * abs(found.value):.1f} points" + ("" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def comparison_lines(comparison: Comparison, name_a: str, name_b: str) -> list[str]:
    """One line a metric: both values, the paired difference with its interval, p-value and what it means for b."""
    rows = [["", "a", "b", "b − a", "p", "b is"]]
    for name, found in comparison.metrics.items():
        cells = [f"{found.value_a:.4f}", f"{found.value_b:.4f}", _interval(found.difference, sign="+")]
        rows.append([name, *cells, f"{found.p_value:.3f}", found.verdict])
    heading = [f"a: {one_line(name_a)}", f"b: {one_line(name_b)}", f"{comparison.n} questions, paired"]
    return [*heading, *_aligned(rows), *filter(None, [too_few([comparison.n])])]


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
