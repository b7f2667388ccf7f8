"""Margin-based label smoothing: the lead of the top logit is pulled down where it exceeds a margin.

Liu, Ben Ayed, Galdran, Dolz 2022, *The Devil is in the Margin* (arXiv 2111.15430), eq. 8:

    L = L_SFT + λ·mean_k max(0, max_j z_j − z_k − m)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import margin_penalty
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class MarginConfig(CalibrationConfig):
    """λ and m, both over the options."""

    penalty_weight: float = field(default=0.1, metadata={"help": "λ, the weight of the margin penalty."})
    margin: float = field(
        default=2.0, metadata={"help": "m, a lead in nats that costs nothing; the published 10 suits the vocabulary."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("penalty_weight", "margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")


class MarginTrainer(CalibrationTrainer):
    """Fine-tuning with the margin penalty; logs the share of questions whose lead exceeds the margin."""

    _name = "Margin-based label smoothing"
    config_class = MarginConfig

    def __init__(self, model: Any, args: MarginConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or MarginConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_SFT + λ·penalty."""
        penalty = margin_penalty(outputs.option_logits, self.args.margin)
        self.record("calibration_penalty", penalty)
        self.record("margin_active", penalty > 0)
        return self.answer_losses(outputs) + self.args.penalty_weight * penalty
