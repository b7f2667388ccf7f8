"""What our Parquet files share: metadata as JSON under one key, whole or not at all, and clear errors when read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caltune.errors import InputError

if TYPE_CHECKING:
    import pyarrow

_KEY = b"caltune"
_RESULTS = ({"id", "logits", "label", "group", "features"}, {"id", "category", "greedy_right", "sampled_right"})


def write_table(path: Path, kind: str, table: pyarrow.Table, metadata: dict[str, Any]) -> None:
    """Write a table with its metadata under a temporary name and rename it; `kind` is what errors call the file."""
    import pyarrow.parquet as pq

    try:
        # A lone surrogate, as in the name of a file that is not UTF-8, becomes its JSON escape, which reads back.
        raw = json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: metadata must be plain JSON, got {error}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata({_KEY: raw}), temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: the {kind} cannot be written, {error}") from error
    finally:  # also on KeyboardInterrupt; after the replace there is nothing left to remove
        temporary.unlink(missing_ok=True)


def read_table(path: Path, kind: str, columns: Sequence[str]) -> tuple[pyarrow.Table, dict[str, Any]]:
    """The given columns, at least one row of them, and the metadata; {} where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with pq.ParquetFile(path) as file:
            metadata = _metadata(path, (file.schema_arrow.metadata or {}).get(_KEY))
            twice = [name for name in columns if file.schema_arrow.names.count(name) > 1]
            if twice:
                raise InputError(f"{path}: a {kind} must have each column once, got {twice[0]!r} more than once")
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{path}: a {kind} needs the columns {', '.join(columns)}; {missing[0]!r} is missing, "
                    f"got {', '.join(file.schema_arrow.names) or 'none'}"
                )
            table = file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: a {kind} must be Parquet, got {str(error).splitlines()[0]}") from error
    if not len(table):
        raise InputError(f"{path}: a {kind} needs at least one row, got none")
    return table, metadata


def is_result(path: Path) -> bool:
    """Whether a file is Parquet with columns of a scores or knowledge file alone; False where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(set(pq.read_schema(path).names) <= columns for columns in _RESULTS)
    except (pa.ArrowException, OSError):
        return False


def require_column(path: Path, name: str, column: pyarrow.ChunkedArray, *, fits: bool, wanted: str) -> None:
    """Raise `InputError` unless the column's type fits and no cell is empty."""
    if not fits:
        raise InputError(f"{path}: column {name!r} must be {wanted}, got {column.type}")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise InputError(f"{path}: column {name!r} must have no empty cells, got one in row {row + 1} of {len(column)}")


def _metadata(path: Path, raw: bytes | None) -> dict[str, Any]:
    if raw is None:
        return {}
    try:
        found = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the 'caltune' metadata must be JSON, got {raw[:80]!r}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: the 'caltune' metadata must be a JSON object, got {raw[:80]!r}")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON, and what is copied from it could not be written")
