"""Learning the question's text: `question_loss_weight` in whole trainers against plain passes with all logits."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import Gradients, assert_same, build, logged, weights
from torch.nn import functional

from caltune import trainer as trainer_module
from caltune.errors import InputError
from caltune.methods import SFTTrainer
from caltune.prompts import render
from caltune.trainer import CalibrationConfig
from caltune.types import Question

ONE_STEP = {"num_train_epochs": 1, "per_device_train_batch_size": 10}


def joint_nll(model: Any, question: Question) -> torch.Tensor:
    """−log π(prompt, answer) of one string, all logits at hand; the first token is given."""
    prompt = render(question, tiny_tokenizer(), answers="continuations")
    ids = tiny_tokenizer()(prompt.text + prompt.continuations[question.answer], return_tensors="pt").input_ids
    return functional.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum")


def test_with_token_loss_and_weight_1_it_is_the_papers_second_loss(tmp_path: Path) -> None:
    watch = Gradients()
    how = {"answer_loss": "tokens", "question_loss_weight": 1.0}
    trainer = build("SFT", tmp_path, callbacks=[watch], **how, **ONE_STEP)
    trainer.train()
    model = tiny_model()
    plain = torch.stack([joint_nll(model, question) for question in tiny_questions(10)]).mean()
    plain.backward()
    assert logged(trainer, "loss") == [pytest.approx(plain.item(), rel=1e-5)]
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert max(gradient.abs().max() for gradient in expected.values()) > 1
    assert_same(watch.steps[0], expected, 1e-4)


def test_the_weight_scales_it_and_evaluation_is_without_it(tmp_path: Path) -> None:
    losses, nlls, evaluated = [], [], []
    for weight in (0.0, 0.01, 2.0):
        trainer = build(
            "SFT", tmp_path, evaluation=tiny_questions(4, prefix="e"), question_loss_weight=weight, **ONE_STEP
        )
        evaluated.append(trainer.evaluate()["eval_loss"])
        trainer.train()
        losses += logged(trainer, "loss")
        nlls += logged(trainer, "question_nll")
    assert evaluated == [evaluated[0]] * 3
    assert len(nlls) == 2
    assert nlls[0] == nlls[1] > 10
    assert losses[1:] == pytest.approx([losses[0] + 0.01 * nlls[0], losses[0] + 2 * nlls[0]], rel=1e-6)


def test_gradient_accumulation_is_exact(tmp_path: Path) -> None:
    runs = []
    for size, times in ((8, 1), (2, 4)):
        trainer = build(
            "RCFT",
            tmp_path,
            model=tiny_model().double(),
            question_loss_weight=0.1,
            learning_rate=1e-3,
            num_train_epochs=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
        )
        trainer.train()
        runs.append((weights(trainer.model), logged(trainer, "loss"), logged(trainer, "question_nll")))
    assert_same(runs[0][0], runs[1][0])
    for name in (1, 2):
        assert len(runs[0][name]) == 2
        assert runs[1][name] == pytest.approx(runs[0][name], rel=1e-6)


def test_it_costs_nothing_when_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "forward_with_prompt_nll", lambda *_, **__: 1 / 0)
    trainer = build("SFT", tmp_path, **ONE_STEP)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ZeroDivisionError):
        build("SFT", tmp_path, question_loss_weight=0.1, **ONE_STEP).train()


def test_it_is_learned_with_an_adapter_and_checkpointed_activations(tmp_path: Path) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    runs = []
    for on in (False, True):
        how = {"num_train_epochs": 2, "per_device_train_batch_size": 10, "activation_checkpointing": on}
        trainer = build("SFT", tmp_path, peft_config=lora, question_loss_weight=0.01, learning_rate=0.2, **how)
        trainer.train()
        runs.append(logged(trainer, "question_nll"))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert np.isfinite(runs[0]).all()
    assert runs[0][-1] < runs[0][0] - 1


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_weights_out_of_range(tmp_path: Path, value: float) -> None:
    with pytest.raises(InputError, match=rf"question_loss_weight must be at least 0 and finite, got {value}"):
        CalibrationConfig(str(tmp_path), activation_checkpointing=False, question_loss_weight=value)


class Sharded(SFTTrainer):
    """Says that DeepSpeed is at work, as transformers would."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_deepspeed_enabled = True


def test_a_sharded_head_is_refused(tmp_path: Path) -> None:
    build("SFT", tmp_path, trainer_class=Sharded)
    with pytest.raises(
        InputError, match="question_loss_weight above 0 needs one process or DDP, got FSDP or DeepSpeed"
    ):
        build("SFT", tmp_path, trainer_class=Sharded, question_loss_weight=0.5)


class Spread(SFTTrainer):
    """Says that FSDP is at work, with the settings given."""

    version, kind = 2, "StateDictType.FULL_STATE_DICT"

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = True
        plugin = SimpleNamespace(fsdp_version=self.version, state_dict_type=self.kind)
        self.accelerator.state.fsdp_plugin = plugin


@pytest.mark.parametrize(("version", "kind"), [(1, "FULL_STATE_DICT"), (2, "SHARDED_STATE_DICT")])
def test_fsdp_that_would_not_score_or_not_be_saved_is_refused(tmp_path: Path, version: int, kind: str) -> None:
    build("SFT", tmp_path, trainer_class=Spread)
    with pytest.raises(InputError, match=f"FULL_STATE_DICT, got {version} and {kind}"):
        build("SFT", tmp_path, trainer_class=type("Other", (Spread,), {"version": version, "kind": kind}))


def test_weights_that_deepspeed_spreads_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("SFT", tmp_path, trainer_class=Sharded)
    monkeypatch.setattr("caltune.checkpoints.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match="zero_stage must be 1 or 2, got 3"):
        build("SFT", tmp_path, trainer_class=Sharded)
