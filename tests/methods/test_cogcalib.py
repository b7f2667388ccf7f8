"""CogCalib: plain first, then a penalty on what the detector calls known, and on nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_questions, tiny_tokenizer
from tiny_training import Gradients, answer_logits, assert_same, build, logged, plain_option_logits, weights
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.knowledge import Detector, detector_accuracy, fit_detector
from caltune.methods import CogCalibConfig
from caltune.prompts import render
from caltune.scoring import score
from caltune.types import OptionLogits

QUESTIONS = tiny_questions(10)
CALIBRATION = tiny_questions(8, prefix="c")


def term(penalty: str, logits: Tensor, target: int, smoothing: float = 0.1, margin: float = 2.0) -> float:
    """L_cal of one distribution, (classes,), as the specification writes it."""
    z = logits.double()
    p = z.softmax(-1)
    if penalty == "label-smoothing":
        return functional.cross_entropy(z, torch.tensor(target), label_smoothing=smoothing).item()
    if penalty == "margin":
        return float(np.mean([max(0.0, (z.max() - z[k]).item() - margin) for k in range(len(z))]))
    return float(sum(p[k] * math.log(p[k]) for k in range(len(z))))


class Watch(TrainerCallback):
    """Detector in use and answer NLLs on the calibration questions, at each step's begin."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.steps: list[tuple[Detector | None, Any]] = []

    def on_step_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self.steps.append((self.trainer.detector, answer_nll(score(model, self.trainer.processing_class, CALIBRATION))))


def answer_nll(scores: OptionLogits) -> np.ndarray:
    return -scores.log_probabilities()[np.arange(len(scores)), scores.labels]


def watched(folder: Path, **settings: Any) -> tuple[Any, Watch]:
    watch = Watch()
    watch.trainer = build("CogCalib", folder, callbacks=[watch], per_device_train_batch_size=4, **settings)
    return watch.trainer, watch


def known_before() -> np.ndarray:
    known = score(tiny_model(), tiny_tokenizer(), CALIBRATION).decide().correct > 0
    assert 0 < known.sum() < len(known)
    return known


def test_style_steps_are_plain_fine_tuning(tmp_path: Path) -> None:
    runs = {}
    for method, settings in (("SFT", {}), ("CogCalib", {"style_share": 0.5})):
        gradients = Gradients()
        trainer = build(
            method, tmp_path, callbacks=[gradients], num_train_epochs=2, per_device_train_batch_size=4, **settings
        )
        trainer.train()
        runs[method] = (trainer, gradients.steps)
    trainer, ours = runs["CogCalib"]
    _, plain = runs["SFT"]
    assert trainer.style_steps == 3  # half of 2 · 3
    for step in range(3):
        assert_same(ours[step], plain[step], 0.0)
    assert any(not torch.equal(ours[3][name], plain[3][name]) for name in plain[3])
    assert logged(trainer, "loss")[:3] == logged(runs["SFT"][0], "loss")[:3]
    assert len(logged(trainer, "known_share")) == 3


@pytest.mark.parametrize(("share", "steps"), [(0.0, 1), (0.05, 1), (0.34, 3), (1.0, 6)])
def test_style_steps_are_a_share_of_the_steps_and_at_least_one(tmp_path: Path, share: float, steps: int) -> None:
    trainer, watch = watched(tmp_path, style_share=share, num_train_epochs=2)
    trainer.train()
    assert trainer.style_steps == steps
    assert [detector is not None for detector, _ in watch.steps] == [step >= steps for step in range(6)]


def test_threshold_is_fitted_after_the_style_steps_and_at_each_epoch(tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, style_share=0.1, num_train_epochs=3, learning_rate=0.05)
    trainer.train()
    known = known_before()
    np.testing.assert_array_equal(trainer.known, known)
    now = score(trainer.model, trainer.processing_class, CALIBRATION).decide().correct > 0
    assert (now != known).any()  # the truth is taken before training, not from a model that has changed its mind
    detectors = [detector for detector, _ in watch.steps]
    assert detectors[0] is None
    assert len({detector.threshold for detector in detectors[1:]}) == 3
    for step in (1, 3, 6):  # after the first step, and at the begin of the second and the third epoch
        assert detectors[step].threshold == pytest.approx(fit_detector(watch.steps[step][1], known).threshold, abs=1e-5)
    assert detectors[2] is detectors[1]
    assert detectors[5] is detectors[4] is detectors[3]
    assert logged(trainer, "known_threshold") == pytest.approx([detector.threshold for detector in detectors[1:]])


