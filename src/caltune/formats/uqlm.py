"""Results of uqlm: its `UQResult` as JSON of `to_dict()`, or the table of `to_df()`, and what was right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caltune.errors import InputError
from caltune.formats.foreign_table import answers, cell, read_files
from caltune.formats.predictions import Imported

# Its scorers, all in [0, 1] and higher where surer; a table says "judge_1" where the dict says "judge_1" too.
SCORERS = (
    *("semantic_negentropy", "noncontradiction", "entailment", "exact_match", "cosine_sim", "bert_score"),
    *("semantic_sets_confidence", "sequence_probability", "normalized_probability", "min_probability", "p_true"),
    *("min_token_negentropy", "mean_token_negentropy", "probability_margin", "semantic_density"),
    *("monte_carlo_probability", "consistency_and_confidence", "ensemble_score", "confidence_score"),
    *("discrete_confidence_score", "tokenprob_confidence_score", "semantic_density_value", "avg", "confidence"),
)
RIGHT = ("correct", "response_correct", "is_correct", "answer_correct")


def read_uqlm(paths: Sequence[Path], fields: Mapping[str, str]) -> Imported:
    """Answers, their confidence being the one scorer that the file holds, or that `fields` names.

    uqlm does not know what is right: the file needs a column for it (`correct`, `response_correct`, or as `fields`
    names it). Without an id an answer is called by a hash of its prompt, so that scorers and models can be compared.

    Raises `InputError` naming the file where a column is missing, several scorers stand there and none is named, or a
    value breaks a rule.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    metadata: dict[str, Any] = {}
    for path in paths:
        found, about = _json_rows(path) if path.suffix == ".json" else (read_files([path]), {})
        rows += found
        metadata |= about
    first = {_singular(str(name)): name for name in rows[0][1]}
    chosen = dict(fields)
    if "confidence" not in chosen:
        present = [name for name in SCORERS if name in first]
        if len(present) != 1:
            had = ", ".join(present or map(str, rows[0][1]))
            raise InputError(f"{paths[0]}: choose a scorer with --field confidence=NAME, got {had}")
        chosen["confidence"] = str(first[present[0]])
    if "correct" not in chosen:
        chosen["correct"] = next((str(first[name]) for name in RIGHT if name in first), "correct")
    if "id" not in chosen and cell(rows[0][1], "id", {}) is None:
        rows = [(place, {**row, "id": _hash(row.get("prompt", row.get("prompts", place)))}) for place, row in rows]
    about = {"data": ", ".join(path.name for path in paths), "source": "uqlm", "confidence": chosen["confidence"]}
    return Imported(answers(rows, chosen), {**about, **metadata})


def _json_rows(path: Path) -> tuple[list[tuple[str, Mapping[str, Any]]], dict[str, Any]]:
    """Rows of `to_dict()` (columns under "data"), or of a table's `to_json()` in columns or records."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be JSON, got {error}") from error
    kept = document.get("metadata") if isinstance(document, dict) else None
    data = document.get("data", document) if isinstance(document, dict) else document
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        rows = data
    elif isinstance(data, dict) and data:
        columns = {name: list(one.values()) if isinstance(one, dict) else one for name, one in data.items()}
        lengths = {len(one) if isinstance(one, list) else -1 for one in columns.values()}
        if len(lengths) != 1 or lengths & {-1, 0}:
            raise InputError(f"{path}: its columns must be lists of one length, got {', '.join(columns)}")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    else:
        raise InputError(f"{path}: must hold the columns of a result under 'data', got {str(data)[:60]!r}")
    places = [(f"{path}:row {number}", row) for number, row in enumerate(rows, 1)]
    sampled = kept.get("temperature") if isinstance(kept, dict) else None
    return places, {"temperature_of_sampling": sampled} if isinstance(sampled, int | float) else {}


def _singular(name: str) -> str:
    """As `to_df()` names a column of `to_dict()`."""
    return name[:-1] if name.endswith("s") else name


def _hash(prompt: object) -> str:
    return hashlib.sha256(str(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]
