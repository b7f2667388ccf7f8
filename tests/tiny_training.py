"""Trainers on the tiny model, and what they are compared with: one plain forward pass per option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from caltune import methods
from caltune.prompts import render
from caltune.trainer import CalibrationTrainer
from caltune.types import Question

QUIET = {
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "activation_checkpointing": False,
    "logging_steps": 1,
    # Plain gradient descent in the order of the questions, so that runs can be compared number by number.
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "max_grad_norm": 0.0,
}


def build(
    method: str,
    folder: Path,
    *,
    train: Sequence[Question] | None = None,
    calibration: Sequence[Question] | None = None,
    evaluation: Sequence[Question] | None = None,
    model: Any = None,
    tokenizer: Any = None,
    trainer_class: Any = None,
    callbacks: Any = None,
    peft_config: Any = None,
    **settings: Any,
) -> CalibrationTrainer:
    """A trainer of `method` ("SFT", "RCFT", "CogCalib") on ten questions, with eight others to calibrate on."""
    return (trainer_class or getattr(methods, f"{method}Trainer"))(
        tiny_model() if model is None else model,
        getattr(methods, f"{method}Config")(str(folder), **{**QUIET, **settings}),
        train_dataset=tiny_questions(10) if train is None else train,
        calibration_dataset=tiny_questions(8, prefix="c") if calibration is None else calibration,
        eval_dataset=evaluation,
        processing_class=tokenizer or tiny_tokenizer(),
        callbacks=callbacks,
        peft_config=peft_config,
    )


class Gradients(TrainerCallback):
    """Notes the gradient of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(some: dict[str, Tensor], others: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert some.keys() == others.keys()
    for name in some:
        torch.testing.assert_close(some[name], others[name], rtol=tolerance, atol=tolerance, msg=name)


def logged(trainer: CalibrationTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def answer_logits(model: Any, tokenizer: Any, prompt: str, continuation: str) -> tuple[Tensor, Tensor]:
    """Vocabulary logits (T, V) that predict the continuation's tokens (T,), by a plain pass over one string."""
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + continuation, return_tensors="pt").input_ids
    return model(input_ids=ids).logits[0, start - 1 : -1].float(), ids[0, start:]


def plain_option_logits(
    model: Any, tokenizer: Any, question: Question, answers: str = "continuations", reduction: str = "sum"
) -> Tensor:
    """(K,) by one plain pass per option."""
    prompt = render(question, tokenizer, answers=answers)
    reduce = {"sum": torch.sum, "mean": torch.mean, "min": torch.amin}[reduction]
    scores = []
    for continuation in prompt.continuations:
        logits, tokens = answer_logits(model, tokenizer, prompt.text, continuation)
        scores.append(reduce(-functional.cross_entropy(logits, tokens, reduction="none")))
    return torch.stack(scores)


def plain_probabilities(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[np.ndarray]:
    with torch.no_grad():
        return [plain_option_logits(model, tokenizer, q).double().softmax(-1).numpy() for q in questions]


def drawn_answers(questions: Sequence[Question]) -> list[Question]:
    """The questions with answers drawn by the tiny model's own probabilities, under which it is calibrated."""
    drawn = []
    for row, (q, p) in enumerate(
        zip(questions, plain_probabilities(tiny_model(), tiny_tokenizer(), questions), strict=True)
    ):
        drawn.append(replace(q, answer=int(np.random.default_rng(row).choice(len(p), p=p))))
    return drawn
