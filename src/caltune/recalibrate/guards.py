"""What fitted maps share: what they ask of what they are given, readable JSON, and how they write logits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.types import FloatArray, OptionLogits, Predictions


def require_unseen(what: str, ids: Sequence[str], fitted_on: Sequence[str]) -> None:
    """Raise `InputError` when an id was fitted on: a map applied to its own questions flatters itself.

    >>> require_unseen("the selector", ["a", "b"], ["b", "c"])
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: the selector must not meet questions it was fitted on, got 1 of them, first id 'b'
    """
    seen = set(fitted_on)
    shared = [name for name in ids if name in seen]
    if shared:
        raise InputError(
            f"{what} must not meet questions it was fitted on, got {len(shared)} of them, first id {shared[0]!r}"
        )


def require_fit(what: str, scores: OptionLogits | Predictions, least: int = 1) -> None:
    """Raise `InputError` unless there are at least `least` questions, with labels that are known."""
    if isinstance(scores, OptionLogits):
        scores.require_labels()
    if len(scores) < least:
        raise InputError(f"fitting {what} needs at least {least} questions, got {len(scores)}")


def as_features(features: ArrayLike, count: int, name: str = "features", width: int | None = None) -> FloatArray:
    """Features as float64 (N, d), one row a question.

    Raises `InputError` for another shape, no column, or a number that is not finite.

    >>> as_features([[1, 2], [3, 4]], 2).shape
    (2, 2)
    """
    found = np.asarray(features, dtype=np.float64)
    if found.ndim != 2 or len(found) != count or found.shape[1] < 1 or (width is not None and found.shape[1] != width):
        wanted = "d" if width is None else width
        raise InputError(f"{name} must have the shape ({count}, {wanted}), one row a question, got {found.shape}")
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise InputError(f"{name} must be finite, got {short(found[row].tolist())} in row {row + 1}")
    return found


def read_object(what: str, data: Any, keys: Sequence[str]) -> dict[str, Any]:
    """`data` as a dict with the `keys`. Raises `InputError` when it is none or a key is missing.

    >>> read_object("a pool", {"members": 2}, ["members"])["members"]
    2
    """
    if not isinstance(data, dict) or not set(keys) <= data.keys():
        raise InputError(f"{what} needs the keys {', '.join(map(repr, keys))}, got {short(data)}")
    return data


def read_number(data: dict[str, Any], key: str) -> float:
    """A number. Raises `InputError` for anything else, and for one that is not finite."""
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise InputError(f"{key!r} must be a finite number, got {short(value)}")
    return float(value)


def read_ids(data: dict[str, Any], key: str = "fitted_on") -> tuple[str, ...]:
    """A list of ids. Raises `InputError` for anything else."""
    value = data[key]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{key!r} must be a list of ids, got {short(value)}")
    return tuple(value)


def read_array(data: dict[str, Any], key: str, dimensions: int) -> FloatArray:
    """Nested lists of finite numbers as an array. Raises `InputError` for anything else."""
    try:
        found = np.asarray(data[key], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{key!r} must be lists of numbers, got {short(data[key])}") from error
    if found.ndim != dimensions or not np.isfinite(found).all():
        raise InputError(
            f"{key!r} must be finite numbers in {dimensions} dimensions, got {short(data[key])} of shape {found.shape}"
        )
    return found


def short(value: object) -> str:
    """A value as error messages show it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def largest_at_zero(scores: OptionLogits, logits: FloatArray) -> OptionLogits:
    """The questions of `scores` with these logits, shifted so that each row's largest is 0; -inf where they are -inf.

    >>> largest_at_zero(OptionLogits(("a",), [[0.0, 0.0]], [0]), np.array([[3.0, 1.0]])).logits.tolist()
    [[0.0, -2.0]]
    """
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    # A large slope may pass float32's lowest number.
    kept = np.where(np.isneginf(shifted), shifted, np.maximum(shifted, np.finfo(np.float32).min))
    return OptionLogits(scores.ids, kept.astype(np.float32), scores.labels, scores.groups)
