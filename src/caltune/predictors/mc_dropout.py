"""MC dropout: several passes with the dropout of training left on, averaged.

Gal, Ghahramani 2016, *Dropout as a Bayesian Approximation* (arXiv 1506.02142), eq. 6:

    p̄ = (1/S) Σ_s softmax(z_s),   z_s the option logits of a pass with its own dropout masks
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from caltune.errors import InputError
from caltune.predictors.ensemble import average_probabilities
from caltune.scoring import score
from caltune.types import OptionLogits, Question


def mc_dropout_scores(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, passes: int = 10, seed: int = 0, **settings: Any
) -> OptionLogits:
    """Log of the probabilities averaged over `passes` scorings with dropout on; `settings` are those of `score`.

    Dropout is what the model and its adapter were trained with: that of LoRA (`lora_dropout`), of attention and of
    hidden layers. Every other part stays in evaluation mode. The same `seed` gives the same numbers on one machine, and
    torch's random state is left as it was. It costs `passes` times a scoring.

    Raises `InputError` for no passes, for a model without any dropout, for one whose passes are
    all alike (an adapter that is still zero, say), and what `score` raises.
    """
    if passes < 1:
        raise InputError(f"passes must be at least 1, got {passes}")
    with torch.random.fork_rng(), _dropping_out(model):
        torch.manual_seed(seed)
        found = [score(model, tokenizer, questions, **settings) for _ in range(passes)]
    if passes > 1 and all(np.array_equal(scores.logits, found[0].logits) for scores in found[1:]):
        raise InputError(f"MC dropout needs a model whose dropout changes its scores, got the same {passes} times")
    return average_probabilities(found)


@contextmanager
def _dropping_out(model: Any) -> Iterator[None]:
    """Inside, every forward pass of the model drops out, also in evaluation mode."""
    active = {module for module in model.modules() if _drops_out(module)}
    # A module may read the rate of a dropout layer in it and ask its own mode, as GPT-2's attention does; LoRA's layers
    # have one for each adapter in a `ModuleDict`, and with DoRA ask their own mode too.
    dropping = [module for module in model.modules() if module in active or not active.isdisjoint(_held(module))]
    if not dropping:
        raise InputError("MC dropout needs a model with dropout, got none above 0; train with --lora_dropout 0.1, say")
    modes = [(module, module.training) for module in model.modules()]

    def switch_on(*_: Any) -> None:
        for module in dropping:
            module.training = True  # not train(), which would switch what is inside it too

    # Scoring puts the model into evaluation mode, so dropout is switched on as a pass begins.
    handle = model.register_forward_pre_hook(switch_on)
    try:
        yield
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode


def _held(module: nn.Module) -> Iterator[nn.Module]:
    """What is directly in a module, or in a `ModuleDict` directly in it."""
    for child in module.children():
        yield child
        if isinstance(child, nn.ModuleDict):
            yield from child.children()


def _drops_out(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    # Many keep a rate as a number and ask their own mode: attention in most models, every layer in OPT.
    rates = (getattr(module, name, 0.0) for name in ("attention_dropout", "dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
