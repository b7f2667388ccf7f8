"""When RCFT takes its E-step, and whose answers it measures: schedule, running average, first pass, folds, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import assert_same, build, logged, weights
from transformers import TrainerCallback

from caltune.errors import InputError
from caltune.methods import RCFTConfig
from caltune.methods.rcft import bin_accuracy
from caltune.scoring import score
from caltune.types import OptionLogits, Predictions

RUN = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.1}  # 3 steps an epoch


class StopAt(TrainerCallback):
    """Saves a checkpoint and stops after a step, as an interrupted run would have."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


def noting(trainer: Any) -> list[tuple[int, np.ndarray, Predictions]]:
    """(step, A, answers it comes from) of every E-step that a trainer takes from now on."""
    notes: list[tuple[int, np.ndarray, Predictions]] = []
    expectation, source = trainer.expectation, trainer.source_answers
    sources: list[Predictions] = []
    trainer.source_answers = lambda train: sources.append(source(train)) or sources[-1]

    def noted() -> None:
        expectation()
        notes.append((trainer.state.global_step, trainer.curve.copy(), sources[-1]))

    trainer.expectation = noted
    return notes


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"refresh": "once"}, [0]),
        ({"refresh": "epoch"}, [0, 3, 6]),
        ({"refresh": "steps", "refresh_steps": 2}, [0, 2, 4, 6, 8]),
    ],
)
def test_the_e_step_is_taken_when_asked(tmp_path: Path, settings: dict[str, Any], steps: list[int]) -> None:
    trainer = build("RCFT", tmp_path, **settings, **RUN)
    notes = noting(trainer)
    trainer.train()
    assert [step for step, _, _ in notes] == steps
    if len(steps) > 1:
        assert not np.array_equal(notes[0][1], notes[-1][1])


def test_once_is_once_in_each_training(tmp_path: Path) -> None:
    trainer = build("RCFT", tmp_path, refresh="once", **{**RUN, "num_train_epochs": 1})
    notes = noting(trainer)
    trainer.train()
    trainer.train()
    assert [step for step, _, _ in notes] == [0, 0]


def test_the_running_average(tmp_path: Path) -> None:
    trainer = build("RCFT", tmp_path, bin_accuracy_source="held-out", refresh_momentum=0.75, **RUN)
    notes = noting(trainer)
    trainer.train()
    fresh = [bin_accuracy(answers, 10) for _, _, answers in notes]
    assert np.abs(np.diff(fresh, axis=0)).max(axis=1).min() > 0.1  # each epoch has something to average
    expected = fresh[0]  # the first has nothing before it
    np.testing.assert_array_equal(notes[0][1], expected)
    for new, (_, held, _) in zip(fresh[1:], notes[1:], strict=True):
        expected = 0.75 * expected + 0.25 * new
        np.testing.assert_allclose(held, expected)


class BeforeEachStep(TrainerCallback):
    """What the model believes of a step's questions right before it learns from them."""

    def __init__(self) -> None:
        self.seen: list[Predictions] = []

    def on_step_begin(self, _: Any, state: Any, *__: Any, model: Any, **___: Any) -> None:
        start = state.global_step % 3 * 4  # in the order of the questions
        batch = tiny_questions(10)[start : start + 4]
        self.seen.append(score(model, tiny_tokenizer(), batch).decide())


def test_the_first_pass_is_what_was_believed_before_learning(tmp_path: Path) -> None:
    watch = BeforeEachStep()
    trainer = build("RCFT", tmp_path, bin_accuracy_source="first-pass", callbacks=[watch], **RUN)
    notes = noting(trainer)
    trainer.train()
    confidence = np.concatenate([answers.confidence for answers in watch.seen[:3]])
    correct = np.concatenate([answers.correct for answers in watch.seen[:3]])
    np.testing.assert_allclose(trainer.first_pass[:, 0], confidence, atol=1e-5)
    np.testing.assert_array_equal(trainer.first_pass[:, 1], correct)
    untrained = score(tiny_model(), tiny_tokenizer(), tiny_questions(10)).decide()
    np.testing.assert_allclose(notes[0][2].confidence, untrained.confidence, atol=1e-6)
    assert np.abs(confidence[4:] - untrained.confidence[4:]).max() > 0.1  # the model has learned from others by then
    for _, curve, answers in notes[1:]:
        np.testing.assert_allclose(answers.confidence, confidence, atol=1e-5)
        np.testing.assert_array_equal(answers.correct, correct)
        np.testing.assert_array_equal(curve, bin_accuracy(answers, 10))
    later = np.concatenate([answers.correct for answers in watch.seen[6:]])
    assert later.mean() > correct.mean()  # what they have become by being learned does not count


