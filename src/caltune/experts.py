"""The loss by which a mixture of experts keeps its experts equally busy, as TRL adds it to its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class ExpertBalance:
    """Takes the loss from each forward pass of a trainer's model, where TRL has switched it on; else there is none."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.found: Tensor | None = None
        if trainer.aux_loss_enabled:
            model = trainer.model
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            base.register_forward_hook(self._keep)

    def _keep(self, _: Any, __: Any, output: Any) -> None:
        self.found = output.aux_loss

    def added_to(self, loss: Tensor, *, accumulated: bool) -> Tensor:
        """The loss of a micro-batch with its share; a mean of the micro-batch, and so of `accumulated` ones a mean."""
        found, self.found = self.found, None  # its graph must not outlive the step
        if found is None:
            return loss
        if self.trainer.model.training:
            self.trainer.record("aux_loss", found[None])
        steps = self.trainer.current_gradient_accumulation_steps if accumulated else 1
        weighted: Tensor = self.trainer.router_aux_loss_coef * found / steps
        return loss + weighted
