"""DECE penalty: the calibration error of the batch itself, made differentiable by soft bins and a soft accuracy.

Bohdal, Yang, Hospedales 2023, *Meta-Calibration* (arXiv 2106.09613), section 3.2:

    L = L_SFT + λ·DECE,   DECE = (1/B) Σ_m |Σ_i w_im (a_i − c_i)|

w_im says how much question i belongs to bin m, a_i how nearly its right option is the top one; `losses.dece_penalty`
has both. The paper's own use, a meta-loss that learns the smoothing, is not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import dece_penalty
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class DECEConfig(CalibrationConfig):
    """λ and the softness of bins and accuracy.

    The error of a small batch is mostly chance: set `per_device_train_batch_size` to 128 or more. Gradient accumulation
    does not help, since each micro-batch has a DECE of its own.
    """

    penalty_weight: float = field(
        default=1.0,
        metadata={"help": "λ, the weight of DECE. It is biased in small batches: use batches of 128 or more."},
    )
    bins: int = field(default=15, metadata={"help": "M, the number of soft confidence bins."})
    accuracy_sharpness: float = field(
        default=100.0, metadata={"help": "τ_a: how sharply a question turns from wrong to right."}
    )
    bin_temperature: float = field(default=0.01, metadata={"help": "τ_b: how softly a question changes its bin."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 1:
            raise InputError(f"bins must be at least 1, got {self.bins}")
        if not 0 <= self.penalty_weight < math.inf:
            raise InputError(f"penalty_weight must be at least 0 and finite, got {self.penalty_weight}")
        for name in ("accuracy_sharpness", "bin_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)}")


class DECETrainer(CalibrationTrainer):
    """Fine-tuning with DECE as a penalty."""

    _name = "DECE penalty"
    config_class = DECEConfig

    def __init__(self, model: Any, args: DECEConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or DECEConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """L_SFT + λ·DECE of the batch, the same for each of its questions."""
        args: DECEConfig = self.args
        penalty = dece_penalty(
            outputs.option_logits, outputs.labels, args.bins, args.accuracy_sharpness, args.bin_temperature
        )
        self.record("calibration_penalty", penalty.expand(len(outputs.labels)))
        return self.answer_losses(outputs) + args.penalty_weight * penalty
