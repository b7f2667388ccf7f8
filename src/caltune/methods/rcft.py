"""RCFT: supervised fine-tuning with a regulariser that moves confidence to the accuracy of its bin.

Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models* (arXiv 2505.01997), section 4.3:

    L = L_SFT + λ·L_ECE
    L_ECE = Σ_m (1/N_m) Σ_{i in bin m} [ (p_(1) − A_m)² + Σ_{j≥2} (p_(j) − t_j)² ]
    t_j = (1 − A_m)·[1 + tanh(γ p_(j))] / Σ_{l≥2} [1 + tanh(γ p_(l))],   γ = ln(K−1) / (p_(2)·(1 − A_m))

E-step: every training question goes to one of M bins by its present confidence, A_m is the accuracy of bin m, N_m its
size. M-step: train with these fixed. The paper's L_SFT = −log π(prompt, answer) is `answer_loss="tokens"` with
`question_loss_weight=1`, its 1/N_m is `bin_weights="equal"`; by default all questions weigh 1/N, as in the ECE.
`docs/papers.md` lists where this departs from the paper and from its code.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from caltune.collator import AnswerOutputs
from caltune.errors import InputError, require
from caltune.methods.accuracy_curve import accuracy_at, bin_accuracy, smooth_accuracy
from caltune.metrics.ece import width_index
from caltune.trainer import CalibrationConfig, CalibrationTrainer
from caltune.types import FloatArray, Predictions

__all__ = ["RCFTConfig", "RCFTTrainer", "bin_accuracy", "bin_penalty", "rank_preserving_target"]


@dataclass
class RCFTConfig(CalibrationConfig):
    """λ, the bins, where their accuracy comes from, and when it is measured."""

    calibration_weight: float = field(
        default=1.0,
        metadata={"help": "λ: weight of the calibration term beside the mean cross-entropy of a question."},
    )
    bin_accuracy_source: str = field(
        default="train",
        metadata={
            "help": "Answers that A_m is measured on: train (the paper; A_m → 1 as they are memorised), held-out (the "
            "calibration questions), first-pass (each training question before it was first trained on) or "
            "cross-fitted (each by a model trained without it, `folds` of them; 2 folds cost one more training)."
        },
    )
    folds: int = field(default=2, metadata={"help": "Parts that cross-fitted cuts the training questions into."})
    bins: int = field(default=10, metadata={"help": "M, the number of equal-width confidence bins."})
    bin_targets: str = field(
        default="binned",
        metadata={
            "help": "binned: a question's target is the accuracy of its bin. smooth: the accuracy at its confidence, "
            "by kernel regression with a width of half a bin."
        },
    )
    bin_weights: str = field(
        default="count",
        metadata={
            "help": "count: every question counts the same, as in the ECE, so that L_ECE is a mean over questions. "
            "equal: every filled bin counts the same (the paper's 1/N_m), which makes steps noisy."
        },
    )
    refresh: str = field(
        default="epoch",
        metadata={
            "help": "When the E-step is taken: once (before the first step, as in the released code), epoch (at each "
            "begin) or steps (before the first step and after every `refresh_steps`)."
        },
    )
    refresh_steps: int = field(default=100, metadata={"help": "Optimizer steps from one E-step to the next."})
    refresh_momentum: float = field(
        default=0.0, metadata={"help": "Share of the old A_m that an E-step keeps; 0 forgets it."}
    )

    fits_under_temperature = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("bin_accuracy_source", self.bin_accuracy_source, ("train", "held-out", "first-pass", "cross-fitted"))
        require("bin_targets", self.bin_targets, ("binned", "smooth"))
        require("bin_weights", self.bin_weights, ("equal", "count"))
        require("refresh", self.refresh, ("once", "epoch", "steps"))
        for name, least in (("bins", 1), ("folds", 2), ("refresh_steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.calibration_weight < math.inf:
            raise InputError(f"calibration_weight must be at least 0 and finite, got {self.calibration_weight}")
        if not 0 <= self.refresh_momentum < 1:
            raise InputError(f"refresh_momentum must be at least 0 and below 1, got {self.refresh_momentum}")
        # The folds' answers are noted once an epoch; a first pass before the first step would be "train".
        schedules = {"cross-fitted": ("epoch",), "first-pass": ("epoch", "steps")}
        if allowed := schedules.get(self.bin_accuracy_source):
            require(f"refresh with bin_accuracy_source {self.bin_accuracy_source}", self.refresh, allowed)


class RCFTTrainer(CalibrationTrainer):
    """Supervised fine-tuning with the regulariser; the E-step is taken as `refresh` says."""

    _name = "RCFT"
    config_class = RCFTConfig

    def __init__(self, model: Any, args: RCFTConfig | None = None, **kwargs: Any) -> None:
        args = args or RCFTConfig("caltune-output")
        super().__init__(model, args, **kwargs)
        if args.bin_accuracy_source == "held-out" and not self.calibration_questions:
            raise InputError("bin_accuracy_source 'held-out' needs calibration questions, got none")
        if args.bin_accuracy_source == "cross-fitted":
            if self.has_ordinary:  # a fold is of questions
                raise InputError("bin_accuracy_source 'cross-fitted' needs questions only to train on")
            if len(self.train_questions) < args.folds:
                raise InputError(f"folds must be at most the {len(self.train_questions)} questions, got {args.folds}")
            if self.accelerator.num_processes > 1:
                raise InputError(f"cross-fitted needs one process, got {self.accelerator.num_processes}")
        device = self.accelerator.device
        self.curve: FloatArray | None = None  # A_m (M,), or the smooth A on its grid
        self.targets = self.weights = torch.zeros(0, device=device)  # A_m of each training question, and what it counts
        # Confidence, and right or wrong, before a question was first trained on; -1 until then.
        self.first_pass = torch.full((len(self.train_questions), 2), -1.0, device=device)
        self.fold_answers: list[Predictions] = []
        self.fits_on_calibration = args.bin_accuracy_source == "held-out"
        untrained = args.bin_accuracy_source in ("first-pass", "cross-fitted")  # a trained model cannot answer for it
        self.state_needed = untrained or args.refresh == "once" or args.refresh_momentum > 0
        self.add_callback(_AfterStep(self))

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Begin with a new E-step, after the trainings of the folds if there are any; a checkpoint brings its own."""
        self.curve, self.targets = None, self.targets[:0]
        if self.args.bin_accuracy_source == "cross-fitted" and not resume_from_checkpoint:
            self.fold_answers = self.cross_fit()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def refresh(self) -> None:
        """At an epoch's begin: an E-step, unless another time is set and there has been one."""
        if self.args.refresh == "epoch" or not len(self.targets):
            self.expectation()

    def expectation(self) -> None:
        """E-step: each training question's A_m and weight under the present model."""
        args: RCFTConfig = self.args
        train = self.present_logits(self.train_rows).decide()
        source = self.source_answers(train)
        smooth = args.bin_targets == "smooth"
        curve = smooth_accuracy(source, 0.5 / args.bins) if smooth else bin_accuracy(source, args.bins)
        if self.curve is not None:
            curve = args.refresh_momentum * self.curve + (1 - args.refresh_momentum) * curve
        self.curve = curve
        bins = width_index(train.confidence, args.bins)
        targets = accuracy_at(curve, train.confidence) if smooth else curve[bins]
        sizes = np.bincount(bins, minlength=args.bins)[bins]
        weights = len(bins) / sizes if args.bin_weights == "equal" else np.ones(len(bins))
        self.targets = torch.tensor(targets, dtype=torch.float32, device=self.accelerator.device)
        self.weights = torch.tensor(weights, dtype=torch.float32, device=self.accelerator.device)

    def source_answers(self, train: Predictions) -> Predictions:
        """The answers that A_m is measured on; `train` are the present ones to the training questions."""
        source = self.args.bin_accuracy_source
        if source == "held-out":
            return self.present_logits(self.calibration_rows).decide()
        if source == "first-pass":  # a question not yet trained on is still held out
            first = self.first_pass.cpu().double().numpy().T
            confidence, correct = np.where(first < 0, [train.confidence, train.correct], first)
            return Predictions(train.ids, confidence, correct)
        if source == "cross-fitted":
            return self.fold_answers[min(int(self.state.epoch or 0), len(self.fold_answers) - 1)]
        return train

    def cross_fit(self) -> list[Predictions]:
        """At each epoch's begin, what models trained without a fold answer to its questions; weights are put back.

        Each model is trained as this one is, with the fold it does not see as its held-out questions. With `max_steps`
        folds of different sizes may begin different numbers of epochs; the last answers of a fold then stand on.
        """
        args: RCFTConfig = copy(self.args)
        args.bin_accuracy_source = "held-out"
        args.save_strategy = args.eval_strategy = args.logging_strategy = "no"
        args.load_best_model_at_end, args.eval_on_start, args.report_to = False, False, []
        if args.max_steps > 0:
            args.max_steps = math.ceil(args.max_steps * (1 - 1 / args.folds))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        start = [parameter.detach().clone() for parameter in trained]
        count = len(self.train_questions)
        fold = np.random.default_rng(args.seed).permutation(count) % args.folds
        noted: list[list[Predictions]] = []  # for each fold, of each epoch
        for k in range(args.folds):
            trainer = _FoldTrainer(
                self.model,
                args,
                train_dataset=[self.train_questions[i] for i in np.flatnonzero(fold != k)],
                calibration_dataset=[self.train_questions[i] for i in np.flatnonzero(fold == k)],
                processing_class=self.processing_class,
            )
            trainer.train()
            with torch.no_grad():
                for parameter, before in zip(trained, start, strict=True):
                    parameter.copy_(before)
                    parameter.grad = None
            noted.append(trainer.held_out)
        answers = np.empty((max(map(len, noted)), 2, count))
        for epoch, both in enumerate(answers):
            for k, held_out in enumerate(noted):
                last = held_out[min(epoch, len(held_out) - 1)]
                both[:, fold == k] = last.confidence, last.correct
        return [Predictions(tuple(map(str, range(count))), *both) for both in answers]

    def state_rests_on(self) -> dict[str, Any]:
        names = ["bin_accuracy_source", "bins", "bin_targets", "bin_weights"]
        if self.args.bin_accuracy_source == "cross-fitted":  # the folds have answered for these epochs only
            names += ["folds", "num_train_epochs", "max_steps"]
        return {name: vars(self.args)[name] for name in names}

    def method_state(self) -> dict[str, Any]:
        return {
            "curve": None if self.curve is None else self.curve.tolist(),
            "targets": self.targets.tolist(),
            "weights": self.weights.tolist(),
            "first_pass": self.first_pass.tolist(),
            "fold_answers": [[list(answers.confidence), list(answers.correct)] for answers in self.fold_answers],
        }

    def restore_method_state(self, state: dict[str, Any]) -> None:
        for name in ("targets", "weights", "first_pass"):
            setattr(self, name, torch.tensor(state[name], device=self.accelerator.device))
        self.curve = None if state["curve"] is None else np.array(state["curve"])
        ids = tuple(map(str, range(len(self.train_questions))))
        self.fold_answers = [Predictions(ids, *answers) for answers in state["fold_answers"]]

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_SFT + λ·[…] or L_SFT + λ·N·(1/N_m)·[…]: its mean over all questions is L_SFT + λ·L_ECE exactly."""
        if self.args.bin_accuracy_source == "first-pass":
            self._note_first_pass(outputs)
        targets = self.targets[outputs.rows]
        penalty = self.weights[outputs.rows] * bin_penalty(outputs.option_logits, targets)
        self.record("calibration_penalty", penalty)
        self.record("bin_accuracy", targets)
        return self.answer_losses(outputs) + self.args.calibration_weight * penalty

    def _note_first_pass(self, outputs: AnswerOutputs) -> None:
        confidence, choice = outputs.option_logits.detach().float().softmax(-1).max(-1)
        now = torch.stack([confidence.clamp(max=1), (choice == outputs.labels).float()], dim=-1)
        rows, now = outputs.gathered(self.accelerator, now, uneven=self.has_ordinary)
        before = self.first_pass[rows]
        self.first_pass[rows] = torch.where(before < 0, now, before)


class _AfterStep(TrainerCallback):
    def __init__(self, trainer: RCFTTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if args.refresh == "steps" and state.global_step % args.refresh_steps == 0:
            self.trainer.expectation()


class _FoldTrainer(RCFTTrainer):
    """Keeps the answers to its held-out questions of every E-step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held_out: list[Predictions] = []

    def source_answers(self, train: Predictions) -> Predictions:
        self.held_out.append(super().source_answers(train))
        return self.held_out[-1]


