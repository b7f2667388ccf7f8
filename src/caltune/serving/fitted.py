"""What was fitted for the served model, a recalibrator and a policy, and whether it was fitted for this one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caltune import recalibration
from caltune.abstain import Policy
from caltune.errors import InputError
from caltune.formats import ScoreFile
from caltune.formats.policy import read_policy, source_of
from caltune.types import MAX_OPTIONS, OptionLogits

DIGITS = 16  # of a hash that are shown


@dataclass(frozen=True, slots=True)
class Fitted:
    """`recalibrate` and `policy` as read, `version` a hash of their files; each None where there is none.

    `unchecked` names the files that do not say what they were fitted for.
    """

    recalibrate: Callable[[OptionLogits], OptionLogits] | None = None
    policy: Policy | None = None
    version: str | None = None
    unchecked: tuple[Path, ...] = ()


def read_fitted(metadata: dict[str, Any], *, policy: Path | None = None, calibration: Path | None = None) -> Fitted:
    """Read the files and hold them to the `metadata` that scores of the served model would have.

    Raises `InputError` for files that are broken, made for another model, settings, temperature or recalibration, or
    that need more than one question's logits.
    """
    version = hashlib.sha256()
    unchecked = []
    recalibrate = word = None
    if calibration is not None:
        name, source = _read_head(calibration, version)
        recalibrate = recalibration.load(calibration, name)
        if not _require_same(calibration, source, metadata):
            unchecked.append(calibration)
        metadata = _metadata_after(calibration, name, recalibrate, metadata)
    if policy is not None:
        word = read_policy(policy)
        version.update(policy.read_bytes())
        if not _require_same(policy, word.source, metadata):
            unchecked.append(policy)
    shown = None if calibration is None and policy is None else version.hexdigest()[:DIGITS]
    return Fitted(recalibrate, word, shown, tuple(unchecked))


def _read_head(path: Path, version: Any) -> tuple[str, dict[str, Any]]:
    """The recalibrator's name and what it says it was fitted for."""
    try:
        text = path.read_bytes()
        document = json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: a fitted recalibrator must be JSON, got {error}") from error
    document = document if isinstance(document, dict) else {}
    name, source = document.get("recalibrator"), document.get("source")
    if name not in recalibration.RECALIBRATORS:
        known = ", ".join(recalibration.RECALIBRATORS)
        raise InputError(f"{path}: 'recalibrator' must be one of {known}, got {name!r}")
    version.update(text)
    return name, source if isinstance(source, dict) else {}


def _metadata_after(path: Path, name: str, recalibrate: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata that `caltune recalibrate` gives to the model's scores, found out by recalibrating some."""
    if name in ("pool", "ace") or recalibration.needs_features(name, recalibrate):
        rule = "must need one question's logits of one model only"
        raise InputError(f"{path}: a served recalibrator {rule}, {name} needs more")
    reason: InputError | None = None
    for width in range(2, MAX_OPTIONS + 1):  # some maps take one number of options only
        scores = OptionLogits(("served",), [[0.0] * width], [-1])
        try:
            return recalibration.apply(name, recalibrate, ScoreFile(scores, metadata))[1]
        except InputError as error:
            reason = error
    raise InputError(f"{path}: fits no question of 2 to {MAX_OPTIONS} options: {reason}")


def _require_same(path: Path, source: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """Whether `source` says anything; raises where it says something else than `metadata`."""
    ours = source_of(metadata)
    for key in sorted({*source, *ours}) if source else []:
        theirs, here = source.get(key), ours.get(key)
        if theirs != here and not (key == "model" and _same_place(theirs, here)):
            raise InputError(f"{path}: was fitted on scores with {key} {_short(theirs)}, got {_short(here)}")
    return bool(source)


def _same_place(one: Any, other: Any) -> bool:
    return all(isinstance(name, str) and Path(name).exists() for name in (one, other)) and (
        Path(one).resolve() == Path(other).resolve()
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
