"""What the authors' released RCFT code computes (ZhanliangAaronWang/RestoreLLMCalibration), restated with its flaws.

Names in brackets are theirs. Every question has the letters A to D, whatever its options are; `p` (N, 4) are their
probabilities. With other constants or any number of options it would no longer be the released code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl import SFTTrainer

EDGES = torch.tensor(np.linspace(0.0, 1.0, 10, endpoint=False))  # [get_adaptive_bins] 0, 0.1, …, 0.9
PADDED_TO = 2048  # [max_seq_length] of each row that accuracy is measured on


def letter_probabilities(logits: Tensor, tokenizer: Any) -> Tensor:
    """Of the letters A to D at the position before a row's last; `logits` (B, T, V)."""
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    return logits[:, -2, letters].softmax(-1)


def bins(p: Tensor) -> Tensor:
    """Bin 0 to 9 of each question, closed on the left; () for a single question, as they squeeze it."""
    return torch.bucketize(p.max(-1, keepdim=True).values.double(), EDGES, right=True).squeeze() - 1


def e_step(p: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """[accuracy_all_sample, nan_to_num] Accuracy, 0 where there is nothing, and count of each bin."""
    is_answer = torch.zeros(p.shape, dtype=torch.bool)
    is_answer[torch.arange(len(p)), answers] = True
    right = is_answer.gather(-1, p.argmax(-1, keepdim=True))[:, 0]
    index = bins(p).reshape(-1)
    count = torch.bincount(index, minlength=10)
    return (torch.bincount(index, right.double(), 10) / count).nan_to_num(), count


def target(accuracy: Tensor, others: Tensor) -> Tensor:
    """[not_max_target_confidence] of the three that are not on top, in descending order."""
    if accuracy == 1:
        return torch.zeros_like(others)
    gamma = math.log(3) / others[:, 0].unsqueeze(-1) * (1 / (1 - accuracy))
    share = torch.tanh(gamma * others)
    alpha = (1 - accuracy) / (share.sum(-1).unsqueeze(-1) + 3)
    return alpha * share + alpha


def calibration_loss(p: Tensor, accuracy: Tensor, count: Tensor) -> Tensor:
    """[group_confidences, compute_calibration_loss] Bins of the present p, and only nine of ten."""
    top, others = p.max(-1, keepdim=True).values, p.sort(-1, descending=True).values[:, 1:5]
    index = bins(p)
    loss = torch.zeros((), dtype=p.dtype)
    for k in range(len(EDGES) - 1):
        inside = index == k
        if inside.any():
            asked = target(accuracy[k], others[inside])
            squares = (top[inside] - accuracy[k]).square().sum() + (others[inside] - asked).square().sum()
            loss = loss + squares / count[k]
    return loss


def total_loss(answer: Any, calibration: Any, alpha: float) -> Any:
    """[compute_loss] `alpha` is 0.5 by default, and 0 or 1 in the scripts."""
    return (1 - alpha) * answer + alpha * calibration * 1e-3


def collate(tokenizer: Any, rows: list[dict[str, list[int]]]) -> Any:
    """[DataCollatorForCompletionOnlyLM] Rows as long as the longest, on the tokenizer's side; only answers count."""
    batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for labels, attended, row in zip(batch["labels"], batch["attention_mask"].bool(), rows, strict=True):
        labels[attended] = torch.tensor(row["labels"])
    return batch


class ReleasedTrainer(SFTTrainer):
    """[CustomCalibrationTrainer] with the accuracy and the counts of an E-step, which it keeps for good."""

    def __init__(self, *args: Any, alpha: float, accuracy: Tensor, count: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha, self.accuracy, self.count = alpha, accuracy, count

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        answer = super().compute_loss(model, inputs)
        p = letter_probabilities(outputs.logits, self.processing_class)
        total = total_loss(answer, calibration_loss(p, self.accuracy, self.count), self.alpha)
        return (total, outputs) if return_outputs else total

    def train(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(int(self.args.num_train_epochs)):
            result = super().train(*args, **kwargs)
        return result
