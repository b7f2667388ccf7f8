"""Configs: each trainer takes its own, and numbers that nothing could be trained with are refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trl
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import QUIET

from caltune import CalibrationConfig, CalibrationTrainer, methods
from caltune.errors import InputError

NAMES = [name.removesuffix("Trainer") for name in methods.__all__ if name.endswith("Trainer")]


def start(trainer: Any, config: Any, folder: Path) -> Any:
    settings = {**QUIET, "bf16": False}
    return trainer(
        tiny_model(),
        config(str(folder), **settings),
        train_dataset=tiny_questions(4),
        calibration_dataset=tiny_questions(4, prefix="c"),
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_trainer_refuses_the_config_of_another(tmp_path: Path, name: str) -> None:
    """It would train that other method without a word, or stop at a field that is not there."""
    trainer = getattr(methods, f"{name}Trainer")
    other = methods.MarginConfig if name == "RCFT" else methods.RCFTConfig
    plain = () if name == "SFT" else (methods.SFTConfig, CalibrationConfig)
    wanted = "CalibrationConfig" if name == "SFT" else f"{name}Config"
    for config, package in ((other, "caltune"), (trl.SFTConfig, "trl"), *((config, "caltune") for config in plain)):
        got = f"{config.__name__} of {package}"
        with pytest.raises(InputError, match=f"^{name}Trainer: args must be a {wanted} of caltune, got {got}$"):
            start(trainer, config, tmp_path)
    assert start(trainer, getattr(methods, f"{name}Config"), tmp_path).args.output_dir == str(tmp_path)


@dataclass
class OwnConfig(CalibrationConfig):
    colour: str = "red"


class OwnTrainer(CalibrationTrainer):
    """Without a config class of its own."""


@pytest.mark.parametrize(
    ("trainer", "config"),
    [
        (CalibrationTrainer, CalibrationConfig),
        (CalibrationTrainer, methods.SFTConfig),
        (CalibrationTrainer, OwnConfig),
        (methods.SFTTrainer, CalibrationConfig),
        (OwnTrainer, CalibrationConfig),
        (OwnTrainer, OwnConfig),
        (OwnTrainer, methods.DECEConfig),  # it may read them
        (type("OwnTempered", (methods.TemperedTrainer,), {}), methods.TemperedConfig),
    ],
)
def test_what_a_trainer_has_a_place_for_is_taken(tmp_path: Path, trainer: Any, config: Any) -> None:
    assert type(start(trainer, config, tmp_path).args) is config


@pytest.mark.parametrize("trainer", [CalibrationTrainer, methods.SFTTrainer])
@pytest.mark.parametrize("config", [methods.RCFTConfig, methods.TemperedConfig])  # the second has no field of its own
def test_a_plain_trainer_is_no_other_method(tmp_path: Path, trainer: Any, config: Any) -> None:
    message = f"{trainer.__name__}: args must be a CalibrationConfig of caltune, got {config.__name__} of caltune"
    with pytest.raises(InputError, match=message):
        start(trainer, config, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size must be at least 1, got -1"),
        ({"num_train_epochs": -1}, "num_train_epochs must be at least 0 and finite, got -1"),
        ({"learning_rate": math.nan}, "learning_rate must be at least 0 and finite, got nan"),
        ({"learning_rate": -1e-3}, "learning_rate must be at least 0 and finite, got -0.001"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches must be one of True, got False"),
        (
            {"include_for_metrics": ["inputs", "loss"]},
            r"include_for_metrics must be left out, got \['inputs', 'loss'\]",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CalibrationConfig(str(tmp_path), **{**QUIET, **settings})
