"""Label smoothing: a share of the target is spread over all options.

Szegedy et al. 2016, *Rethinking the Inception Architecture for Computer Vision* (arXiv 1512.00567), section 7:

    L = (1 − s)·(−log p_y) + s·mean_k(−log p_k)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import label_smoothing_loss
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class LabelSmoothingConfig(CalibrationConfig):
    """How much of the target is spread; over the options or the vocabulary, as `answer_loss` says."""

    smoothing: float = field(default=0.1, metadata={"help": "s, the share of the target that is spread evenly."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing <= 1:
            raise InputError(f"smoothing must be in [0, 1], got {self.smoothing}")


class LabelSmoothingTrainer(CalibrationTrainer):
    """Fine-tuning towards smoothed targets; with `answer_loss="tokens"` at each token of the answer."""

    _name = "Label smoothing"
    config_class = LabelSmoothingConfig

    def __init__(self, model: Any, args: LabelSmoothingConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or LabelSmoothingConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """The smoothed cross-entropy; over the vocabulary it is summed over the answer's tokens."""
        if self.args.answer_loss == "options":
            return label_smoothing_loss(outputs.option_logits, outputs.labels, self.args.smoothing)
        logits, tokens, rows = outputs.answer_token_logits()
        losses = label_smoothing_loss(logits, tokens, self.args.smoothing)
        return losses.new_zeros(len(outputs.labels)).index_add(0, rows, losses)
