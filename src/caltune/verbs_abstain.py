"""The two verbs of abstention: fit a threshold, apply it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from caltune.errors import InputError
from caltune.output import require_place

if TYPE_CHECKING:
    import argparse


def threshold(arguments: argparse.Namespace) -> None:
    """Fit a policy on a scores file. That no threshold passes is a result like any other."""
    from caltune.abstain import fit_expected_loss, fit_threshold
    from caltune.formats import read_answers
    from caltune.formats.policy import source_of, write_policy
    from caltune.report.abstention import policy_lines

    require_place(arguments.output, arguments.scores)
    if arguments.method == "crc" and arguments.confidence is not None:
        raise InputError(f"--method crc speaks of the mean and takes no --confidence, got {arguments.confidence}")
    file = read_answers(arguments.scores)
    predictions = file.answers
    try:
        if arguments.method == "crc":
            policy = fit_expected_loss(predictions, arguments.max_error)
        else:
            confidence = 0.95 if arguments.confidence is None else arguments.confidence
            policy = fit_threshold(predictions, arguments.max_error, confidence)
    except InputError as error:
        raise InputError(f"{arguments.scores}: {error}") from error
    if arguments.output is not None:
        write_policy(arguments.output, replace(policy, source=source_of(file.metadata)))
    print("\n".join(policy_lines(policy)))
    if arguments.output is not None:
        print(arguments.output)


def apply_threshold(arguments: argparse.Namespace) -> None:
    """Decide on the questions of a scores file by a policy, and look for signs that it does not fit them."""
    from caltune.abstain import apply_policy, drift
    from caltune.formats import read_answers, read_scores
    from caltune.formats.policy import read_policy, require_same_source, write_decisions
    from caltune.formats.predictions import holds_answers
    from caltune.report.abstention import decision_lines

    require_place(arguments.output, arguments.policy, arguments.scores)
    policy = read_policy(arguments.policy)
    if holds_answers(arguments.scores):
        answers = read_answers(arguments.scores)
        # The one answer there is has the place 0, and is right where the label is 0.
        scores, metadata, labels = answers.answers, answers.metadata, (answers.answers.correct == 0).astype(int)
    else:
        file = read_scores(arguments.scores)
        scores, metadata, labels = file.scores, file.metadata, file.scores.labels
    try:
        checked = require_same_source(policy, metadata)
        decisions = apply_policy(policy, scores)
    except InputError as error:
        raise InputError(f"{arguments.scores}: {error}") from error
    write_decisions(arguments.output, decisions)
    print("\n".join(decision_lines(policy, decisions, labels, drift(policy, decisions, labels))))
    if not checked:
        print(
            "warning: nothing is known of how these scores or the policy's were made; model and temperature must agree"
        )
    if arguments.output is not None:
        print(arguments.output)
