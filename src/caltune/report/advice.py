"""What `caltune advise` says: at most ten lines from a diagnosis to a command to copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from caltune.metrics import Interval
from caltune.notebook import clean
from caltune.output import one_line
from caltune.regime import Diagnosis, calibration_error_bound, known_share, regime
from caltune.report.text import number, questions

ENOUGH = 100  # with fewer questions A* is not known to 0.1
ONE_PLACE = 0.9  # share of right options in one place from which on that is told
GAIN = 0.01  # of accuracy: for less no answers are changed, and no training undone
LITTLE = 0.1  # known share below which a scale fitted to the answers tells how little is known, and no more
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


def advice_lines(
    setting: Setting, before: Diagnosis, after: Diagnosis | None = None, change: Interval | None = None
) -> list[str]:
    """At most ten lines: the numbers with their meaning, the regime, which method to take, why, and the command.

    With `after`, the same questions after training, the advice is about that model; `change` is then its accuracy less
    that of before, with the interval of the paired difference.
    """
    models = [before] if after is None else [before, after]
    last = models[-1]
    gap = last.overconfidence
    off, way = (gap, "sure") if gap.value > 0 else (Interval(-gap.value, -gap.high, -gap.low), "modest")
    perhaps = ", as chance may make it" if gap.low <= 0 <= gap.high else ""
    known = _arrow(known_share(one.accuracy.value, one.chance) for one in models)
    certain, entropy = (_arrow((getattr(one.collapse, name) for one in models), 2) for name in ("saturated", "entropy"))
    accuracy, reachable = _arrow(one.accuracy for one in models), _arrow(one.reachable.accuracy for one in models)
    confidence, error = _arrow(one.confidence for one in models), _arrow(one.ece for one in models)
    moved, luck = number(last.reachable.target_error.value), number(last.chance)
    take, because, method = _choice(setting, before, after, change)
    rows = {
        "questions": _asked(setting, last, after is not None),
        "accuracy": f"{accuracy}: known share {known}, and luck in guessing the rest ({luck} of guesses are right)",
        "confidence": f"{confidence}: so often it believes to be right; {_arrow([off])} too {way}{perhaps}",
        "ECE": f"{error}: mean gap of confidence and accuracy, bin by bin; {_arrow([last.corrected])} beyond chance",
        "collapse": f"{certain} of answers held for certain (above 0.99); doubt (entropy) {entropy} of an even guess's",
        "A*": f"{reachable}: best accuracy by recalibration, moving confidence by {moved} (target calibration error)",
        "regime": _regime(setting, before, after),
        "take": take,
        "because": because,
    }
    if method:
        words = ["caltune", "train", method, setting.source, "--model", setting.model, *setting.how]
        told = clean(shlex.join([*words, "--output-dir", "tuned"])).replace("\n", "[U+000A]")  # spaces stay in names
        command = "or train" if after or setting.trained else "train"
        return [*(f"{label:<12}{one_line(text)}" for label, text in rows.items()), f"{command:<12}{told}"]
    return [f"{label:<12}{one_line(text)}" for label, text in rows.items()]


def state(found: Diagnosis) -> Literal["overconfident", "underconfident", "uneven", "calibrated"]:
    """Which way confidence is off; "uneven" is off but not to one side, "calibrated" as far as can be seen."""
    if found.overconfidence.low > 0:
        return "overconfident"
    if found.overconfidence.high < 0:
        return "underconfident"
    return "uneven" if found.corrected.low > 0 else "calibrated"


def _asked(setting: Setting, found: Diagnosis, trained: bool) -> str:
    split = f", split {setting.split}" if setting.split else ""
    text = f"{found.n} from {setting.source}{split}{', before → after training' if trained else ''}; "
    if not _in_one_place(found):
        return text + "in brackets: 95 % intervals"
    place, share = found.position
    return f"{text}option {place + 1} is right in {100 * share:.0f} %: shuffle, unless the places mean something"


def _in_one_place(found: Diagnosis) -> bool:
    """Whether the right option nearly always has one place, which recalibration would take for knowledge."""
    return found.position[1] >= ONE_PLACE and found.n >= ENOUGH


def _regime(setting: Setting, before: Diagnosis, after: Diagnosis | None) -> str:
    trained, last = setting.trained or after is not None, after or before
    if setting.split != "train" or not trained:
        if last.accuracy.high < last.chance:
            return "calibratable only if answers change: the top one of K options always has 1 / K or more"
        asked = "as any model on questions it was not trained on"
        if trained and not setting.split:
            asked = "if it was not trained on these"
        return f"calibratable, {asked}: confidence can be made right, answers kept"
    found = regime(after.accuracy, before.reachable.accuracy) if after else "undecided"
    if after and found == "non-calibratable":
        least = calibration_error_bound(after.accuracy.low, before.reachable.accuracy.high)
        bound = f"if by heart and as sure of new ones, ECE here and there sum to {least:.3f} or more"
        return f"{found}: accuracy is above A* of before; {bound}"
    told = "is not above A* of before" if found == "calibratable" else "may be above A* of before, by learning by heart"
    return f"{found}: accuracy {told}"


def _choice(
    setting: Setting, before: Diagnosis, after: Diagnosis | None, change: Interval | None
) -> tuple[str, str, str]:
    """Which method to take, why, and the method of the command, "" for none."""
    found = after or before
    trained = setting.trained or after is not None
    lean = state(found)
    name, recalibration = _recalibration(found)
    if found.n < ENOUGH:
        return "nothing yet", f"{questions(found.n)} cannot tell; bring {ENOUGH} or more", ""
    if trained and setting.split == "train":
        why = "of questions it may have learned by heart, nothing follows for new ones"
        return "nothing yet; ask what it was not trained on, as with --split calibration", why, ""
    if found.accuracy.value == 1:
        why = "every answer is right, so that nothing can be fitted; bring harder questions to see where it errs"
        return "it as it is", why, ""
    if change and change.high < 0 and change.value <= -GAIN:
        method = "sft" if _knows_little(before) else "tempered"
        lost = _arrow([Interval(-change.value, -change.high, -change.low)])
        why = f"training cost {lost} of accuracy, which no temperature gives back"
        return f"the model before, or train that anew ({method})", why, method
    if _knows_little(found):
        first, then = "another prompt (--answers, --template)", "plain fine-tuning (sft), then temperature scaling"
        why = "it knows little; from there tempered was no better (NLL) than sft with a temperature in our benchmarks"
        if found.accuracy.high < found.chance:
            why = "it is right less often than guessing is: look at the labels and the prompt (caltune data) first"
        elif name == "vector":
            first, why = recalibration, "it knows little, but A* is higher: other answers show more of what it knows"
        elif found.accuracy.low <= found.chance:
            why = "it hardly beats guessing: the known share may be 0"
        elif trained:
            why = "it knows little"
        return f"{first}, or {'more training' if trained else then}", why, "" if trained else "sft"
    as_it_is = lean == "calibrated" and name == "temperature"
    why = {
        "overconfident": "it is too sure",
        "underconfident": "it is too modest",
        "uneven": "it is too sure of some answers and too modest of others",
        "calibrated": "its confidence is no further off than chance explains",
    }[lean]
    if name == "vector":
        why = "options other than its first would be right more often"
    elif name == "beta" and lean != "uneven":
        why += ", and right options are ruled out"
    if trained:
        if name == "temperature" and not as_it_is:
            why += ", which one number mostly repairs"
        if after and regime(after.accuracy, before.reachable.accuracy) == "non-calibratable":
            why += "; accuracy is above A* of before: such recalibration of that gave less"
        elif after:
            why += "; accuracy is not clearly above A* of before: recalibrating that may do as well"
        command = f"caltune recalibrate {name} --fit calibration.parquet --apply test.parquet -o scaled.parquet"
        return ("it as it is", why, "") if as_it_is else (f"{recalibration}: {command}", why, "tempered")
    words = f"tempered fine-tuning; without training, {recalibration}"
    if as_it_is:
        words = "it as it is; for more accuracy, tempered fine-tuning"
    elif lean == "overconfident":
        words += "; if no number may travel along, label-smoothing"
    if name != "vector":
        whose = "" if lean == "overconfident" else "of models too sure "
        why += f"; {whose}tempered beat sft + temperature on world-facts, not ARC-Easy"
    return words, why, "tempered"


def _knows_little(found: Diagnosis) -> bool:
    """Near guessing, where the scale that `tempered` begins from cannot be fitted, or means little."""
    return found.accuracy.low <= found.chance or known_share(found.accuracy.value, found.chance) < LITTLE


def _recalibration(found: Diagnosis) -> tuple[str, str]:
    """The map for a model that is not trained further: its name and how to call it."""
    gain = found.reachable.gain
    if gain.low >= GAIN and not _in_one_place(found) and not found.impossible:
        return "vector", f"vector scaling ({100 * gain.value:.0f} more of 100 right)"
    if state(found) == "uneven" or (found.impossible and state(found) != "calibrated"):
        return "beta", "a curve for its confidence alone (beta)"
    return "temperature", "temperature scaling"


def _arrow(values: Iterable[float | Interval], digits: int = 3) -> str:
    """The values of before and after, an interval with its ends."""
    return " → ".join(
        f"{number(one.value)} [{number(one.low)}, {number(one.high)}]"
        if isinstance(one, Interval)
        else number(one, digits)
        for one in values
    )
