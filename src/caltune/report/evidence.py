"""The questions behind the numbers, and how the numbers were made. All of it is untrusted and may be malformed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caltune.report.text import percent, questions
from caltune.types import OptionLogits

MOST_WRONG = 10
_LONGEST = 4000  # characters of one question, option or field
_KNOWN = {
    "model": "Model",
    "data": "Data",
    "split": "Split",
    "answers": "Answers",
    "method": "Method",
    "temperature": "Temperature",
    "seed": "Seed",
    "versions": "Versions",
}
_ELSEWHERE = ("prompt_example", "examples", "training")


@dataclass(frozen=True, slots=True)
class Wrong:
    """One wrong answer: what was asked ("" where the text is not stored), chosen and right, with probabilities."""

    id: str
    question: str
    chosen: str
    confidence: str
    right: str
    probability: str


def most_wrong(scores: OptionLogits, examples: object) -> list[Wrong]:
    """The up to ten surest wrong answers, surest first, with texts from `examples` where they are stored.

    >>> scores = OptionLogits(ids=("a", "b"), logits=[[2.0, 0.0], [3.0, 0.0]], labels=[1, 1])
    >>> stored = [{"id": "a", "question": "Where?", "options": ["here", "there"]}]
    >>> [(one.id, one.question, one.chosen, one.right) for one in most_wrong(scores, stored)]
    [('b', '', 'A', 'B'), ('a', 'Where?', 'A. here', 'B. there')]
    """
    probabilities = scores.probabilities()
    choice = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(choice != scores.labels)
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_WRONG]
    texts: dict[str, Mapping[str, object]] = {}
    if isinstance(examples, Sequence) and not isinstance(examples, str):
        texts = {str(one["id"]): one for one in examples if isinstance(one, Mapping) and "id" in one}
    found = []
    for i in rows:
        stored = texts.get(scores.ids[i], {})
        options = stored.get("options")
        label = int(scores.labels[i])
        found.append(
            Wrong(
                id=scores.ids[i],
                question=_plain(stored.get("question", "")),
                chosen=_option(int(choice[i]), options),
                confidence=_sure(float(confidence[i])),
                right=_option(label, options),
                probability=_sure(float(probabilities[i, label])),
            )
        )
    return found


def _sure(value: float) -> str:
    if 0.9995 <= value < 1:
        return "over\u00a099.9\u00a0%"
    return "under\u00a00.1\u00a0%" if 0 < value < 0.0005 else percent(value)


def _option(place: int, options: object) -> str:
    letter = chr(ord("A") + place) if place < 26 else str(place + 1)
    if isinstance(options, Sequence) and not isinstance(options, str) and place < len(options):
        return f"{letter}. {_plain(options[place])}"
    return letter


def wrong_caption(scores: OptionLogits, shown: Sequence[Wrong]) -> str:
    """How many were wrong in all, and how many follow."""
    wrong = int((scores.probabilities().argmax(axis=1) != scores.labels).sum())
    if not wrong:
        return f"none wrong of {questions(len(scores))}"
    return f"{wrong:,} wrong of {questions(len(scores))}" + (f", the surest {len(shown)}" if len(shown) < wrong else "")


def made(scores: OptionLogits, metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    """What the metadata says about the making, known fields first.

    >>> scores = OptionLogits(ids=("a",), logits=[[2.0, 0.0]], labels=[1])
    >>> made(scores, {"seed": 1, "model": "tiny", "versions": {"torch": "2.6"}, "note": ""})
    [('Model', 'tiny'), ('Questions', '1'), ('Seed', '1'), ('Versions', 'torch 2.6')]
    """
    fields = [(label, _plain(metadata.get(key))) for key, label in _KNOWN.items()]
    fields.insert(3, ("Questions", f"{len(scores):,}"))
    rest = [key for key in metadata if key not in _KNOWN and key not in _ELSEWHERE]
    fields += [(key.replace("_", " ").capitalize(), _plain(metadata[key])) for key in rest]
    return [(label, value) for label, value in fields if value]


def shared_first(
    fields: Sequence[list[tuple[str, str]]],
) -> tuple[list[tuple[str, str]], list[list[tuple[str, str]]]]:
    """The fields that are the same for all models, and what is left of each.

    >>> shared_first([[("Data", "d"), ("Model", "a")], [("Data", "d"), ("Model", "b")]])
    ([('Data', 'd')], [[('Model', 'a')], [('Model', 'b')]])
    """
    shared = [field for field in fields[0] if all(field in other for other in fields)]
    return shared, [[field for field in own if field not in shared] for own in fields]


def prompts(names: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> list[tuple[list[str], str]]:
    """Each different prompt example with the models it belongs to."""
    found: dict[str, list[str]] = {}
    for name, one in zip(names, metadata, strict=True):
        text = one.get("prompt_example")
        if isinstance(text, str) and text:
            found.setdefault(text, []).append(name)
    return [(owners, text) for text, owners in found.items()]


def _plain(value: object) -> str:
    """Any JSON value as text."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(_plain(one) for one in value)
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
