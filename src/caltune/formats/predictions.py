"""The answers file: how sure and whether right, one answer a question, where the other options are not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caltune.errors import InputError
from caltune.formats.scores import _strings, _to_arrow, read_scores
from caltune.formats.table import read_table, require_column, write_table
from caltune.types import OptionLogits, Predictions

COLUMNS = ("id", "confidence", "correct", "group")


@dataclass(frozen=True, slots=True)
class AnswersFile:
    """`answers` and the `metadata` written with them: model, data, …"""

    answers: Predictions
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Imported:
    """What another program's files hold, with metadata, and `notes` for the user on what was left out."""

    scores: OptionLogits | Predictions
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()


def write_answers(path: str | Path, answers: Predictions, metadata: dict[str, Any]) -> None:
    """Write `answers` as Parquet: `id` and `group` string, `confidence` and `correct` float64.

    `metadata` becomes JSON under the file's metadata key `caltune`. The file appears whole or not at all.

    Raises `InputError` for no answers, metadata that is not JSON, or a folder that cannot be written to.
    """
    import pyarrow as pa

    path = Path(path)
    if not len(answers):
        raise InputError(f"{path}: an answers file needs at least one answer, got none")
    columns = {
        "id": _strings(answers.ids),
        "confidence": _to_arrow(answers.confidence, pa.float64()),
        "correct": _to_arrow(answers.correct, pa.float64()),
        "group": _strings(answers.groups),
    }
    write_table(path, "answers file", pa.table(columns), metadata)


def holds_answers(path: str | Path) -> bool:
    """Whether a file is Parquet with the columns of an answers file and no logits; False where it cannot be read."""
    names = _columns(path)
    return {"confidence", "correct"} <= names and "logits" not in names


def holds_scores(path: str | Path) -> bool:
    """Whether a file is Parquet with the columns of a scores file; False where it cannot be read."""
    return {"logits", "label"} <= _columns(path)


def _columns(path: str | Path) -> set[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return set()


def read_answers(path: str | Path) -> AnswersFile:
    """Read what `write_answers` wrote, or a scores file, of which the most probable option is the answer.

    Raises `InputError` naming the file, the rule and what was found, as `read_scores` does.
    """
    import pyarrow as pa

    path = Path(path)
    if not holds_answers(path):
        file = read_scores(path)
        try:
            return AnswersFile(file.scores.decide(), file.metadata)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    table, metadata = read_table(path, "answers file", COLUMNS)
    for name in COLUMNS:
        kind = table.column(name).type
        if name in ("id", "group"):
            fits, wanted = pa.types.is_string(kind) or pa.types.is_large_string(kind), "string"
        else:
            fits = pa.types.is_floating(kind) or pa.types.is_integer(kind)
            fits, wanted = fits or (name == "correct" and pa.types.is_boolean(kind)), "double"
        require_column(path, name, table.column(name), fits=fits, wanted=wanted)
    ids, confidence, correct, groups = (table.column(name).to_pylist() for name in COLUMNS)
    try:
        return AnswersFile(Predictions(tuple(ids), confidence, correct, tuple(groups)), metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
