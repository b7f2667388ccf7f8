"""Tempered fine-tuning: option logits are brought to scale and kept there, and the weights are averaged.

Ours, no paper's. z are the option logits of the weights being trained, z⁰ those before the first step, and z^(i) those
that question i got in its first training step, before it was learned from:

    T = argmin_T Σ_{i in train} −log softmax(z⁰_i / T)_{y_i}          before the first step; then, in the first epoch,
    T = argmin_T Σ_{i in latest} −log softmax(z^(i)_i / T)_{y_i}      after each step (`caltune.tempering`)
    L = −log softmax(z / T)_y
    θ̄ = (1/n) Σ_s θ_s                                                 after each of the n steps

T is fitted on training questions, which are as good as held out as long as the model has not been trained on them. The
trained model is θ̄ with the last T: its option probabilities are softmax(z / T). No calibration questions are needed.
`docs/papers.md` says why this works, the README what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class TemperedConfig(CalibrationConfig):
    """`CalibrationConfig` with all parts on: T fitted, and again in the first epoch, and the average over all steps."""

    option_temperature: float | None = field(
        default=0.0,
        metadata={"help": "T before the first step; 0 fits it to the untrained model's answers to training questions."},
    )
    option_temperature_refit: bool = field(
        default=True,
        metadata={
            "help": "Fit T again after each step of the first epoch, to the answers given before a question was "
            "learned from."
        },
    )
    average_weights: float = field(
        default=1.0, metadata={"help": "Share of the steps, the last ones, whose weights are averaged."}
    )


class TemperedTrainer(CalibrationTrainer):
    """Fine-tuning by the cross-entropy of divided logits; the weights left are those averaged over the steps."""

    _name = "Tempered fine-tuning"
    config_class = TemperedConfig

    def __init__(self, model: Any, args: TemperedConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or TemperedConfig("caltune-output"), **kwargs)
