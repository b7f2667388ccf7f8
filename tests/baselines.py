"""What the tests of the training baselines share: one optimizer step, its plain counterpart, one batch's outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import Gradients, answer_logits, assert_same, build, logged, plain_option_logits
from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.prompts import render
from caltune.types import Question

QUESTIONS = tiny_questions(10)
MICRO_BATCHES = [QUESTIONS[:4], QUESTIONS[4:8], QUESTIONS[8:]]
Step = tuple[float, dict[str, Tensor]]


def one_step(method: str, folder: Path, **settings: Any) -> Step:
    """Loss and gradient of one optimizer step over all questions, in micro-batches of 4, 4 and 2."""
    gradients = Gradients()
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, **settings}
    trainer = build(method, folder, callbacks=[gradients], num_train_epochs=1, **settings)
    trainer.train()
    (gradient,) = gradients.steps
    (loss,) = logged(trainer, "loss")
    return loss, gradient


def mean_of(each: Callable[[Tensor, int], Tensor], *, vocabulary: bool = False) -> Step:
    """Loss and gradient of the mean of `each(logits, label)` over questions, by one plain pass an option.

    With `vocabulary` each token of the answer has such a term, and a question the sum of its tokens'.
    """
    model, tokenizer = tiny_model(), tiny_tokenizer()
    terms = []
    for question in QUESTIONS:
        if vocabulary:
            prompt = render(question, tokenizer)
            logits, tokens = answer_logits(model, tokenizer, prompt.text, prompt.continuations[question.answer])
            terms.append(sum(each(row, int(token)) for row, token in zip(logits, tokens, strict=True)))
        else:
            terms.append(each(plain_option_logits(model, tokenizer, question), question.answer))
    return backward(model, torch.stack(terms).mean())


def backward(model: Any, loss: Tensor) -> Step:
    """The loss as a number, and its gradient."""
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def assert_alike(ours: Step, theirs: Step) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert_same(ours[1], theirs[1], 1e-5)


def outputs_of(trainer: Any, questions: list[Question]) -> AnswerOutputs:
    """The questions as one batch after the forward pass."""
    inputs = trainer.data_collator(list(trainer._evaluated(questions)))
    return trainer.compute_loss(trainer.model, inputs, return_outputs=True)[1]


def assert_plain(method: str, folder: Path, **settings: Any) -> None:
    """With these settings the method's losses and gradients are plain fine-tuning's, to the last bit."""
    trainer = build(method, folder, **settings)
    outputs = outputs_of(trainer, QUESTIONS)
    parameters = list(trainer.model.parameters())
    ours, plain = trainer.question_losses(outputs), trainer.answer_losses(outputs)
    assert ours.shape == plain.shape == (10,)
    assert torch.equal(ours, plain)
    assert plain.std() > 0.1
    gradients = [torch.autograd.grad(losses.sum(), parameters, retain_graph=True) for losses in (ours, plain)]
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)
