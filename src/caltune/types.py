"""The few types everything else speaks: `Question`, `OptionLogits`, `Predictions`, and two protocols.

`OptionLogits` is the hinge. Left of it are a model and a GPU; right of it numpy and milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from caltune.errors import InputError
from caltune.notebook import number, table

FloatArray = NDArray[np.float64]
MAX_OPTIONS = 26  # as many as there are letters
SHOWN = 5  # rows in a notebook
_MASKED = 9000.0  # nats behind the best: further than any model, nearer than any mask


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its options.

    `answer` is the index of the right option, or None where it is unknown. An open-ended question has no `options`
    and lists the strings that count as right in `accepted`. `group` is a subject, relation or any other stratum.

    Raises `InputError` when the rules above are broken.

    >>> Question(id="q1", text="What is the capital of France?", options=("Paris", "Lyon"), answer=0).options[0]
    'Paris'
    >>> Question(id="q1", text="Capital of France?", options=("Paris",), answer=0)
    Traceback (most recent call last):
    ...
    caltune.errors.InputError: question q1: needs 2 to 26 options, or none and accepted answers; got 1
    """

    id: str
    text: str
    options: tuple[str, ...]
    answer: int | None
    accepted: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        where = f"question {self.id}"
        if not self.text.strip():
            raise InputError(f"{where}: the question text must not be empty, got {self.text!r}")
        count = len(self.options)
        if not (2 <= count <= MAX_OPTIONS or (count == 0 and self.accepted)):
            raise InputError(f"{where}: needs 2 to {MAX_OPTIONS} options, or none and accepted answers; got {count}")
        if any(not option.strip() for option in self.options):
            raise InputError(f"{where}: an option must not be empty, got {list(self.options)!r}")
        if len(set(self.options)) != count:
            raise InputError(f"{where}: options must differ from each other, got {list(self.options)!r}")
        if self.answer is not None and not 0 <= self.answer < count:
            raise InputError(f"{where}: the answer must be an option index from 0 to {count - 1}, got {self.answer}")


