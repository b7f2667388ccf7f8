"""A policy, what it decides, and whether it still fits, as lines for the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caltune.abstain import ALARM, Decisions, Drift, Policy, apply_policy, drift
from caltune.binomial import fewest
from caltune.errors import InputError
from caltune.formats.policy import require_same_source
from caltune.formats.scores import ScoreFile
from caltune.report.text import number, percent, questions


def policy_lines(policy: Policy) -> list[str]:
    """The threshold, how much it answers and what is guaranteed; or why no threshold passed."""
    limit = percent(policy.limit)
    if policy.confidence is None:
        promise = f"at most {limit} of all questions are answered wrongly, on average over calibration sets"
    else:
        promise = f"the error among the answered is below {limit} with {percent(policy.confidence)} confidence"
    if policy.threshold is None:
        needed = math.ceil(min(1 / policy.limit - 1 - 1e-9, sys.maxsize))
        if policy.confidence is not None:
            needed = fewest(policy.limit, 1 - policy.confidence)
        if policy.n < needed:
            reason = f"it takes at least {questions(needed)} without an error, got {policy.n:,}"
        elif policy.confidence is None:
            reason = f"among the surest of the {questions(policy.n)} too many are answered wrongly"
        else:
            reason = f"too many are answered wrongly at every threshold tested on the {questions(policy.n)}"
        return [f"not possible with these data: {reason}", "the policy answers nothing"]
    share = percent(policy.answered / policy.n)
    upper = f"upper bound {percent(policy.bound)}"
    if policy.method == "crc":
        upper = f"of all questions, counting one more, {percent(policy.bound)}"
    return [
        f"threshold {number(policy.threshold, 4)}: {promise}",
        f"answers {policy.answered:,} of {questions(policy.n)} ({share}), abstains on {policy.n - policy.answered:,}",
        f"wrong among the answered: {policy.wrong:g} ({percent(policy.wrong / policy.answered)}); {upper}",
    ]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a policy does to one model: the `point`, (coverage, accuracy), where it cuts, and what to say of it.

    The point is None where it answers nothing.
    """

    point: tuple[float, float] | None
    text: str


def chosen_points(policy: Policy, names: Sequence[str], files: Sequence[ScoreFile]) -> dict[int, Chosen]:
    """The policy applied to each file that was scored as those it was fitted on, by the file's place.

    Raises `InputError` when there is no such file, or when one holds questions that the policy was fitted on.
    """
    found, refusals = {}, []
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        try:
            checked = require_same_source(policy, file.metadata)
        except InputError as error:
            refusals.append(f"{name}: {error}")
            continue
        try:
            decisions = apply_policy(policy, file.scores)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        labels = file.scores.labels
        answered, wrong = int(decisions.answered.sum()), int((decisions.answered & (decisions.choice != labels)).sum())
        text = f"{name}: it answers {answered:,} of {questions(len(labels))} ({percent(answered / len(labels))})"
        text += f", {wrong:,} of them wrongly ({percent(wrong / answered)})." if answered else "."
        lines = decision_lines(policy, decisions, labels, drift(policy, decisions, labels))
        warnings = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
        if not checked:
            warnings.append("nothing is known of how these scores or the policy's were made")
        text = " ".join([text, *(f"{one[0].upper()}{one[1:]}." for one in warnings)])
        found[i] = Chosen((answered / len(labels), 1 - wrong / answered) if answered else None, text)
    if not found:
        raise InputError(f"the policy fits none of the files; {refusals[0]}")
    return found


def decision_lines(policy: Policy, decisions: Decisions, labels: NDArray[np.integer], found: Drift) -> list[str]:
    """How much is answered, how much of it is wrong where that is known, and what speaks against the policy."""
    total, answered = len(decisions.ids), int(decisions.answered.sum())
    lines = [
        f"answers {answered:,} of {questions(total)} ({percent(answered / total)}), abstains on {total - answered:,}"
    ]
    labelled = int((decisions.answered & (labels >= 0)).sum())
    if labelled:
        lines.append(
            f"wrong among {labelled:,} answered with a label: {found.wrong:,} ({percent(found.wrong / labelled)})"
        )
    lines.append(
        f"confidences against the calibration questions': distance {number(found.distance)}, p = "
        f"{number(found.confidence_p)}"
    )
    if found.confidence_p < ALARM:
        lines.append(
            "warning: these confidences do not look like those the policy was fitted on; its guarantee may not hold"
        )
    if found.error_p < ALARM:  # nan is no alarm
        lines.append(
            f"warning: more is wrong than a limit of {percent(policy.limit)} explains, p = {number(found.error_p, 4)}; "
            "the guarantee does not hold here"
        )
    return lines
