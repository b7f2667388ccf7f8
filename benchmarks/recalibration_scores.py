"""What `recalibration.py` fits on: questions of several sources, scored by the small model with features, in pieces.

A piece of `PIECE` questions is a file, so that an interrupted run goes on. Questions are put into an order drawn once,
so that any number of pieces is a random part of a source. Sources other than `world-facts` are presets: where
$CALTUNE_DATA_DIR holds them, nothing is downloaded. Their options are sentences of any length, so an option's logit is
the mean over its tokens; by the sum, as on `world-facts`, this model prefers short ones and is right on 0.17 of the
questions of OpenBookQA.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np

from caltune.data import load_questions
from caltune.formats import read_features, read_scores, write_scores
from caltune.types import FloatArray, OptionLogits, Question

PIECE = 250
HARDER = 6.0  # how many times as often a test of other questions has one half of them
HUMANITIES = (
    *("formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history"),
    *("international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy"),
    *("prehistory", "professional_law", "world_religions"),
)
STEM = (
    *("abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry", "college_computer_science"),
    *("college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering"),
    *("elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science"),
    *("high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning"),
)
# Name -> the data set, its splits, its subjects (all where there are none), and how many questions at most.
SOURCES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], int]] = {
    "world-facts": ("world-facts", ("calibration", "test"), (), 4000),
    "openbookqa": ("openbookqa", ("train", "validation", "test"), (), 4000),
    "arc-easy": ("arc-easy", ("train", "validation", "test"), (), 4000),
    "arc-challenge": ("arc-challenge", ("train", "validation", "test"), (), 2500),
    "humanities": ("mmlu", ("test",), HUMANITIES, 3000),
    "stem": ("mmlu", ("test",), STEM, 2500),
}


def questions_of(name: str) -> list[Question]:
    """The questions of a source in their drawn order, without those that stand twice."""
    data, splits, subjects, most = SOURCES[name]
    found: dict[tuple[str, tuple[str, ...]], Question] = {}
    for split in splits:
        for question in load_questions(data, split, on_bad=lambda _: None):
            if question.answer is not None and (not subjects or question.group in subjects):
                found.setdefault((question.text, question.options), question)
    unique = list({question.id: question for question in found.values()}.values())
    return random.Random(0).sample(unique, len(unique))[:most]


def ready(folder: Path, names: Sequence[str], most: int | None) -> common.Jobs:
    """The pieces that are not there yet, those of each source in turn, up to `most` pieces a source."""
    jobs: common.Jobs = {}
    for number in range(max(SOURCES[name][3] for name in names) // PIECE):
        for name in names:
            path = piece(folder, name, number)
            if number < SOURCES[name][3] // PIECE and (most is None or number < most) and not path.exists():
                jobs[path] = partial(score_piece, path, name, number)
    return jobs


def piece(folder: Path, name: str, number: int) -> Path:
    """Where the scores of a piece are kept."""
    return folder / "scores" / f"{name}-{number:02d}.parquet"


_loaded: dict[str, Any] = {}


def score_piece(path: Path, name: str, number: int) -> None:
    """Score one piece; the model and the questions are kept for the next."""
    from caltune.models import load_model
    from caltune.scoring.engine import score_with_features

    if "model" not in _loaded:
        _loaded["model"] = load_model(common.RUN["model"])
    if name not in _loaded:
        _loaded[name] = questions_of(name)
    questions = _loaded[name][number * PIECE : (number + 1) * PIECE]
    reduction = "sum" if name == "world-facts" else "mean"
    how = {"answers": common.RUN["answers"], "template": common.RUN["template"], "reduction": reduction}
    scores, features = score_with_features(*_loaded["model"], questions, **how)
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = {"lengths": [length(question) for question in questions]}
    write_scores(path, scores, {"model": common.RUN["model"], "data": name, **how, **lengths}, features=features)


def read_source(folder: Path, name: str) -> tuple[OptionLogits, FloatArray, FloatArray | None] | None:
    """All pieces that are there as one, their features, and their lengths if all tell them; None without pieces."""
    paths = [path for number in range(100) if (path := piece(folder, name, number)).exists()]
    if not paths:
        return None
    files = [read_scores(path) for path in paths]
    told = [file.metadata.get("lengths") for file in files]
    lengths = None if None in told else np.array([one for part in told for one in part], dtype=np.float64)
    return together([file.scores for file in files]), np.concatenate([read_features(p) for p in paths]), lengths


def length(question: Question) -> int:
    """Characters of a question with its options."""
    return len(question.text) + sum(map(len, question.options))


def world_lengths(ids: Sequence[str]) -> FloatArray:
    """The lengths of questions of `world-facts`, whose texts are at hand."""
    splits = ("train", "calibration", "test")
    found = {one.id: length(one) for split in splits for one in load_questions("world-facts", split)}
    return np.array([found[name] for name in ids], dtype=np.float64)


def group_weights(scores: OptionLogits, _: FloatArray | None) -> FloatArray:
    """`HARDER` for questions of the groups with the lowest accuracy, which hold half of all, 1 for the others."""
    correct = scores.decide().correct
    names, place = np.unique(scores.groups, return_inverse=True)
    counts = np.bincount(place)
    order = np.argsort(np.bincount(place, correct) / counts)
    harder = np.zeros(len(names), bool)
    harder[order[np.cumsum(counts[order]) <= counts.sum() / 2]] = True
    return np.where(harder[place], HARDER, 1.0)


def length_weights(_: OptionLogits, lengths: FloatArray) -> FloatArray:
    """`HARDER` for questions longer than the median, 1 for the others: known before any is answered."""
    return np.where(lengths > np.median(lengths), HARDER, 1.0)


def together(parts: Sequence[OptionLogits]) -> OptionLogits:
    """Scores of several sets of questions as those of one; short rows are padded."""
    width = max(part.logits.shape[1] for part in parts)
    return OptionLogits(
        ids=tuple(name for part in parts for name in part.ids),
        logits=np.concatenate(
            [
                np.pad(part.logits, ((0, 0), (0, width - part.logits.shape[1])), constant_values=-np.inf)
                for part in parts
            ]
        ),
        labels=np.concatenate([part.labels for part in parts]),
        groups=tuple(group for part in parts for group in part.groups),
    )
