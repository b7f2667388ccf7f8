"""`CalibrationConfig`: TRL's `SFTConfig` with what questions with options need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from caltune.errors import InputError, require
from caltune.models import default_device
from caltune.output import launched

LOWER_IS_BETTER = ("nll", "ece", "brier")  # metrics of an evaluation


@dataclass
class CalibrationConfig(SFTConfig):
    """`SFTConfig` with what questions with options need; every other field means what it means in TRL.

    `bf16` is left off where there is no accelerator: float32 is the faster one on a CPU. `packing` and `padding_free`
    change nothing, since rows are packed in any case. `greater_is_better` is false by itself where
    `metric_for_best_model` is an `nll`, `ece` or `brier`.
    """

    answers: str = field(
        default="continuations",
        metadata={"help": "Score each option's text (continuations) or show the options and score letters (letters)."},
    )
    reduction: str = field(
        default="sum", metadata={"help": "How an option's token log-probabilities become its logit: sum, mean or min."}
    )
    template: str = field(
        default="auto", metadata={"help": "Prompt template: chat, plain, or auto (chat where the tokenizer has one)."}
    )
    answer_loss: str = field(
        default="options",
        metadata={
            "help": "Learn the answer by cross-entropy over the question's options (options), or by the negative "
            "log-likelihood of the answer's tokens over the whole vocabulary (tokens)."
        },
    )
    question_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the negative log-likelihood of the prompt's tokens, their sum, beside the loss of the "
            "answer; 1 with answer_loss tokens learns -log p(prompt, answer)."
        },
    )
    average_weights: float = field(
        default=0.0,
        metadata={"help": "Share of the steps, the last ones, whose weights are averaged; 0 keeps the last weights."},
    )
    option_temperature: float | None = field(
        default=None,
        metadata={
            "help": "T: option logits are divided by it from the first step on, and whenever the model is scored "
            "afterwards. 0 fits it to the answers that the untrained model gives to training questions; left out, it "
            "is the model's own, 1 where no training has left one."
        },
    )
    option_temperature_refit: bool = field(
        default=False,
        metadata={
            "help": "Fit T again after each step of the first epoch, to the answers given before a question was "
            "learned from; option_temperature is where it begins."
        },
    )
    fits_under_temperature = False  # whether the method fits something to probabilities, which T decides

    def __post_init__(self) -> None:
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "num_train_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if default_device().type == "cpu" and launched() > 1:
            self.use_cpu = True  # else each of the processes would look for a GPU, find none, and train by itself
        if self.use_cpu or default_device().type == "cpu":
            self.bf16 = bool(self.bf16)
            self.dataloader_pin_memory = False  # there is nowhere to copy to
        best = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and best.endswith(LOWER_IS_BETTER):
            self.greater_is_better = False  # transformers knows this of losses only
        # Rows of a batch share rows of tokens as it is, without reaching into each other.
        self.packing = self.padding_free = self.eval_packing = False
        # Questions are tokenised here, not by TRL.
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()
        require("answers", self.answers, ("continuations", "letters"))
        require("reduction", self.reduction, ("sum", "mean", "min"))
        require("template", self.template, ("auto", "chat", "plain"))
        require("answer_loss", self.answer_loss, ("options", "tokens"))
        if not 0 <= self.question_loss_weight < math.inf:
            raise InputError(f"question_loss_weight must be at least 0 and finite, got {self.question_loss_weight}")
        if not 0 <= self.average_weights <= 1:
            raise InputError(f"average_weights must lie in [0, 1], got {self.average_weights}")
        if self.average_weights and self.load_best_model_at_end:
            raise InputError(
                "average_weights above 0 would replace what load_best_model_at_end loads: take one of them"
            )
        if self.option_temperature is not None and not 0 <= self.option_temperature < math.inf:
            raise InputError(f"option_temperature must be at least 0 and finite, got {self.option_temperature}")
        if self.option_temperature is not None and self.answer_loss == "tokens":
            raise InputError("option_temperature has no part in answer_loss tokens: take options")
        if self.option_temperature_refit and self.option_temperature is None:
            how = "give 0 or a number, or set option_temperature_refit to False"
            raise InputError(f"option_temperature_refit needs an option_temperature to begin with: {how}, got None")
        if self.option_temperature_refit and self.fits_under_temperature:
            what = "what it fits under one T would be applied under another"
            raise InputError(f"option_temperature_refit must be False for {type(self).__name__}: {what}")
        # Both act in TRL's own loss, which is not used here.
        require("loss_type", self.loss_type, ("nll",))
        require("label_smoothing_factor", self.label_smoothing_factor, (0,))
        # A calibration error is of all answers at once.
        require("batch_eval_metrics", self.batch_eval_metrics, (False,))
        require("eval_do_concat_batches", self.eval_do_concat_batches, (True,))
        if self.include_for_metrics:
            what = "compute_metrics gets the questions' option logits and labels, nothing else"
            raise InputError(f"include_for_metrics must be left out, got {self.include_for_metrics}: {what}")


def require_config(trainer: Any, args: Any) -> None:
    """Raise `InputError` for a config that is not the trainer's: it would train another method than it is called.

    A trainer of ours takes its own class only, or one that declares no field beyond it, as `SFTConfig` does.
    """
    wanted, given = trainer.config_class, type(args)
    fits = isinstance(args, wanted)
    if fits and all(kind.__module__.startswith("caltune.") for kind in (given, type(trainer))):
        fits = given.__dataclass_fields__ is wanted.__dataclass_fields__
    if not fits:  # both packages have an SFTConfig
        names = [f"{kind.__name__} of {kind.__module__.partition('.')[0]}" for kind in (wanted, given)]
        raise InputError(f"{type(trainer).__name__}: args must be a {names[0]}, got {names[1]}")
