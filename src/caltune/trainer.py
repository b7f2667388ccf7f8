"""`CalibrationTrainer`: TRL's `SFTTrainer` on questions with options. With its config the only TRL-aware code.

TRL 1.15 and later fuse the output head, so that its forward pass builds no logits; what a calibration term needs are
the logits where an answer is predicted, and nothing else. So `compute_loss` is overridden, the model is called without
labels, and a hook hands the output head only those positions (`caltune.scoring.packing`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTTrainer

from caltune.callbacks import EpochBegin, OptionTemperature, WeightAverage
from caltune.collator import (
    BATCH_FIELDS,
    AnswerCollator,
    AnswerOutputs,
    answer_outputs,
    encoded_row,
    evaluation_metrics,
    question_rows,
    require_apart,
)
from caltune.config import CalibrationConfig
from caltune.errors import InputError
from caltune.losses import cross_entropy_loss
from caltune.models import default_dtype, load_model, load_tokenizer, option_temperature, save_option_temperature
from caltune.scoring.engine import context_length, score_encoded
from caltune.scoring.packing import PackedBatch, forward
from caltune.scoring.prompt_loss import forward_with_prompt_nll
from caltune.types import OptionLogits, Question

__all__ = ["CalibrationConfig", "CalibrationTrainer"]

STATE_FILE = "calibration_state.json"  # beside the optimizer's state in a checkpoint


class CalibrationTrainer(SFTTrainer):
    """Fine-tune a language model to answer questions with options; methods add their calibration term to the loss.

    As it stands it is plain supervised fine-tuning, which on in-domain questions is CFT (Xiao et al. 2025, eq. 5):
    L = −log π(answer | prompt), by default normalised over the question's options.

    `train_dataset`, `eval_dataset` and `calibration_dataset` are lists of `Question` with known answers.
    `calibration_dataset` is what a method may fit on and never trains on. Evaluation logs `eval_accuracy`,
    `eval_confidence`, `eval_ece`, `eval_brier` and `eval_nll`.

    Raises `InputError` for a question without an answer, or one that stands in two of the three data sets
    (`eval_dataset` and `calibration_dataset` may share).
    """

    _tag_names: ClassVar = ["trl", "caltune"]
    _name = "Calibration-aware fine-tuning"
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: CalibrationConfig | None = None,
        train_dataset: Sequence[Question] = (),
        eval_dataset: Sequence[Question] | None = None,
        calibration_dataset: Sequence[Question] | None = None,
        processing_class: Any = None,
        compute_metrics: Callable[[Any], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args or CalibrationConfig("caltune-output")
        if isinstance(model, str) and kwargs.get("quantization_config") is None:
            # A frozen base may rest in half precision; weights that are trained may not.
            dtype = default_dtype(args.device) if peft_config is not None else torch.float32
            model, tokenizer = load_model(model, device=args.device, dtype=dtype, trainable_adapter=True)
            processing_class = processing_class or tokenizer
        elif isinstance(model, str):
            processing_class = processing_class or load_tokenizer(model)
        if processing_class is None:
            raise InputError("processing_class must be given with a model that is already loaded, got None")
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        require_apart(train_dataset, [*(eval_dataset or ()), *(calibration_dataset or ())])
        self._config = args
        self._user_metrics = compute_metrics
        self._context = None if isinstance(model, str) else context_length(model)
        self.processing_class = processing_class
        self._terms: dict[str, tuple[Tensor | float, int]] = {}
        self.state_restored = False
        self.averages = [WeightAverage(self, args.average_weights)] if args.average_weights else []
        self.calibration_questions = list(calibration_dataset or ())
        everything = [*train_dataset, *(eval_dataset or ()), *self.calibration_questions]
        collator = AnswerCollator(processing_class.pad_token_id, max(len(q.options) for q in everything))
        self.calibration_rows = self._tokenise(self.calibration_questions)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=self._tokenise(train_dataset),
            eval_dataset=self._tokenise(eval_dataset) if eval_dataset else None,
            processing_class=processing_class,
            compute_metrics=self._option_metrics,
            callbacks=[OptionTemperature(self), EpochBegin(self), *self.averages, *(callbacks or [])],
            peft_config=peft_config,
            **kwargs,
        )
        for name in ("question_loss_weight", "average_weights"):
            if getattr(args, name) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                raise InputError(f"{name} above 0 needs one process or DDP, got FSDP or DeepSpeed")

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
        """Option logits of tokenised questions under the model as it is now; ids are row numbers."""
        unwrapped = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            logits = score_encoded(
                unwrapped,
                [encoded_row(row) for row in rows],
                self.processing_class.pad_token_id,
                reduction=self._config.reduction,
            )
        return OptionLogits(tuple(map(str, range(len(rows)))), logits, np.asarray(rows["label"]))

    def record(self, name: str, values: Tensor) -> None:
        """Add values to be logged as a mean; kept on the device, so that a step never waits for the host."""
        total, count = self._terms.get(name, (0.0, 0))
        self._terms[name] = (total + values.detach().float().sum(), count + values.numel())

    # TRL's machinery.

    def _tokenise(self, questions: Sequence[Question]) -> Dataset:
        how = {"answers": self._config.answers, "template": self._config.template, "context": self._context}
        return question_rows(questions, self.processing_class, **how)

    def _set_signature_columns_if_needed(self) -> None:
        # Without this, columns that are no argument of the model's forward are dropped silently.
        self._signature_columns = ["prompt_ids", "option_ids", "label", "row"]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Count questions, not tokens: the loss of an optimizer step is a mean over all its questions."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        count = torch.tensor(sum(len(batch["labels"]) for batch in samples), device=device)
        return samples, self.accelerator.gather(count).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """One forward pass; logits only where a token of an option is predicted."""
        batch = PackedBatch(**{name: inputs[name] for name in BATCH_FIELDS})
        owner = self.accelerator.unwrap_model(model)
        weight = self._config.question_loss_weight if model.training else 0.0
        if weight:
            logits, question_nll = forward_with_prompt_nll(model, batch, head_owner=owner)
            self.record("question_nll", question_nll)
        else:
            logits, question_nll = forward(model, batch, head_owner=owner), 0.0
        outputs = answer_outputs(logits, inputs, batch, self._config.reduction, option_temperature(owner))
        losses = self.question_losses(outputs) if model.training else self.answer_losses(outputs)
        losses = losses + weight * question_nll
        if not model.training or num_items_in_batch is None:
            loss = losses.mean()
        else:  # gradients are averaged over processes, and the count is over all of them
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
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
        """Evaluate on a list of `Question`, or on the data set given at the start."""
        if eval_dataset is not None and not isinstance(eval_dataset, (Dataset, str)):
            most = max((len(question.options) for question in eval_dataset), default=0)
            self.data_collator = replace(self.data_collator, options=max(self.data_collator.options, most))
            eval_dataset = self._tokenise(eval_dataset)
        return super().evaluate(eval_dataset=eval_dataset, **kwargs)

    def _option_metrics(self, prediction: Any) -> dict[str, float]:
        own = self._user_metrics(prediction) if self._user_metrics else {}
        return {**evaluation_metrics(prediction.predictions, prediction.label_ids), **own}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of what was recorded since the last training log."""
        if "loss" in logs:
            logs.update({name: (total / count).item() for name, (total, count) in self._terms.items()})
        if "loss" in logs or "train_loss" in logs:  # not those of an evaluation
            self._terms.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        save_option_temperature(output_dir or self.args.output_dir, self.accelerator.unwrap_model(self.model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            temperature = option_temperature(self.accelerator.unwrap_model(self.model))
            state = {"option_temperature": temperature, "method": self.method_state()}
            Path(output_dir, STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            for average in self.averages:
                average.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and Path(checkpoint, STATE_FILE).is_file():
            state = json.loads(Path(checkpoint, STATE_FILE).read_text(encoding="utf-8"))
            self.accelerator.unwrap_model(self.model).config.option_temperature = state["option_temperature"]
            self.restore_method_state(state["method"])
            self.state_restored = True
            for average in self.averages:
                average.load(checkpoint)
        elif checkpoint is not None and (self._config.option_temperature is not None or self.averages):
            what = "so option_temperature and average_weights cannot be taken up; save_only_model leaves it out"
            raise InputError(f"{checkpoint}: has no {STATE_FILE}, {what}")

    def _send_telemetry(self) -> None:
        """TRL reports usage to its makers; caltune reports nothing to anyone."""