def bin_penalty(option_logits: Tensor, accuracy: Tensor) -> Tensor:
    """(p_(1) − A)² + Σ_{j≥2} (p_(j) − t_j)², (B,): squared distance of p from its rank-preserving target.

    `accuracy` (B,) is A of each question's bin. The target is an E-step quantity and carries no gradient.

    >>> bin_penalty(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0.7]))  # (0.9 − 0.7)² + (0.1 − 0.3)²
    tensor([0.0800])
    """
    p = option_logits.softmax(-1)
    ranked = p.sort(-1, descending=True).values
    target = rank_preserving_target(ranked.detach(), accuracy, (option_logits > -torch.inf).sum(-1))
    return (ranked - target).square().sum(-1)


def rank_preserving_target(ranked: Tensor, accuracy: Tensor, options: Tensor) -> Tensor:
    """A for the top option, and the rest 1 − A shared out as t_j, (B, K), in descending order.

    `ranked` (B, K) are the probabilities in descending order, `options` (B,) how many options a question has.
    """
    rest = 1 - accuracy[:, None]
    second = ranked[:, 1:2].clamp(min=torch.finfo(ranked.dtype).tiny)
    gamma = (options[:, None] - 1).to(ranked.dtype).log() / (second * rest).clamp(min=torch.finfo(ranked.dtype).tiny)
    share = 1 + torch.tanh(gamma * ranked[:, 1:])
    exists = torch.arange(1, ranked.shape[1], device=ranked.device)[None, :] < options[:, None]
    share = share * exists
    return torch.cat([accuracy[:, None], rest * share / share.sum(-1, keepdim=True)], dim=-1)
