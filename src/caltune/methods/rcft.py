"""RCFT: supervised fine-tuning with a regulariser that moves confidence to the accuracy of its bin.

Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models* (arXiv 2505.01997), section 4.3:

    L = L_SFT + λ·L_ECE
    L_ECE = Σ_m (1/N_m) Σ_{i in bin m} [ (p_(1) − A_m)² + Σ_{j≥2} (p_(j) − t_j)² ]
    t_j = (1 − A_m)·[1 + tanh(γ p_(j))] / Σ_{l≥2} [1 + tanh(γ p_(l))],   γ = ln(K−1) / (p_(2)·(1 − A_m))

E-step: every training question goes to one of M bins by its present confidence, A_m is the accuracy of bin m, N_m its
size. M-step: train with these fixed. `docs/papers.md` lists where this departs from the paper and from its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.metrics.ece import width_index
from caltune.trainer import CalibrationConfig, CalibrationTrainer, require
from caltune.types import FloatArray, Predictions


@dataclass
class RCFTConfig(CalibrationConfig):
    """λ, the bins, and where their accuracy comes from."""

    calibration_weight: float = field(
        default=1.0,
        metadata={"help": "λ: weight of the calibration term beside the mean cross-entropy of a question."},
    )
    bin_accuracy_source: str = field(
        default="train",
        metadata={
            "help": "Questions that A_m is measured on: train (the paper; A_m → 1 as they are memorised) or held-out "
            "(the calibration questions, never trained on)."
        },
    )
    bins: int = field(default=10, metadata={"help": "M, the number of equal-width confidence bins."})
    bin_weights: str = field(
        default="equal",
        metadata={
            "help": "equal: every filled bin counts the same (the paper's 1/N_m). count: every question counts the "
            "same, as in the ECE, so that L_ECE is a mean over questions."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require("bin_accuracy_source", self.bin_accuracy_source, ("train", "held-out"))
        require("bin_weights", self.bin_weights, ("equal", "count"))
        if self.bins < 1:
            raise InputError(f"bins must be at least 1, got {self.bins}")
        if not 0 <= self.calibration_weight < math.inf:
            raise InputError(f"calibration_weight must be at least 0 and finite, got {self.calibration_weight}")


class RCFTTrainer(CalibrationTrainer):
    """Supervised fine-tuning with the regulariser; the E-step is taken at each epoch's begin."""

    _name = "RCFT"

    def __init__(self, model: Any, args: RCFTConfig | None = None, **kwargs: Any) -> None:
        args = args or RCFTConfig("caltune-output")
        super().__init__(model, args, **kwargs)
        if args.bin_accuracy_source == "held-out" and not self.calibration_questions:
            raise InputError("bin_accuracy_source 'held-out' needs calibration questions, got none")
        self.targets = torch.zeros(0)
        self.weights = torch.zeros(0)

    def refresh(self) -> None:
        """E-step: each training question's A_m and weight under the present model."""
        args: RCFTConfig = self.args
        train = self.present_logits(self.train_dataset).decide()
        source = train
        if args.bin_accuracy_source == "held-out":
            source = self.present_logits(self.calibration_rows).decide()
        bins = width_index(train.confidence, args.bins)
        targets = bin_accuracy(source, args.bins)[bins]
        sizes = np.bincount(bins, minlength=args.bins)[bins]
        weights = len(bins) / sizes if args.bin_weights == "equal" else np.ones(len(bins))
        self.targets = torch.tensor(targets, dtype=torch.float32, device=self.accelerator.device)
        self.weights = torch.tensor(weights, dtype=torch.float32, device=self.accelerator.device)

    def method_state(self) -> dict[str, Any]:
        return {"targets": self.targets.tolist(), "weights": self.weights.tolist()}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        self.targets = torch.tensor(state["targets"], device=self.accelerator.device)
        self.weights = torch.tensor(state["weights"], device=self.accelerator.device)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_SFT + λ·N·(1/N_m)·[…]: its mean over all training questions is L_SFT + λ·L_ECE exactly."""
        penalty = self.weights[outputs.rows] * bin_penalty(outputs.option_logits, self.targets[outputs.rows])
        self.record("calibration_penalty", penalty)
        return self.answer_losses(outputs) + self.args.calibration_weight * penalty


def bin_accuracy(predictions: Predictions, bins: int) -> FloatArray:
    """A_m of every bin, (M,). An empty bin borrows the gap (accuracy − confidence) of the nearest filled one,
    the lower of two equally near, around its own middle.

    >>> three = Predictions(("a", "b", "c"), np.array([0.95, 0.85, 0.91]), np.array([1.0, 0.0, 0.0]))
    >>> bin_accuracy(three, 10)[[7, 8, 9]].round(2)  # bin 7 is empty: 0.75 + (0 − 0.85), cut at 0
    array([0. , 0. , 0.5])
    """
    index = width_index(predictions.confidence, bins)
    count = np.bincount(index, minlength=bins)
    filled = np.flatnonzero(count)
    accuracy = np.bincount(index, predictions.correct, bins)[filled] / count[filled]
    gap = accuracy - np.bincount(index, predictions.confidence, bins)[filled] / count[filled]
    nearest = np.abs(np.arange(bins)[:, None] - filled[None, :]).argmin(axis=1)
    borrowed = np.clip((np.arange(bins) + 0.5) / bins + gap[nearest], 0.0, 1.0)
    borrowed[filled] = accuracy
    return borrowed


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