def test_known_share_is_logged_over_all_questions_of_a_step(tmp_path: Path) -> None:
    # 7 questions in micro-batches of 4 and 3.
    trainer = build(
        "CogCalib",
        tmp_path,
        train=QUESTIONS[:7],
        learning_rate=0.0,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    nll = answer_nll(score(tiny_model(), tiny_tokenizer(), QUESTIONS[:7]))
    share = float(np.mean(nll <= trainer.detector.threshold))
    assert 0 < share < 1
    assert logged(trainer, "known_share") == [pytest.approx(share)]


def test_each_fit_logs_the_detector_and_its_accuracy_on_the_other_half(tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, style_share=0.1, num_train_epochs=2, learning_rate=0.05)
    trainer.train()
    known, ids = known_before(), [question.id for question in CALIBRATION]
    fits = [watch.steps[1], watch.steps[3]]  # after the first step, and at the second epoch's begin
    entries = [entry for entry in trainer.state.log_history if "detector_accuracy" in entry]
    assert [entry["step"] for entry in entries] == [1, 3]
    for entry, (detector, nll) in zip(entries, fits, strict=True):
        assert entry["detector_threshold"] == detector.threshold
        assert entry["detector_known_share"] == np.mean(nll <= detector.threshold)
        assert entry["detector_true_share"] == known.mean()
        assert entry["detector_accuracy"] == detector_accuracy(ids, nll, known)
    assert len(logged(trainer, "loss")) == 6  # and no other log is lost


def test_refresh_once_keeps_the_first_threshold(tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, style_share=0.1, num_train_epochs=3, learning_rate=0.05, refresh="once")
    trainer.train()
    assert [detector is not None for detector, _ in watch.steps] == [False] + [True] * 8
    assert len({id(detector) for detector, _ in watch.steps[1:]}) == 1
    assert len(logged(trainer, "detector_accuracy")) == 1


def outputs_of(trainer: Any, questions: list[Any]) -> AnswerOutputs:
    inputs = trainer.data_collator(list(trainer._evaluated(questions)))
    return trainer.compute_loss(trainer.model, inputs, return_outputs=True)[1]


@pytest.mark.parametrize("penalty", ["label-smoothing", "margin", "entropy"])
@pytest.mark.parametrize("where", ["options", "vocabulary"])
def test_penalties_equal_an_independent_implementation(tmp_path: Path, penalty: str, where: str) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    trainer = build("CogCalib", tmp_path, model=model, penalty=penalty, penalty_on=where, penalty_weight=0.3)
    trainer.detector = Detector(math.inf, 1.0, math.nan)
    expected, lengths = [], set()
    with torch.no_grad():
        outputs = outputs_of(trainer, QUESTIONS)
        for question in QUESTIONS:
            options = plain_option_logits(model, tokenizer, question)
            plain = functional.cross_entropy(options, torch.tensor(question.answer)).item()
            if where == "options":
                penalties = [term(penalty, options, question.answer)]
            else:
                prompt = render(question, tokenizer)
                logits, tokens = answer_logits(model, tokenizer, prompt.text, prompt.continuations[question.answer])
                penalties = [term(penalty, row, token) for row, token in zip(logits, tokens.tolist(), strict=True)]
                lengths.add(len(penalties))
            expected.append(plain + 0.3 * np.mean(penalties))
    assert where == "options" or len(lengths) > 1  # answers of several lengths are averaged over their tokens
    np.testing.assert_allclose(trainer.question_losses(outputs), expected, rtol=1e-5, atol=1e-5)


def test_vocabulary_label_smoothing_is_torchs_own(tmp_path: Path) -> None:
    trainer = build("CogCalib", tmp_path, penalty_on="vocabulary", smoothing=0.25)
    trainer.detector = Detector(math.inf, 1.0, math.nan)
    outputs = outputs_of(trainer, QUESTIONS)
    logits, tokens, rows = outputs.answer_token_logits()
    each = functional.cross_entropy(logits, tokens, label_smoothing=0.25, reduction="none")
    expected = torch.stack([each[rows == i].mean() for i in range(len(QUESTIONS))])
    penalty = trainer.question_losses(outputs) - trainer.answer_losses(outputs)
    torch.testing.assert_close(penalty, expected, rtol=1e-5, atol=1e-5)


def hand_outputs(option_logits: Tensor, labels: list[int]) -> AnswerOutputs:
    nothing = torch.zeros(0)
    return AnswerOutputs(nothing, option_logits, torch.tensor(labels), nothing, nothing, None)


@pytest.mark.parametrize("penalty", ["label-smoothing", "margin", "entropy"])
def test_only_known_questions_are_penalised(tmp_path: Path, penalty: str) -> None:
    trainer = build("CogCalib", tmp_path, penalty=penalty, penalty_weight=2.0, margin=1.0)
    # −log p of the answer: ln(1 + e⁻³) = 0.049, the same at the threshold, ln(1 + e³) = 3.05, and the first with K = 3.
    rows = [[3.0, 0.0, -math.inf], [0.0, 3.0, -math.inf], [3.0, 0.0, -math.inf], [3.0, 0.0, 1.0]]
    labels = [0, 1, 1, 0]
    logits = torch.tensor(rows, requires_grad=True)
    at = -torch.tensor([3.0, 0.0]).log_softmax(-1)[0].item()
    trainer.detector = Detector(at + 1e-6, 1.0, 1.0)
    losses = trainer.question_losses(hand_outputs(logits, labels))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    plain = trainer.answer_losses(hand_outputs(logits, labels))
    (plain_gradient,) = torch.autograd.grad(plain.sum(), logits)
    known = [True, True, False, False]
    for i, question in enumerate(known):
        present = logits[i].detach()[torch.isfinite(logits[i])]
        extra = 2.0 * term(penalty, present, labels[i], margin=1.0) if question else 0.0
        assert losses[i].item() == pytest.approx(plain[i].item() + extra, abs=1e-6)
        assert torch.equal(gradient[i], plain_gradient[i]) is not question
    assert not gradient[:3, 2].any()  # no such option
    trainer.detector = Detector(-math.inf, math.nan, 1.0)
    torch.testing.assert_close(trainer.question_losses(hand_outputs(logits, labels)), plain)


@pytest.mark.parametrize("penalty", ["label-smoothing", "margin", "entropy"])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_stay_finite(tmp_path: Path, penalty: str, label: int) -> None:
    trainer = build("CogCalib", tmp_path, penalty=penalty)
    trainer.detector = Detector(math.inf, 1.0, math.nan)
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, -math.inf]], requires_grad=True)
    losses = trainer.question_losses(hand_outputs(logits, [label, label]))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


def test_training_again_starts_plain_and_keeps_the_truth(tmp_path: Path) -> None:
    trainer, watch = watched(tmp_path, style_share=0.5, num_train_epochs=2, learning_rate=0.05)
    trainer.train()
    before = weights(trainer.model)
    watch.steps.clear()
    trainer.train()
    np.testing.assert_array_equal(trainer.known, known_before())
    assert [detector is None for detector, _ in watch.steps] == [True] * 3 + [False] * 3
    assert any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("smoothing", 2),
        ("smoothing", -0.1),
        ("penalty_weight", -1.0),
        ("penalty_weight", math.inf),
        ("margin", math.nan),
        ("style_share", 1.5),
        ("penalty", "brier"),
        ("penalty_on", "letters"),
        ("refresh", "never"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{setting} must .*got '?{value}"):
        CogCalibConfig(str(tmp_path), activation_checkpointing=False, **{setting: value})


def test_calibration_questions_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration questions, got none"):
        build("CogCalib", tmp_path, calibration=[])