def test_in_mid_epoch_questions_not_trained_on_are_held_out_still(tmp_path: Path) -> None:
    how = {**RUN, "refresh": "steps", "refresh_steps": 2, "max_steps": 2}
    trainer = build("RCFT", tmp_path, bin_accuracy_source="first-pass", **how)
    notes = noting(trainer)
    trainer.train()
    (_, _, answers) = notes[1]
    present = score(trainer.model.eval(), tiny_tokenizer(), tiny_questions(10)).decide()
    assert (trainer.first_pass[8:] < 0).all()
    np.testing.assert_allclose(answers.confidence[:8], trainer.first_pass[:8, 0])
    np.testing.assert_allclose(answers.confidence[8:], present.confidence[8:], atol=1e-6)
    assert np.abs(present.confidence[:8] - answers.confidence[:8]).max() > 0.1


def test_folds_answer_as_models_trained_without_them(tmp_path: Path) -> None:
    """With λ = 0 a fold's model is plain fine-tuning on the other folds, which is done here by hand."""
    questions = tiny_questions(10)
    how = {**RUN, "num_train_epochs": 2, "calibration_weight": 0.0}
    trainer = build("RCFT", tmp_path, bin_accuracy_source="cross-fitted", **how)
    before = weights(trainer.model)
    found = trainer.cross_fit()
    assert_same(weights(trainer.model), before, 0.0)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    fold = np.random.default_rng(trainer.args.seed).permutation(10) % 2
    assert np.bincount(fold).tolist() == [5, 5]
    assert len(found) == 2
    del how["calibration_weight"]
    for k in range(2):
        rest = [q for q, part in zip(questions, fold, strict=True) if part != k]
        own = [q for q, part in zip(questions, fold, strict=True) if part == k]
        plain = build("SFT", tmp_path, train=rest, **{**how, "num_train_epochs": 1})
        plain.train()
        for epoch, model in enumerate((tiny_model(), plain.model.eval())):
            expected = score(model, tiny_tokenizer(), own).decide()
            np.testing.assert_allclose(found[epoch].confidence[fold == k], expected.confidence, atol=1e-5)
            np.testing.assert_array_equal(found[epoch].correct[fold == k], expected.correct)
    assert np.abs(found[0].confidence - found[1].confidence).max() > 0.1


def test_the_main_run_reads_its_epoch_of_the_folds_and_starts_from_the_same_weights(tmp_path: Path) -> None:
    how = {**RUN, "num_train_epochs": 2, "bin_accuracy_source": "cross-fitted"}
    trainer = build("RCFT", tmp_path, **how)
    notes = noting(trainer)
    trainer.train()
    assert [step for step, _, _ in notes] == [0, 3]
    for (_, curve, answers), held in zip(notes, trainer.fold_answers, strict=True):
        np.testing.assert_array_equal(answers.confidence, held.confidence)
        np.testing.assert_array_equal(curve, bin_accuracy(held, 10))
    given = build("RCFT", tmp_path, **how)
    given.cross_fit = lambda: trainer.fold_answers
    given.train()
    assert_same(weights(given.model), weights(trainer.model), 0.0)


