"""Confidence penalty: entropy of the options' distribution is rewarded.

Pereyra et al. 2017, *Regularizing Neural Networks by Penalizing Confident Output Distributions* (arXiv 1701.06548),
section 3:

    L = L_SFT − β·H(p)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import entropy_penalty
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class EntropyConfig(CalibrationConfig):
    """β, over the options."""

    penalty_weight: float = field(default=0.1, metadata={"help": "β, how much a nat of entropy is worth."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty_weight < math.inf:
            raise InputError(f"penalty_weight must be at least 0 and finite, got {self.penalty_weight}")


class EntropyTrainer(CalibrationTrainer):
    """Fine-tuning with the entropy penalty."""

    _name = "Confidence penalty"
    config_class = EntropyConfig

    def __init__(self, model: Any, args: EntropyConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or EntropyConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_SFT − β·H."""
        penalty = entropy_penalty(outputs.option_logits)
        self.record("calibration_penalty", penalty)
        return self.answer_losses(outputs) + self.args.penalty_weight * penalty
