"""The policy file: when to answer, what that guarantees, and which scores it was fitted on, in JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from caltune import __version__
from caltune.abstain import Decisions, Policy
from caltune.errors import InputError
from caltune.output import write_json

# Metadata of scores that may differ between calibration questions and later ones; all else makes other confidences.
_OWN = ("data", "split", "method", "prompt_example", "examples", "training", "versions", "seed", "left_out")
_NUMBERS = {"limit": False, "confidence": True, "threshold": True, "wrong": False, "bound": False}  # may be null?


def source_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """What of a scores file's metadata decides about confidences: model, answers, temperature and the like.

    >>> source_of({"model": "m", "temperature": 1.5, "split": "test", "method": "sft"})
    {'model': 'm', 'temperature': 1.5}
    """
    return {key: value for key, value in metadata.items() if key not in _OWN}


def require_same_source(policy: Policy, metadata: dict[str, Any]) -> bool:
    """Whether the scores were made as those the policy was fitted on; False where either says nothing of it.

    Raises `InputError` when they were made otherwise: by another model, or with another temperature.
    """
    theirs = source_of(metadata)
    for key, ours, other in source_differences(policy.source, theirs):
        raise InputError(f"a policy holds for scores made like its calibration scores, {key} {ours}, got {other}")
    return bool(policy.source and theirs)


def source_differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two results of `source_of`, as key and both values in short; nothing where one is empty.

    >>> source_differences({"model": "m"}, {"model": "m", "temperature": 2.0})
    [('temperature', 'None', '2.0')]
    """
    keys = sorted({*one, *other}) if one and other else []
    return [(key, _short(one.get(key)), _short(other.get(key))) for key in keys if one.get(key) != other.get(key)]


def write_policy(path: Path, policy: Policy) -> None:
    """Write the policy as JSON: the fields of `Policy`, and `versions`. The file appears whole or not at all."""
    document = {item.name: getattr(policy, item.name) for item in fields(policy)}
    write_json(path, {**document, "versions": {"caltune": __version__}})


def write_decisions(path: Path | None, decisions: Decisions) -> None:
    """One JSON object a line and question: `id`, `answer` (null where the policy abstains) and `confidence`.

    Nothing at all when there is no path; the file appears whole or not at all.
    """
    if path is None:
        return
    columns = (decisions.ids, decisions.choice.tolist(), decisions.confidence.tolist())
    rows = [
        json.dumps({"id": name, "answer": None if choice < 0 else choice, "confidence": confidence}, ensure_ascii=False)
        for name, choice, confidence in zip(*columns, strict=True)
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written, {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_policy(path: Path) -> Policy:
    """Read what `write_policy` wrote. Raises `InputError` naming the file, the rule and what was found."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: a policy must be a JSON file, got {error}") from error
    names = [item.name for item in fields(Policy)]
    missing = [name for name in names if not isinstance(found, dict) or name not in found]
    if missing:
        raise InputError(f"{path}: a policy needs the keys {', '.join(names)}; {missing[0]!r} is missing")
    for name, optional in _NUMBERS.items():
        if not (_is_number(found[name]) or (optional and found[name] is None)):
            raise InputError(f"{path}: {name!r} must be a number, got {_short(found[name])}")
    if not 0 < found["limit"] < 1:
        raise InputError(f"{path}: 'limit' must lie between 0 and 1, got {found['limit']}")
    for name in ("n", "answered"):
        if not isinstance(found[name], int) or found[name] < 0:
            raise InputError(f"{path}: {name!r} must be a count, got {_short(found[name])}")
    if found["method"] not in ("binomial", "crc"):
        raise InputError(f"{path}: 'method' must be binomial or crc, got {_short(found['method'])}")
    ids, confidences = found["fitted_on"], found["confidences"]
    if not (isinstance(ids, list) and ids and all(isinstance(one, str) for one in ids)):
        raise InputError(f"{path}: 'fitted_on' must be a list of ids, got {_short(ids)}")
    if not (isinstance(confidences, list) and len(confidences) == len(ids) and all(map(_is_number, confidences))):
        raise InputError(f"{path}: 'confidences' must be a number for each id, got {_short(confidences)}")
    if not isinstance(found["source"], dict):
        raise InputError(f"{path}: 'source' must be a JSON object, got {_short(found['source'])}")
    sequences = {"fitted_on": tuple(ids), "confidences": tuple(sorted(map(float, confidences)))}
    return Policy(**{**{name: found[name] for name in names}, **sequences})


def _is_number(value: object) -> bool:
    # JSON has whole numbers that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