@pytest.mark.parametrize(
    ("stop", "settings"),  # 3 steps an epoch: in the first epoch, or at its end
    [
        (2, {"bin_accuracy_source": "first-pass", "refresh_momentum": 0.5}),
        (3, {"bin_accuracy_source": "held-out", "refresh_momentum": 0.5}),
        (2, {"bin_accuracy_source": "first-pass", "refresh": "steps", "refresh_steps": 2, "bin_targets": "smooth"}),
        (2, {"bin_accuracy_source": "cross-fitted"}),
        (3, {"refresh": "once"}),
    ],
    ids=["first pass", "average", "steps", "folds", "once"],
)
def test_resuming_equals_not_stopping(tmp_path: Path, stop: int, settings: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    folds = [Predictions(tuple("abcdefghij"), draw.random(10), draw.random(10) < 0.5) for _ in range(2)]
    how = {**RUN, "num_train_epochs": 2, "train_sampling_strategy": "random", "optim": "adamw_torch", **settings}
    how["learning_rate"] = 5e-3
    whole = build("RCFT", tmp_path / "whole", **how)
    first = build("RCFT", tmp_path, callbacks=[StopAt(stop)], **how)
    for trainer in (whole, first):
        trainer.cross_fit = lambda: folds
        trainer.train()
    rest = build("RCFT", tmp_path, **how)
    rest.cross_fit = lambda: 1 / 0  # the folds are not trained again
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 6
    assert_same(weights(rest.model), weights(whole.model))
    assert logged(rest, "calibration_penalty") == pytest.approx(logged(whole, "calibration_penalty"), rel=1e-6)
    np.testing.assert_array_equal(rest.curve, whole.curve)
    assert torch.equal(rest.first_pass, whole.first_pass)


def test_folds_take_their_share_of_the_steps(tmp_path: Path) -> None:
    trainer = build("RCFT", tmp_path, bin_accuracy_source="cross-fitted", max_steps=3, per_device_train_batch_size=10)
    assert len(trainer.cross_fit()) == math.ceil(3 / 2)  # of one batch of five questions an epoch


def test_a_fold_with_fewer_epochs_keeps_its_last_answers(tmp_path: Path) -> None:
    how = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1}
    trainer = build("RCFT", tmp_path, train=tiny_questions(9), bin_accuracy_source="cross-fitted", **how)
    found = trainer.cross_fit()  # two steps: one epoch on five questions, two on four
    small = np.random.default_rng(trainer.args.seed).permutation(9) % 2 == 1
    assert (len(found), small.sum()) == (2, 4)
    assert all(answers.confidence.min() > 0 for answers in found)
    same = found[0].confidence == found[1].confidence
    np.testing.assert_array_equal(same, small)  # held out where five are trained on


def test_folds_are_not_evaluated(tmp_path: Path) -> None:
    how = {**RUN, "num_train_epochs": 1, "eval_on_start": True, "evaluation": tiny_questions(4, prefix="e")}
    trainer = build("RCFT", tmp_path, bin_accuracy_source="cross-fitted", **how)
    assert len(trainer.cross_fit()) == 1


def test_smooth_targets_are_those_of_the_curve_at_the_confidence(tmp_path: Path) -> None:
    trainer = build("RCFT", tmp_path, train=tiny_questions(4), bin_targets="smooth", bins=1)
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    trainer.present_logits = lambda rows: OptionLogits(tuple("abcd"), np.log(p), [0, 0, 1, 0])
    trainer.refresh()
    # One bin: width 0.5. At 0.8 the kernel is 1, 1, 1 and exp(−0.2² / 0.5) for the gaps 0.2, 0.2, −0.8 and 0.4.
    near = math.exp(-0.08)
    top = 0.8 + (0.2 + 0.2 - 0.8 + 0.4 * near) / (3 + near)
    low = 0.6 + ((0.2 + 0.2 - 0.8) * near + 0.4) / (3 * near + 1)
    assert trainer.targets.tolist() == pytest.approx([top, top, top, low], abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("refresh", "never"),
        ("refresh_steps", 0),
        ("refresh_momentum", 1.0),
        ("refresh_momentum", -0.1),
        ("refresh_momentum", math.nan),
        ("bin_targets", "isotonic"),
        ("folds", 1),
    ],
)
def test_settings_out_of_range(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{setting} must .*got '?{value}"):
        RCFTConfig(str(tmp_path), activation_checkpointing=False, **{setting: value})


def test_folds_need_questions_and_epochs(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="refresh with bin_accuracy_source cross-fitted must be one of epoch, got 'once'"
    ):
        build("RCFT", tmp_path, bin_accuracy_source="cross-fitted", refresh="once")
    with pytest.raises(InputError, match="bin_accuracy_source first-pass must be one of epoch, steps, got 'once'"):
        build("RCFT", tmp_path, bin_accuracy_source="first-pass", refresh="once")
    with pytest.raises(InputError, match="folds must be at most the 3 questions, got 4"):
        build("RCFT", tmp_path, train=tiny_questions(3), bin_accuracy_source="cross-fitted", folds=4)
