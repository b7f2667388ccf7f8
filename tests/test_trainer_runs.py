"""Whole runs: stopping and resuming, adapters, what is saved, models by name, seeds, and nothing sent to anyone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import QUIET, assert_same, build, logged, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from caltune import methods
from caltune.methods import SFTConfig, SFTTrainer
from caltune.models import load_model
from caltune.scoring import score
from caltune.trainer import CalibrationConfig

METHODS = ["SFT", "RCFT", "CogCalib"]
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


class StopAt(TrainerCallback):
    """Saves a checkpoint and stops after a step, as an interrupted run would have."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [6, 8])  # 3 steps an epoch: at the end of the second, and in the third
def test_resuming_equals_not_stopping(tmp_path: Path, method: str, stop: int) -> None:
    how = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "random",
        "optim": "adamw_torch",
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
    }
    whole = build(method, tmp_path / "whole", **how)
    whole.train()
    first = build(method, tmp_path, callbacks=[StopAt(stop)], **how)
    first.train()
    assert first.state.global_step == stop
    rest = build(method, tmp_path, **how)
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 12
    assert_same(weights(rest.model), weights(whole.model))
    for name in ("loss", "calibration_penalty", "known_share", "known_threshold"):
        assert logged(rest, name) == pytest.approx(logged(whole, name), rel=1e-6), name
    if method == "CogCalib":
        np.testing.assert_array_equal(rest.known, whole.known)
        assert rest.detector == whole.detector


def test_what_was_known_before_training_survives_a_resumption(tmp_path: Path) -> None:
    """Also when the model that resumes is the trained one: the truth is the untrained model's."""
    how = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05}
    trainer = build("CogCalib", tmp_path, callbacks=[StopAt(4)], **how)
    trainer.train()
    known, threshold = trainer.known.copy(), trainer.detector.threshold
    trained = trainer.model
    now = score(trained, trainer.processing_class, tiny_questions(8, prefix="c")).decide().correct > 0
    assert (now != known).any()
    again = build("CogCalib", tmp_path, model=trained, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    np.testing.assert_array_equal(again.known, known)
    assert again.detector.threshold == threshold  # in mid-epoch: not fitted again


def test_a_checkpoint_without_our_state_fits_anew(tmp_path: Path) -> None:
    how = {"num_train_epochs": 2, "per_device_train_batch_size": 4}
    build("RCFT", tmp_path, callbacks=[StopAt(4)], **how).train()
    (tmp_path / "checkpoint-4" / "calibration_state.json").unlink()
    rest = build("RCFT", tmp_path, **how)
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 6
    assert len(rest.targets) == 10


def test_an_unknown_threshold_survives_json(tmp_path: Path) -> None:
    trainer = build("CogCalib", tmp_path)
    trainer.restore_method_state({"known": [True] * 8, "detector": None})
    assert trainer.detector is None
    trainer.known = np.ones(8, dtype=bool)
    trainer.state.max_steps, trainer.state.global_step = 4, 4
    trainer.refresh()
    assert trainer.detector.threshold == math.inf
    other = build("CogCalib", tmp_path)
    trainer.create_optimizer_and_scheduler(4)
    trainer._save_optimizer_and_scheduler(str(tmp_path))
    other.create_optimizer_and_scheduler(4)
    other._load_optimizer_and_scheduler(str(tmp_path))
    assert other.detector.threshold == math.inf
    assert math.isnan(other.detector.true_negative_rate)
    assert other.known.all()
    assert other.known.dtype == bool


@pytest.mark.parametrize("method", METHODS)
def test_lora_changes_the_adapter_only_and_loads_again(tmp_path: Path, method: str) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base", device="cpu")
    trainer = build(
        method,
        tmp_path / "out",
        model=model,
        tokenizer=tokenizer,
        peft_config=LoraConfig(**LORA),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.05,
    )
    trainer.train()
    base = weights(tiny_model())
    after = weights(trainer.model)
    adapter = {name: p for name, p in after.items() if "lora_" in name}
    frozen = {name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in after.items()}
    assert all(torch.equal(frozen[name], p) for name, p in base.items())
    assert any(p.any() for name, p in adapter.items() if "lora_B" in name)  # starts at 0
    trainer.save_model()
    loaded, own_tokenizer = load_model(tmp_path / "out", device="cpu")
    questions = tiny_questions(9, prefix="t")
    found = score(loaded, own_tokenizer, questions).logits
    np.testing.assert_array_equal(found, score(trainer.model.eval(), tokenizer, questions).logits)
    assert not np.allclose(found, score(tiny_model(), tokenizer, questions).logits, atol=1e-2)


def test_a_folder_of_full_weights_is_an_ordinary_one(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path, num_train_epochs=1, learning_rate=0.05)
    trainer.train()
    trainer.save_model()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(weights(model), weights(trainer.model), 0.0)
    assert any(not torch.equal(p, weights(model)[name]) for name, p in weights(tiny_model()).items())
    questions = tiny_questions(6)
    expected = score(trainer.model.eval(), trainer.processing_class, questions).logits
    np.testing.assert_array_equal(score(model.eval(), tokenizer, questions).logits, expected)


def test_a_model_by_name_and_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().bfloat16().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for method in METHODS:
        trainer = getattr(methods, f"{method}Trainer")(
            "model", train_dataset=tiny_questions(4), calibration_dataset=tiny_questions(4, prefix="c")
        )
        assert trainer.model.dtype == torch.float32  # weights that are trained do not rest in half precision
        assert isinstance(trainer.args, CalibrationConfig if method == "SFT" else getattr(methods, f"{method}Config"))
        assert trainer.processing_class.chat_template
    result = trainer.train()
    assert math.isfinite(result.training_loss)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "caltune-output"}


