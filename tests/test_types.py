"""The types refuse what breaks their rules, and keep their numbers exact."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from caltune import recalibrate
from caltune.errors import InputError
from caltune.types import MAX_OPTIONS, OptionLogits, Predictions, Question

INFINITY = np.inf


def some(**changes: Any) -> OptionLogits:
    values = {
        "ids": ("a", "b", "c"),
        "logits": [[7.0, 5.0, -INFINITY], [2.0, 2.0, 3.0], [1.0, 1.0, 1.0]],
        "labels": [0, 1, 0],
        "groups": ("x", "y", "x"),
    }
    return OptionLogits(**{**values, **changes})


def random_logits(seed: int = 0, rows: int = 50, options: int = 5) -> OptionLogits:
    draw = np.random.default_rng(seed)
    logits = draw.normal(scale=20, size=(rows, options))
    for row in range(rows):
        logits[row, 2 + row % 4 :] = -INFINITY
    return OptionLogits(tuple(map(str, range(rows))), logits, draw.integers(0, 2, rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " \n"}, "the question text must not be empty, got ' \\n'"),
        ({"options": ("only",)}, "needs 2 to 26 options, or none and accepted answers; got 1"),
        ({"options": tuple(map(str, range(27)))}, "needs 2 to 26 options, or none and accepted answers; got 27"),
        ({"options": (), "answer": None}, "needs 2 to 26 options, or none and accepted answers; got 0"),
        ({"options": ("a", "\t")}, "an option must not be empty, got ['a', '\\t']"),
        ({"options": ("a", "b", "a")}, "options must differ from each other, got ['a', 'b', 'a']"),
        ({"answer": 2}, "the answer must be an option index from 0 to 1, got 2"),
        ({"answer": -1}, "the answer must be an option index from 0 to 1, got -1"),
        ({"options": (), "accepted": ("a",), "answer": 0}, "the answer must be an option index from 0 to -1, got 0"),
    ],
)
def test_a_question_refuses(changes: dict[str, Any], message: str) -> None:
    values = {"id": "q1", "text": "Why?", "options": ("a", "b"), "answer": 0}
    Question(**values)
    with pytest.raises(InputError, match=f"^{re.escape(f'question q1: {message}')}$"):
        Question(**{**values, **changes})


def test_a_question_at_its_limits() -> None:
    assert MAX_OPTIONS == 26
    assert Question("q", "Why?", tuple(map(str, range(26))), 25).answer == 25
    assert Question("q", "Why?", ("a", "b"), None).answer is None
    assert Question("q", "Why?", (), None, accepted=("a",)).options == ()
    assert Question("q", "Why?", ("a", "a "), 0).group == ""  # they differ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ("a", "b")}, "got 2 ids, logits (3, 3), labels (3,), 3 groups"),
        ({"logits": [1.0, 2.0, 3.0]}, "got 3 ids, logits (3,), labels (3,), 3 groups"),
        ({"labels": [0, 1]}, "got 3 ids, logits (3, 3), labels (2,), 3 groups"),
        ({"labels": [[0], [1], [0]]}, "got 3 ids, logits (3, 3), labels (3, 1), 3 groups"),
        ({"groups": ("x",)}, "got 3 ids, logits (3, 3), labels (3,), 1 groups"),
        ({"ids": ("a", "b", "a")}, "ids must be unique, got 'a' more than once"),
        ({"logits": [[0.0, 1.0], [0.0, np.nan], [1.0, 1.0]]}, "must be finite or -inf, got [0.0, nan] for id 'b'"),
        ({"logits": [[0.0, 1.0], [0.0, 1.0], [INFINITY, 1.0]]}, "must be finite or -inf, got [inf, 1.0] for id 'c'"),
        ({"logits": [[0.0], [-INFINITY], [1.0]], "labels": [0, 0, 0]}, "needs a finite logit, got [-inf] for id 'b'"),
        ({"labels": [0, 3, 0]}, "a label must be -1 (unknown) or an option index below 3, got 3 for id 'b'"),
        ({"labels": [0, 0, -2]}, "a label must be -1 (unknown) or an option index below 3, got -2 for id 'c'"),
        ({"labels": [0, 0.5, 0]}, "got 0.5 for id 'b'"),
        ({"labels": [0, np.nan, 0]}, "got nan for id 'b'"),
        ({"labels": [0, 0, 2**32]}, "got 4294967296 for id 'c'"),  # 0 in 32 bits
    ],
)
def test_option_logits_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        some(**changes)


def test_a_label_may_point_at_an_option_that_is_ruled_out() -> None:
    scores = OptionLogits(("a", "b"), [[0.0, -INFINITY, 0.0], [0.0, 0.0, -INFINITY]], [1, 2.0])
    assert scores.labels.tolist() == [1, 2]
    assert scores.decide().correct.tolist() == [0.0, 0.0]
    assert scores.log_probabilities()[[0, 1], scores.labels].tolist() == [-INFINITY, -INFINITY]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": [0.5]}, "got 2, (1,), (2,), 2"),
        ({"ids": ("a",)}, "got 1, (2,), (2,), 1"),
        ({"groups": ("x",)}, "got 2, (2,), (2,), 1"),
        ({"confidence": [[0.5], [0.5]], "correct": [[0.0], [1.0]]}, "got 2, (2, 1), (2, 1), 2"),
        ({"ids": ("b", "b")}, "ids must be unique, got 'b' more than once"),
        ({"confidence": [0.5, 1.001]}, "a confidence must lie in [0, 1], got 1.001 for id 'b'"),
        ({"confidence": [-0.1, 0.5]}, "a confidence must lie in [0, 1], got -0.1 for id 'a'"),
        ({"confidence": [0.5, np.nan]}, "a confidence must lie in [0, 1], got nan for id 'b'"),
        ({"correct": [0.0, 0.5]}, "correct must be 0 or 1, got 0.5 for id 'b'"),
        ({"correct": [np.nan, 1.0]}, "correct must be 0 or 1, got nan for id 'a'"),
    ],
)
def test_predictions_refuse(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"ids": ("a", "b"), "confidence": [0.5, 1.0], "correct": [0.0, 1.0]}
    Predictions(**values)
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        Predictions(**{**values, **changes})


def test_a_confidence_one_unit_above_one_is_one() -> None:
    assert Predictions(("a",), [np.nextafter(1.0, 2.0)], [1.0]).confidence[0] == 1.0


def test_probabilities_by_hand() -> None:
    # e^0 : e^-ln 3 = 3 : 1, whatever is added to both; the missing third option has none.
    found = some(logits=[[np.log(3), 0.0, -INFINITY], [5.0 + np.log(3), 5.0, -INFINITY], [0.0, 0.0, 0.0]])
    expected = [[0.75, 0.25, 0.0], [0.75, 0.25, 0.0], [1 / 3] * 3]
    np.testing.assert_allclose(found.probabilities(), expected, rtol=1e-6)
    assert (found.probabilities()[:2, 2] == 0.0).all()
    assert (found.log_probabilities()[:2, 2] == -INFINITY).all()


def test_probabilities_are_float64_and_sum_to_one() -> None:
    scores = random_logits()
    assert scores.logits.dtype == np.float32
    assert scores.probabilities().dtype == scores.log_probabilities().dtype == np.float64
    # A float32 softmax would miss by 1e-7.
    np.testing.assert_allclose(scores.probabilities().sum(axis=1), 1.0, rtol=0, atol=4e-16)
    for row, found in zip(scores.logits.astype(float), scores.probabilities(), strict=True):
        expected = [np.exp(z) / np.exp(row).sum() for z in row]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    scores = some(logits=[[3e38, 0.0, -3e38], [-3e38, -3e38, -INFINITY], [1000.0, 999.0, -1000.0]])
    np.testing.assert_allclose(scores.probabilities()[0], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(scores.probabilities()[1], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(scores.log_probabilities()[2, 2], -2000 - np.log1p(np.exp(-1)), rtol=1e-12)


@pytest.mark.parametrize("mask", [-1e4, -65504.0, -3.4e38])
def test_a_mask_is_no_option_and_a_far_one_stays(mask: float) -> None:
    scores = some(logits=[[900.0, 0.5, mask], [-2.0, mask, -INFINITY], [0.0, -8999.0, -1.0]])
    finite = [[True, True, False], [True, False, False], [True, True, True]]
    assert np.isfinite(scores.logits).tolist() == finite


def test_a_missing_option_changes_nothing() -> None:
    scores = random_logits()
    wider = OptionLogits(scores.ids, np.pad(scores.logits, ((0, 0), (0, 3)), constant_values=-INFINITY), scores.labels)
    np.testing.assert_allclose(wider.probabilities()[:, :5], scores.probabilities(), rtol=1e-14)
    assert np.array_equal(wider.decide().correct, scores.decide().correct)


def test_decide_takes_the_first_among_equals() -> None:
    scores = OptionLogits(("a", "b", "c"), [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [0, 2, 1])
    assert scores.decide().correct.tolist() == [1.0, 0.0, 0.0]


def test_decide_carries_everything() -> None:
    decided = some().decide()
    assert decided.ids == ("a", "b", "c")
    assert decided.groups == ("x", "y", "x")
    assert decided.correct.tolist() == [1.0, 0.0, 1.0]
    # 1/(1 + e^-2), 1/(1 + 2 e^-1), 1/3
    np.testing.assert_allclose(decided.confidence, [1 / (1 + np.exp(-2)), 1 / (1 + 2 / np.e), 1 / 3])


def test_an_unknown_label_is_never_counted_as_wrong() -> None:
    scores = some(labels=[0, -1, -1])
    with pytest.raises(InputError, match=r"^2 questions have no label, the first is id 'b'$"):
        scores.decide()
    with pytest.raises(InputError, match="2 questions have no label"):
        scores.require_labels()
    some().require_labels()


@pytest.mark.parametrize("kind", [list, np.array])
def test_take_gives_rows_in_the_given_order(kind: Any) -> None:
    taken = some().take(kind([2, 0]))
    assert (taken.ids, taken.groups, taken.labels.tolist()) == (("c", "a"), ("x", "x"), [0, 0])
    assert taken.logits.tolist() == [[1.0, 1.0, 1.0], [7.0, 5.0, -INFINITY]]
    assert len(some().take([])) == 0
    with pytest.raises(InputError, match="ids must be unique"):
        some().take([1, 1])


def test_lists_become_arrays() -> None:
    scores = some(ids=["a", "b", "c"], groups=[])
    assert scores.ids == ("a", "b", "c")
    assert scores.groups == ("", "", "")
    assert (scores.logits.dtype, scores.labels.dtype) == (np.float32, np.int32)
    assert len(scores) == 3
    decided = scores.decide()
    assert len(decided) == 3
    assert decided.confidence.dtype == decided.correct.dtype == np.float64


def test_nothing_at_all() -> None:
    empty = OptionLogits((), np.zeros((0, 4)), [])
    assert len(empty) == 0
    assert empty.probabilities().shape == (0, 4)
    assert len(empty.decide()) == 0


@pytest.mark.parametrize(
    "value", [Question("q", "Why?", ("a", "b"), 0), some(), some().decide()], ids=lambda value: type(value).__name__
)
def test_values_cannot_be_changed(value: Any) -> None:
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        value.surprise = 1


def test_a_terminal_is_not_filled_with_ids():
    kinds = {getattr(recalibrate, name) for name in recalibrate.__all__}
    fitted = [field for kind in kinds if is_dataclass(kind) for field in fields(kind) if field.name == "fitted_on"]
    assert len(fitted) > 10
    assert not any(field.repr for field in fitted)
    assert repr(some()) == "<OptionLogits of 3 questions>"
    assert repr(some().decide()) == "<Predictions of 3 questions>"
