"""`CalibrationTrainer`: TRL's `SFTTrainer` on questions with options. With its config the only TRL-aware code.

TRL 1.15 and later fuse the output head, so that its forward pass builds no logits; what a calibration term needs are
the logits where an answer is predicted, and nothing else. So `compute_loss` is overridden, the model is called without
labels, and a hook hands the output head only those positions (`caltune.scoring.packing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction, TrainerCallback
from trl import SFTTrainer

from caltune.callbacks import EpochBegin, WeightAverage
from caltune.checkpoints import Checkpoints, require_whole_weights
from caltune.collator import (
    BATCH_FIELDS,
    COLUMNS,
    ORDINARY,
    AnswerCollator,
    AnswerOutputs,
    answer_outputs,
    encoded_row,
    evaluation_metrics,
    numbered_scores,
    question_part,
    question_scores,
    row_counts,
    token_hits,
    tokenised_rows,
)
from caltune.config import CalibrationConfig, require_config
from caltune.errors import InputError
from caltune.examples import PLACE, Examples, read_examples, require_usable
from caltune.experts import ExpertBalance
from caltune.losses import cross_entropy_loss
from caltune.models import option_temperature
from caltune.scoring.engine import context_length, score_encoded
from caltune.scoring.packing import PackedBatch, forward
from caltune.scoring.processes import means_of
from caltune.scoring.prompt_loss import forward_with_prompt_nll
from caltune.starting import starting_model
from caltune.tempering import OptionTemperature
from caltune.trackers import ReliabilityDiagrams
from caltune.types import OptionLogits

__all__ = ["CalibrationConfig", "CalibrationTrainer"]

# TRL looks at a data set's first row before it could know our questions; it gets the real rows once it is set up.
STAND_IN = Dataset.from_list([{"messages": [{"role": "user", "content": "-"}]}])


class CalibrationTrainer(Checkpoints, SFTTrainer):
    """`SFTTrainer` for questions with options and ordinary rows; methods add their calibration term to the loss.

    On questions it is plain supervised fine-tuning as it stands, which on in-domain ones is CFT (Xiao et al. 2025,
    eq. 5): L = −log π(answer | prompt), by default normalised over the question's options. On ordinary rows (prompt
    and completion, messages, text) it is TRL's token cross-entropy. An optimizer step with n_q questions and n_o
    ordinary rows takes both means by their share of the rows; a method's term is in the first only:

        L = n_q / (n_q + n_o) · mean over questions + n_o / (n_q + n_o) · mean over the ordinary rows' learned tokens

    `train_dataset` and `eval_dataset` are what `SFTTrainer` takes, with questions in the columns that `caltune.data`
    knows, or lists of `Question`; all questions have known answers. `calibration_dataset`, questions only, is what a
    method may fit on and never trains on. Evaluation logs `eval_accuracy`, `eval_confidence`, `eval_ece`, `eval_brier`
    and `eval_nll` of the questions; `compute_metrics` gets their option logits (N, K) and labels (N,).

    Raises `InputError` for a question without an answer, or one that stands in two of the three data sets
    (`eval_dataset` and `calibration_dataset` may share), and for what `read_examples` and `starting_model` refuse.
    """

    _tag_names: ClassVar = ["trl", "caltune"]
    _name = "Calibration-aware fine-tuning"
    config_class: ClassVar[type[CalibrationConfig]] = CalibrationConfig
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: CalibrationConfig | None = None,
        data_collator: None = None,
        train_dataset: Any = (),
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: None = None,
        compute_metrics: Callable[[Any], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        *,
        calibration_dataset: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or self.config_class("caltune-output")
        require_config(self, args)
        if (data_collator, compute_loss_func, kwargs.get("preprocess_logits_for_metrics")) != (None, None, None):
            names = "data_collator, compute_loss_func, preprocess_logits_for_metrics"
            raise InputError(f"{names} must be left out: what they make is made here")
        self._config, self._format, self._user_metrics = args, formatting_func, compute_metrics
        train = self._read(train_dataset, "train_dataset")
        many = isinstance(eval_dataset, dict)
        given = eval_dataset if many else {"": eval_dataset or None}
        held_out = {name: self._read(data, f"eval_dataset {name}".strip()) for name, data in given.items()}
        calibration = self._read(calibration_dataset, "calibration_dataset")
        require_usable(train, held_out, calibration, metrics=compute_metrics is not None)
        if not train.questions and type(self).question_losses is not CalibrationTrainer.question_losses:
            raise InputError(f"{self._name} needs questions with options to train on, got ordinary rows only")
        self.train_questions, self.calibration_questions = list(train.questions), list(calibration.questions)
        self.has_ordinary = bool(train.ordinary)
        quantized = kwargs.get("quantization_config") is not None
        model, tokenizer = starting_model(model, args, adapter=peft_config is not None, quantized=quantized)
        processing_class = processing_class or tokenizer  # where there is none yet, TRL loads it
        if processing_class is None and not isinstance(model, str) and not model.config._name_or_path:
            raise InputError("processing_class must be given with a model that has no name, got None")
        self._terms: dict[str, tuple[Tensor | float, int]] = {}
        self.averages = [WeightAverage(self, args.average_weights)] if args.average_weights else []
        self.tempering = OptionTemperature(self)
        own = (self.tempering, EpochBegin(self), ReliabilityDiagrams(self), *self.averages)
        super().__init__(
            model=model,
            args=args,
            train_dataset=STAND_IN,
            eval_dataset=dict.fromkeys(held_out, STAND_IN) if many else STAND_IN if eval_dataset else None,
            processing_class=processing_class,
            compute_metrics=self._option_metrics,
            callbacks=[*own, *(callbacks or [])],
            peft_config=peft_config,
            **kwargs,
        )
        self.data_collator = AnswerCollator(self.processing_class.pad_token_id, 1)
        self.calibration_rows = self._prepared(calibration)
        self.train_dataset = self._prepared(train, answers_only=self._only_reads_answers())
        # Questions only, in their order: what a method asks the model about.
        self.train_rows = self._prepared(replace(train, ordinary=())) if train.ordinary else self.train_dataset
        if eval_dataset:
            prepared = {name: self._prepared(data) for name, data in held_out.items()}
            self.eval_dataset = prepared if many else prepared[""]
        self.experts = ExpertBalance(self)
        require_whole_weights(self)

    # What a method overrides.

    def question_losses(self, outputs: AnswerOutputs) -> Tensor:
        """The loss of each question, (B,); the trainer takes the mean over all questions of an optimizer step."""
        return self.answer_losses(outputs)

    def refresh(self) -> None:
        """Called before the first step and at each epoch's begin: fit here what depends on the present model."""

    def method_state(self) -> dict[str, Any]:
        """What `refresh` has fitted, as JSON holds it: saved with a checkpoint, so that resuming is exact."""
        return {}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Take over what `method_state` gave."""

    # What a method may use.

    def answer_losses(self, outputs: AnswerOutputs) -> Tensor:
        """Plain fine-tuning, (B,): the answer's cross-entropy among the options, or the NLL of its tokens."""
        if self._config.answer_loss == "tokens":
            return outputs.answer_nll
        return cross_entropy_loss(outputs.option_logits, outputs.labels)

    def present_logits(self, rows: Dataset) -> OptionLogits:
        """Option logits of tokenised questions under the model as it is now; ids are row numbers.

        Several processes share the questions and must all call this; all get the same.
        """
        with self.compute_loss_context_manager():
            logits = score_encoded(
                self.accelerator.unwrap_model(self.model),
                [encoded_row(row) for row in rows],
                self.processing_class.pad_token_id,
                reduction=self._config.reduction,
                together=True,
            )
        return numbered_scores(logits, rows["label"], self.args, self.state)

    def record(self, name: str, values: Tensor) -> None:
        """Add values to be logged as a mean; kept on the device, so that a step never waits for the host."""
        total, count = self._terms.get(name, (0.0, 0))
        self._terms[name] = (total + values.detach().float().sum(), count + values.numel())

    # TRL's machinery.

    def _read(self, data: Any, name: str) -> Examples:
        return read_examples(data, name, text_field=self._config.dataset_text_field, formatted=self._format is not None)

    def _only_reads_answers(self) -> bool:
        """Whether training looks at the right options only, so that the others need not be read."""
        names = ("question_losses", "answer_losses", "refresh")
        plain = all(getattr(type(self), name) is getattr(CalibrationTrainer, name) for name in names)
        return plain and self._config.answer_loss == "tokens"

    def _prepared(self, examples: Examples, *, answers_only: bool = False) -> Dataset:
        """Questions tokenised here and ordinary rows tokenised and labelled by TRL, in the order they came in."""
        most = max((len(question.options) for question in examples.questions), default=1)
        self.data_collator = replace(self.data_collator, options=max(self.data_collator.options, most))
        how = {"context": context_length(self.model), "prepare": self._prepare_ordinary, "answers_only": answers_only}
        return tokenised_rows(examples, self.processing_class, self._config, **how)

    def _prepare_ordinary(self, rows: Dataset) -> Dataset:
        args, first = self._config, rows[0]
        if args.assistant_only_loss and isinstance(first.get("completion", first.get(args.dataset_text_field)), str):
            raise InputError(f"assistant_only_loss needs rows with messages, got {list(first)}")
        # What TRL decides by the first row of all.
        completions = {"prompt", "completion"} <= set(rows.column_names)
        self.completion_only_loss = completions if args.completion_only_loss is None else args.completion_only_loss
        return super()._prepare_dataset(rows, self.processing_class, args, False, self._format, "ordinary")

    def _set_signature_columns_if_needed(self) -> None:
        # Without this, columns that are no argument of the model's forward are dropped silently.
        self._signature_columns = list(COLUMNS)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Questions, ordinary rows and their learned tokens, (3,), of all batches of an optimizer step."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        count = torch.stack([row_counts(batch).to(device) for batch in samples]).sum(0)
        return samples, self.accelerator.gather(count[None]).sum(0)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """One forward pass; logits only where a token of an option is predicted."""
        batch = PackedBatch(**{name: inputs[name] for name in BATCH_FIELDS})
        # Unwrapping walks over all modules, for which a step has no time.
        owner = self.model if model in (self.model, self.model_wrapped) else self.accelerator.unwrap_model(model)
        weight = self._config.question_loss_weight if model.training else 0.0
        if weight:
            logits, question_nll = forward_with_prompt_nll(model, batch, head_owner=owner)
            self.record("question_nll", question_nll[inputs["labels"] != ORDINARY])
        else:
            logits, question_nll = forward(model, batch, head_owner=owner), 0.0
        outputs = answer_outputs(logits, inputs, batch, self._config.reduction, option_temperature(owner))
        asked = outputs
        if self.has_ordinary or not model.training:
            asked = question_part(outputs)
            question_nll = question_nll[outputs.labels != ORDINARY] if weight else 0.0
        losses = self.question_losses(self.tempering.noted(asked)) if model.training else self.answer_losses(asked)
        total = (losses + weight * question_nll).sum()
        counts, processes = num_items_in_batch, self.accelerator.num_processes
        if not model.training or counts is None:
            counts, processes = row_counts(inputs), 1
        if self.has_ordinary or not model.training:
            learned = outputs.answer_nll[outputs.labels == ORDINARY]
            total = total + learned.sum() * counts[1] / counts[2].clamp(min=1)
            if model.training:
                self.record("question_loss", losses)
                self.record("mean_token_accuracy", token_hits(outputs))
        # Gradients are averaged over processes, and the counts are over all of them.
        loss = total * processes / (counts[0] + counts[1])
        loss = self.experts.added_to(loss, accumulated=num_items_in_batch is not None)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Option logits in place of vocabulary logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs.option_logits.float(), outputs.labels

    def evaluate(self, eval_dataset: Any = None, **kwargs: Any) -> dict[str, float]:
        """Evaluate on what `eval_dataset` takes, or on the data set given at the start."""
        self._eval_dataloaders = {}  # with persistent workers transformers would take those of other data
        return super().evaluate(eval_dataset=self._evaluated(eval_dataset), **kwargs)

    def predict(self, test_dataset: Any, **kwargs: Any) -> Any:
        """Option logits (N, K), labels (N,), −1 of an ordinary row, and metrics of what `eval_dataset` takes."""
        return super().predict(self._evaluated(test_dataset), **kwargs)

    def _evaluated(self, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: self._evaluated(part) for name, part in data.items()}
        if data is None or isinstance(data, str) or (isinstance(data, Dataset) and PLACE in data.column_names):
            return data
        return self._prepared(self._read(data, "eval_dataset"))

    def _option_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        self.evaluated = question_scores(prediction, self.args, self.state)
        return evaluation_metrics(self.evaluated, self._user_metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was recorded since the last training log."""
        if "loss" in logs:
            logs.update(means_of(self._terms, self.accelerator))
        if "loss" in logs or "train_loss" in logs:  # not those of an evaluation
            self._terms.clear()
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """TRL reports usage to its makers; caltune to nobody."""
