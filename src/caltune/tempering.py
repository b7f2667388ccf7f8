"""T, which option logits are divided by in training: set, or fitted before the first step, and in the first epoch."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from caltune.collator import AnswerOutputs
from caltune.errors import InputError
from caltune.recalibrate import fit_temperature
from caltune.types import OptionLogits

if TYPE_CHECKING:
    from caltune.trainer import CalibrationTrainer

FITTED_ON = 500  # training questions, before the first step
LEAST_SEEN = 64  # answers of the first pass, before T is first refitted
WINDOW = (128, 256)  # the fewest and the most of them that a T is refitted on


class OptionTemperature(TrainerCallback):
    """Sets T as the config says: a number, or 0 to fit it before the first step; then `option_temperature_refit`.

    Fitted, T minimises the NLL of the training questions' answers under softmax(z / T), z the untrained model's logits:
    the model has not been trained on them, so they are as good as held out. At most `FITTED_ON` of them are asked.

    Refitted, z are the logits that each question got in its own training step of the first epoch, before it was learned
    from, and T that of the latest w answers once `LEAST_SEEN` have come in:

        w = n, of n so far, up to 128; then half of them, at least 128 and at most 256

    Later ones are of a model more like the one that is left, and more of them give a steadier T. Where no T is best the
    last one stands. After the first epoch it stays: answers to questions learned from are surer than they should be.
    """

    def __init__(self, trainer: CalibrationTrainer) -> None:
        self.trainer = trainer
        self.seen = 0  # answers of the first pass so far
        self.answers: list[list[float]] = []  # the latest of them: each question's undivided logits, and its label
        self.step: list[torch.Tensor] = []  # those of the present step

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step or args.option_temperature is None:
            return  # what a checkpoint says holds
        self.seen, self.answers, self.step = 0, [], []
        config = self.trainer.accelerator.unwrap_model(self.trainer.model).config
        config.option_temperature = args.option_temperature or 1.0
        if not args.option_temperature:
            rows = self.trainer.train_rows
            chosen = random.Random(args.seed).sample(range(len(rows)), min(FITTED_ON, len(rows)))
            try:
                if not chosen:
                    raise InputError("the training data holds no questions")
                fitted = fit_temperature(self.trainer.present_logits(rows.select(chosen)))
            except InputError as error:
                raise InputError(f"option_temperature 0 fits it, which failed; give a number: {error}") from error
            config.option_temperature = fitted.temperature

    def noted(self, outputs: AnswerOutputs) -> AnswerOutputs:
        """The same outputs, kept where they are of a first pass; all processes must call this for each batch."""
        if self.trainer.args.option_temperature_refit and (self.trainer.state.epoch or 0) < 1:
            logits = outputs.option_logits.detach().float() * outputs.temperature
            both = torch.cat([logits, outputs.labels[:, None].float()], dim=1)
            _, both = outputs.gathered(self.trainer.accelerator, both, uneven=self.trainer.has_ordinary)
            self.step.append(both)
        return outputs

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if not self.step:
            return
        new = torch.cat(self.step).cpu().tolist()
        self.step = []
        self.seen += len(new)
        self.answers = [*self.answers, *new][-WINDOW[1] :]
        if self.seen < LEAST_SEEN:
            return
        window = np.array(self.answers[-min(max(self.seen // 2, WINDOW[0]), WINDOW[1]) :])
        scores = OptionLogits(tuple(map(str, range(len(window)))), window[:, :-1], window[:, -1].astype(int))
        try:
            fitted = fit_temperature(scores)
        except InputError:  # all right or none better than chance, as a small window may be
            return
        self.trainer.accelerator.unwrap_model(self.trainer.model).config.option_temperature = fitted.temperature

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on exactly in the first epoch; null is an option that is not there."""
        answers = [[None if np.isneginf(value) else value for value in answer] for answer in self.answers]
        return {"seen": self.seen, "answers": answers} if self.trainer.args.option_temperature_refit else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.seen, self.step = state.get("seen", 0), []
        answers = state.get("answers", [])
        self.answers = [[-np.inf if value is None else value for value in answer] for answer in answers]
