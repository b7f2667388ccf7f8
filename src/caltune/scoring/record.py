"""Score questions with a named model and write everything that belongs to the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caltune import __version__
from caltune.errors import InputError
from caltune.formats import ScoreFile, write_scores
from caltune.models import load_model, option_temperature
from caltune.prompts import render
from caltune.scoring.engine import score, score_with_features
from caltune.scoring.processes import process_rank
from caltune.types import OptionLogits, Question

EXAMPLES = 50  # questions most surely wrong whose text travels with the scores, for the report


def score_to_file(
    path: str | Path,
    model: Any,
    questions: Sequence[Question],
    *,
    data: str,
    split: str | None = None,
    tokenizer: Any = None,
    model_name: str | None = None,
    device: str | None = None,
    progress: bool = True,
    seed: int | None = None,
    extra: dict[str, Any] | None = None,
    features: bool = False,
    **how: Any,
) -> ScoreFile:
    """`score` with a model or the name of one, written to `path` with its metadata; `how` goes to `score`.

    With `features` the file also holds each question's features, as `score_with_features` gives them.
    A fine-tuned model's folder also tells the course of its training, which goes along. With `together` in `how` only
    the first of several processes writes.

    Raises `InputError` for what cannot be loaded, scored or written.
    """
    name = model_name or str(model)
    course = training_course(Path(name))
    if tokenizer is None:
        model, tokenizer = load_model(model, device=device)
    if features:
        scores, states = score_with_features(model, tokenizer, questions, progress=progress, **how)
    else:
        scores, states = score(model, tokenizer, questions, progress=progress, **how), None
    temperature = option_temperature(model)
    rendering = {key: how[key] for key in ("answers", "template", "exemplars") if key in how}
    metadata = {
        "model": name,
        "data": str(data),
        "split": split,
        "answers": how.get("answers", "continuations"),
        "reduction": how.get("reduction", "sum"),
        "template": how.get("template", "auto"),
        **({"exemplars": [shown.id for shown in how["exemplars"]]} if how.get("exemplars") else {}),
        **({} if temperature == 1 else {"temperature": temperature}),
        "prompt_example": render(questions[0], tokenizer, **rendering).text,
        "versions": {"caltune": __version__, **{package: version(package) for package in ("torch", "transformers")}},
        "seed": seed,
        "examples": surely_wrong(scores, questions),
        **course,
        **(extra or {}),
    }
    if not how.get("together") or process_rank() == 0:
        write_scores(path, scores, metadata, features=states)
    return ScoreFile(scores, metadata)


def surely_wrong(scores: OptionLogits, questions: Sequence[Question], count: int = EXAMPLES) -> list[dict[str, Any]]:
    """Texts of the questions that are answered wrong with the highest confidence, surest first."""
    known = np.flatnonzero(scores.labels >= 0)
    decided = scores.take(known).decide()
    wrong = np.flatnonzero(decided.correct == 0)
    order = wrong[np.argsort(-decided.confidence[wrong], kind="stable")][:count]
    chosen = [questions[known[i]] for i in order]
    return [{"id": q.id, "question": q.text, "options": list(q.options)} for q in chosen]


def training_course(folder: Path) -> dict[str, Any]:
    """{"training": evaluations in the order of training}, when the folder holds a trainer's state; else {}.

    A number that is not finite becomes None. Raises `InputError` for a state that a trainer did not write.
    """
    state = folder / "trainer_state.json"
    if not state.is_file():
        return {}
    try:
        history = json.loads(state.read_text(encoding="utf-8"), parse_constant=lambda _: None)["log_history"]
        return {"training": [entry for entry in history if "eval_ece" in entry]}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{state}: must be what a trainer wrote, with 'log_history', got {error!r}") from error


def require_device(name: str | None) -> None:
    """Raise `InputError` unless torch can put something on the device of that name."""
    if name is None:
        return
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device must be one that torch can use here, such as cpu, got {name!r}: {reason}") from error
