"""Between a data set of tokenised questions and a loss: rows to a batch, and a batch after its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable
from torch import Tensor
from transformers import EvalPrediction

from caltune.errors import InputError
from caltune.examples import PLACE, Examples
from caltune.metrics import accuracy, brier, ece, mean_confidence, nll
from caltune.scoring.engine import encode_questions
from caltune.scoring.packing import EncodedQuestion, PackedBatch, option_logits, pack, token_log_probabilities
from caltune.types import OptionLogits

BATCH_FIELDS = tuple(f.name for f in fields(PackedBatch))
ROW_TOKENS = 512  # questions share rows of this length, so that mixed lengths leave little padding
LENGTH = "length"  # what `group_by_length` looks for
COLUMNS = ("prompt_ids", "option_ids", "label", "row", "input_ids", "labels", LENGTH)  # what a batch is made of
ORDINARY = -1  # the label of a row that is no question


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

    def gathered(self, accelerator: Any, values: Tensor, *, uneven: bool) -> tuple[Tensor, Tensor]:
        """`rows` and `values` (B, M) of all processes, which must all call this; `uneven` where B may differ."""
        if not uneven:
            rows, values = accelerator.gather((self.rows, values))
            return rows, values
        rows, values = accelerator.gather(accelerator.pad_across_processes((self.rows, values), pad_index=-1))
        return rows[rows >= 0], values[rows >= 0]

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
        answer_nll=-sums.gather(-1, labels[:, None].clamp(min=0))[:, 0],  # an ordinary row has one option, the first
        logits=logits,
        batch=batch,
        temperature=temperature,
    )


def question_part(outputs: AnswerOutputs) -> AnswerOutputs:
    """The outputs of a mixed batch without its ordinary rows; `logits` and the batch's rows of tokens stay whole."""
    batch, width = outputs.batch, outputs.option_logits.shape[1]
    kept = outputs.labels != ORDINARY
    owner = batch.target_options // width
    targets = kept[owner]
    part = replace(
        batch,
        target_positions=batch.target_positions[targets],
        target_tokens=batch.target_tokens[targets],
        target_options=(kept.cumsum(0) - 1)[owner[targets]] * width + batch.target_options[targets] % width,
        option_lengths=batch.option_lengths[kept],
    )
    return replace(
        outputs,
        rows=outputs.rows[kept],
        option_logits=outputs.option_logits[kept],
        labels=outputs.labels[kept],
        answer_nll=outputs.answer_nll[kept],
        batch=part,
    )


@dataclass(frozen=True, slots=True)
class AnswerCollator:
    """Tokenised questions and ordinary rows -> a `PackedBatch` as a dict, as `Trainer` moves it between devices.

    An ordinary row is laid out as a question with one option, its tokens from the first learned one on.
    """

    pad_id: int
    options: int

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        learned: list[bool] = []
        encoded = []
        counts = []
        for feature in features:
            if feature.get("input_ids") is None:
                encoded.append(encoded_row(feature))
                learned += [True] * sum(map(len, encoded[-1].options))
                counts.append(0)
            else:
                item, targets = ordinary_row(feature)
                encoded.append(item)
                learned += targets
                counts.append(sum(targets))
        batch = pack(encoded, self.pad_id, options=self.options, row_tokens=ROW_TOKENS)
        if not all(learned):
            batch = _only_learned(batch, torch.tensor(learned))
        labels = [ORDINARY if tokens else feature["label"] for feature, tokens in zip(features, counts, strict=True)]
        rows = [ORDINARY if tokens else feature["row"] for feature, tokens in zip(features, counts, strict=True)]
        return {
            **{name: getattr(batch, name) for name in BATCH_FIELDS},
            "labels": torch.tensor(labels),
            "rows": torch.tensor(rows),
            "tokens": torch.tensor(counts),
        }


def ordinary_row(row: dict[str, Any]) -> tuple[EncodedQuestion, list[bool]]:
    """An ordinary row as prompt and one option, and which of the option's tokens are learned.

    >>> ordinary_row({"input_ids": [7, 8, 9, 5, 6], "labels": [-100, -100, 9, -100, 6]})
    (EncodedQuestion(prompt=(7, 8), options=((9, 5, 6),)), [True, False, True])
    """
    ids, labels = row["input_ids"], row["labels"]
    places = [place for place in range(1, len(ids)) if labels[place] != -100]  # nothing stands before the first token
    first, end = places[0], places[-1] + 1
    targets = [label != -100 for label in labels[first:end]]
    return EncodedQuestion(tuple(ids[:first]), (tuple(ids[first:end]),)), targets


def _only_learned(batch: PackedBatch, learned: Tensor) -> PackedBatch:
    """Without the targets that are not learned, and the positions that predict nothing else."""
    positions, places = torch.unique(batch.target_positions[learned], return_inverse=True)
    return replace(
        batch,
        positions=batch.positions[positions],
        target_positions=places,
        target_tokens=batch.target_tokens[learned],
        target_options=batch.target_options[learned],
    )


def row_counts(batch: dict[str, Tensor]) -> Tensor:
    """Questions, ordinary rows and the latter's learned tokens of a batch, (3,)."""
    ordinary = (batch["labels"] == ORDINARY).sum()
    return torch.stack([len(batch["labels"]) - ordinary, ordinary, batch["tokens"].sum()])


