"""Answered questions to show before those that are asked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from caltune.data import load_questions
from caltune.data.splits import find_overlap
from caltune.errors import InputError
from caltune.types import Question


def load_shots(
    source: str,
    split: str,
    questions: Sequence[Question],
    count: int,
    seed: int = 0,
    *,
    fields: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> tuple[Question, ...]:
    """`draw_shots` from a split of the source that `questions` come from; no split is read for no shots.

    Raises `InputError` as `load_questions` and `draw_shots` do.
    """
    if count == 0:
        return ()
    on_bad = (lambda _: None) if skip_bad else None
    return draw_shots(load_questions(source, split, fields=fields, on_bad=on_bad), questions, count, seed)


def draw_shots(
    pool: Sequence[Question], questions: Sequence[Question], count: int, seed: int = 0
) -> tuple[Question, ...]:
    """So many answered questions of `pool`, drawn with `seed`; none stands among `questions`, by id or by content.

    Raises `InputError` for a negative count, or where `pool` has fewer.

    >>> pool = [Question(id=name, text=f"{name}?", options=("yes", "no"), answer=0) for name in "abcd"]
    >>> sorted(shot.id for shot in draw_shots(pool, pool[:2], 2))
    ['c', 'd']
    """
    if count < 0:
        raise InputError(f"shots must be 0 or more, got {count}")
    asked = {found.second_id for found in find_overlap({"asked": questions, "pool": pool})}
    free = [question for question in pool if question.answer is not None and question.id not in asked]
    if len(free) < count:
        raise InputError(
            f"shots must be {count} answered questions that are not among those scored, got {len(free)} such; ask for "
            "fewer, or take them from another split"
        )
    return tuple(random.Random(seed).sample(free, count))
