"""Last-layer Laplace: how unsure a trained model should be of its last step, given how few questions taught it.

Daxberger et al. 2021, *Laplace Redux* (arXiv 2106.14806); for LoRA Yang et al. 2024 (arXiv 2308.13111).
A matrix M is put before the output head W, so that the hidden state h becomes h + M h. The trained model is M = 0, and
M is given a normal distribution around it, with the generalised Gauss–Newton matrix of the training questions:

    z_k(M) ≈ z_k + ⟨J_k, M⟩,   J_k = Σ_t (W_t − Σ_v π_v W_v) h_tᵀ          t: the tokens of option k
    Σ_M⁻¹ = GGN + τ·I,   GGN = Σ_i Σ_kl (p_k 1[k = l] − p_k p_l) vec(J_k) vec(J_l)ᵀ ≈ A ⊗ B / tr(A)
    p̄ = E softmax(z),   z ~ N(z(0), Σ_z),   (Σ_z)_kl = vec(J_k)ᵀ Σ_M vec(J_l)

A (H, H), of the hidden states, and B (H, H), of the gradients, are the partial traces of GGN. The prior precision τ is
the one with the least NLL on calibration questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caltune.errors import InputError
from caltune.models import option_temperature
from caltune.prompts import Answers, Template
from caltune.scoring.engine import Reduction, context_length, encode_questions, evaluating
from caltune.scoring.packing import PackedBatch, forward, option_logits, pack, token_log_probabilities
from caltune.types import FloatArray, OptionLogits, Question

BATCH_QUESTIONS = 8


@dataclass(frozen=True, slots=True)
class Linearised:
    """One question: option logits (K,), and J_k as Σ_t gradients_t hidden_tᵀ over the T tokens with options_t = k."""

    logits: FloatArray
    hidden: FloatArray
    gradients: FloatArray
    options: FloatArray

    def jacobians(self) -> FloatArray:
        """J (K, H, H), rows for gradients and columns for hidden states."""
        of = self.options == np.arange(len(self.logits))[:, None]
        return np.stack([self.gradients[own].T @ self.hidden[own] for own in of])


@dataclass(frozen=True, slots=True)
class Laplace:
    """The distribution of M: eigenvalues and eigenvectors of A and B, the prior's precision τ, and how to ask.

    `fitted_on` are the training and calibration ids, which it refuses to meet again.
    """

    hidden_values: FloatArray
    hidden_basis: FloatArray
    gradient_values: FloatArray
    gradient_basis: FloatArray
    precision: float
    answers: Answers = "continuations"
    reduction: Reduction = "sum"
    template: Template = "auto"
    fitted_on: tuple[str, ...] = field(default=(), repr=False)

    def covariance(self, question: Linearised) -> FloatArray:
        """Σ_z (K, K) of a question's option logits."""
        return self.covariances(question, np.array([self.precision]))[0]

    def covariances(self, question: Linearised, precisions: FloatArray) -> FloatArray:
        """The same for other τ in place of the chosen one, (S, K, K)."""
        hidden, gradients = question.hidden @ self.hidden_basis, question.gradients @ self.gradient_basis
        turned = replace(question, hidden=hidden, gradients=gradients).jacobians().reshape(len(question.logits), -1)
        # Eigenvalues below 0 are rounding.
        values = np.outer(self.gradient_values.clip(0), self.hidden_values.clip(0)).ravel() / self.hidden_values.sum()
        variances = 1 / (values[:, None] + precisions)
        return np.stack([(row * turned) @ variances for row in turned]).transpose(2, 0, 1)


def fit_laplace(
    model: Any,
    tokenizer: Any,
    train: Sequence[Question],
    calibration: Sequence[Question],
    *,
    answers: Answers = "continuations",
    reduction: Reduction = "sum",
    template: Template = "auto",
    precisions: Sequence[float] = (),
) -> Laplace:
    """Measure the curvature on the questions the model was trained on, and choose τ by NLL on calibration questions.

    `precisions` are the τ to choose from; by default ten from tr(GGN)/H², the mean eigenvalue, to 10·tr(GGN), where
    hardly anything is left to be unsure of. Costs one pass over both, and memory for K + 10 matrices of H × H.

    Raises `InputError` for questions without an answer or none at all, a question in both, `reduction` "min" (it has no
    derivative), a τ that is not positive, or a model whose output head is not a plain linear layer at its end.
    """
    if reduction not in ("sum", "mean"):
        raise InputError(f"reduction must be sum or mean for Laplace, got {reduction!r}")
    for name, questions in (("train", train), ("calibration", calibration)):
        if not questions or any(question.answer is None for question in questions):
            raise InputError(f"Laplace needs {name} questions with answers, got {len(questions)} questions")
    shared = {question.id for question in train} & {question.id for question in calibration}
    if shared:
        raise InputError(f"{len(shared)} training questions are also calibration questions, one is {min(shared)!r}")
    if any(not 0 < tau < math.inf for tau in precisions):
        raise InputError(f"precisions must be positive and finite, got {list(precisions)}")
    how = {"answers": answers, "reduction": reduction, "template": template}
    hidden, gradient = curvature(linearise(model, tokenizer, train, **how))
    total = float(np.trace(hidden))
    if not total > 0:
        raise InputError("Laplace needs a training question that the model is not certain of, got none")
    fitted = Laplace(
        *np.linalg.eigh(hidden),
        *np.linalg.eigh(gradient),
        precision=math.inf,
        fitted_on=tuple(question.id for question in (*train, *calibration)),
        **how,
    )
    grid = np.array(precisions if len(precisions) else np.geomspace(total / hidden.size, 10 * total, 10))
    losses = np.zeros(len(grid))
    for question, asked in zip(linearise(model, tokenizer, calibration, **how), calibration, strict=True):
        losses -= [log_mean_softmax(question.logits, c)[asked.answer] for c in fitted.covariances(question, grid)]
    return replace(fitted, precision=float(grid[losses.argmin()]))


