"""Exemplars come from another split, are answered, and are never among the questions that are scored."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from files import write_jsonl
from tiny import tiny_questions

from caltune.data import load_questions
from caltune.data.shots import draw_shots, load_shots
from caltune.errors import InputError

POOL = tiny_questions(12)


def test_a_seed_draws_the_same_and_another_draws_others():
    drawn = draw_shots(POOL, (), 4, seed=1)
    assert drawn == draw_shots(POOL, (), 4, seed=1) == tuple(random.Random(1).sample(POOL, 4))
    assert drawn != draw_shots(POOL, (), 4, seed=2)
    assert len({shot.id for shot in drawn}) == 4


def test_scored_questions_are_left_out_by_id_and_by_content():
    asked = [replace(POOL[0], text="Something else?"), replace(POOL[1], id="other", text=POOL[1].text.upper())]
    assert {shot.id for shot in draw_shots(POOL, asked, 10)} == {f"q{i}" for i in range(2, 12)}
    with pytest.raises(InputError, match="got 10 such; ask for fewer"):
        draw_shots(POOL, asked, 11)


def test_only_answered_questions_are_shown():
    pool = [replace(question, answer=None) if i < 9 else question for i, question in enumerate(POOL)]
    assert {shot.id for shot in draw_shots(pool, (), 3)} == {"q9", "q10", "q11"}
    with pytest.raises(InputError, match="got 3 such"):
        draw_shots(pool, (), 4)
    with pytest.raises(InputError, match="shots must be 0 or more, got -1"):
        draw_shots(pool, (), -1)


def test_they_are_read_from_a_split(tmp_path):
    source = str(write_jsonl(tmp_path / "capitals.jsonl", tiny_questions(60)))
    asked = load_questions(source, "test")
    train = {question.id for question in load_questions(source, "train")}
    shots = load_shots(source, "train", asked, 5, seed=3)
    assert len(shots) == 5
    assert {shot.id for shot in shots} <= train
    assert load_shots(str(tmp_path / "absent.jsonl"), "train", asked, 0) == ()
    with pytest.raises(InputError, match="not among those scored"):
        load_shots(source, "test", asked, 1)
