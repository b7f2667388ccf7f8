"""Small files for the tests: questions, scores with a known temperature, JSON read strictly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caltune.formats import write_scores
from caltune.types import OptionLogits, Question


def scores_file(path: Path, count: int = 300, *, first: int = 0, sharpness: float = 3.0, seed: int = 0) -> Path:
    """Labels drawn from softmax(z), and logits `sharpness`·z: the best temperature is `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(count, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((count, 1)) > probabilities.cumsum(1)[:, :3]).sum(1)
    ids = tuple(f"q{number}" for number in range(first, first + count))
    write_scores(path, OptionLogits(ids, sharpness * logits, labels), {"model": path.stem, "seed": 7})
    return path


def strict_json(path: Path) -> Any:
    """JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def write_jsonl(path: Path, questions: Sequence[Question]) -> Path:
    """Questions as a JSONL file."""
    rows = [
        {"id": q.id, "question": q.text, "choices": list(q.options), "answer": q.answer, "subject": q.group}
        for q in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
