"""CogCalib: a calibration term on the questions the model already knows, plain fine-tuning on the others.

Wang et al. 2025, *Towards Objective Fine-tuning* (arXiv 2505.20903), eq. 7:

    L = L_CE + 1[NLL(answer) ≤ t]·α·L_cal

L_cal is label smoothing (CoLS), a margin (CoMbLS) or an entropy penalty (CoECP). A short warm-up without it adapts the
model to the style of the answers; then t is fitted on calibration questions, and again at each epoch's begin, since
what is known changes. `docs/papers.md` lists where this departs from the paper, which has no public code.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.knowledge import Detector, fit_detector
from caltune.losses import entropy_penalty, label_smoothing_loss, margin_penalty
from caltune.trainer import CalibrationConfig, CalibrationTrainer, require


@dataclass
class CogCalibConfig(CalibrationConfig):
    """Which calibration term, how strong, on which distribution, and the detector."""

    penalty: str = field(
        default="label-smoothing", metadata={"help": "L_cal: label-smoothing (CoLS), margin (CoMbLS), entropy (CoECP)."}
    )
    penalty_weight: float = field(default=1.0, metadata={"help": "α, the weight of L_cal on known questions."})
    penalty_on: str = field(
        default="options",
        metadata={"help": "Softmax that L_cal acts on: the question's options, or the vocabulary at the answer."},
    )
    smoothing: float = field(default=0.1, metadata={"help": "s of label smoothing."})
    margin: float = field(default=2.0, metadata={"help": "m of the margin; the published 10 suits the vocabulary."})
    style_share: float = field(
        default=0.05, metadata={"help": "Share of the steps (at least one) that adapt to the answers' style first."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require("penalty", self.penalty, ("label-smoothing", "margin", "entropy"))
        require("penalty_on", self.penalty_on, ("options", "vocabulary"))
        for name, low, high in (
            ("penalty_weight", 0, math.inf),
            ("smoothing", 0, 1),
            ("margin", 0, math.inf),
            ("style_share", 0, 1),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise InputError(f"{name} must be finite and in [{low}, {high}], got {value}")


class CogCalibTrainer(CalibrationTrainer):
    """Needs calibration questions: the detector's threshold is fitted on them.

    Ground truth of what is known is whether the model's best option is right before the first step.
    """

    _name = "CogCalib"

    def __init__(self, model: Any, args: CogCalibConfig | None = None, **kwargs: Any) -> None:
        args = args or CogCalibConfig("caltune-output")
        super().__init__(model, args, **kwargs)
        if not self.calibration_questions:
            raise InputError("cogcalib fits its detector on calibration questions, got none")
        self.known = np.zeros(0, dtype=bool)
        self.detector: Detector | None = None
        self.add_callback(_AfterStyle(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Note what the model knows before it learns anything; a checkpoint brings its own note."""
        if not len(self.known):
            self.known = self.present_logits(self.calibration_rows).decide().correct > 0
        self.detector = None
        return super().train(*args, **kwargs)

    @property
    def style_steps(self) -> int:
        """Optimizer steps of plain fine-tuning before the calibration term sets in."""
        return max(1, math.ceil(self.args.style_share * self.state.max_steps))

    def refresh(self) -> None:
        """Fit the detector anew, once the style has been adapted."""
        if self.state.global_step >= self.style_steps:
            nll = -self.present_logits(self.calibration_rows).log_probabilities()
            answer = nll[np.arange(len(nll)), self.calibration_rows["label"]]
            self.detector = fit_detector(answer, self.known)

    def method_state(self) -> dict[str, Any]:
        return {"known": self.known.tolist(), "detector": self.detector and asdict(self.detector)}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        self.known = np.array(state["known"], dtype=bool)
        self.detector = Detector(**state["detector"]) if state["detector"] else None

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_CE, and α·L_cal where the answer's NLL says that it is known."""
        losses = self.answer_losses(outputs)
        if self.detector is None:
            return losses
        answer = -outputs.option_logits.detach().log_softmax(-1).gather(-1, outputs.labels[:, None])[:, 0]
        known = (answer <= self.detector.threshold).to(losses.dtype)
        penalty = known * self._penalty(outputs)
        self.record("known_share", known)
        self.record("known_threshold", known.new_tensor(self.detector.threshold))
        self.record("calibration_penalty", penalty)
        return losses + self.args.penalty_weight * penalty

    def _penalty(self, outputs: AnswerOutputs) -> Tensor:
        if self.args.penalty_on == "options":
            return self._term(outputs.option_logits, outputs.labels)
        logits, tokens, rows = outputs.answer_token_logits()
        terms = self._term(logits, tokens)
        count = torch.bincount(rows, minlength=len(outputs.labels))
        return terms.new_zeros(len(outputs.labels)).index_add(0, rows, terms) / count

    def _term(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.args.penalty == "label-smoothing":
            return label_smoothing_loss(logits, labels, self.args.smoothing)
        if self.args.penalty == "margin":
            penalty = margin_penalty(logits, self.args.margin)
            self.record("margin_active", penalty > 0)
            return penalty
        return entropy_penalty(logits)


class _AfterStyle(TrainerCallback):
    def __init__(self, trainer: CogCalibTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.trainer.style_steps:
            self.trainer.refresh()
