"""Errors that a user is meant to read: one line, what was wrong and what was received."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from caltune.errors import InputError
from caltune.knowledge import fit_detector
from caltune.prompts import render
from caltune.types import OptionLogits, Predictions, Question


def test_it_is_a_value_error_with_its_message_alone() -> None:
    with pytest.raises(ValueError, match=r"^data.jsonl:3: no answer$"):
        raise InputError("data.jsonl:3: no answer")
    assert issubclass(InputError, ValueError)
    assert str(InputError("plain")) == "plain"


@pytest.mark.parametrize(
    ("mistake", "received"),
    [
        (lambda: Question("q7", "\n \n", ("a", "b"), 0), "q7"),
        (lambda: Question("q7", "Why?", ("a\nb", " \n"), 0), "q7"),
        (lambda: Question("q7", "Why?", ("a\nb", "a\nb"), 0), "q7"),
        (lambda: Question("q7", "Why?", ("a", "b"), 2), "got 2"),
        (lambda: OptionLogits(("x\ny", "x\ny"), [[0.0], [0.0]], [0, 0]), "more than once"),
        (lambda: OptionLogits(("x\ny",), [[np.nan] * 26], [0]), "nan"),
        (lambda: Predictions(("x\ny",), [1.5], [1.0]), "1.5"),
        (lambda: render(Question("q7", "a\nb", ("a", "b"), 0), template="a\nb"), "template"),
        (lambda: fit_detector(np.zeros(2), np.zeros(3, dtype=bool)), "(3,)"),
    ],
)
def test_messages_are_one_line_and_name_what_was_received(mistake: Callable[[], object], received: str) -> None:
    with pytest.raises(InputError) as caught:
        mistake()
    message = str(caught.value)
    assert received in message
    assert len(message.splitlines()) == 1
