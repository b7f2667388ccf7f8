"""Focal loss: cross-entropy that fades on what is already answered well.

Lin et al. 2017, *Focal Loss for Dense Object Detection* (arXiv 1708.02002), eq. 4; for calibration Mukhoti et al. 2020,
*Calibrating Deep Neural Networks using Focal Loss* (arXiv 2002.09437):

    L = (1 − p_y)^γ·(−log p_y)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import focal_loss
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class FocalConfig(CalibrationConfig):
    """γ; p is over the options or the vocabulary, as `answer_loss` says."""

    gamma: float = field(default=2.0, metadata={"help": "γ, how fast the loss fades as p_y grows; 0 is plain."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"gamma must be at least 0 and finite, got {self.gamma}")


class FocalTrainer(CalibrationTrainer):
    """Fine-tuning with the focal loss; with `answer_loss="tokens"` at each token of the answer."""

    _name = "Focal loss"
    config_class = FocalConfig

    def __init__(self, model: Any, args: FocalConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or FocalConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """The focal loss; over the vocabulary it is summed over the answer's tokens."""
        if self.args.answer_loss == "options":
            return focal_loss(outputs.option_logits, outputs.labels, self.args.gamma)
        logits, tokens, rows = outputs.answer_token_logits()
        losses = focal_loss(logits, tokens, self.args.gamma)
        return losses.new_zeros(len(outputs.labels)).index_add(0, rows, losses)
