"""What `caltune advise` says: a dozen lines from a diagnosis to a command to copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from caltune.metrics import Interval
from caltune.output import one_line
from caltune.regime import Diagnosis, calibration_error_bound, regime
from caltune.report.text import questions

ENOUGH = 100  # with fewer questions A* is not known to 0.1
ONE_PLACE = 0.9  # share of right options in one place from which on that is told
_DEFAULTS = {"answers": "continuations", "reduction": "sum", "template": "auto"}
# Flags of `advise` that say what is scored and how, with their defaults.
SCORING: dict[str, Any] = {
    **_DEFAULTS,
    "split": "calibration",
    "limit": None,
    "field": [],
    "skip_bad": False,
    "batch_tokens": 2048,
    "device": None,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the scores come from, as far as it is known, for the commands to copy.

    `trained` says that the first model was itself fine-tuned by caltune; `how` are flags that scoring and training
    share.
    """

    source: str = "SOURCE"
    split: str | None = None
    model: str = "MODEL"
    trained: bool = False
    how: tuple[str, ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Setting:
        """From what a scores file tells; a model trained by caltune is not named as the one to train.

        >>> Setting.from_metadata({"data": "exam.csv", "model": "m", "template": "plain", "answers": "continuations"})
        Setting(source='exam.csv', split=None, model='m', trained=False, how=('--template', 'plain'))
        """
        trained = "training" in metadata
        split, fields = metadata.get("split"), metadata.get("field")
        return cls(
            source=str(metadata.get("data") or "SOURCE"),
            split=split if isinstance(split, str) else None,
            model="MODEL" if trained else str(metadata.get("model") or "MODEL"),
            trained=trained,
            how=flags(
                {name: metadata.get(name) for name in _DEFAULTS},
                [str(pair) for pair in fields] if isinstance(fields, list) else [],
                skip_bad=metadata.get("skip_bad") is True,
            ),
        )


def flags(how: Mapping[str, Any], fields: Sequence[str] = (), *, skip_bad: bool = False) -> tuple[str, ...]:
    """What training and scoring must both be told: `--answers`, `--reduction`, `--template` where not the default of
    scoring, and `--field`s.

    >>> flags({"answers": "letters", "reduction": "sum"}, ["question=stem"])
    ('--answers', 'letters', '--field', 'question=stem')
    """
    chosen = [(f"--{name}", str(how[name])) for name in _DEFAULTS if how.get(name) not in (None, _DEFAULTS[name])]
    words = [word for pair in [*chosen, *(("--field", field) for field in fields)] for word in pair]
    return (*words, *(["--skip-bad"] if skip_bad else []))


def advice_lines(setting: Setting, before: Diagnosis, after: Diagnosis | None = None) -> list[str]:
    """The numbers with their meaning, the regime, which method to take and why, and the command to copy."""
    models = [before] if after is None else [before, after]
    last = models[-1]
    gap = last.overconfidence.value
    split = f", split {setting.split}" if setting.split else ""
    known = "" if setting.trained else "the share it knows before training; "
    top, saturated, entropy = (
        _arrow([f"{getattr(one.collapse, name):.2f}" for one in models])
        for name in ("top_mass", "saturated", "entropy")
    )
    error = _arrow([f"{one.ece.value:.3f}" for one in models])
    rows = [
        ("questions", f"{last.n} from {setting.source}{split}" + (", before → after training" if after else "")),
        *_odd_rows(last),
        ("accuracy", f"{_intervals(one.accuracy for one in models)}: {known}guessing gives {last.chance:.3f}"),
        (
            "confidence",
            f"{_intervals(one.confidence for one in models)}: {abs(gap):.3f} {'too sure' if gap > 0 else 'too modest'}",
        ),
        ("ECE", f"{error}; without what chance adds {_intervals(one.corrected for one in models)}"),
        (
            "collapse",
            f"{top} of the mass on the top option; {saturated} of answers above 0.99; entropy {entropy} of even",
        ),
        *_regime_rows(before, after),
        *_choice_rows(setting, before, after),
    ]
    width = max(len(label) for label, _ in rows) + 2
    return [f"{label:<{width}}{one_line(text)}" for label, text in rows]


def state(found: Diagnosis) -> Literal["overconfident", "underconfident", "uneven", "calibrated"]:
    """Which way confidence is off; "uneven" is off but not to one side, "calibrated" as far as can be seen."""
    if found.overconfidence.low > 0:
        return "overconfident"
    if found.overconfidence.high < 0:
        return "underconfident"
    return "uneven" if found.corrected.low > 0 else "calibrated"


def _odd_rows(found: Diagnosis) -> list[tuple[str, str]]:
    """Where the right option nearly always stands in one place, which recalibration would take for knowledge."""
    place, share = found.position
    if share < ONE_PLACE or found.n < ENOUGH:
        return []
    often = f"option {place + 1} is right in {100 * share:.0f} % of them"
    return [
        ("", f"{often}: unless its place means something, shuffle the options,"),
        ("", "or A* and what follows from it will take the place for knowledge"),
    ]


def _regime_rows(before: Diagnosis, after: Diagnosis | None) -> list[tuple[str, str]]:
    last = after or before
    reached = _intervals(one.reachable.accuracy for one in ([before] if after is None else [before, after]))
    rows = [
        ("regime", f"calibratable: on new questions confidence can be made right, at accuracies up to A* {reached}")
    ]
    if after is not None:
        found = regime(after.accuracy, before.reachable.accuracy)
        least = calibration_error_bound(after.accuracy.low, before.reachable.accuracy.high)
        words = {
            "calibratable": "is not above the A* of before: recalibrating alone may do as well",
            "undecided": "is not clearly above the A* of before: more questions would tell",
            "non-calibratable": "is above the A* of before (non-calibratable there): it learned what that lacked",
        }
        if after.accuracy.high < before.accuracy.low:
            lost = before.accuracy.value - after.accuracy.value
            rows.append(("", f"training cost {lost:.3f} of accuracy: go back to the model before"))
        else:
            rows.append(("", f"its accuracy {words[found]}"))
        if found == "non-calibratable":
            rows.append(
                ("", f"had it trained on these questions, ECE here plus ECE on new ones is {least:.3f} or more")
            )
    if last.overclaim > 0:
        rows.append(("", f"it is surer than A*: while that lasts its ECE cannot fall below {last.overclaim:.3f}"))
    return rows


def _choice_rows(setting: Setting, before: Diagnosis, after: Diagnosis | None) -> list[tuple[str, str]]:
    found = after or before
    trained = setting.trained or after is not None
    method = "cogcalib" if trained else "tempered"
    temperature = "caltune recalibrate temperature --fit calibration.parquet --apply test.parquet -o scaled.parquet"
    lean = state(found)
    accurate = "tempered fine-tuning (tempered), then temperature scaling if ECE asks for it"
    if found.n < ENOUGH:
        return [("take", "nothing yet"), ("because", f"{questions(found.n)} cannot tell; bring {ENOUGH} or more")]
    if found.accuracy.value == 1:
        why = "every answer is right, so that nothing can be fitted; bring harder questions to see where it errs"
        return [("take", "it as it is"), ("because", why)]
    if after is not None and after.accuracy.high < before.accuracy.low:
        take, why = "the model before", "training made it worse; a lower learning rate or fewer epochs may help"
        method = "tempered"
    elif found.accuracy.low <= found.chance:
        # The scale that tempered begins from cannot be fitted to a model that knows nothing.
        plain = "then plain fine-tuning (sft) and temperature scaling"
        take = "another prompt (--answers, --template), " + ("or more training" if trained else plain)
        why = "it hardly beats guessing, and there is nothing to calibrate yet"
        if found.accuracy.high < found.chance:
            why = "it is right less often than guessing is: look at the labels and the prompt (caltune data) first"
        method = "" if trained else "sft"
    elif lean == "calibrated":
        take = "it as it is" + ("" if trained else f"; for more accuracy {accurate}")
        method = "" if trained else method
        why = "its confidence is no further off than chance explains"
    elif trained:
        take, why = "temperature scaling", f"it is {lean}, and one fitted number repairs most of that"
    else:
        take = f"{accurate}; without training, temperature scaling alone"
        why = f"it is {lean}; in our benchmark tempered had less NLL than sft with temperature, and was as often right"
    rows = [("take", take), ("because", why)]
    gain = found.reachable.gain
    if gain.low > 0:
        rows.append(("", f"recalibration that may change answers, as vector scaling, gains {gain.value:.3f} accuracy"))
    if not method:
        return rows
    words = ["caltune", "train", method, setting.source, "--model", setting.model, *setting.how]
    command = shlex.join([*words, "--output-dir", "tuned"])
    if method == "cogcalib":
        otherwise = "where no number may travel with the model, a penalised method; it may cost accuracy:"
        return [*rows, ("then", temperature), ("otherwise", otherwise), ("train", command)]
    return [*rows, ("train", command), ("then", temperature)]


def _intervals(found: Iterable[Interval]) -> str:
    return _arrow([f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in found])


def _arrow(texts: Sequence[str]) -> str:
    return " → ".join(texts)
