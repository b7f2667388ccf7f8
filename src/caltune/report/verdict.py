"""What the numbers say, in plain sentences that stay right at the edges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caltune.metrics import Comparison, Difference, Interval, Summary
from caltune.metrics.ece import width_index
from caltune.metrics.paired import FEW
from caltune.metrics.summary import ENOUGH
from caltune.report.text import interval, listed, number, percent, questions
from caltune.types import Predictions

_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Chance:
    """How often a perfectly calibrated model with these confidences looks at least as bad: on average, and in bins."""

    gap: float
    ece: float


def compute_chance(predictions: Predictions, *, bins: int = 15, draws: int = 1000, seed: int = 0) -> Chance:
    """Simulate right and wrong answers with the model's own confidences and count draws no better than what was seen.

    Answers of a model that says 100 % and is always wrong cannot be chance:

    >>> ids = tuple("abc")
    >>> compute_chance(Predictions(ids=ids, confidence=[1.0] * 3, correct=[0.0] * 3))
    Chance(gap=0.0, ece=0.0)
    >>> compute_chance(Predictions(ids=ids, confidence=[1.0] * 3, correct=[1.0] * 3))
    Chance(gap=1.0, ece=1.0)
    """
    confidence = predictions.confidence
    index = width_index(confidence, bins)
    expected = np.bincount(index, confidence, bins)
    seen = np.bincount(index, predictions.correct, bins) - expected
    generator = np.random.default_rng(seed)
    gaps, errors = np.empty(draws), np.empty(draws)
    for i in range(draws):
        drawn = np.bincount(index, generator.random(len(confidence)) < confidence, bins) - expected
        gaps[i], errors[i] = abs(drawn.sum()), np.abs(drawn).sum()
    return Chance(
        gap=float((gaps >= abs(seen.sum()) - 1e-9).mean()), ece=float((errors >= np.abs(seen).sum() - 1e-9).mean())
    )


def leaning(summary: Summary, chance: Chance) -> str:
    """ "overconfident", "underconfident", "miscalibrated" (off, but not to one side), or "" where chance
    explains it or there are fewer than 30 questions."""
    gap = summary.metrics["overconfidence"]
    if summary.n < FEW:
        return ""
    if chance.gap < _LEVEL and gap.low > 0:
        return "overconfident"
    if chance.gap < _LEVEL and gap.high < 0:
        return "underconfident"
    return "miscalibrated" if chance.ece < _LEVEL else ""


def describe(name: str, summary: Summary, chance: Chance) -> tuple[str, str]:
    """One model in words: how sure against how right; then ECE against chance and what the confidence is worth."""
    found = summary.metrics
    gap, left = found["overconfidence"], summary.corrected["ece"]
    lean = leaning(summary, chance)
    says, right = percent(found["confidence"].value), percent(found["accuracy"].value)
    if lean in ("overconfident", "underconfident"):
        ending = f"{lean} by {number(100 * abs(gap.value), 1)}\u00a0points {_absolute(gap)}"
    elif lean:
        ending = "no clear lean on average, but further off within its bins than chance allows"
    elif summary.n < FEW:
        ending = f"{questions(summary.n)} are too few for a verdict" if summary.n > 1 else "one question is no verdict"
    else:
        ending = "no further apart than chance allows"
    first = f"{name} says {says} on average and is right {right} of the time: {ending}."
    ece_words = f"ECE {number(found['ece'].value)}"
    floor = f"about {number(summary.noise_floor)} with {questions(summary.n)}"
    if chance.ece < _LEVEL:
        second = f"{ece_words}, where chance alone would give {floor}"
    else:
        second = f"{ece_words} is no more than chance gives a calibrated model, {floor}"
    second += f"; without chance it is {number(left.value)} {interval(left.low, left.high)}".rstrip()
    second = f"{second}. {_worth(found['auroc'], found['accuracy'].value)}"
    count, kind = summary.rarer
    if count < ENOUGH:
        second += (
            f" Fewer than {ENOUGH} answers are {kind} ({count}): intervals of all but accuracy and the ECE without "
            "chance are too narrow."
        )
    return first, second


def _absolute(gap: Interval) -> str:
    low, high = (gap.low, gap.high) if gap.value >= 0 else (-gap.high, -gap.low)
    return interval(low, high, 1, factor=100)


def _worth(found: Interval, right: float) -> str:
    if math.isnan(found.value):
        return f"AUROC is not defined, since every answer is {'right' if right > 0.5 else 'wrong'}."
    words = f"AUROC {number(found.value)} {interval(found.low, found.high)}".rstrip()
    if found.low > 0.5:
        return f"Its confidence helps to tell right from wrong ({words})."
    if found.high < 0.5:
        return f"It is surer of its wrong answers than of its right ones ({words})."
    return f"Its confidence does not clearly tell right from wrong ({words})."


def describe_difference(name: str, baseline: str, found: Comparison) -> str:
    """A model against the baseline on the same questions, in one sentence."""
    if found.n < FEW:
        return f"{questions(found.n)}: too few to compare {name} with {baseline}."
    change, right, order = found.metrics["ece"], found.metrics["accuracy"], found.metrics["auroc"]
    size = f"by {number(abs(change.difference.value))} {_sides(change, 1, 3)}"
    if change.verdict == "better":
        words = f"{name} lowers ECE {size} against {baseline}"
    elif change.verdict == "worse":
        words = f"{name} raises ECE {size} against {baseline}"
    else:
        span = interval(change.difference.low, change.difference.high)
        words = f"{name} and {baseline} do not clearly differ in ECE ({_signed(change.difference.value)} {span})"
    clear = change.verdict in ("better", "worse")
    words += f", {_accuracy_words(right, '' if clear else f' {name}')}"
    if order.verdict in ("better", "worse"):
        how = "better" if order.verdict == "better" else "less well"
        span = interval(order.difference.low, order.difference.high)
        words += f". It tells right from wrong {how}: AUROC {_signed(order.difference.value)} {span}"
    return words + "."


def _accuracy_words(right: Difference, subject: str) -> str:
    gap = right.difference
    if gap.value == gap.low == gap.high == 0:
        return "at the same accuracy"
    if right.verdict in ("better", "worse"):
        more = "more" if right.verdict == "better" else "less"
        return f"and{subject} is {number(100 * abs(gap.value), 1)}\u00a0points {more} accurate {_sides(right, 100, 1)}"
    span = interval(gap.low, gap.high, 1, factor=100)
    return f"with no clear change in accuracy ({_signed(100 * gap.value, 1)}\u00a0points {span})"


def _sides(found: Difference, factor: float, digits: int) -> str:
    """The interval of the size of a change, whichever way it goes."""
    low, high = found.difference.low, found.difference.high
    return (
        interval(low, high, digits, factor=factor)
        if found.difference.value > 0
        else interval(-high, -low, digits, factor=factor)
    )


def _signed(value: float, digits: int = 3) -> str:
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(f"{value:.{digits}f}") else text


def headline(
    names: Sequence[str], summaries: Sequence[Summary], chances: Sequence[Chance], found: Mapping[int, Comparison]
) -> str:
    """The page in one sentence. `found` holds the comparisons with the first model, by the other's place."""
    if not found or summaries[0].n < FEW:
        return _headline_alone(names, summaries, chances)
    base, base_ece = names[0], summaries[0].metrics["ece"].value

    def at(i: int) -> float:
        return summaries[i].metrics["ece"].value

    better = [i for i in found if found[i].metrics["ece"].verdict == "better"]
    worse = [i for i in found if found[i].metrics["ece"].verdict == "worse"]
    if better:
        best = min(better, key=at)
        right = found[best].metrics["accuracy"]
        words = f"{names[best]} is better calibrated than {base}: ECE {number(at(best))} against {number(base_ece)}"
        if right.verdict in ("better", "worse"):
            how = "more" if right.verdict == "better" else "less"
            link = "and" if right.verdict == "better" else "but"
            words += f", {link} {number(100 * abs(right.difference.value), 1)}\u00a0points {how} accurate"
        return words + "."
    if len(worse) == len(found):
        verb = "is" if len(worse) == 1 else "are"
        return f"{listed([names[i] for i in worse])} {verb} worse calibrated than {base}."
    others = names[next(iter(found))] if len(found) == 1 else ""
    if others:
        return f"No clear difference in calibration between {base} and {others}."
    tail = f"; {listed([names[i] for i in worse])} {'is' if len(worse) == 1 else 'are'} clearly worse" if worse else ""
    return f"No model is clearly better calibrated than {base}{tail}."


def _headline_alone(names: Sequence[str], summaries: Sequence[Summary], chances: Sequence[Chance]) -> str:
    if min(summary.n for summary in summaries) < FEW:
        return f"{questions(min(summary.n for summary in summaries)).capitalize()}: too few for a verdict."
    leans = [leaning(summary, chance) for summary, chance in zip(summaries, chances, strict=True)]
    if len(names) == 1:
        size = f" by {number(100 * abs(summaries[0].metrics['overconfidence'].value), 1)}\u00a0points"
        if not leans[0]:
            return f"{names[0]} is as right as it is sure, as far as {questions(summaries[0].n)} can show."
        return f"{names[0]} is {leans[0]}{size if leans[0] != 'miscalibrated' else ', though not to one side'}."
    parts = []
    for lean in ("overconfident", "underconfident", "miscalibrated", ""):
        group = [name for name, found in zip(names, leans, strict=True) if found == lean]
        if group:
            verb = "is" if len(group) == 1 else "are"
            parts.append(f"{listed(group)} {verb} {lean or 'calibrated as far as chance lets one see'}")
    return "; ".join(parts) + "."
