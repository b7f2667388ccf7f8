"""Plain fine-tuning on packed questions: loss and gradient of one plain forward pass per option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import Gradients, assert_same, build, logged, plain_option_logits
from torch import Tensor
from torch.nn import functional

from caltune.methods import SFTConfig, SFTTrainer
from caltune.prompts import render
from caltune.trainer import CalibrationConfig, CalibrationTrainer
from caltune.types import Question

QUESTIONS = tiny_questions(10)


def one_step(folder: Path, **settings: object) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one optimizer step over all questions, in micro-batches of 4, 4 and 2."""
    gradients = Gradients()
    trainer = build(
        "SFT",
        folder,
        callbacks=[gradients],
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        **settings,
    )
    trainer.train()
    (gradient,) = gradients.steps
    (loss,) = logged(trainer, "loss")
    return loss, gradient


def plain(each: Callable[[object, object, Question], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the mean of `each` question's loss, one after the other."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    loss = torch.stack([each(model, tokenizer, question) for question in QUESTIONS]).mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def assert_alike(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert_same(ours[1], theirs[1], 1e-5)


@pytest.mark.parametrize(
    ("answers", "reduction"),
    [("continuations", "sum"), ("continuations", "mean"), ("continuations", "min"), ("letters", "sum")],
)
def test_loss_and_gradient_of_the_options(tmp_path: Path, answers: str, reduction: str) -> None:
    def each(model: object, tokenizer: object, question: Question) -> Tensor:
        logits = plain_option_logits(model, tokenizer, question, answers, reduction)
        return functional.cross_entropy(logits, torch.tensor(question.answer))

    assert_alike(one_step(tmp_path, answers=answers, reduction=reduction), plain(each))


@pytest.mark.parametrize(
    ("answers", "reduction"), [("continuations", "sum"), ("continuations", "mean"), ("letters", "sum")]
)
def test_loss_and_gradient_of_the_answers_tokens(tmp_path: Path, answers: str, reduction: str) -> None:
    """−log π(answer | prompt), as Hugging Face computes it from `labels`; the reduction concerns options only."""

    def each(model: object, tokenizer: object, question: Question) -> Tensor:
        prompt = render(question, tokenizer, answers=answers)
        start = len(tokenizer(prompt.text).input_ids)
        ids = tokenizer(prompt.text + prompt.continuations[question.answer], return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, :start] = -100
        return model(input_ids=ids, labels=labels).loss * (ids.shape[1] - start)  # theirs is a mean over tokens

    assert_alike(one_step(tmp_path, answers=answers, reduction=reduction, answer_loss="tokens"), plain(each))


def test_plain_and_chat_prompts_train_differently(tmp_path: Path) -> None:
    losses = {template: one_step(tmp_path, template=template)[0] for template in ("auto", "chat", "plain")}
    assert losses["auto"] == losses["chat"] != losses["plain"]


def test_sft_adds_nothing() -> None:
    assert issubclass(SFTTrainer, CalibrationTrainer)
    assert SFTTrainer.question_losses is CalibrationTrainer.question_losses
    assert SFTConfig.__dataclass_fields__.keys() == CalibrationConfig.__dataclass_fields__.keys()


def test_fitting_drives_the_answers_up(tmp_path: Path) -> None:
    trainer = build(
        "SFT",
        tmp_path,
        optim="adamw_torch",
        learning_rate=0.01,
        num_train_epochs=12,
        per_device_train_batch_size=5,
    )
    before = trainer.evaluate(QUESTIONS)
    trainer.train()
    after = trainer.evaluate(QUESTIONS)
    assert before["eval_accuracy"] < 0.8
    assert after["eval_accuracy"] == 1.0
    assert after["eval_loss"] < 0.3 < before["eval_loss"]