def laplace_scores(
    model: Any, tokenizer: Any, questions: Sequence[Question], laplace: Laplace, *, draws: int = 512, seed: int = 0
) -> OptionLogits:
    """Log p̄ of each question under the fitted distribution of the last layer, by `draws` draws of its option logits.

    The model must be the one it was fitted with. Answers seldom change; confidence falls most for questions whose
    hidden states lie where training had few.

    Raises `InputError` when a question was fitted on, without questions, or for fewer than two draws.
    """
    if not questions:
        raise InputError("there are no questions to score")
    if draws < 2:
        raise InputError(f"draws must be at least 2, got {draws}")
    seen = set(laplace.fitted_on)
    shared = [question.id for question in questions if question.id in seen]
    if shared:
        raise InputError(f"Laplace must not meet questions it was fitted on, got {len(shared)}, first id {shared[0]!r}")
    how = {"answers": laplace.answers, "reduction": laplace.reduction, "template": laplace.template}
    logits = np.full((len(questions), max(len(question.options) for question in questions)), -np.inf)
    for row, question in enumerate(linearise(model, tokenizer, questions, **how)):
        own = log_mean_softmax(question.logits, laplace.covariance(question), draws, seed)
        logits[row, : len(own)] = own
    return OptionLogits(
        ids=tuple(question.id for question in questions),
        logits=logits.astype(np.float32),
        labels=np.array([-1 if q.answer is None else q.answer for q in questions], dtype=np.int32),
        groups=tuple(question.group for question in questions),
    )


def log_mean_softmax(logits: FloatArray, covariance: FloatArray, draws: int = 512, seed: int = 0) -> FloatArray:
    """log E softmax(z) for z ~ N(logits, covariance), (K,), by draws in pairs around the mean; the same for a seed.

    >>> np.exp(log_mean_softmax(np.array([2.0, 0.0]), np.zeros((2, 2)))).round(4)  # σ(2)
    array([0.8808, 0.1192])
    """
    values, basis = np.linalg.eigh(covariance)
    normal = np.random.default_rng(seed).standard_normal((draws // 2, len(logits)))
    shift = normal @ (np.sqrt(values.clip(0))[:, None] * basis.T)
    z = logits + np.concatenate([shift, -shift])
    logs = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    result: FloatArray = np.logaddexp.reduce(logs, axis=0) - math.log(len(logs))
    return result


def curvature(questions: Iterator[Linearised]) -> tuple[FloatArray, FloatArray]:
    """A and B, the partial traces of GGN over the gradients' and the hidden states' side; both have its trace."""
    hidden = gradient = np.zeros(())
    for question in questions:
        p = np.exp(question.logits - question.logits.max())
        p /= p.sum()
        spread = np.diag(p) - np.outer(p, p)
        weights = spread[np.ix_(question.options, question.options)]
        h, g = question.hidden, question.gradients
        hidden = hidden + h.T @ (weights * (g @ g.T)) @ h
        gradient = gradient + g.T @ (weights * (h @ h.T)) @ g
    return hidden, gradient


def linearise(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    answers: Answers = "continuations",
    reduction: Reduction = "sum",
    template: Template = "auto",
) -> Iterator[Linearised]:
    """Option logits and their derivatives in M for each question, in order. Raises `InputError` for an unfit head."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError(f"Laplace needs a plain linear output head, got {type(head).__name__}")
    encoded = encode_questions(questions, tokenizer, answers=answers, template=template, context=context_length(model))
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    for start in range(0, len(encoded), BATCH_QUESTIONS):
        batch = pack(encoded[start : start + BATCH_QUESTIONS], pad_id).to(model.device)
        yield from _split(batch, head, *_pass(model, head, batch), reduction, option_temperature(model))


def _pass(model: Any, head: nn.Linear, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Vocabulary logits (P, V), mean rows of the head under them (P, H), and hidden states (P, H) before the head."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0][0], output[0])))
    try:
        with evaluating(model), torch.inference_mode():
            logits = forward(model, batch).float()
            ((hidden, output),) = seen
            if not torch.equal(output.float(), logits):
                raise InputError("Laplace needs logits as the output head gives them, got a model that changes them")
            return logits, logits.softmax(-1) @ head.weight.float(), hidden.float()
    finally:
        handle.remove()


def _split(
    batch: PackedBatch,
    head: nn.Linear,
    logits: Tensor,
    mean_rows: Tensor,
    hidden: Tensor,
    reduction: str,
    temperature: float,
) -> Iterator[Linearised]:
    """A batch after its pass, question by question."""
    width = batch.option_lengths.shape[1]
    gradients = head.weight.detach()[batch.target_tokens].float() - mean_rows[batch.target_positions]
    if reduction == "mean":
        gradients = gradients / batch.option_lengths.flatten()[batch.target_options][:, None]
    gradients = gradients / temperature
    scores = (
        option_logits(token_log_probabilities(logits, batch), batch, reduction).double().cpu().numpy() / temperature
    )
    h, g, owner = (t.double().cpu().numpy() for t in (hidden[batch.target_positions], gradients, batch.target_options))
    for row, counted in enumerate((batch.option_lengths > 0).sum(-1).tolist()):
        own = owner // width == row
        yield Linearised(scores[row, :counted], h[own], g[own], (owner[own] % width).astype(int))
