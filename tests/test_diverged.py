"""A training that has diverged says so, with the step and the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_questions
from tiny_training import build, drawn_answers

from caltune.errors import InputError


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("SFT", {"evaluation": tiny_questions(6, prefix="e"), "eval_strategy": "epoch"}, 6),
        ("RCFT", {}, 10),  # its E-step at an epoch's begin
        ("CogCalib", {}, 8),  # its detector, then too
    ],
)
def test_it_names_step_and_learning_rate(tmp_path: Path, method: str, settings: dict[str, Any], count: int) -> None:
    """The first step leaves weights of 1e30, whose gradient is no number, and the second puts it into the weights."""
    how = {"learning_rate": 1e30, "num_train_epochs": 3, "per_device_train_batch_size": 10}
    what = f"no numbers for {count} of {count} questions at step [12]: training has diverged; take a learning_rate"
    with pytest.raises(InputError, match=what + r" below 1e\+30$"):
        build(method, tmp_path, **how, **settings).train()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("SFT", {}),
        ("Tempered", {"option_temperature": 1.0}),
        ("Tempered", {"train": drawn_answers(tiny_questions(90))}),
    ],
)
def test_no_weights_without_a_number_are_left_at_the_end(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    """Nothing is evaluated; the second gradient is no number, and the log would show it at the most."""
    how = {"learning_rate": 1e30, "num_train_epochs": 2, "per_device_train_batch_size": 10}
    trainer = build(method, tmp_path, **how, **settings)
    with pytest.raises(
        InputError, match=r"weights are no numbers after step (2|18): .* take a learning_rate below 1e\+30$"
    ):
        trainer.train()


def test_weights_that_are_broken_in_another_process_end_this_one_too(tmp_path: Path) -> None:
    """It would wait for ever for the other, which has raised."""
    trainer = build("SFT", tmp_path, max_steps=1)
    seen: list[float] = []
    trainer.accelerator.reduce = lambda flag: seen.append(float(flag)) or flag + 1
    with pytest.raises(InputError, match="weights are no numbers after step 1"):
        trainer.train()
    assert seen[-1:] == [0.0]  # its own are right


def test_a_model_that_was_broken_before_is_told_from_one_that_diverged(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    trainer = build("SFT", tmp_path, model=model, evaluation=tiny_questions(6, prefix="e"))
    with pytest.raises(InputError, match="6 of 6 questions before the first step: look at its weights and their dtype"):
        trainer.evaluate()
