"""Mixup of hidden states: between two questions the answer is to be between their answers.

Zhang et al. 2018, *mixup* (arXiv 1710.09412), on the last hidden state as in Verma et al. 2019, *Manifold Mixup* (arXiv
1806.05236), and, for text, Zhang, Vaidya 2021 (arXiv 2102.11402):

    h = λ·h_i + (1 − λ)·h_j,   λ ~ Beta(α, α),   L = λ·CE(W h, y_i) + (1 − λ)·CE(W h, y_j)

h_i is the hidden state before the output head W where question i's letter is predicted. W is linear, so that W h is the
same mixture of the two questions' vocabulary logits, and no second pass is needed. With an option temperature T the
letters' logits are W h / T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.losses import cross_entropy_loss
from caltune.trainer import CalibrationConfig, CalibrationTrainer


@dataclass
class MixupConfig(CalibrationConfig):
    """α, for letters only: one hidden state answers such a question, while the options' texts have many."""

    answers: str = field(default="letters", metadata={"help": "Must be letters: texts of options cannot be mixed."})
    mixup_alpha: float = field(
        default=0.4,
        metadata={"help": "α of the Beta distribution of shares; 0 is plain, at 1 all shares are equally likely."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answers != "letters":
            why = "mixup mixes the one hidden state that predicts a letter, and an option's text has many"
            raise InputError(f"answers must be letters, got {self.answers!r}: {why}")
        if not 0 <= self.mixup_alpha < math.inf:
            raise InputError(f"mixup_alpha must be at least 0 and finite, got {self.mixup_alpha}")


class MixupTrainer(CalibrationTrainer):
    """Fine-tuning on mixtures: each question with another of its micro-batch, in a share of its own."""

    _name = "Mixup"
    config_class = MixupConfig

    def __init__(self, model: Any, args: MixupConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args or MixupConfig("caltune-output"), **kwargs)

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """The loss of each mixture; partners and shares come from torch's global generator."""
        alpha, count = self.args.mixup_alpha, len(outputs.labels)
        if alpha == 0:
            return self.answer_losses(outputs)
        ends = torch.tensor(alpha, dtype=torch.float64)
        share = torch.distributions.Beta(ends, ends).sample((count,)).to(outputs.labels.device, torch.float32)
        partner = torch.randperm(count).to(outputs.labels.device)
        return mixed_losses(outputs, share, partner, self.args.answer_loss)


def mixed_losses(outputs: AnswerOutputs, share: Tensor, partner: Tensor, answer_loss: str = "options") -> Tensor:
    """λ·CE(mixture, own answer) + (1 − λ)·CE(mixture, partner's answer), (B,).

    `share` (B,) is λ, `partner` (B,) a row each. Each cross-entropy is over the options that its own question has, or
    over the vocabulary. With share 1 this is plain fine-tuning.
    """
    batch, shape = outputs.batch, outputs.option_logits.shape
    tokens = batch.target_tokens.new_zeros(shape.numel())
    tokens = tokens.index_copy(0, batch.target_options, batch.target_tokens).view(shape)
    places = batch.target_positions.new_zeros(shape.numel())
    places = places.index_copy(0, batch.target_options, batch.target_positions).view(shape)[:, 0]
    own = outputs.logits[places].float()
    mixture = share[:, None] * own + (1 - share)[:, None] * own[partner]

    def towards(rows: Tensor) -> Tensor:
        if answer_loss == "tokens":
            return cross_entropy_loss(mixture, tokens[rows].gather(-1, outputs.labels[rows, None])[:, 0])
        letters = mixture.gather(-1, tokens[rows]) / outputs.temperature
        letters = letters.masked_fill(batch.option_lengths[rows] == 0, -torch.inf)
        return cross_entropy_loss(letters, outputs.labels[rows])

    return share * towards(torch.arange(len(partner), device=partner.device)) + (1 - share) * towards(partner)