@dataclass(frozen=True, slots=True)
class OptionLogits:
    """What a model believes about N questions with up to K options.

    `logits` has shape (N, K), float32, natural-log units up to a constant per row; a question with fewer than K
    options is padded with -inf on the right. `labels` (N,) holds the index of the right option, -1 where unknown.
    `ids` are unique and travel with the numbers, so that nothing fitted meets its own test questions.

    -inf before a finite logit is an option that the model rules out. A logit more than 9,000 below its row's largest
    becomes -inf: masks put -1e4, float16's lowest or lower where there is no option, and no model is so sure. A label
    may point at -inf: a probability of 0 for the right answer is a belief like any other, and its NLL is infinite.

    Raises `InputError` for shapes that disagree, repeated ids, NaN or +inf, a row without a finite logit, or a label
    that is no whole number or points outside the K columns.

    >>> scores = OptionLogits(ids=("a", "b"), logits=[[7.0, 5.0, -np.inf], [2.0, 2.0, 3.0]], labels=[0, 1])
    >>> scores.probabilities().round(2).tolist()
    [[0.88, 0.12, 0.0], [0.21, 0.21, 0.58]]
    >>> scores.decide().confidence.round(2).tolist(), scores.decide().correct.tolist()
    ([0.88, 0.58], [1.0, 0.0])
    """

    ids: tuple[str, ...]
    logits: NDArray[np.float32]
    labels: NDArray[np.int32]
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        logits = np.ascontiguousarray(self.logits, dtype=np.float32)
        given = np.asarray(self.labels)
        with np.errstate(invalid="ignore"):  # nan is told below
            labels = np.ascontiguousarray(given, dtype=np.int32)
        ids = tuple(self.ids)
        groups = tuple(self.groups) or ("",) * len(ids)
        if logits.ndim != 2 or not len(ids) == len(logits) == len(labels) == len(groups) or labels.ndim != 1:
            raise InputError(
                "OptionLogits needs ids (N,), logits (N, K), labels (N,) and groups (N,), got "
                f"{len(ids)} ids, logits {logits.shape}, labels {labels.shape}, {len(groups)} groups"
            )
        _require_unique(ids)
        if np.isnan(logits).any() or np.isposinf(logits).any():
            row = int(np.flatnonzero(np.isnan(logits).any(1) | np.isposinf(logits).any(1))[0])
            raise InputError(f"logits must be finite or -inf, got {logits[row].tolist()} for id {ids[row]!r}")
        finite = np.isfinite(logits)
        if len(ids) and finite.sum(1).min() < 1:
            row = int(np.argmin(finite.sum(1)))
            raise InputError(f"each row needs a finite logit, got {logits[row].tolist()} for id {ids[row]!r}")
        logits = _without_masks(logits, finite)
        # A fraction, or what int32 cannot hold, must not become another label.
        outside = (labels != given) | (labels < -1) | (labels >= logits.shape[1])
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise InputError(
                f"a label must be -1 (unknown) or an option index below {logits.shape[1]}, "
                f"got {given[row]} for id {ids[row]!r}"
            )
        for name, value in (("ids", ids), ("logits", logits), ("labels", labels), ("groups", groups)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    def log_probabilities(self) -> FloatArray:
        """Log-softmax over the options, (N, K), float64; -inf where a row has no such option."""
        logits = self.logits.T.astype(np.float64, order="C")  # options first: numpy reduces few columns slowly
        logits -= logits.max(axis=0, initial=-np.inf)
        logits -= np.log(np.exp(logits).sum(axis=0))
        result: FloatArray = np.ascontiguousarray(logits.T)
        return result

    def probabilities(self) -> FloatArray:
        """Softmax over the options, (N, K), float64."""
        result: FloatArray = np.exp(self.log_probabilities())
        return result

    def require_labels(self) -> None:
        """Raise `InputError` when a label is unknown: what follows would be undefined, never 0."""
        unknown = np.flatnonzero(self.labels < 0)
        if len(unknown):
            raise InputError(f"{len(unknown)} questions have no label, the first is id {self.ids[unknown[0]]!r}")

    def decide(self) -> Predictions:
        """Take the most probable option (the first among equals): its probability and whether it is right."""
        self.require_labels()
        probabilities = self.probabilities()
        choice = probabilities.argmax(axis=1)
        return Predictions(
            ids=self.ids,
            confidence=np.take_along_axis(probabilities, choice[:, None], axis=1)[:, 0],
            correct=(choice == self.labels).astype(np.float64),
            groups=self.groups,
        )

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> OptionLogits:
        """The given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.intp)
        return OptionLogits(
            ids=tuple(self.ids[i] for i in rows),
            logits=self.logits[rows],
            labels=self.labels[rows],
            groups=tuple(self.groups[i] for i in rows),
        )

    def __repr__(self) -> str:
        return f"<OptionLogits of {len(self):,} question{'s' * (len(self) != 1)}>"

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        shown = self.take(range(min(len(self), SHOWN)))
        rows = []
        for i, chances in enumerate(shown.probabilities()):
            count = int(np.flatnonzero(np.isfinite(shown.logits[i]))[-1]) + 1  # what is behind are no options
            right = str(shown.labels[i]) if shown.labels[i] >= 0 else "unknown"
            rows.append([shown.ids[i], right, ", ".join(number(p, 2) for p in chances[:count])])
        return table(f"OptionLogits of {len(self):,} questions", ["id", "right option", "probabilities"], rows)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers reduced to how sure and whether right: `confidence` (N,) in [0, 1], `correct` (N,) 0.0 or 1.0.

    Raises `InputError` when a confidence leaves [0, 1] or `correct` is neither 0 nor 1.

    >>> Predictions(ids=("a",), confidence=[0.8], correct=[1.0]).groups
    ('',)
    """

    ids: tuple[str, ...]
    confidence: FloatArray
    correct: FloatArray
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        confidence = np.ascontiguousarray(self.confidence, dtype=np.float64)
        correct = np.ascontiguousarray(self.correct, dtype=np.float64)
        ids = tuple(self.ids)
        groups = tuple(self.groups) or ("",) * len(ids)
        if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence) == len(ids) == len(groups):
            raise InputError(
                "Predictions needs ids, confidence, correct and groups of one length, got "
                f"{len(ids)}, {confidence.shape}, {correct.shape}, {len(groups)}"
            )
        _require_unique(ids)
        # Softmax in floating point may pass 1 by one unit in the last place; anything more is a mistake.
        wrong = ~((confidence >= 0) & (confidence <= 1 + 1e-9))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(f"a confidence must lie in [0, 1], got {confidence[row]} for id {ids[row]!r}")
        if not np.isin(correct, (0.0, 1.0)).all():
            row = int(np.flatnonzero(~np.isin(correct, (0.0, 1.0)))[0])
            raise InputError(f"correct must be 0 or 1, got {correct[row]} for id {ids[row]!r}")
        confidence = np.minimum(confidence, 1.0)
        for name, value in (("ids", ids), ("confidence", confidence), ("correct", correct), ("groups", groups)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Predictions of {len(self):,} question{'s' * (len(self) != 1)}>"

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them."""
        first = zip(self.ids, self.confidence, self.correct, range(SHOWN), strict=False)
        rows = [[name, number(sure), "yes" if right else "no"] for name, sure, right, _ in first]
        return table(f"Predictions of {len(self):,} questions", ["id", "confidence", "right"], rows)


def _without_masks(logits: NDArray[np.float32], finite: NDArray[np.bool_]) -> NDArray[np.float32]:
    # Both ends of all rows first: nearly always they say that there are no masks.
    if not logits.size or float(logits.max()) - float(np.min(logits, where=finite, initial=np.inf)) <= _MASKED:
        return logits
    highest = logits.max(axis=1, keepdims=True).astype(np.float64)  # float32's lowest number less 9,000 is -inf
    return np.where(logits < highest - _MASKED, np.float32(-np.inf), logits)


def _require_unique(ids: tuple[str, ...]) -> None:
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        for i in ids:
            if i in seen:
                raise InputError(f"ids must be unique, got {i!r} more than once")
            seen.add(i)


class Metric(Protocol):
    """A number that says how good predictions are; each metric's docstring says which way is good."""

    def __call__(self, predictions: Predictions, /) -> float: ...


Scores = TypeVar("Scores", OptionLogits, Predictions)


class Recalibrator(Protocol[Scores]):
    """A fitted map from scores to better calibrated scores of the same kind."""

    def __call__(self, scores: Scores, /) -> Scores: ...
