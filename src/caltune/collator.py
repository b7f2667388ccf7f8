"""Between a data set of tokenised questions and a loss: rows to a batch, and a batch after its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from caltune.errors import InputError
from caltune.metrics import accuracy, brier, ece, mean_confidence, nll
from caltune.scoring.engine import encode_questions
from caltune.scoring.packing import EncodedQuestion, PackedBatch, option_logits, pack, token_log_probabilities
from caltune.types import FloatArray, OptionLogits, Question

BATCH_FIELDS = tuple(f.name for f in fields(PackedBatch))
ROW_TOKENS = 512  # questions share rows of this length, so that mixed lengths leave little padding


@dataclass(frozen=True, slots=True)
class AnswerOutputs:
    """One batch after the forward pass: what losses are made of.

    `rows` (B,) index the training questions; `option_logits` (B, K), divided by `temperature`, the model's own;
    `labels` (B,); `answer_nll` (B,), the answer's −log π(answer | prompt) summed over its tokens; `logits` (P, V), not
    divided, and `batch` for terms over the vocabulary.
    """

    rows: Tensor
    option_logits: Tensor
    labels: Tensor
    answer_nll: Tensor
    logits: Tensor
    batch: PackedBatch
    temperature: float = 1.0

    def answer_token_logits(self) -> tuple[Tensor, Tensor, Tensor]:
        """Vocabulary logits (A, V), token ids (A,) and batch row (A,) of the right answers' tokens."""
        width = self.option_logits.shape[1]
        owner = self.batch.target_options // width
        chosen = self.batch.target_options % width == self.labels[owner]
        return (
            self.logits[self.batch.target_positions[chosen]].float(),
            self.batch.target_tokens[chosen],
            owner[chosen],
        )


def answer_outputs(
    logits: Tensor, inputs: dict[str, Tensor], batch: PackedBatch, reduction: str, temperature: float = 1.0
) -> AnswerOutputs:
    """The batch's `AnswerOutputs` from the vocabulary logits (P, V) of its forward pass."""
    tokens = token_log_probabilities(logits, batch)
    options = option_logits(tokens, batch, reduction)
    sums = options if reduction == "sum" else option_logits(tokens, batch)
    labels = inputs["labels"]
    return AnswerOutputs(
        rows=inputs["rows"],
        option_logits=options / temperature,
        labels=labels,
        answer_nll=-sums.gather(-1, labels[:, None])[:, 0],
        logits=logits,
        batch=batch,
        temperature=temperature,
    )


@dataclass(frozen=True, slots=True)
class AnswerCollator:
    """Rows of tokenised questions -> a `PackedBatch` as a dict, which is what `Trainer` moves between devices."""

    pad_id: int
    options: int

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        encoded = [encoded_row(feature) for feature in features]
        batch = pack(encoded, self.pad_id, options=self.options, row_tokens=ROW_TOKENS)
        return {
            **{name: getattr(batch, name) for name in BATCH_FIELDS},
            "labels": torch.tensor([feature["label"] for feature in features]),
            "rows": torch.tensor([feature["row"] for feature in features]),
        }


def evaluation_metrics(logits: FloatArray, labels: NDArray[np.integer]) -> dict[str, float]:
    """Accuracy, mean confidence, ECE, Brier score and NLL of option logits (N, K) and labels (N,)."""
    scores = OptionLogits(tuple(map(str, range(len(labels)))), logits, labels)
    decided = scores.decide()
    return {
        "accuracy": accuracy(decided),
        "confidence": mean_confidence(decided),
        "ece": ece(decided),
        "brier": brier(scores),
        "nll": nll(scores),
    }


def require_apart(train: Sequence[Question], held_out: Sequence[Question]) -> None:
    """Raise `InputError` without training questions, or when one of them, by its id, is held out too."""
    if not train:
        raise InputError("train_dataset must hold at least one question, got none")
    kept_out = {question.id for question in held_out}
    shared = [question.id for question in train if question.id in kept_out]
    if shared:
        raise InputError(f"{len(shared)} training questions are also held out, the first is id {shared[0]!r}")


def question_rows(
    questions: Sequence[Question], tokenizer: Any, *, answers: Any, template: Any, context: int | None
) -> Dataset:
    """Questions as a data set of token ids, labels and row numbers.

    Raises `InputError` for a question without an answer, and what `encode_questions` raises.
    """
    unlabelled = [q.id for q in questions if q.answer is None]
    if unlabelled:
        raise InputError(f"{len(unlabelled)} questions have no answer, the first is id {unlabelled[0]!r}")
    encoded = encode_questions(questions, tokenizer, answers=answers, template=template, context=context)
    return Dataset.from_dict(
        {
            "prompt_ids": [list(item.prompt) for item in encoded],
            "option_ids": [[list(option) for option in item.options] for item in encoded],
            "label": [q.answer for q in questions],
            "row": list(range(len(encoded))),
        }
    )


def encoded_row(row: dict[str, Any]) -> EncodedQuestion:
    """A tokenised row of a data set as `EncodedQuestion`."""
    return EncodedQuestion(prompt=tuple(row["prompt_ids"]), options=tuple(map(tuple, row["option_ids"])))
