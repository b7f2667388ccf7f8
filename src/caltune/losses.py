"""Shared loss terms on tensors of option logits.

Shapes: `option_logits` (B, K), -inf where a question has no such option; `labels` (B,). A `*_loss` or `*_penalty`
returns (B,), unreduced and in natural-log units where it is a log: the trainer owns the mean, so that gradient
accumulation is exact. All are differentiable in the logits, with a zero gradient on missing options.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_loss(option_logits: Tensor, labels: Tensor) -> Tensor:
    """−log p_y under the softmax over the options; 0 is best, ln K is a guess among K.

    >>> cross_entropy_loss(torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([0, 1]))  # ln 2, twice
    tensor([0.6931, 0.6931])
    """
    return -option_logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def label_smoothing_loss(option_logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """(1 − s)·(−log p_y) + s·mean_k(−log p_k), the mean over the options a question has (Szegedy et al. 2016, eq. 3).

    Least when p_y = 1 − s + s/K; unlike cross-entropy it grows without bound as p_y → 1.

    >>> label_smoothing_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # ln 2 whatever the smoothing
    tensor([0.6931])
    """
    present = _present(option_logits)
    logs = _finite(option_logits.log_softmax(-1), present)
    uniform = -logs.sum(-1) / present.sum(-1)
    return (1 - smoothing) * -logs.gather(-1, labels[:, None])[:, 0] + smoothing * uniform


def margin_penalty(option_logits: Tensor, margin: float = 10.0) -> Tensor:
    """mean_k max(0, max_j z_j − z_k − m): pulls down the lead of the top logit where it exceeds m.

    Liu et al. 2022, *The Devil is in the Margin*, eq. 8. The published m = 10 suits vocabulary logits; over options
    it seldom acts, so 1 to 6 are worth trying.

    >>> margin_penalty(torch.tensor([[5.0, 0.0, 4.0]]), margin=2.0)  # (0 + 3 + 0) / 3
    tensor([1.])
    """
    present = _present(option_logits)
    lead = option_logits.max(-1, keepdim=True).values - _finite(option_logits, present)
    excess = (lead - margin).clamp(min=0).masked_fill(~present, 0.0)
    return excess.sum(-1) / present.sum(-1)


def entropy_penalty(option_logits: Tensor) -> Tensor:
    """−H(p) = Σ_k p_k log p_k: adding it rewards entropy (Pereyra et al. 2017, eq. 1). From −ln K up to 0.

    A sum, not the mean over options, which would divide the strength by K. Its gradient dies as p → 1.

    >>> entropy_penalty(torch.tensor([[0.0, 0.0]]))  # −ln 2
    tensor([-0.6931])
    """
    logs = _finite(option_logits.log_softmax(-1), _present(option_logits))
    return (logs.exp() * logs).sum(-1)  # a missing option has log 0 here, so it adds exp(0) · 0


def _present(option_logits: Tensor) -> Tensor:
    return option_logits > -torch.inf


def _finite(values: Tensor, present: Tensor) -> Tensor:
    """Zero where an option is missing: -inf would turn into nan in the gradient."""
    return torch.where(present, values, torch.zeros_like(values))
