"""What stands between questions and TRL: logits, columns, accumulation, evaluation, errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import QUIET, Gradients, assert_same, build, logged, weights
from transformers import EvalPrediction

from caltune.errors import InputError
from caltune.knowledge import Detector
from caltune.methods import SFTConfig, SFTTrainer
from caltune.metrics import accuracy, brier, ece, mean_confidence, nll
from caltune.scoring import score
from caltune.trainer import CalibrationConfig
from caltune.types import Question

METHODS = ["SFT", "RCFT", "CogCalib"]


class Spy:
    """Counts forward passes, and what reaches the output head in each."""

    def __init__(self, model: Any) -> None:
        self.passes = 0
        self.heads: list[int] = []
        model.model.register_forward_hook(self.forward)
        model.lm_head.register_forward_hook(self.head)

    def forward(self, *_: Any) -> None:
        self.passes += 1

    def head(self, _: Any, arguments: Any, __: Any) -> None:
        self.heads.append(arguments[0].shape[:-1].numel())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answers", ["continuations", "letters"])
def test_one_pass_and_logits_only_where_an_answer_is_predicted(tmp_path: Path, method: str, answers: str) -> None:
    model = tiny_model()
    trainer = build(method, tmp_path, model=model, answers=answers, calibration=tiny_questions(8, prefix="c"))
    assert hasattr(model.forward, "__wrapped__")  # TRL's fused head is in place
    trainer.refresh()
    if method == "CogCalib":
        trainer.detector = Detector(math.inf, 1.0, math.nan)
    inputs = trainer.data_collator(list(trainer.train_dataset))
    options = [len(option) for row in trainer.train_dataset for option in row["option_ids"]]
    expected = len(trainer.train_dataset) + sum(length - 1 for length in options)
    if answers == "letters":
        assert expected == len(trainer.train_dataset)
    assert len(inputs["positions"]) == expected < inputs["input_ids"].numel() / 2
    spy = Spy(model)
    for mode in (True, False):
        model.train(mode)
        trainer.compute_loss(model, inputs)
    trainer.training_step(model, inputs)
    trainer.prediction_step(model, inputs, prediction_loss_only=False)
    assert spy.passes == 4
    assert spy.heads == [expected] * 4


def test_a_run_passes_each_batch_through_the_model_once(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = build("SFT", tmp_path, model=model, num_train_epochs=2, per_device_train_batch_size=4)
    spy = Spy(model)
    trainer.train()
    assert spy.passes == len(spy.heads) == 2 * 3


def test_our_columns_survive(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path, per_device_train_batch_size=4, evaluation=tiny_questions(5, prefix="e"))
    assert trainer.args.remove_unused_columns
    for loader, size in ((trainer.get_train_dataloader(), 10), (trainer.get_eval_dataloader(), 5)):
        batches = list(loader)
        assert torch.cat([batch["rows"] for batch in batches]).tolist() == list(range(size))
        questions = tiny_questions(size)
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == [q.answer for q in questions]
        counts = torch.cat([(batch["option_lengths"] > 0).sum(-1) for batch in batches])
        assert counts.tolist() == [len(q.options) for q in questions]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [7, 10])
def test_gradient_accumulation_is_exact(tmp_path: Path, method: str, count: int) -> None:
    """8 questions a step as 8 × 1, 4 × 2 and 2 × 4. 7 leave the last micro-batch short, 10 the last step."""
    runs = []
    for size, times in ((8, 1), (4, 2), (2, 4)):
        watch = Gradients()
        trainer = build(
            method,
            tmp_path,
            model=tiny_model().double(),  # a short run multiplies rounding errors by thousands
            train=tiny_questions(count),
            callbacks=[watch],
            num_train_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
        )
        trainer.train()
        terms = logged(trainer, "calibration_penalty")
        runs.append((watch.steps, weights(trainer.model), logged(trainer, "loss"), terms))
    steps, final, losses, terms = runs[0]
    assert len(steps) == 2 * math.ceil(count / 8)
    assert len(terms) == {"SFT": 0, "RCFT": len(steps), "CogCalib": len(steps) - 1}[method]
    for other_steps, other_final, other_losses, other_terms in runs[1:]:
        assert len(other_steps) == len(steps)
        for mine, theirs in zip(other_steps, steps, strict=True):
            assert_same(mine, theirs)
        assert_same(other_final, final)
        assert other_losses == pytest.approx(losses, rel=1e-6)
        assert other_terms == pytest.approx(terms, rel=1e-6)


def test_the_logged_loss_is_the_mean_over_questions(tmp_path: Path) -> None:
    trainer = build(
        "SFT",
        tmp_path,
        train=tiny_questions(7),
        learning_rate=0.0,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    trainer.train()
    assert logged(trainer, "loss") == [pytest.approx(nll(score(tiny_model(), tiny_tokenizer(), tiny_questions(7))))]


def expected_metrics(model: Any, questions: list[Question], **how: Any) -> dict[str, float]:
    scores = score(model, tiny_tokenizer(), questions, **how)
    decided = scores.decide()
    return {
        "eval_accuracy": accuracy(decided),
        "eval_confidence": mean_confidence(decided),
        "eval_ece": ece(decided),
        "eval_brier": brier(scores),
        "eval_nll": nll(scores),
        "eval_loss": nll(scores),
    }


@pytest.mark.parametrize(("answers", "reduction"), [("continuations", "mean"), ("letters", "sum")])
def test_evaluation_is_our_metrics_on_our_scores(tmp_path: Path, answers: str, reduction: str) -> None:
    questions = tiny_questions(11, prefix="e")
    trainer = build(
        "SFT",
        tmp_path,
        evaluation=questions,
        answers=answers,
        reduction=reduction,
        per_device_eval_batch_size=4,
        eval_strategy="epoch",
        num_train_epochs=1,
    )
    expected = expected_metrics(tiny_model(), questions, answers=answers, reduction=reduction)
    found = trainer.evaluate()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    trainer.train()
    after = expected_metrics(trainer.model, questions, answers=answers, reduction=reduction)
    assert {name: logged(trainer, name)[-1] for name in after} == pytest.approx(after, abs=1e-5)
    assert after["eval_nll"] != pytest.approx(expected["eval_nll"], abs=1e-3)


def test_evaluate_takes_questions_with_more_options_than_were_trained_on(tmp_path: Path) -> None:
    two = [Question(f"t{i}", q.text, q.options[:2], 0) for i, q in enumerate(tiny_questions(6))]
    five = [q for q in tiny_questions(16, prefix="f") if len(q.options) == 5]
    mixed = [*tiny_questions(4, prefix="m"), *five, *two[:1]]
    trainer = build("SFT", tmp_path, train=two, calibration=[], per_device_eval_batch_size=1)
    found = trainer.evaluate(mixed, metric_key_prefix="test")
    expected = expected_metrics(tiny_model(), mixed)
    assert {f"eval{name[4:]}": found[name] for name in found if f"eval{name[4:]}" in expected} == pytest.approx(
        expected, abs=1e-5
    )
    trainer.train()


def test_the_users_metrics_are_merged_and_win(tmp_path: Path) -> None:
    seen = []

    def own(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"size": len(prediction.label_ids), "ece": -1.0}

    trainer = SFTTrainer(
        tiny_model(),
        SFTConfig(str(tmp_path), **QUIET),
        train_dataset=tiny_questions(4),
        eval_dataset=tiny_questions(5, prefix="e"),
        processing_class=tiny_tokenizer(),
        compute_metrics=own,
    )
    found = trainer.evaluate()
    assert found["eval_size"] == 5
    assert found["eval_ece"] == -1.0
    assert "eval_brier" in found
    assert seen[0].predictions.shape == (5, 5)
    np.testing.assert_array_equal(np.isfinite(seen[0].predictions).sum(1), [2, 3, 4, 5, 2])


def test_an_evaluation_neither_takes_nor_loses_what_training_recorded(tmp_path: Path) -> None:
    """Evaluate after each of 4 steps, log at the end of both epochs: a logged mean is over two steps' questions."""
    logs = []
    for settings in ({}, {"logging_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 1}):
        trainer = build(
            "RCFT",
            tmp_path,
            train=tiny_questions(8),
            evaluation=tiny_questions(4, prefix="e"),
            learning_rate=0.0,
            num_train_epochs=2,
            per_device_train_batch_size=4,
            **settings,
        )
        trainer.train()
        assert not any("calibration_penalty" in entry for entry in trainer.state.log_history if "eval_loss" in entry)
        logs.append(logged(trainer, "calibration_penalty"))
    single, double = logs
    assert double == pytest.approx([(single[0] + single[1]) / 2, (single[2] + single[3]) / 2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer_loss", ["options", "tokens"])
def test_extreme_models_train_on_finite_numbers(tmp_path: Path, method: str, answer_loss: str) -> None:
    """Vocabulary logits of ±1e4 and beyond: probabilities of exactly 0 and 1."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    watch = Gradients()
    trainer = build(
        method,
        tmp_path,
        model=model,
        callbacks=[watch],
        answer_loss=answer_loss,
        per_device_train_batch_size=5,
        num_train_epochs=2,
        learning_rate=1e-9,
    )
    p = score(model, trainer.processing_class, tiny_questions(10)).probabilities().astype(np.float32)
    assert (p.max(1) == 1).any()
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all()
    assert all(torch.isfinite(gradient).all() for step in watch.steps for gradient in step.values())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("answers", "words"),
        ("reduction", "max"),
        ("template", "alpaca"),
        ("answer_loss", "both"),
        ("loss_type", "dft"),
        ("label_smoothing_factor", 0.1),
    ],
)
def test_unknown_settings(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{setting} must be one of .*, got '?{value}"):
        CalibrationConfig(str(tmp_path), activation_checkpointing=False, **{setting: value})


def test_questions_and_tokenizer_are_checked(tmp_path: Path) -> None:
    unknown = Question("x", "What is the capital of Peru?", ("Lima", "Oslo"), None)
    open_ended = Question("o", "What is the capital of Peru?", (), None, accepted=("Lima",))
    args = SFTConfig(str(tmp_path), **QUIET)
    for where in ("train", "evaluation", "calibration"):
        for question, missing in ((unknown, "answer"), (open_ended, "options")):
            with pytest.raises(InputError, match=f"1 questions have no {missing}, the first is id '{question.id}'"):
                build("SFT", tmp_path, **{"train": tiny_questions(2), where: [question]})
    for where in ("evaluation", "calibration"):
        with pytest.raises(InputError, match=r"2 training questions are also held out, .* the first is id 'q1'"):
            build("SFT", tmp_path, train=tiny_questions(3), **{where: tiny_questions(8)[1:]})
    with pytest.raises(InputError, match=r"processing_class must be given .* got None"):
        SFTTrainer(tiny_model(), args, train_dataset=tiny_questions(2))
    with pytest.raises(InputError, match="train_dataset must hold at least one question or row, got none"):
        build("SFT", tmp_path, train=[])
    long = Question("long", "capital " * 400, ("Lima", "Oslo"), 0)
    with pytest.raises(InputError, match=r"question long: has .* tokens, the model's context holds 256"):
        build("SFT", tmp_path, train=[long])
    trainer = build("SFT", tmp_path)
    with pytest.raises(InputError, match="no answer"):
        trainer.evaluate([unknown])


def test_evaluation_and_calibration_questions_may_be_the_same(tmp_path: Path) -> None:
    held_out = tiny_questions(4, prefix="c")
    found = build("SFT", tmp_path, calibration=held_out, evaluation=held_out).evaluate()
    assert found["eval_nll"] == pytest.approx(nll(score(tiny_model(), tiny_tokenizer(), held_out)), abs=1e-5)


def test_a_tokenizer_without_padding_is_taken(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    found = build("SFT", tmp_path, tokenizer=tokenizer).evaluate(tiny_questions(6))
    assert found["eval_nll"] == pytest.approx(nll(score(tiny_model(), tiny_tokenizer(), tiny_questions(6))), abs=1e-5)