def test_an_adapter_by_name_is_trained_on(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    args = SFTConfig(str(tmp_path / "out"), **QUIET, num_train_epochs=1)
    trainer = SFTTrainer(str(tmp_path / "base"), args, train_dataset=tiny_questions(4), peft_config=LoraConfig(**LORA))
    trainer.save_model()
    again = SFTTrainer(str(tmp_path / "out"), args, train_dataset=tiny_questions(4))
    before = weights(again.model)
    again.train()
    changed = {name for name, p in again.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_one_result(tmp_path: Path, method: str) -> None:
    finals = []
    for seed in (1, 1, 2):
        trainer = build(
            method,
            tmp_path,
            model=tiny_model(attention_dropout=0.2),
            seed=seed,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            train_sampling_strategy="random",
        )
        trainer.train()
        finals.append(weights(trainer.model))
    assert_same(finals[0], finals[1], 0.0)
    assert any(not torch.equal(finals[0][name], p) for name, p in finals[2].items())


def test_nothing_is_sent_to_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.utils
    import trl.trainer.base_trainer

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.delenv("CI", raising=False)
    assert trl.trainer.base_trainer.send_telemetry is huggingface_hub.utils.send_telemetry
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", refuse)
    monkeypatch.setattr(huggingface_hub.utils, "send_telemetry", refuse)
    for method in METHODS:
        trainer = build(method, tmp_path)
        trainer._send_telemetry()
    with pytest.raises(AssertionError, match="telemetry"):
        super(SFTTrainer.__mro__[1], trainer)._send_telemetry()


@pytest.mark.parametrize("value", [True, False])
def test_bf16_is_off_without_an_accelerator_and_the_users_own_value_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    quiet = {"activation_checkpointing": False, "use_cpu": True}
    assert SFTConfig(str(tmp_path), **quiet).bf16 is False
    assert SFTConfig(str(tmp_path), bf16=value, **quiet).bf16 is value
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert SFTConfig(str(tmp_path), **quiet).bf16 is False  # on the CPU of a machine with a GPU


@pytest.mark.parametrize("method", METHODS)
def test_bf16_trains(tmp_path: Path, method: str) -> None:
    exact, rough = (
        build(method, tmp_path, bf16=bf16, num_train_epochs=1, per_device_train_batch_size=5) for bf16 in (False, True)
    )
    exact.train()
    rough.train()
    assert logged(rough, "loss")[0] != logged(exact, "loss")[0]
    assert logged(rough, "loss")[0] == pytest.approx(logged(exact, "loss")[0], rel=0.05)


def test_default_checkpointing_of_activations_changes_no_number(tmp_path: Path) -> None:
    finals = []
    for on in (False, True):
        trainer = build("CogCalib", tmp_path, activation_checkpointing=on, num_train_epochs=1)
        trainer.train()
        finals.append(weights(trainer.model))
    assert_same(*finals)
