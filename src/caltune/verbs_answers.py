"""Verbs that take a confidence alone, where a file holds answers; a scores file beside it is read as answers too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caltune.errors import InputError
from caltune.output import one_line, write_json

if TYPE_CHECKING:
    import argparse

MAPS = ("platt", "beta", "isotonic", "histogram")  # recalibrators of a confidence alone
_NOTE = "of the answers alone: nll, brier and classwise_ece need the probabilities of all options"


def any_answers(paths: Sequence[Path]) -> bool:
    """Whether one of the files is an answers file."""
    from caltune.formats.predictions import holds_answers

    return any(map(holds_answers, paths))


def evaluate(arguments: argparse.Namespace) -> None:
    """Metrics of answers, with intervals; several files are ranked by answer Brier score."""
    from caltune.formats import read_answers
    from caltune.metrics import summarise_answers
    from caltune.metrics.ranking import rank_answers
    from caltune.report.terminal import metrics_lines, ranking_lines

    answers, summaries = {}, {}
    for path in arguments.scores:
        answers[str(path)] = read_answers(path).answers
        try:
            summaries[str(path)] = summarise_answers(answers[str(path)])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    document = {name: summary.to_json() for name, summary in summaries.items()}
    lines = [*metrics_lines(summaries), *_notes(arguments.scores)]
    if len(answers) > 1:
        ranking = rank_answers(answers)
        for name, found in ranking.to_json().items():
            document[name]["ranking"] = found
        lines += ["", *ranking_lines(ranking, summaries)]
    write_json(arguments.json, document)
    print("\n".join(lines))


def compare(arguments: argparse.Namespace) -> None:
    """Paired differences of two files of answers."""
    from caltune.formats import read_answers
    from caltune.metrics import compare_answers
    from caltune.report.terminal import comparison_lines

    a, b = read_answers(arguments.a).answers, read_answers(arguments.b).answers
    try:
        found = compare_answers(a, b)
    except InputError as error:
        raise InputError(f"{arguments.a}, {arguments.b}: {error}") from error
    write_json(arguments.json, found.to_json())
    lines = comparison_lines(found, str(arguments.a), str(arguments.b))
    print("\n".join([*lines, *_notes([arguments.a, arguments.b])]))


def _notes(paths: Sequence[Path]) -> list[str]:
    """What to know of the numbers of these files, one of which holds answers."""
    from caltune.formats.predictions import holds_answers

    mixed = "a scores file beside an answers file is taken as answers: the most probable option of each question"
    return [_NOTE] if all(map(holds_answers, paths)) else [_NOTE, mixed]


def recalibrate(arguments: argparse.Namespace) -> None:
    """Fit a map of confidences, or load it, and apply it to answers."""
    from caltune import recalibration
    from caltune.formats import read_answers, write_answers
    from caltune.formats.policy import source_of

    name = arguments.name
    if name not in MAPS:
        raise InputError(f"{name} needs the probability of every option, of answers take {', '.join(MAPS)}")
    for flag, paths in (("--fit", arguments.fit or [""]), ("--apply", arguments.apply)):
        if len(paths) > 1:
            raise InputError(f"{flag}: {name} takes one file, got {len(paths)}")
    (path,) = arguments.apply
    file = read_answers(path)
    if arguments.load is not None:
        fitted, source = recalibration.load(arguments.load, name), recalibration.load_source(arguments.load)
    else:
        fit = read_answers(arguments.fit[0])
        source = source_of(fit.metadata)
        try:
            fitted, _ = recalibration.fit(name, fit.answers)
        except InputError as error:
            raise InputError(f"{arguments.fit[0]}: {error}") from error
    try:
        after, metadata = fitted(file.answers), recalibration.record(name, fitted, file.metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    write_answers(arguments.output, after, metadata)
    if arguments.save is not None:
        recalibration.save(arguments.save, name, fitted, source)
    warn_of_others(source, file.metadata)
    before, now = file.answers.confidence.mean(), after.confidence.mean()
    print(f"{name}, fitted on {len(fitted.fitted_on)} questions")
    print(f"mean confidence {before:.4f}, now {now:.4f}; of the answers alone")
    print(arguments.output)


def warn_of_others(source: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Say on stderr in what the scores that a map is applied to were made otherwise than those it was fitted on."""
    from caltune.formats.policy import source_differences, source_of

    for key, seen, given in source_differences(source, source_of(metadata)):
        warning = f"fitted on scores with {key} {seen}, applied to scores with {given}"
        print(f"caltune: warning: {one_line(warning)}", file=sys.stderr)
