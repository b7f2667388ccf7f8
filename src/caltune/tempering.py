"""T, which option logits are divided by in training: set, or fitted before the first step, and in the first epoch."""

from __future__ import annotations

import random
import weakref
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
    For the same reason a question counts once, though it comes again where several processes share the last batch, or
    where a trainer trains its model once more; then T goes on from where it was.

    Dropout is on in a training step, so that a refitted T is that of the model with dropout.
    """

    def __init__(self, trainer: CalibrationTrainer) -> None:
        self.trainer = trainer
        self.seen: set[int] = set()  # rows of the questions that were answered in a training step so far
        self.answers: list[list[float]] = []  # the latest of their answers: the label, and the undivided logits
        self.step: list[tuple[torch.Tensor, torch.Tensor]] = []  # rows and answers of the present step
        self.trained: weakref.ref[Any] | None = None  # the model that has learned from them

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step or args.option_temperature is None:
            return  # what a checkpoint says holds
        self.step = []
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if self.trained is not None and self.trained() is model:
            return
        self.seen, self.answers, config = set(), [], model.config
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
            both = torch.cat([outputs.labels[:, None].float(), logits], dim=1)
            self.step.append(outputs.gathered(self.trainer.accelerator, both, uneven=self.trainer.has_ordinary))
        return outputs

    def on_step_end(self, *_: Any, **__: Any) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.trained = weakref.ref(model)
        if not self.step:
            return
        rows, answers = (torch.cat(parts).tolist() for parts in zip(*self.step, strict=True))
        self.step = []
        for row, answer in zip(rows, answers, strict=True):
            # What is no number is left to the checks for a training that diverges.
            if row not in self.seen and not any(np.isnan(value) or np.isposinf(value) for value in answer):
                self.answers.append(answer)
            self.seen.add(row)
        self.answers = self.answers[-WINDOW[1] :]
        if len(self.seen) < LEAST_SEEN or not self.answers:
            return
        window = self.answers[-min(max(len(self.seen) // 2, WINDOW[0]), WINDOW[1]) :]
        width = max(map(len, window))  # that of the data sets, which an evaluation may have changed since
        padded = np.array([answer + [-np.inf] * (width - len(answer)) for answer in window])
        try:
            scores = OptionLogits(tuple(map(str, range(len(window)))), padded[:, 1:], padded[:, 0].astype(int))
            model.config.option_temperature = fit_temperature(scores).temperature
        except InputError:  # all right or none better than chance, as a small window may be
            return

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on exactly in the first epoch; null is an option that is not there."""
        answers = [[None if np.isneginf(value) else value for value in answer] for answer in self.answers]
        given = {"seen": sorted(self.seen), "answers": answers}
        return given if self.trainer.args.option_temperature_refit else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.seen, self.step = set(state.get("seen", [])), []
        answers = state.get("answers", [])
        self.answers = [[-np.inf if value is None else value for value in answer] for answer in answers]
