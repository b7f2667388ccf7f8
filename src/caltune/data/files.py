"""Rows of JSONL, CSV and Parquet files, plain or as `.gz`, and the folder that holds one file a split.

A reader yields (place, row). A row that cannot be read is yielded as the `InputError` that says why, so that the caller
may skip it; a file that cannot be read further (cut off, not what its name says) raises.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from caltune.errors import InputError

Row = dict[str, Any] | InputError
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
# "train.jsonl.gz", or one of several pieces as in "train-00000-of-00002.parquet"
SPLIT_FILE = re.compile(
    r"(?P<split>[^._].*?)(-(?P<piece>\d{5})-of-(?P<pieces>\d{5}))?\.(jsonl|ndjson|csv|parquet)(\.gz)?"
)


def is_data_file(name: str) -> bool:
    """Whether a name ends like a file that can be read here.

    >>> is_data_file("train.csv.gz"), is_data_file("train.txt")
    (True, False)
    """
    return name.removesuffix(".gz").endswith(SUFFIXES)


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Read the rows of one file as (place, row); place is "path:line", for Parquet "path:row n", both from 1.

    A row is a dict, or the `InputError` that says why it cannot be read. Raises `InputError` for a file that is of no
    known kind, cut off, damaged, or without a single row.
    """
    readers = {".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in readers:
        raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES)} (or these with .gz), got {path.name!r}")
    empty = True
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            for place, row in readers[suffix](handle):  # type: ignore[arg-type]
                empty = False
                yield f"{path}:{place}", row
    except gzip.BadGzipFile as error:
        raise InputError(f"{path}: a .gz file must be gzip data, got: {error}") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip data must be complete, got: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: the file must be readable, got: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from error
        raise
    if empty:
        raise InputError(f"{path}: the file must hold at least one row, got none")


def find_split_files(folder: Path) -> dict[str, list[Path]]:
    """Find the data files of a folder by split: "train.jsonl.gz" is the split "train"; other files are left alone.

    A split may be cut into pieces named "train-00000-of-00002.parquet". Raises `InputError` when the folder has no
    data file, a split has two files, or a piece is missing.
    """
    found: dict[str, list[Path]] = {}
    pieces: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(folder.iterdir()):
        match = SPLIT_FILE.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["split"], []).append(path)
            pieces.setdefault(match["split"], []).append((int(match["piece"] or 0), int(match["pieces"] or 1)))
    if not found:
        raise InputError(f"{folder}: the folder must hold files named after splits, such as train.jsonl; got none")
    for split, paths in found.items():
        if sorted(pieces[split]) != [(number, len(paths)) for number in range(len(paths))]:
            names = ", ".join(path.name for path in paths)
            raise InputError(f"{folder}: split {split!r} must be one file, or all pieces of one; got {names}")
    return found


def _jsonl_rows(handle: IO[bytes]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(handle, 1):
        row: Any
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                row = InputError(f"a line must be one JSON object, got {_short(text)}")
        except UnicodeDecodeError as error:
            row = InputError(f"the text must be UTF-8, got byte {line[error.start]:#04x} at position {error.start}")
        except (ValueError, RecursionError) as error:
            reason = "too deeply nested" if isinstance(error, RecursionError) else error
            row = InputError(f"a line must be one JSON object ({reason}), got {_short(text)}")
        yield str(number), row


def _csv_rows(handle: IO[bytes]) -> Iterator[tuple[str, Row]]:
    old_limit = csv.field_size_limit(sys.maxsize)  # a passage may be longer than the 131,072 characters allowed
    try:
        yield from _csv_records(handle)
    finally:
        csv.field_size_limit(old_limit)


def _csv_records(handle: IO[bytes]) -> Iterator[tuple[str, Row]]:
    # Bytes that are not UTF-8 become lone surrogates, so that the row that holds them can be named and skipped.
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in handle), strict=True)
    names: list[str] | None = None
    while True:
        start = reader.line_num + 1
        row: Row
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if names is None:
                raise InputError(f"the first line must be column names in CSV, got: {error}") from error
            yield str(start), InputError(f"a row must be valid CSV, got: {error}")
            continue
        if not cells:
            continue
        if names is None:
            names = [name.removeprefix("\ufeff").strip() for name in cells]
            repeated = next((name for name in names if name and names.count(name) > 1), None)
            if repeated is not None:
                raise InputError(f"the column names must differ from each other, got {repeated!r} twice")
            continue
        if len(cells) != len(names):
            row = InputError(f"a row must have {len(names)} fields like the first line, got {len(cells)}")
        elif not _is_unicode("".join(cells)):
            row = InputError(f"the text must be UTF-8, got {_short(next(c for c in cells if not _is_unicode(c)))}")
        else:
            row = dict(zip(names, cells, strict=True))
        yield str(start), row


def _parquet_rows(handle: IO[bytes]) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    source = pyarrow.BufferReader(handle.read()) if isinstance(handle, gzip.GzipFile) else handle
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InputError(f"each column must stand once, got {twice!r} more than once")
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except UnicodeDecodeError as error:
        raise InputError(f"the text must be UTF-8, got other bytes after row {number}") from error
    except pyarrow.ArrowException as error:
        raise InputError(f"the file must be valid Parquet, got: {' '.join(str(error).split())}") from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(text: str) -> str:
    shown = repr(text.strip())
    return shown if len(shown) <= 120 else shown[:117] + "..."
