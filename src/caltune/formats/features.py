"""Features in a scores file: a row of numbers a question, beside its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from caltune.errors import InputError
from caltune.formats.scores import _to_numpy

FeatureArray = np.ndarray[Any, np.dtype[np.float32]]


def read_features(path: str | Path) -> FeatureArray:
    """The column `features` of a scores file, (N, H) float32, in the order of its rows.

    Raises `InputError` when there is no such file or column, or a row is empty, of another length than the first, or
    holds a null or a number that is not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.names.count("features") > 1:
                raise InputError(f"{path}: a scores file must have each column once, got 'features' more than once")
            if "features" not in file.schema_arrow.names:
                raise InputError(
                    f"{path}: needs the column 'features', which `caltune score --features` writes; got "
                    f"{', '.join(file.schema_arrow.names) or 'none'}"
                )
            column = file.read(columns=["features"]).column("features")
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: a scores file must be Parquet, got {str(error).splitlines()[0]}") from error
    kind = column.type
    if not ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_floating(kind.value_type)):
        raise InputError(f"{path}: column 'features' must be list<float32>, got {kind}")
    lists = column.cast(pa.large_list(pa.float32())).combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = np.diff(_to_numpy(lists.offsets, np.int64))
    values = lists.flatten()
    if column.null_count or values.null_count or not len(lengths) or lengths[0] < 1 or (lengths != lengths[0]).any():
        raise InputError(
            f"{path}: column 'features' must hold as many numbers in every row, got "
            f"{sorted(set(lengths.tolist()))[:3]} and {column.null_count + values.null_count} nulls"
        )
    found = _to_numpy(values, np.float32).reshape(len(lengths), -1)
    if not np.isfinite(found).all():
        raise InputError(f"{path}: column 'features' must be finite, got nan or inf")
    return found
