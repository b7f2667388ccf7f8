"""Scores of one or several models in, one HTML file out that needs nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caltune
from caltune.abstain import Policy
from caltune.errors import InputError
from caltune.formats.scores import ScoreFile
from caltune.metrics import Comparison, Summary, compare, rank, summarise
from caltune.report import change, curves, evidence, strata
from caltune.report.abstention import chosen_points, policy_lines
from caltune.report.diagram import BINS, Diagram, compute_diagram, draw_diagram
from caltune.report.power import power_lines
from caltune.report.table import differences_table, numbers_table
from caltune.report.text import clean, listed, number, percent, questions
from caltune.report.verdict import compute_chance, describe, describe_difference, headline
from caltune.types import OptionLogits

if TYPE_CHECKING:
    from jinja2 import Template

_SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
_LONGEST_NAME = 60
_EQUATIONS = (
    ("ECE", "Σₘ (nₘ / N) · |accuracyₘ − confidenceₘ| over 15 bins m of c: equal width, or equal mass"),
    ("Noise floor", "the mean ECE when each answer is right with probability c: perfect calibration, N questions"),
    ("Classwise ECE", "(1 / K) Σₖ Σₘ (nₖₘ / Nₖ) · |frequencyₖₘ − mean pₖₘ| over the options k"),
    ("Brier score", "(1 / N) Σᵢ Σₖ (p(k) − 1[k = y])²"),
    ("NLL", "−(1 / N) Σᵢ log p(y)"),
    ("AUROC", "P(c right > c wrong) + ½ P(c right = c wrong)"),
    (
        "Without chance",
        "the true ECE for which what was seen is the median; its interval: 2.5 % and 97.5 %",
    ),
    ("Intervals", "accuracy: Clopper-Pearson; the others: bootstrap, 1,000 resamples of the questions, percentile"),
    ("Differences", "both models on the same resamples"),
    ("Place by NLL", "1 + how many are clearly better, to how many are not clearly worse; Holm over all pairs"),
    ("Chance band", "where a bin’s accuracy lies in 95 of 100 cases if each answer is right with probability c"),
    ("Groups, options", "the same for all of them at once: 95 of 100 calibrated models have every mark in its band"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a report: what to call it, and its scores with their metadata."""

    name: str
    file: ScoreFile


