"""Where each token of a packed batch lies, by hand and as rules."""

from __future__ import annotations

import pytest
import torch
from tiny import ragged_questions

from caltune.scoring.packing import EncodedQuestion, PackedBatch, option_logits, pack

HAND = EncodedQuestion(prompt=(10, 11, 12), options=((20,), (21, 22), (23, 24, 25)))


def test_layout_by_hand() -> None:
    batch = pack([HAND, EncodedQuestion(prompt=(13,), options=((26,), (27,)))], 0)
    # Option 2 gives 21, option 3 gives 23 24; last tokens are only predicted. Positions go on from the prompt's 0 1 2.
    assert batch.input_ids.tolist() == [[10, 11, 12, 21, 23, 24], [13, 0, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 2, 3, 4, 4]]  # padding goes on to the furthest, 4
    assert batch.owners.tolist() == [[0] * 6, [1, -1, -1, -1, -1, -1]]
    assert batch.segments.tolist() == [[0, 0, 0, 2, 3, 3], [0] * 6]
    assert batch.positions.tolist() == [2, 3, 4, 5, 6]
    assert batch.target_positions.tolist() == [0, 0, 1, 0, 2, 3, 4, 4]
    assert batch.target_tokens.tolist() == [20, 21, 22, 23, 24, 25, 26, 27]
    assert batch.target_options.tolist() == [0, 1, 1, 2, 2, 2, 3, 4]  # b · K + k with K = 3
    assert batch.option_lengths.tolist() == [[1, 2, 3], [1, 1, 0]]


def test_position_ids_are_those_of_the_option_alone() -> None:
    questions = ragged_questions()
    batch = pack(questions, 0, row_tokens=64)
    for b, question in enumerate(questions):
        for k, option in enumerate(question.options):
            own = (batch.owners == b) & ((batch.segments == 0) | (batch.segments == k + 1))
            alone = question.prompt + option[:-1]
            assert batch.input_ids[own].tolist() == list(alone)
            assert batch.position_ids[own].tolist() == list(range(len(alone)))


def test_one_token_options_add_no_length() -> None:
    plain = EncodedQuestion(prompt=(1, 2, 3), options=tuple((i,) for i in range(4, 30)))
    assert plain.length == 3
    assert pack([plain], 0).input_ids.shape == (1, 3)
    assert HAND.length == 3 + 0 + 1 + 2


def test_reductions_by_hand() -> None:
    batch = pack([HAND, EncodedQuestion(prompt=(13,), options=((26,), (27,)))], 0)
    logs = -torch.tensor([1.0, 2.0, 4.0, 1.0, 2.0, 6.0, 0.5, 0.25])
    infinity = torch.inf
    assert option_logits(logs, batch).tolist() == [[-1.0, -6.0, -9.0], [-0.5, -0.25, -infinity]]
    assert option_logits(logs, batch, "mean").tolist() == [[-1.0, -3.0, -3.0], [-0.5, -0.25, -infinity]]
    assert option_logits(logs, batch, "min").tolist() == [[-1.0, -4.0, -6.0], [-0.5, -0.25, -infinity]]


@pytest.mark.parametrize("row_tokens", [0, 1, 30, 64, 10_000])
def test_rows_hold_every_question_once(row_tokens: int) -> None:
    questions = ragged_questions(23, seed=5)
    batch = pack(questions, 0, row_tokens=row_tokens)
    total = sum(question.length for question in questions)
    assert int((batch.owners >= 0).sum()) == total
    for b, question in enumerate(questions):
        where = (batch.owners == b).nonzero()
        assert len(where) == question.length
        assert len(set(where[:, 0].tolist())) == 1
        assert where[-1, 1] - where[0, 1] == question.length - 1
    rows, length = batch.input_ids.shape
    assert rows == min(len(questions), -(-total // row_tokens) if row_tokens else len(questions))
    if row_tokens:  # longest first into the emptiest row: no row is longer than an even share and one question
        assert length <= total / rows + max(question.length for question in questions)
    else:
        assert batch.owners[:, 0].tolist() == list(range(len(questions)))


def test_the_longest_question_is_placed_first() -> None:
    questions = [EncodedQuestion(prompt=(5,) * length, options=((6,), (7,))) for length in (1, 1, 1, 3)]
    # 6 tokens in rows of 3: the 3 alone, the ones together. In the given order the 3 would follow a 1.
    assert pack(questions, 0, row_tokens=3).input_ids.shape == (2, 3)


def test_to_moves_every_tensor() -> None:
    moved = pack(ragged_questions(), 0).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in PackedBatch.__slots__)
