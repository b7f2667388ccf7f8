"""The scores file: option logits of one model on one set of questions, with where they came from, in Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from caltune.errors import InputError
from caltune.formats.table import read_table, require_column, write_table
from caltune.types import OptionLogits

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "logits", "label", "group")
# What the metadata of a complete file tells; none of it is needed to compute metrics, and more keys are welcome.
METADATA_KEYS = ("model", "data", "split", "answers", "prompt_example", "versions", "seed")


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """`scores` and the `metadata` written with them: model, data, split, answers, prompt_example, versions, seed, …"""

    scores: OptionLogits
    metadata: dict[str, Any] = field(default_factory=dict)


def write_scores(
    path: str | Path, scores: OptionLogits, metadata: dict[str, Any], *, features: ArrayLike | None = None
) -> None:
    """Write `scores` as Parquet: `id` string, `logits` list<float32>, `label` int32, `group` string.

    A row keeps its own number of options: -inf at its end is padding and is not written, -inf before a finite logit, or
    at or before the label, is kept. `metadata` becomes JSON under the file's metadata key `caltune`. The file appears
    whole or not at all. `features` (N, H) go into a fifth column, list<float32>.

    Raises `InputError` for no questions, metadata that is not JSON, features that are not finite or not one row a
    question, or a folder that cannot be written to.
    """
    import pyarrow as pa

    path = Path(path)
    if not len(scores):
        raise InputError(f"{path}: a scores file needs at least one question, got none")
    width = scores.logits.shape[1]
    last_finite = width - np.argmax(np.isfinite(scores.logits)[:, ::-1], axis=1)
    lengths = np.maximum(last_finite, scores.labels + 1)
    values = scores.logits[np.arange(width) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns = [
        _strings(scores.ids),
        pa.ListArray.from_arrays(_to_arrow(offsets, pa.int32()), _to_arrow(values, pa.float32())),
        _to_arrow(scores.labels, pa.int32()),
        _strings(scores.groups),
    ]
    names = list(COLUMNS)
    if features is not None:
        columns.append(_feature_lists(path, features, len(scores)))
        names.append("features")
    write_table(path, "scores file", pa.table(columns, names=names), metadata)


def read_scores(path: str | Path) -> ScoreFile:
    """Read what `write_scores` wrote, or another program in the same columns; extra columns are ignored.

    Strings, lists, floats and integers of other widths are accepted; a file without `caltune` metadata has metadata {}.

    Raises `InputError` naming the file, the rule and what was found: no such file, not Parquet, no rows, a missing
    column, a wrong type, an empty cell, metadata that is no JSON object, or scores that break a rule of `OptionLogits`.
    """
    import pyarrow as pa

    path = Path(path)
    try:
        table, metadata = read_table(path, "scores file", COLUMNS)
    except InputError as error:
        from caltune.formats.predictions import holds_answers

        if not holds_answers(path):
            raise
        raise InputError(
            f"{path}: this needs the probability of every option, got an answers file, with one confidence a question"
        ) from error
    for name in COLUMNS:
        _check_column(path, name, table.column(name))

    lists = table.column("logits").cast(pa.large_list(pa.float32())).combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    values = lists.flatten()
    lengths = np.diff(_to_numpy(lists.offsets, np.int64))
    try:
        if values.null_count:
            raise InputError("'logits' must have no empty values, got a null inside a list")
        label_column = table.column("label").cast(pa.int64()).combine_chunks()
        labels = _to_numpy(
            label_column.chunk(0) if isinstance(label_column, pa.ChunkedArray) else label_column, np.int64
        )
        outside = np.flatnonzero(labels >= lengths)
        if len(outside):
            row = outside[0]
            raise InputError(
                f"a label must be -1 (unknown) or an option index below {lengths[row]}, the number of logits of its "
                f"row; got {labels[row]} in row {row + 1} of {len(table)}"
            )
        logits = np.full((len(table), lengths.max()), -np.inf, dtype=np.float32)
        logits[np.arange(lengths.max()) < lengths[:, None]] = _to_numpy(values, np.float32)
        scores = OptionLogits(
            ids=tuple(table.column("id").to_pylist()),
            logits=logits,
            labels=labels,
            groups=tuple(table.column("group").to_pylist()),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return ScoreFile(scores, metadata)


def _feature_lists(path: Path, features: ArrayLike, count: int) -> pyarrow.Array:
    import pyarrow as pa

    values = np.ascontiguousarray(features, dtype=np.float32)
    if values.ndim != 2 or len(values) != count or values.shape[1] < 1 or not np.isfinite(values).all():
        raise InputError(f"{path}: features must be finite and of shape ({count}, H), got {values.shape}")
    offsets = np.arange(count + 1, dtype=np.int64) * values.shape[1]
    return pa.LargeListArray.from_arrays(_to_arrow(offsets, pa.int64()), _to_arrow(values.ravel(), pa.float32()))


# `pa.array` and `Array.to_numpy` import pandas, which takes longer than everything else here.


def _to_arrow(values: np.ndarray[Any, np.dtype[Any]], kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _strings(texts: Sequence[str]) -> pyarrow.Array:
    import pyarrow as pa

    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError as error:  # half of a pair, which JSON can hold
        raise InputError(f"ids, groups and other text must be Unicode, got {error.object!r}") from error
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(texts), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    )


def _to_numpy(array: pyarrow.Array, kind: type[np.generic]) -> np.ndarray[Any, np.dtype[Any]]:
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * np.dtype(kind).itemsize)


def _check_column(path: Path, name: str, column: pyarrow.ChunkedArray) -> None:
    import pyarrow as pa

    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    fits, wanted = {
        "id": (is_text, "string"),
        "logits": (is_list and pa.types.is_floating(kind.value_type), "list<float32>"),
        "label": (pa.types.is_signed_integer(kind), "int32"),
        "group": (is_text, "string"),
    }[name]
    require_column(path, name, column, fits=fits, wanted=wanted)
