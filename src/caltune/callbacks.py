"""What happens at set moments of a training: an epoch's begin, its end, and the average of the weights."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from caltune.errors import InputError

if TYPE_CHECKING:
    from caltune.trainer import CalibrationTrainer

AVERAGE_FILE = "calibration_average.safetensors"  # beside the optimizer's state in a checkpoint


class EpochBegin(TrainerCallback):
    """Calls the trainer's `refresh`; at the very end looks that there are weights to leave."""

    def __init__(self, trainer: CalibrationTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        restored, self.trainer.state_restored = self.trainer.state_restored, False
        # An epoch resumed in its middle goes on with what was fitted at its begin.
        if not restored or float(state.epoch).is_integer():
            self.trainer.refresh()

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        parameters = self.trainer.accelerator.unwrap_model(self.trainer.model).parameters()
        # Where a gradient was no number, no evaluation need have met what it has left. With FSDP each process sees its
        # own part of the weights, and one that raised alone would leave the others waiting for it.
        own = (getattr(p, "to_local", lambda p=p: p)() for p in parameters if p.requires_grad)
        broken = torch.tensor(not all(p.isfinite().all() for p in own), device=self.trainer.accelerator.device)
        if state.global_step and self.trainer.accelerator.reduce(broken.float()) > 0:
            lower = f"take a learning_rate below {args.learning_rate:g}"
            raise InputError(
                f"the model's weights are no numbers after step {state.global_step}: training has diverged; {lower}"
            )


class WeightAverage(TrainerCallback):
    """Leaves the mean of the weights after each of the last steps in place of the last weights.

    θ̄ = (1/n) Σ_i θ_i over the last `share` of the optimizer steps, at least one (Izmailov et al. 2018, *Averaging
    Weights Leads to Wider Optima and Better Generalization*, arXiv 1803.05407, with every step as a cycle). Only what
    is trained is averaged, in float32: of LoRA its two factors, each by itself. Evaluations and checkpoints along the
    way are of the weights as they are; a checkpoint also holds the sum so far, so that resuming is exact.
    """

    def __init__(self, trainer: CalibrationTrainer, share: float) -> None:
        self.trainer, self.share = trainer, share
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def trained(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step < self.first(state):
            return
        if state.global_step == self.first(state):
            self.count, self.sums = 0, {}
        self.count += 1
        for name, weights in self.trained().items():
            now = weights.detach().float()
            self.sums[name] = now.clone() if name not in self.sums else self.sums[name].add_(now)

    def first(self, state: Any) -> int:
        """The first step whose weights enter."""
        return int(state.max_steps - max(1, math.ceil(self.share * state.max_steps)) + 1)

    def on_train_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if not self.count or state.global_step < self.first(state):
            steps = f"{self.first(state)} to {state.max_steps}"
            warnings.warn(
                f"average_weights={self.share} has averaged nothing: none of the steps {steps} was taken", stacklevel=2
            )
            return
        with torch.no_grad():
            for name, weights in self.trained().items():
                weights.copy_(self.sums[name] / self.count)

    def save(self, folder: str) -> None:
        """Write the sum so far into a checkpoint."""
        if self.count:
            sums = {name: values.cpu().contiguous() for name, values in self.sums.items()}
            save_file(sums, Path(folder, AVERAGE_FILE), metadata={"format": "pt", "count": str(self.count)})

    def load(self, folder: str) -> None:
        """Take the sum over from a checkpoint; one from before the first averaged step needs none.

        Raises `InputError` where it is not of all the steps so far that are to enter.
        """
        self.count, self.sums = 0, {}
        path = Path(folder, AVERAGE_FILE)
        if path.is_file():
            places = {name: weights.device for name, weights in self.trained().items()}
            self.sums = {name: values.to(places[name]) for name, values in load_file(path).items()}
            with safe_open(path, framework="pt") as file:
                self.count = int(file.metadata()["count"])
        wanted = self.trainer.state.global_step - self.first(self.trainer.state) + 1
        if wanted > 0 and wanted != self.count:
            what = f"must hold the sum of the weights after the last {wanted} steps, got {self.count}"
            raise InputError(f"{path}: {what}; go on with the average_weights of the checkpoint")
