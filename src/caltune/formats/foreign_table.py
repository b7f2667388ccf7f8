"""Tables of anything: a row a question, with a confidence and whether it was right, or with option probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caltune.data.files import read_rows
from caltune.errors import InputError
from caltune.formats.predictions import Imported
from caltune.types import OptionLogits, Predictions

FIELDS = ("id", "group", "confidence", "correct", "probabilities", "logits", "label")
Rows = Sequence[tuple[str, Mapping[str, Any]]]  # (place, row)
_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "qid", "doc_id", "_id", "idx", "question_id"),
    "group": ("group", "subject", "category", "topic"),
    "confidence": ("confidence", "max_prob"),
    "correct": ("correct", "is_correct"),
    "probabilities": ("probabilities", "probs"),
    "logits": ("logits", "logprobs", "log_probabilities"),
    "label": ("label", "answer", "gold"),
}
_RIGHT = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
_SUM = 0.01  # how far printed probabilities may be from adding up to 1


def read_foreign_table(paths: Sequence[Path], fields: Mapping[str, str]) -> Imported:
    """Rows of JSONL, CSV or Parquet files as scores or answers.

    With `probabilities` or `logits` (a list, JSON in CSV, or several columns given with commas) and `label` (an index
    from 0, empty where unknown) they are scores; else `confidence` in [0, 1] and `correct` make answers. `fields` maps
    these names to the files' columns. Without an id a row is called by its file's name and its number.

    Raises `InputError` naming file and row for a missing column or a value that breaks a rule.
    """
    rows = read_files(paths)
    first = rows[0][1]
    for name in ("probabilities", "logits"):
        columns = _columns(first, name, fields)
        if columns:
            return Imported(_option_logits(rows, name, columns, fields), {"data": _names(paths)})
    return Imported(answers(rows, fields), {"data": _names(paths)})


def read_files(paths: Sequence[Path]) -> list[tuple[str, Mapping[str, Any]]]:
    """All rows of the files with their places. Raises `InputError` for a row that cannot be read."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        for place, row in read_rows(path):
            if isinstance(row, InputError):
                raise InputError(f"{place}: {row}")
            found.append((place, row))
    return found


def answers(rows: Rows, fields: Mapping[str, str]) -> Predictions:
    """Rows with a confidence and whether the answer was right.

    >>> answers([("t.csv:2", {"confidence": "0.8", "correct": "True"})], {}).correct.tolist()
    [1.0]
    """
    confidence = [number(place, _cell(place, row, "confidence", fields), "confidence") for place, row in rows]
    correct = [_right(place, _cell(place, row, "correct", fields)) for place, row in rows]
    try:
        return Predictions(_ids(rows, fields), np.array(confidence), np.array(correct), _groups(rows, fields))
    except InputError as error:
        raise _together(rows, error) from error


def cell(row: Mapping[str, Any], name: str, fields: Mapping[str, str]) -> Any:
    """The value of a field, None where there is none: the column that `fields` names, else the first that fits."""
    if name in fields:
        return row.get(fields[name])
    return next((row[column] for column in _NAMES[name] if row.get(column) not in (None, "")), None)


def _cell(place: str, row: Mapping[str, Any], name: str, fields: Mapping[str, str]) -> Any:
    found = cell(row, name, fields)
    if found is None or found == "":
        wanted = fields.get(name, " or ".join(_NAMES[name]))
        raise InputError(f"{place}: needs a column {wanted} (--field {name}=…), got {', '.join(map(str, row))}")
    return found


def _ids(rows: Rows, fields: Mapping[str, str]) -> tuple[str, ...]:
    found = [cell(row, "id", fields) for _, row in rows]
    if any(one is None for one in found):
        if "id" in fields:
            raise InputError(f"{rows[0][0]}: needs a column {fields['id']}, got {', '.join(map(str, rows[0][1]))}")
        return tuple(f"{Path(place).name}" for place, _ in rows)
    return tuple(map(str, found))


def _groups(rows: Rows, fields: Mapping[str, str]) -> tuple[str, ...]:
    found = (cell(row, "group", fields) for _, row in rows)
    return tuple("" if one is None else str(one) for one in found)


def _columns(row: Mapping[str, Any], name: str, fields: Mapping[str, str]) -> list[str]:
    """The column that holds a list, or the columns that hold an option each; none where the rows have no such field."""
    if name in fields:
        columns = [column.strip() for column in fields[name].split(",")]
        missing = next((column for column in columns if column not in row), None)
        if missing is not None:
            raise InputError(f"--field {name}: there is no column {missing!r}, got {', '.join(map(str, row))}")
        return columns
    return next(([column] for column in _NAMES[name] if column in row), [])


def _option_logits(rows: Rows, name: str, columns: list[str], fields: Mapping[str, str]) -> OptionLogits:
    values, labels = [], []
    for place, row in rows:
        numbers = _list(place, row, columns)
        if name == "probabilities":
            if min(numbers) < 0 or not abs(sum(numbers) - 1) <= _SUM:  # nan fails too
                raise InputError(f"{place}: probabilities must not be negative and add up to 1, got {numbers[:6]}")
            numbers = [math.log(one) if one > 0 else -math.inf for one in numbers]
        values.append(numbers)
        labels.append(_label(place, cell(row, "label", fields), len(numbers)))
    logits = np.full((len(rows), max(map(len, values))), -np.inf, dtype=np.float32)
    for i, numbers in enumerate(values):
        logits[i, : len(numbers)] = numbers
    try:
        return OptionLogits(_ids(rows, fields), logits, np.array(labels), _groups(rows, fields))
    except InputError as error:
        raise _together(rows, error) from error


def _list(place: str, row: Mapping[str, Any], columns: list[str]) -> list[float]:
    found: Any = [row.get(column) for column in columns] if len(columns) > 1 else row.get(columns[0])
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise InputError(f"{place}: {columns[0]!r} must be a list of numbers, got {found[:60]!r}") from error
    if not isinstance(found, list) or not found:
        raise InputError(f"{place}: {columns[0]!r} must be a list of numbers, got {str(found)[:60]!r}")
    while len(columns) > 1 and found and found[-1] in (None, ""):  # options that this row does not have
        found = found[:-1]
    if not found:
        raise InputError(f"{place}: {columns[0]!r} must be a list of numbers, got none")
    return [number(place, one, columns[0]) for one in found]


def _label(place: str, value: Any, count: int) -> int:
    if value is None or value == "":
        return -1
    label = number(place, value, "label")
    if not (label.is_integer() and -1 <= label < count):
        raise InputError(f"{place}: 'label' must be an index from 0 to {count - 1}, or -1 where unknown; got {value!r}")
    return int(label)


def number(place: str, value: Any, name: str) -> float:
    """A cell as a number. Raises `InputError` where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: {name!r} must be a number, got {str(value)[:60]!r}") from error


def _right(place: str, value: Any) -> float:
    found = _RIGHT.get(str(value).strip().lower())
    if found is None:
        raise InputError(f"{place}: 'correct' must be 1 or 0, true or false, got {str(value)[:60]!r}")
    return found


def _together(rows: Rows, error: InputError) -> InputError:
    return InputError(f"{rows[0][0]} and the rows behind it: {error}")


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