def token_hits(outputs: AnswerOutputs) -> Tensor:
    """Whether each learned token of the ordinary rows is the most likely one, as TRL's `mean_token_accuracy` asks."""
    width, batch = outputs.option_logits.shape[1], outputs.batch
    targets = outputs.labels[batch.target_options // width] == ORDINARY
    return outputs.logits.argmax(-1)[batch.target_positions[targets]] == batch.target_tokens[targets]


def question_scores(prediction: EvalPrediction, args: Any, state: Any) -> OptionLogits | None:
    """The questions among what was predicted, None without any; as `numbered_scores`."""
    asked = prediction.label_ids != ORDINARY
    return (
        numbered_scores(prediction.predictions[asked], prediction.label_ids[asked], args, state)
        if asked.any()
        else None
    )


def numbered_scores(logits: Any, labels: Any, args: Any, state: Any) -> OptionLogits:
    """What the model answers to questions of a data set; ids are row numbers.

    Raises `InputError` where an answer is no number: training with `args` has diverged by now, or never had a chance.
    """
    broken = np.isnan(logits).any(1) | np.isposinf(logits).any(1) | np.isneginf(logits).all(1)
    if broken.any():
        what = f"the model's outputs are no numbers for {broken.sum()} of {len(broken)} questions"
        if not state.global_step:
            raise InputError(f"{what} before the first step: look at its weights and their dtype")
        lower = f"take a learning_rate below {args.learning_rate:g}"
        raise InputError(f"{what} at step {state.global_step}: training has diverged; {lower}")
    return OptionLogits(tuple(map(str, range(len(labels)))), logits, np.asarray(labels))


def evaluation_metrics(
    scores: OptionLogits | None, own: Callable[[EvalPrediction], dict[str, float]] | None = None
) -> dict[str, float]:
    """Accuracy, mean confidence, ECE, Brier score and NLL, and `own` metrics; empty without questions.

    `own` gets option logits (N, K) and labels (N,), and wins over a name of ours.
    """
    if scores is None:
        return {}
    decided = scores.decide()
    return {
        "accuracy": accuracy(decided),
        "confidence": mean_confidence(decided),
        "ece": ece(decided),
        "brier": brier(scores),
        "nll": nll(scores),
        **(own(EvalPrediction(scores.logits, scores.labels)) if own else {}),
    }


def question_rows(
    examples: Examples, tokenizer: Any, answers: Any, template: Any, context: int | None, *, answers_only: bool = False
) -> Dataset:
    """Questions as a data set of token ids, labels and row numbers, with their places among other rows.

    With `answers_only` each has its right option alone, with label 0.

    Raises `InputError` for a question without options or an answer, and what `encode_questions` raises.
    """
    questions = examples.questions
    open_ended = [q.id for q in questions if not q.options]
    if open_ended:
        what = "open-ended ones are neither trained on nor evaluated here"
        raise InputError(f"{len(open_ended)} questions have no options, the first is id {open_ended[0]!r}: {what}")
    unlabelled = [q.id for q in questions if q.answer is None]
    if unlabelled:
        raise InputError(f"{len(unlabelled)} questions have no answer, the first is id {unlabelled[0]!r}")
    encoded = encode_questions(questions, tokenizer, answers=answers, template=template, context=context)
    labels = [q.answer or 0 for q in questions]
    if answers_only:
        encoded = [replace(item, options=(item.options[label],)) for item, label in zip(encoded, labels, strict=True)]
        labels = [0] * len(labels)
    columns = {
        "prompt_ids": [list(item.prompt) for item in encoded],
        "option_ids": [[list(option) for option in item.options] for item in encoded],
        "label": labels,
        "row": list(range(len(encoded))),
        LENGTH: [item.length for item in encoded],
        PLACE: list(examples.places),
    }
    # `from_dict` would pickle all of it for a fingerprint, which only a cache on disk needs.
    return Dataset(InMemoryTable.from_pydict(columns), fingerprint=generate_random_fingerprint())


def ordinary_rows(prepared: Dataset) -> Dataset:
    """What TRL has tokenised and labelled, without rows that teach nothing; nothing can predict a first token.

    Raises `InputError` where all of them teach nothing.
    """
    kept = prepared.select_columns(["input_ids", "labels", PLACE])
    kept = kept.filter(lambda labels: any(label != -100 for label in labels[1:]), input_columns="labels")
    if not len(kept):
        raise InputError("the ordinary rows must have a token to learn within max_length, got none in all of them")
    return kept.add_column(LENGTH, [len(ids) for ids in kept["input_ids"]])


def tokenised_rows(
    examples: Examples,
    tokenizer: Any,
    args: Any,
    context: int | None,
    *,
    prepare: Callable[[Dataset], Dataset],
    answers_only: bool = False,
) -> Dataset:
    """All examples in the order they came in, with `COLUMNS`, null where a row has none; `prepare` is TRL's."""
    parts = [ordinary_rows(prepare(rows)) for rows in examples.ordinary]
    if examples.questions or not parts:
        how = {"answers": args.answers, "template": args.template, "context": context, "answers_only": answers_only}
        parts.append(question_rows(examples, tokenizer, **how))
    if len(parts) == 1:
        return parts[0]
    rows = concatenate_datasets(parts)
    return rows.select(np.argsort(np.asarray(rows[PLACE]), kind="stable"))


def encoded_row(row: dict[str, Any]) -> EncodedQuestion:
    """A tokenised row of a data set as `EncodedQuestion`."""
    return EncodedQuestion(prompt=tuple(row["prompt_ids"]), options=tuple(map(tuple, row["option_ids"])))
