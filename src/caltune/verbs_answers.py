"""`evaluate` and `compare` where a file holds answers alone: scores files beside it are read as answers too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caltune.errors import InputError
from caltune.output import write_json

if TYPE_CHECKING:
    import argparse

_NOTE = "of the answers alone: nll, brier and classwise_ece need the probabilities of all options"


def any_answers(paths: Sequence[Path]) -> bool:
    """Whether one of the files is an answers file."""
    from caltune.formats.predictions import holds_answers

    return any(map(holds_answers, paths))


def evaluate(arguments: argparse.Namespace) -> None:
    """Metrics of answers, with intervals."""
    from caltune.formats import read_answers
    from caltune.metrics import summarise_answers
    from caltune.report.terminal import metrics_lines

    summaries = {}
    for path in arguments.scores:
        answers = read_answers(path).answers
        try:
            summaries[str(path)] = summarise_answers(answers)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    write_json(arguments.json, {name: summary.to_json() for name, summary in summaries.items()})
    print("\n".join([*metrics_lines(summaries), _NOTE]))


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
    print("\n".join([*comparison_lines(found, str(arguments.a), str(arguments.b)), _NOTE]))
