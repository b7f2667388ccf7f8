"""Brier loss: squared distance between the options' probabilities and the truth, in place of their log.

Brier 1950, *Verification of Forecasts Expressed in Terms of Probability*; a baseline of Mukhoti et al. 2020
(arXiv 2002.09437) as a training loss:

    L = (1 − b)·L_SFT + b·Σ_k (p_k − 1[k = y])²
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import brier_loss
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class BrierConfig(CalibrationConfig):
    """How much of the loss is the Brier score; the rest is the answer loss."""

    brier_share: float = field(
        default=1.0, metadata={"help": "b: 1 is the Brier score alone, 0 plain fine-tuning, between them a mixture."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.brier_share <= 1:
            raise InputError(f"brier_share must be in [0, 1], got {self.brier_share}")


class BrierTrainer(CalibrationTrainer):
    """Fine-tuning on the Brier score over the options."""

    _name = "Brier loss"
    config_class = BrierConfig

    def __init__(self, model: Any, args: BrierConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or BrierConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """(1 − b)·L_SFT + b·Brier."""
        share = self.args.brier_share
        return (1 - share) * self.answer_losses(outputs) + share * brier_loss(outputs.option_logits, outputs.labels)
