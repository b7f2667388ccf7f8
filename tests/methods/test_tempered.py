"""Tempered fine-tuning: both parts on by default, plain fine-tuning with both off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_averaging import Course, mean
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import assert_same, build, drawn_answers, weights

from caltune.methods import TemperedConfig, TemperedTrainer
from caltune.models import option_temperature
from caltune.recalibrate import fit_temperature
from caltune.scoring import score

HOW: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 5}


def test_with_both_parts_off_it_is_plain_fine_tuning(tmp_path: Path) -> None:
    plain, off = (
        build("SFT", tmp_path, **HOW),
        build(
            "Tempered",
            tmp_path,
            option_temperature=1.0,
            option_temperature_refit=False,
            average_weights=0.0,
            **HOW,
        ),
    )
    plain.train()
    off.train()
    assert_same(weights(off.model), weights(plain.model), tolerance=0)
    assert option_temperature(off.model) == 1


def test_by_default_the_temperature_is_fitted_and_the_weights_are_averaged(tmp_path: Path) -> None:
    questions, watch = drawn_answers(tiny_questions(40)), Course()
    expected = fit_temperature(score(tiny_model(), tiny_tokenizer(), questions)).temperature
    trainer = build(
        "Tempered", tmp_path, train=questions, callbacks=[watch], max_steps=3, per_device_train_batch_size=4
    )
    trainer.train()
    assert option_temperature(trainer.model) == pytest.approx(expected, rel=1e-4)
    assert expected != 1
    assert_same(weights(trainer.model), mean(watch.steps))


def test_a_temperature_that_the_model_has_already_does_not_matter(tmp_path: Path) -> None:
    questions = drawn_answers(tiny_questions(40))
    found = []
    for own in (1.0, 0.25):
        model = tiny_model()
        model.config.option_temperature = own
        trainer = build("Tempered", tmp_path, model=model, train=questions, max_steps=1)
        trainer.train()
        found.append(option_temperature(trainer.model))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_it_needs_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = TemperedTrainer(tiny_model(), train_dataset=tiny_questions(4), processing_class=tiny_tokenizer())
    assert isinstance(trainer.args, TemperedConfig)
    assert (trainer.args.option_temperature, trainer.args.average_weights) == (0, 1)
    assert trainer.args.option_temperature_refit