def write_report(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    *,
    title: str = "caltune report",
    context: str = "",
    policy: Policy | None = None,
) -> Path:
    """Write one self-contained HTML page about the entries, the first being the baseline; return its path.

    Entries on the same questions as the first are compared with it, with paired intervals. A `policy` is shown where it
    cuts the entries that were scored as those it was fitted on. The page loads nothing and runs nothing, every text in
    it is escaped, and it appears whole or not at all.

    Raises `InputError` for no entries, no questions, unknown labels, labels that disagree, a missing folder, or a
    policy that fits no entry or meets questions it was fitted on.
    """
    path = Path(path)
    if not entries:
        raise InputError(f"{path}: a report needs at least one entry, got none")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder must exist, got {str(path.parent)!r}")
    page = render_report(entries, title=title, context=context, policy=policy)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def render_report(
    entries: Sequence[Entry], *, title: str = "caltune report", context: str = "", policy: Policy | None = None
) -> str:
    """The page as text; see `write_report`."""
    names = unique_names([entry.name for entry in entries])
    scores = [entry.file.scores for entry in entries]
    for name, one in zip(names, scores, strict=True):
        _require_questions(name, one)
    summaries = [summarise(one) for one in scores]
    predictions = [one.decide() for one in scores]
    diagrams = [compute_diagram(one) for one in predictions]
    chances = [compute_chance(one) for one in predictions]
    comparisons = _compare(names, scores)
    coverages = [curves.compute_coverage(one) for one in predictions]
    chosen = chosen_points(policy, names, [entry.file for entry in entries]) if policy else {}
    ranking = rank(dict(zip(names, scores, strict=True))) if len(names) > 1 else None
    fields = [evidence.made(entry.file.scores, entry.file.metadata) for entry in entries]
    shared, own = evidence.shared_first(fields)

    models = []
    for i, entry in enumerate(entries):
        first, detail = describe(names[i], summaries[i], chances[i])
        against = describe_difference(names[i], names[0], comparisons[i]) if i in comparisons else ""
        wrong = evidence.most_wrong(scores[i], entry.file.metadata.get("examples"))
        models.append(
            {
                "index": i,
                "name": names[i],
                "css": curves.model_class(i),
                "verdict": first,
                "against": against,
                "detail": detail,
                "caption": _caption(summaries[i]),
                "diagram": draw_diagram(diagrams[i], name=names[i], identifier=f"reliability-{i}"),
                "bins": _bin_rows(diagrams[i]),
                "shares": [number(100 * coverages[i].at(share), 1) for share in _SHARES],
                "wrong": wrong,
                "wrong_caption": evidence.wrong_caption(scores[i], wrong),
                "made": own[i],
            }
        )
    return _template().render(
        title=title,
        context=context,
        size=_size(scores),
        headline=headline(names, summaries, chances, comparisons),
        warning=_warning(names, comparisons),
        models=models,
        bins=BINS,
        numbers=numbers_table(names, summaries, [0, *comparisons], ranking),
        power=power_lines(names, scores, comparisons),
        differences=differences_table(names, comparisons) if comparisons else None,
        baseline=names[0],
        changes=change.panels(names, [entry.file for entry in entries], predictions, comparisons),
        groups=strata.panels(names, [strata.compute_groups(one) for one in predictions], "group"),
        options=strata.panels(names, [strata.compute_options(one) for one in scores], "option"),
        coverage=curves.draw_coverage(
            list(zip(names, coverages, strict=True)),
            identifier="coverage",
            chosen={i: one.point for i, one in chosen.items() if one.point},
            limit=policy.limit if policy and policy.method == "binomial" else None,
        ),
        policy=policy_lines(policy)[0] if policy else "",
        chosen=[{"index": i, "text": one.text} for i, one in chosen.items()],
        few=curves.FEWEST_QUESTIONS if min(len(one) for one in scores) >= 5 * curves.FEWEST_QUESTIONS else 0,
        shares=[percent(share, 0) for share in _SHARES],
        courses=_courses(names, entries),
        shared=shared,
        prompts=[
            {"names": "all models" if len(owners) == len(names) > 1 else listed(owners), "text": text}
            for owners, text in evidence.prompts(names, [entry.file.metadata for entry in entries])
        ],
        equations=_EQUATIONS,
        version=caltune.__version__,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every expression of the template passes through here; only the SVG of svg.py, cleaned there, is Markup.
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    environment.filters.update(model_class=curves.model_class, dash_class=curves.dash_class)
    return environment.get_template("page.html.j2")


def unique_names(names: Sequence[str]) -> list[str]:
    """Names that differ from each other, cut to a length a column can hold.

    >>> unique_names(["sft", "sft", "sft (2)", ""])
    ['sft', 'sft (2)', 'sft (2) (2)', 'model']
    """
    found: list[str] = []
    for name in names:
        short = " ".join(clean(name).split()) or "model"
        short = short if len(short) <= _LONGEST_NAME else short[: _LONGEST_NAME - 1] + "…"
        candidate, count = short, 1
        while candidate in found:
            count += 1
            candidate = f"{short} ({count})"
        found.append(candidate)
    return found


def _require_questions(name: str, scores: OptionLogits) -> None:
    if not len(scores):
        raise InputError(f"{name}: a report needs at least one question, got none")
    try:
        scores.require_labels()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _compare(names: Sequence[str], scores: Sequence[OptionLogits]) -> dict[int, Comparison]:
    """The comparisons with the first model, by the place of the other; only where both have the same questions."""
    found = {}
    for i in range(1, len(scores)):
        if set(scores[i].ids) == set(scores[0].ids):
            try:
                found[i] = compare(scores[0], scores[i])
            except InputError as error:
                raise InputError(f"{names[i]} against {names[0]}: {error}") from error
    return found


def _warning(names: Sequence[str], comparisons: dict[int, Comparison]) -> str:
    apart = [name for i, name in enumerate(names) if i > 0 and i not in comparisons]
    if not apart:
        return ""
    return f"Other questions than {names[0]} were put to {listed(apart)}: no paired comparison is possible there."


def _size(scores: Sequence[OptionLogits]) -> str:
    counts = sorted({len(one) for one in scores})
    words = questions(counts[0]) if len(counts) == 1 else f"{counts[0]:,} to {questions(counts[-1])}"
    return f"{len(scores)} models · {words}" if len(scores) > 1 else words


def _caption(summary: Summary) -> str:
    found = summary.metrics
    return (
        f"says {percent(found['confidence'].value)}, right {percent(found['accuracy'].value)} · "
        f"ECE {number(found['ece'].value)}"
    )


def _bin_rows(diagram: Diagram) -> list[dict[str, str]]:
    return [
        {
            "edges": f"{number(100 * diagram.edges[i], 0)}–{percent(diagram.edges[i + 1], 0)}",
            "count": f"{int(diagram.count[i]):,}",
            "says": percent(diagram.confidence[i]),
            "right": percent(diagram.accuracy[i]),
            "chance": f"{number(100 * diagram.low[i], 0)}–{percent(diagram.high[i], 0)}",
        }
        for i in diagram.filled
    ]


def _courses(names: Sequence[str], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    found = {i: curves.read_course(entry.file.metadata.get("training")) for i, entry in enumerate(entries)}
    kept = {i: course for i, course in found.items() if course}
    if not kept:
        return []
    scale = curves.course_range(list(kept.values()))
    return [
        {
            "index": i,
            "name": names[i],
            "css": curves.model_class(i),
            "caption": curves.describe_course(course),
            "chart": curves.draw_course(course, name=names[i], identifier=f"course-{i}", y_range=scale),
        }
        for i, course in kept.items()
    ]
